"""Whose key is whose: pinned at first sight, never swapped, and told apart from an impostor's."""

from __future__ import annotations

import base64
import datetime
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from federation import contents, join  # tests/server
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dermino_client.commands.enrol import members as members_command
from dermino_client.enrol import enrol, install_bundle
from dermino_client.members import (
    Members,
    NewMembers,
    forget_member,
    list_members,
    pin_keys,
    read_pins,
)
from dermino_client.membership import accept_member, own_identity, waiting_members
from dermino_core.certificate_checks import expiry_warning
from dermino_core.enrolment import grouped
from dermino_core.errors import DerminoError
from dermino_core.public_keys import key_digest
from dermino_server.certificates import sign_member
from dermino_server.enrolment import accept
from dermino_server.provisioning import provision
from dermino_server.revocation import revoke

HOST = "coordinator.example.org"


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator and two sites, mednode and ph2, that know each other."""
    folder = tmp_path_factory.mktemp("founded")
    provision(folder / "keys", hosts=[HOST])
    for name in ("mednode", "ph2"):
        join(folder / "keys", folder / f"{name}.site", name)
    mednode = folder / "mednode.site"
    install_bundle(mednode, "mednode", folder / "keys/sites/mednode/mednode.bundle.json")
    return folder


@pytest.fixture
def here(founded: Path, tmp_path: Path) -> Path:
    """As `founded`, for one test."""
    shutil.copytree(founded, tmp_path / "here")
    return tmp_path / "here"


def members(here: Path, *, new: NewMembers = "authority", **options: Any) -> Members:
    return Members(here / "mednode.site", new_members=new, **options)


def newcomer(here: Path, name: str = "third", **options: Any) -> tuple[Ed25519PublicKey, str]:
    """Another hospital's identity key and membership certificate."""
    request = enrol(here / f"{name}.site", name).file
    accepted = accept(here / "keys", request, confirm=lambda *_: None, register=False, **options)
    install_bundle(here / f"{name}.site", name, accepted.bundle, yes=True)
    private, certificate = own_identity(here / f"{name}.site")
    return private.public_key(), certificate


def certify(here: Path, name: str, key: Ed25519PublicKey, **options: Any) -> str:
    certificate = sign_member(here / "keys", name, key, **options)
    return certificate.public_bytes(Encoding.PEM).decode()


def unknown(who: Members, name: str, certificate: str, words: str) -> DerminoError:
    folder = who._folder
    before = contents(folder)
    with pytest.raises(DerminoError, match=words) as caught:
        who.identity_key(name, certificate)
    assert caught.value.code == "MEMBER_UNKNOWN"
    assert contents(folder) == before
    return caught.value


def test_members_of_the_bundle_are_known(here: Path) -> None:
    private, certificate = own_identity(here / "ph2.site")
    before = contents(here / "mednode.site")
    for new in ("authority", "ask"):
        assert members(here, new=new).identity_key("ph2", certificate) == private.public_key()
    mine, own = own_identity(here / "mednode.site")
    assert members(here).identity_key("mednode", own) == mine.public_key()
    assert contents(here / "mednode.site") == before


def test_a_newcomer_is_pinned_when_the_authority_vouches_for_it(here: Path) -> None:
    key, certificate = newcomer(here)
    assert members(here).identity_key("third", certificate) == key
    pin = read_pins(here / "mednode.site").members["third"]
    assert (pin.how, pin.certificate) == ("authority", certificate)
    assert members(here, new="ask").identity_key("third", certificate) == key
    listed = {member.name: member for member in list_members(here / "mednode.site")}
    assert set(listed) == {"mednode", "ph2", "third"}
    assert listed["third"].digest == key_digest(key)
    assert not listed["third"].revoked


def test_a_swapped_identity_is_refused(here: Path) -> None:
    """By an authority that vouches for another key under a known name: the coordinator's attack."""
    impostor = Ed25519PrivateKey.generate().public_key()
    certificate = certify(here, "ph2", impostor)
    error = unknown(members(here), "ph2", certificate, "another identity key")
    known = read_pins(here / "mednode.site").members["ph2"]
    assert grouped(known.digest) in error.what
    assert grouped(key_digest(impostor)) in error.what
    assert "--forget ph2" in str(error.fix)
    forget_member(here / "mednode.site", "ph2")
    assert members(here).identity_key("ph2", certificate) == impostor


