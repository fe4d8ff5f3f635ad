"""A receipt that was changed in any way, or that somebody else signed, is no receipt."""

from __future__ import annotations

import base64
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from dermino_core.certificate_checks import read_certificate
from dermino_core.errors import DerminoError
from dermino_core.withdrawal_receipt import (
    PrivateKey,
    Receipt,
    check_receipt,
    key_text,
    read_receipt,
    sign_receipt,
)
from dermino_server.certificates import make_authority, make_server_certificate, sign_member

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
HOUR = datetime.timedelta(hours=1)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_authority(folder)
    make_server_certificate(folder, ["localhost"], days=30)
    return folder


def authority(folder: Path) -> x509.Certificate:
    return read_certificate((folder / "ca.crt").read_bytes())


def server_key(folder: Path) -> PrivateKey:
    key = load_pem_private_key((folder / "server.key").read_bytes(), None)
    assert isinstance(key, PrivateKey)
    return key


def make(key: PrivateKey, certificate: str | None, **changes: Any) -> Receipt:
    values: dict[str, Any] = {
        "created": NOW,
        "site": "ph2",
        "run": "1" * 32,
        "sent_in": "2" * 32,
        "new_run": "3" * 32,
        "sums": {"total.counts": "4" * 64, "total.sums": "5" * 64},
        "old_model": "6" * 64,
        "new_model": "7" * 64,
        "trained_on": ["isic", "mednode"],
        "erased": ["sums of ph2"],
        "not_undone": ["backups", "copies"],
        "dermino_version": "1",
        "key": key_text(key.public_key()),
        "certificate": certificate,
        "signature": "A",
    }
    return sign_receipt(Receipt(**(values | changes)), key)


@pytest.fixture
def receipt(consortium: Path) -> Receipt:
    return make(server_key(consortium), (consortium / "server.pem").read_text())


def test_the_coordinators_receipt_holds_at_every_hospital(
    receipt: Receipt, consortium: Path, tmp_path: Path
) -> None:
    (tmp_path / "receipt.json").write_text(receipt.text())
    check_receipt(read_receipt(tmp_path / "receipt.json"), authority(consortium))


def test_a_receipt_with_an_own_key_holds_without_an_authority_only(consortium: Path) -> None:
    own = make(Ed25519PrivateKey.generate(), None)
    check_receipt(own, None)
    with pytest.raises(DerminoError, match="no authority vouches for"):
        check_receipt(own, authority(consortium))


def refused(content: bytes, file: Path, ca: x509.Certificate | None) -> bool:
    file.write_bytes(content)
    try:
        check_receipt(read_receipt(file), ca)
    except DerminoError as error:
        return error.exit_code in (6, 8)
    return False


def test_no_field_can_be_changed_taken_out_or_added(
    receipt: Receipt, consortium: Path, tmp_path: Path
) -> None:
    ca, file = authority(consortium), tmp_path / "receipt.json"
    content = json.loads(receipt.text())
    other = {
        "version": 2,
        "format": "dermino-bundle",
        "created": (NOW - HOUR).isoformat().replace("+00:00", "Z"),
        "site": "isic",
        "sums": {"total.counts": "4" * 64},
        "trained_on": ["isic"],
        "erased": ["sums of ph2", "everything"],
        "not_undone": ["backups"],
        "dermino_version": "2",
        "certificate": None,
        "key": make(Ed25519PrivateKey.generate(), None).key,
        "signature": make(server_key(consortium), None).signature,
    }
    other |= dict.fromkeys(("run", "sent_in", "new_run"), "0" * 32)
    other |= dict.fromkeys(("old_model", "new_model"), "0" * 64)
    assert set(other) == set(content)
    for name, value in other.items():
        for changed in (
            content | {name: value},
            {key: v for key, v in content.items() if key != name},
        ):
            text = json.dumps(changed, indent=2, ensure_ascii=False) + "\n"
            assert refused(text.encode(), file, ca), name
    for extra in ({"surprise": 1}, {"signature ": "A"}):
        assert refused((json.dumps(content | extra, indent=2) + "\n").encode(), file, ca)
    assert not refused((json.dumps(content, indent=2) + "\n").encode(), file, ca)


def test_no_byte_can_be_changed(receipt: Receipt, consortium: Path, tmp_path: Path) -> None:
    ca, file, content = authority(consortium), tmp_path / "receipt.json", receipt.text().encode()
    signature = content.index(b'"signature"')
    for place in (*range(0, signature, 5), *range(signature, len(content))):
        changed = bytearray(content)
        changed[place] ^= 1
        assert refused(bytes(changed), file, ca), content[place - 20 : place + 20]
    for end in (b"", b"\n\n", b"\n ", b"}"):
        assert refused(content.rstrip() + end, file, ca)
    assert refused(content[: len(content) // 2], file, ca)
    assert refused(b"[" * 100_000, file, ca)
    assert refused(b" " * 2**20 + content, file, ca)


def test_a_member_cannot_sign_in_the_coordinators_place(consortium: Path) -> None:
    key = Ed25519PrivateKey.generate()
    member = sign_member(consortium, "isic", key.public_key())
    forged = make(key, member.public_bytes(Encoding.PEM).decode())
    with pytest.raises(DerminoError, match="by a member"):
        check_receipt(forged, authority(consortium))


def test_another_consortiums_coordinator_cannot_either(
    receipt: Receipt, consortium: Path, tmp_path: Path
) -> None:
    make_authority(tmp_path)
    make_server_certificate(tmp_path, ["localhost"])
    forged = make(server_key(tmp_path), (tmp_path / "server.pem").read_text())
    with pytest.raises(DerminoError, match="another federation"):
        check_receipt(forged, authority(consortium))
    with pytest.raises(DerminoError, match="authority is not known here"):
        check_receipt(receipt, None)


def test_somebody_elses_certificate_does_not_help(consortium: Path) -> None:
    forged = make(Ed25519PrivateKey.generate(), (consortium / "server.pem").read_text())
    with pytest.raises(DerminoError, match="another key than its certificate"):
        check_receipt(forged, authority(consortium))


def test_the_authority_itself_signs_no_receipts(consortium: Path) -> None:
    key = load_pem_private_key((consortium / "ca.key").read_bytes(), None)
    assert isinstance(key, PrivateKey)
    forged = make(key, (consortium / "ca.crt").read_text())
    with pytest.raises(DerminoError, match="does not say what it is for"):
        check_receipt(forged, authority(consortium))


def test_a_receipt_outlives_the_certificate_but_is_not_older_or_newer(consortium: Path) -> None:
    key, pem = server_key(consortium), (consortium / "server.pem").read_text()
    later = NOW + datetime.timedelta(days=400)
    check_receipt(make(key, pem), authority(consortium), now=later)
    for days, now in ((-1, NOW), (31, later)):
        dated = make(key, pem, created=NOW + datetime.timedelta(days=days))
        with pytest.raises(DerminoError, match="outside the lifetime"):
            check_receipt(dated, authority(consortium), now=now)
    with pytest.raises(DerminoError, match="from the future"):
        check_receipt(make(key, pem, created=NOW + 2 * HOUR), authority(consortium), now=NOW)


def test_a_signature_of_something_else_does_not_count(receipt: Receipt, consortium: Path) -> None:
    """The signed bytes begin with what they are for."""
    key = server_key(consortium)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(receipt.signed_bytes(), ec.ECDSA(hashes.SHA384()))
    bare = receipt.model_copy(update={"signature": base64.b64encode(signature).decode()})
    with pytest.raises(DerminoError, match="signature does not fit"):
        check_receipt(bare, authority(consortium))
