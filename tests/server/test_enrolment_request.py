"""A request: its two signatures, what tampering does to it, and the comparison by phone."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from enrolling import HOST, admit, ask, invoke, refused  # beside this file
from federation import contents, leaves
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_client.enrol import enrol
from dermino_core.comparison import compare_by_phone
from dermino_core.enrolment import Request, grouped, read_signed, same_fingerprint
from dermino_core.errors import DerminoError
from dermino_core.public_keys import node_key, node_text
from dermino_server.provisioning import provision


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    out = tmp_path / "keys"
    provision(out, hosts=[HOST])
    return out


@pytest.fixture
def flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    return tmp_path / "flower"


# ---------------------------------------------------------------- the request


def test_other_programs_agree_about_a_request(tmp_path: Path) -> None:
    """Digest and both signatures, from the file alone: sha256 of Python, signatures of openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command")
    done = enrol(tmp_path / "site", "mednode")
    content = json.loads(done.file.read_text())
    names = ("identity_signature", "node_signature")
    signatures = {name: base64.b64decode(content.pop(name)) for name in names}
    signed = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(signed).hexdigest() == done.request.digest
    (tmp_path / "signed").write_bytes(signed)
    for name, signature in signatures.items():
        (tmp_path / name).write_bytes(signature)
    spki = bytes.fromhex("302a300506032b6570032100") + base64.b64decode(content["identity_key"])
    (tmp_path / "identity.der").write_bytes(spki)  # RFC 8410, 4: the prefix of an Ed25519 key
    command = [openssl, "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-rawin"]
    command += ["-inkey", "identity.der", "-in", "signed", "-sigfile", "identity_signature"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    point = base64.b64decode(content["node_key"].split()[1])[-97:]
    spki = bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200") + point
    (tmp_path / "node.der").write_bytes(spki)  # RFC 5480, 2.1: secp384r1, uncompressed
    command = [openssl, "dgst", "-sha384", "-verify", "node.der", "-keyform", "DER"]
    command += ["-signature", "node_signature", "signed"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A coordinator's folder and a request, to be tampered with."""
    folder = tmp_path_factory.mktemp("tampering")
    provision(folder / "keys", hosts=[HOST])
    return folder / "keys", ask(folder)


@st.composite
def tampering(draw: st.DrawFn, content: Any) -> Any:
    """JSON content with one value changed, taken out, or put in."""
    content = copy.deepcopy(content)
    path = draw(st.sampled_from(list(leaves(content))))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    value, kind = inner[path[-1]], draw(st.sampled_from(["change", "replace", "drop", "add"]))
    if kind == "change" and isinstance(value, str) and value:
        at = draw(st.integers(0, len(value) - 1))
        other = draw(st.sampled_from("AaZz09+/=- .\n{}é").filter(lambda c: c != value[at]))
        inner[path[-1]] = value[:at] + other + value[at + 1 :]
    elif kind == "drop":
        del inner[path[-1]]
    elif kind == "add":
        content[draw(st.sampled_from(["extra", "FORMAT", ""]))] = value
    else:
        strange = st.none() | st.integers() | st.text(max_size=9) | st.just([]) | st.just({})
        inner[path[-1]] = draw(strange.filter(lambda new: new != value))
    return content


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_request_that_was_tampered_with_is_refused(
    asked: tuple[Path, Path], data: st.DataObject
) -> None:
    keys, request = asked
    original = read_signed(request, Request)
    content = data.draw(tampering(json.loads(request.read_text())))
    file = request.with_name("tampered.json")
    file.write_text(json.dumps(content))
    try:
        if read_signed(file, Request) == original:
            return  # the same moment, spelled another way
    except DerminoError:
        pass
    assert refused(keys, file, "request").code == "ENROLMENT_INVALID"
    assert not (keys / "roster.json").exists()


def test_node_keys_have_one_spelling() -> None:
    """The short form of the point, another curve, a comment: all of them are keys to OpenSSH."""
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    line = node_text(key)
    assert node_key(line) == key
    blob = base64.b64decode(line.split()[1])
    short = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    head = blob[: -97 - 4]
    compressed = base64.b64encode(head + len(short).to_bytes(4, "big") + short).decode()
    other = node_text(ec.generate_private_key(ec.SECP256R1()).public_key())
    ed25519 = Ed25519PrivateKey.generate().public_key()
    third = ed25519.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    for wrong in (f"ecdsa-sha2-nistp384 {compressed}", other, third, f"{line} me", f"{line}\n", ""):
        with pytest.raises(ValueError, match="not a P-384"):
            node_key(wrong)


def test_a_signature_has_one_spelling(keys: Path, tmp_path: Path) -> None:
    """The last digit of base64 before `==` holds four bits that decoding drops."""
    request = ask(tmp_path)
    content = json.loads(request.read_text())
    text = content["identity_signature"]
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = f"{text[:-3]}{digits[digits.index(text[-3]) + 1]}=="
    assert base64.b64decode(other) == base64.b64decode(text)
    request.write_text(json.dumps(content | {"identity_signature": other}))
    refused(keys, request, "signatures do not fit")


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff", b"[]", b"null", b"[" * 5000, b"{" * 100_000, b'{"format": 1}']
)
def test_what_is_no_request_is_refused(keys: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mednode.request.json"
    file.write_bytes(content)
    assert refused(keys, file, "not a whole request").code == "ENROLMENT_INVALID"
    refused(keys, tmp_path / "nowhere.json", "no such file")
    refused(keys, tmp_path, "not a whole request")


def test_a_key_cannot_be_claimed_by_whoever_does_not_have_it(keys: Path, tmp_path: Path) -> None:
    """Each key signs: neither a stolen node key's owner nor an identity can be borrowed."""
    ours = json.loads(ask(tmp_path, "mednode").read_text())
    theirs = json.loads(ask(tmp_path, "ph2").read_text())
    for part in ("node", "identity"):
        borrowed = ours | {f"{part}_key": theirs[f"{part}_key"]}
        for signature in (ours, theirs):
            both = borrowed | {f"{part}_signature": signature[f"{part}_signature"]}
            file = tmp_path / "borrowed.json"
            file.write_text(json.dumps(both))
            refused(keys, file, "signatures do not fit")


def test_a_clock_that_is_off_is_named_with_both_times(keys: Path, tmp_path: Path) -> None:
    now = datetime(2030, 1, 1, 12, tzinfo=UTC)
    late = ask(tmp_path, now=now + timedelta(hours=2))
    error = refused(keys, late, "a clock is off", now=now)
    assert "2030-01-01 14:00:00 UTC" in error.what
    assert "2030-01-01 12:00:00 UTC" in error.what
    assert "timedatectl" in str(error.fix)
    assert admit(keys, late, now=now + timedelta(hours=1, minutes=1)).kind == "new"


# ---------------------------------------------------------------- by phone


def test_fingerprints_are_compared_in_any_spelling() -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    assert grouped(digest).replace(" ", "").lower() == digest[:32]
    assert [len(group) for group in grouped(digest).split()] == [4] * 8
    spellings = (grouped(digest), grouped(digest).lower(), digest, digest.upper())
    with_colons = ":".join(digest[i : i + 2] for i in range(0, 64, 2)).upper()
    for given_ in (*spellings, with_colons, f"  {digest[:32]}\n"):
        assert same_fingerprint(given_, digest)
    wrong = ("", digest[:31], digest[:16], digest[32:], digest[1:33], digest[:33], "0" * 32)
    for given_ in (*wrong, grouped(digest)[:-1]):
        assert not same_fingerprint(given_, digest)


def test_nobody_is_accepted_without_a_person(keys: Path, tmp_path: Path, flower: Path) -> None:
    request = ask(tmp_path)
    before = contents(keys)
    common = ("accept", request, "--out", keys, "--no-register")
    done = invoke(*common)
    assert isinstance(done.exception, DerminoError)
    assert done.exception.code == "CONFIG_INVALID"
    assert "--fingerprint" in str(done.exception)
    done = invoke(*common, "--fingerprint", "0000 " * 8)
    assert isinstance(done.exception, DerminoError)
    assert done.exception.code == "ENROLMENT_INVALID"
    assert contents(keys) == before
    digest = read_signed(request, Request).digest
    done = invoke(*common, "--fingerprint", grouped(digest))
    assert done.exit_code == 0, done.output
    assert "flwr supernode register" in done.output
    assert "mednode.bundle.json" in done.output
    common = ("accept", ask(tmp_path, "ph2"), "--out", keys, "--no-register")
    assert invoke(*common, "--yes").exit_code == 0


@pytest.mark.parametrize(
    ("answer", "goes_on"),
    [("yes", True), ("y", True), (" YES ", True), ("no", False), ("", False), ("yess", False)],
)
def test_the_answer_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, answer: str, goes_on: bool
) -> None:
    keyboard, terminal = os.openpty()
    try:
        os.write(keyboard, f"{answer}\n".encode())
        with os.fdopen(terminal, "r") as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            if goes_on:
                compare_by_phone("x", "a" * 64, whom="y")
            else:
                with pytest.raises(DerminoError, match="not confirmed"):
                    compare_by_phone("x", "a" * 64, whom="y")
    finally:
        os.close(keyboard)