def test_certificates_that_vouch_for_nothing(here: Path, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate().public_key()
    provision(tmp_path / "elsewhere", hosts=[HOST])
    foreign = sign_member(tmp_path / "elsewhere", "third", key)
    now = datetime.datetime.now(UTC)
    good = certify(here, "third", key, days=10)
    who = members(here)
    unknown(who, "third", foreign.public_bytes(Encoding.PEM).decode(), "not signed by this fed")
    unknown(who, "third", certify(here, "other", key), "is for 'other'")
    unknown(who, "THIRD", good, "is for 'third'")
    unknown(who, "third", (here / "keys/server.pem").read_text(), "is for 'dermino coord")
    unknown(who, "third", (here / "keys/ca.crt").read_text(), "is for 'dermino consortium")
    for nonsense in ("", "x", "-----BEGIN CERTIFICATE-----\n", "\x00", "é" * 70_000):
        unknown(who, "third", nonsense, "not a whole certificate")
    for name in ("", "../x", "a b", "x" * 64):
        unknown(who, name, good, "cannot name")
    late, early = now + timedelta(days=11), now - timedelta(hours=3)
    unknown(members(here, now=late), "third", good, "expired on")
    assert "clock may be off" in unknown(members(here, now=early), "third", good, "before").what
    assert members(here, now=now + timedelta(days=9)).identity_key("third", good) == key
    # Known names have to show a valid certificate, too.
    _, ph2 = own_identity(here / "ph2.site")
    unknown(members(here, now=now + timedelta(days=826)), "ph2", ph2, "expired on")
    unknown(who, "ph2", "", "not a whole certificate")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_certificate_is_refused_in_words(founded: Path, data: st.DataObject) -> None:
    """One byte of its DER is another: never anything but a refusal, or the same key."""
    private, pem = own_identity(founded / "ph2.site")
    der = bytearray(x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER))
    at = data.draw(st.integers(0, len(der) - 1))
    der[at] = data.draw(st.integers(0, 255).filter(lambda value: value != der[at]))
    body = base64.encodebytes(bytes(der)).decode()
    shown = f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n"
    code = None
    try:
        assert members(founded).identity_key("ph2", shown) == private.public_key()
    except DerminoError as error:
        code = error.code
    assert code in (None, "MEMBER_UNKNOWN")
    expiry_warning("x", shown)


def test_before_enrolment_nobody_is_known(tmp_path: Path, here: Path) -> None:
    folder = tmp_path / "new.site"
    folder.mkdir()
    _, certificate = own_identity(here / "ph2.site")
    error = unknown(Members(folder, new_members="authority"), "ph2", certificate, "not enrolled")
    assert "--bundle" in str(error.fix)


def test_a_renewed_certificate_of_a_known_key_is_welcome(here: Path) -> None:
    private, first = own_identity(here / "ph2.site")
    folder = here / "mednode.site"
    since = read_pins(folder).members["ph2"].since
    later = certify(here, "ph2", private.public_key(), days=900)
    assert members(here).identity_key("ph2", later) == private.public_key()
    pin = read_pins(folder).members["ph2"]
    assert (pin.certificate, pin.since, pin.how) == (later, since, "bundle")
    assert members(here).identity_key("ph2", first) == private.public_key()
    assert read_pins(folder).members["ph2"].certificate == later


def test_ask_waits_for_a_person(here: Path) -> None:
    folder = here / "mednode.site"
    key, certificate = newcomer(here)
    error = unknown(members(here, new="ask"), "third", certificate, "nobody at this site")
    assert "members --accept third" in str(error.fix)
    with pytest.raises(DerminoError, match="does not name third") as caught:
        accept_member(folder, "third", yes=True)
    assert caught.value.code == "MEMBER_UNKNOWN"

    newer = here / "keys/sites/mednode/mednode.bundle.json"
    done = install_bundle(folder, "mednode", newer, new_members="ask")
    assert (done.added, done.waiting) == ((), ("third",))
    assert [member.name for member in waiting_members(folder)] == ["third"]
    unknown(members(here, new="ask"), "third", certificate, "nobody at this site")
    before = contents(folder)
    for wrong in ({"fingerprint": "0" * 32}, {}):
        with pytest.raises(DerminoError):
            accept_member(folder, "third", **wrong)
    assert contents(folder) == before
    accept_member(folder, "third", fingerprint=grouped(key_digest(key)))
    assert members(here, new="ask").identity_key("third", certificate) == key
    assert read_pins(folder).members["third"].how == "accepted"
    assert waiting_members(folder) == []
    accept_member(folder, "third", yes=True)


def test_the_first_bundle_is_accepted_as_a_whole(here: Path) -> None:
    """Whoever asks about newcomers still has to begin with somebody: the authority was compared."""
    request = enrol(here / "new.site", "new").file
    bundle = accept(here / "keys", request, confirm=lambda *_: None, register=False).bundle
    done = install_bundle(here / "new.site", "new", bundle, new_members="ask", yes=True)
    assert (done.added, done.waiting) == (("mednode", "ph2"), ())


def test_accepting_does_not_swap(here: Path) -> None:
    """The bundle names another key than the one pinned: accepting is no way around it."""
    folder = here / "mednode.site"
    forget_member(folder, "ph2")
    impostor = Ed25519PrivateKey.generate().public_key()
    members(here).identity_key("ph2", certify(here, "ph2", impostor))
    before = contents(folder)
    for yes in (True, False):  # refused before anybody is asked
        with pytest.raises(DerminoError, match="another identity key") as caught:
            accept_member(folder, "ph2", yes=yes)
        assert caught.value.code == "ENROLMENT_INVALID"
    assert contents(folder) == before


def test_a_revoked_key_is_refused_once_a_bundle_says_so(here: Path) -> None:
    folder = here / "mednode.site"
    private, certificate = own_identity(here / "ph2.site")
    revoke(here / "keys", "ph2", at_superlink=False)
    assert members(here).identity_key("ph2", certificate) == private.public_key()
    install_bundle(folder, "mednode", here / "keys/sites/mednode/mednode.bundle.json")
    unknown(members(here), "ph2", certificate, "revoked")
    assert [member.revoked for member in list_members(folder)] == [False, True]
    forget_member(folder, "ph2")
    unknown(members(here), "ph2", certificate, "revoked")
    assert "ph2" not in read_pins(folder).members


def test_keys_without_certificates_are_for_simulations(tmp_path: Path) -> None:
    keys = {name: Ed25519PrivateKey.generate().public_key() for name in ("a", "b")}
    pin_keys(tmp_path / "site", keys)
    who = Members(tmp_path / "site", new_members="authority")
    assert {name: who.identity_key(name, "") for name in keys} == keys
    unknown(who, "c", "", "not enrolled")
    pin_keys(tmp_path / "site", keys)
    with pytest.raises(DerminoError, match="a comes with another"):
        pin_keys(tmp_path / "site", {"a": keys["b"]})


def test_processes_that_pin_at_once_lose_nobody(here: Path) -> None:
    keys = {f"site{number}": Ed25519PrivateKey.generate().public_key() for number in range(12)}
    shown = {name: certify(here, name, key) for name, key in keys.items()}
    with ThreadPoolExecutor(12) as pool:
        found = dict(
            zip(
                keys, pool.map(lambda n: members(here).identity_key(n, shown[n]), keys), strict=True
            )
        )
    assert found == keys
    assert set(read_pins(here / "mednode.site").members) == {"mednode", "ph2", *keys}


def test_two_keys_for_one_new_name_cannot_both_win(here: Path) -> None:
    keys = [Ed25519PrivateKey.generate().public_key() for _ in range(8)]
    shown = [certify(here, "third", key) for key in keys]

    def attempt(certificate: str) -> Ed25519PublicKey | None:
        try:
            return members(here).identity_key("third", certificate)
        except DerminoError:
            return None

    with ThreadPoolExecutor(8) as pool:
        won = [key for key in pool.map(attempt, shown) if key is not None]
    assert len(won) == 1
    assert read_pins(here / "mednode.site").members["third"].digest == key_digest(won[0])


@pytest.mark.parametrize("damage", ["{", "[]", '{"members": {"a b": 1}}'])
def test_a_damaged_list_is_named(here: Path, damage: str) -> None:
    file = here / "mednode.site" / "members.json"
    file.write_text(damage)
    _, certificate = own_identity(here / "ph2.site")
    with pytest.raises(DerminoError, match="damaged") as caught:
        members(here).identity_key("ph2", certificate)
    assert (caught.value.code, caught.value.where) == ("ENROLMENT_INVALID", str(file))


def test_a_changed_key_in_the_file_is_noticed(here: Path) -> None:
    """Who can write this file can trust whom they like; a slip of the pen is refused."""
    file = here / "mednode.site" / "members.json"
    content = json.loads(file.read_text())
    content["members"]["ph2"]["identity_key"] = "AAAA"
    file.write_text(json.dumps(content))
    with pytest.raises(DerminoError, match="Ed25519"):
        list_members(here / "mednode.site")


def test_the_command_lists_accepts_and_forgets(here: Path) -> None:
    app = typer.Typer()
    app.command()(members_command)

    def run(*words: str | Path) -> Any:
        common = ["--site", "mednode", "--sites-dir", str(here)]
        return CliRunner().invoke(app, [*map(str, words), *common])

    shown = run().output
    private, _ = own_identity(here / "ph2.site")
    assert grouped(key_digest(private.public_key())) in shown
    assert "ph2: from a bundle on" in shown
    assert "until 20" in shown
    newcomer(here)
    newer = here / "keys/sites/mednode/mednode.bundle.json"
    forgotten = run("--forget", "ph2")
    assert "forgot ph2" in forgotten.output
    assert "ph2: waits" in run().output
    assert "--accept ph2" in run().output
    done = run("--accept", "third", "--bundle", newer, "--yes")
    assert done.exit_code == 0, done.output
    assert "trusts third from now on" in done.output
    assert set(read_pins(here / "mednode.site").members) == {"mednode", "ph2", "third"}
    nobody = run("--forget", "nobody").exception
    assert isinstance(nobody, DerminoError)
    assert "mednode, ph2, third" in str(nobody.fix)
