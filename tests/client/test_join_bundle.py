"""A join bundle, taken over whole or not at all: tampering, swaps, clocks, other federations."""

from __future__ import annotations

import base64
import datetime
import json
import shutil
import stat
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_ssh_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from federation import contents, join, leaves  # tests/server
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_client.enrol import Installed, enrol, install_bundle
from dermino_client.members import forget_member, read_pins
from dermino_client.membership import enrolled_coordinator, installed_bundle, own_identity
from dermino_core.certificate_checks import certificate_digest, utc_now
from dermino_core.enrolment import Bundle, Member, grouped, read_signed, sign_bundle
from dermino_core.errors import DerminoError
from dermino_core.public_keys import identity_text, key_digest
from dermino_server.certificates import read_authority, sign_member
from dermino_server.enrolment import accept
from dermino_server.provisioning import provision
from dermino_server.revocation import revoke

HOST = "coordinator.example.org"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("authority")
    provision(out, hosts=[HOST])
    return out


@pytest.fixture
def keys(tmp_path: Path, authority: Path) -> Path:
    """A coordinator's folder of its own, of the same authority."""
    shutil.copytree(authority, tmp_path / "keys")
    return tmp_path / "keys"


def admit(keys: Path, folder: Path, name: str = "mednode", **options: Any) -> Path:
    request = enrol(folder, name).file
    done = accept(keys, request, confirm=lambda *_: None, register=False, **options)
    return done.bundle


def install(folder: Path, bundle: Path, name: str = "mednode", **options: Any) -> Installed:
    return install_bundle(folder, name, bundle, **({"yes": True} | options))


def refused(folder: Path, bundle: Path, words: str, **options: Any) -> DerminoError:
    before = contents(folder)
    with pytest.raises(DerminoError, match=words) as caught:
        install(folder, bundle, **options)
    assert contents(folder) == before
    assert caught.value.fix
    return caught.value


def test_a_bundle_is_taken_over(keys: Path, tmp_path: Path) -> None:
    join(keys, tmp_path / "ph2.site", "ph2")
    site = tmp_path / "mednode.site"
    assert enrolled_coordinator(site) is None
    assert installed_bundle(site) is None
    with pytest.raises(DerminoError, match="not enrolled"):
        own_identity(site)
    bundle = admit(keys, site)
    done = install(site, bundle)
    assert (done.first, done.added, done.waiting, done.old_node_key) == (True, ("ph2",), (), None)
    assert (site / "ca.crt").read_bytes() == (keys / "ca.crt").read_bytes()
    assert enrolled_coordinator(site) == (
        f"{HOST}:443",
        site / "ca.crt",
        site / "keys" / "node.key",
    )
    private, certificate = own_identity(site)
    pins = read_pins(site).members
    assert pins["mednode"].identity_key == identity_text(private.public_key())
    assert pins["mednode"].certificate == certificate
    assert set(pins) == {"mednode", "ph2"}
    before = contents(site)
    again = install(site, bundle)
    assert (again.first, again.added) == (False, ())
    assert contents(site) == before


def test_the_authority_is_compared_once(
    keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "mednode.site"
    bundle = admit(keys, site)
    digest = certificate_digest(x509.load_pem_x509_certificate((keys / "ca.crt").read_bytes()))
    assert refused(site, bundle, "no terminal", yes=False).code == "CONFIG_INVALID"
    assert grouped(digest) in capsys.readouterr().out
    error = refused(site, bundle, "another one", fingerprint="F" * 32)
    assert error.code == "ENROLMENT_INVALID"
    install(site, bundle, yes=False, fingerprint=grouped(digest))
    capsys.readouterr()
    install(site, bundle, yes=False)
    assert "fingerprint" not in capsys.readouterr().out


def test_bundles_of_others_are_refused(keys: Path, tmp_path: Path) -> None:
    site, other = tmp_path / "mednode.site", tmp_path / "ph2.site"
    bundle, theirs = admit(keys, site), admit(keys, other, "ph2")
    assert "is for ph2" in refused(site, theirs, "is for ph2").what
    bare = tmp_path / "bare"
    bare.mkdir()
    assert "dermino-client enrol" in str(refused(bare, bundle, "before this site had keys").fix)
    stranger = tmp_path / "stranger"
    enrol(stranger, "mednode")
    refused(stranger, bundle, "another identity key")
    shutil.copy(site / "keys/identity.key", stranger / "keys/identity.key")
    assert refused(stranger, bundle, "another node key").code == "ENROLMENT_INVALID"
    install(site, bundle)


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A site's folder and its bundle, with three members and a revoked one, not yet installed."""
    folder = tmp_path_factory.mktemp("offered")
    keys = folder / "keys"
    provision(keys, hosts=[HOST])
    for name in ("gone", "ph2", "third"):
        admit(keys, folder / name, name)
    revoke(keys, "gone", at_superlink=False)
    return folder / "site", admit(keys, folder / "site")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_bundle_that_was_tampered_with_is_refused(
    offered: tuple[Path, Path], data: st.DataObject
) -> None:
    site, bundle = offered
    content = json.loads(bundle.read_text())
    path = data.draw(st.sampled_from(list(leaves(content))))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    value, kind = inner[path[-1]], data.draw(st.sampled_from(["change", "drop", "double"]))
    if kind == "change" and isinstance(value, str):
        at = data.draw(st.integers(0, len(value) - 1))
        other = data.draw(st.sampled_from("AaZz09+/=-. \n{").filter(lambda c: c != value[at]))
        inner[path[-1]] = value[:at] + other + value[at + 1 :]
    elif kind == "drop":
        del inner[path[-1]]
    elif kind == "double" and isinstance(inner, list):
        inner.append(inner[0])
    elif kind == "double" and path[:1] == ("members",):
        content["members"].append(content["members"][0])
    else:
        inner[path[-1]] = data.draw(st.none() | st.integers().filter(lambda new: new != value))
    file = bundle.with_name("tampered.json")
    file.write_text(json.dumps(content))
    try:
        if read_signed(file, Bundle) == read_signed(bundle, Bundle):
            return  # the same moment, spelled another way
    except DerminoError:
        pass
    assert refused(site, file, ".").code in ("ENROLMENT_INVALID", "TLS_INVALID")
    assert not (site / "ca.crt").exists()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'"x"', b"[" * 9000])
def test_what_is_no_bundle_is_refused(tmp_path: Path, content: bytes) -> None:
    enrol(tmp_path / "site", "mednode")
    file = tmp_path / "mednode.bundle.json"
    file.write_bytes(content)
    error = refused(tmp_path / "site", file, "not a whole join bundle")
    assert (error.code, error.where) == ("ENROLMENT_INVALID", str(file))


def wrongly_signed(keys: Path, site: Path, **changes: Any) -> Path:
    """A bundle that the authority itself signed, with something in it that does not fit."""
    good = read_signed(admit(keys, site), Bundle)
    certificate, key = read_authority(keys)
    content: dict[str, Any] = {
        "federation": good.federation,
        "address": good.address,
        "site": good.site,
        "node_digest": good.node_key,
        "certificate": good.certificate,
        "members": good.members,
        "revoked": good.revoked,
    }
    file = keys / "wrong.json"
    file.write_text(sign_bundle(certificate, key, **(content | changes)).text())
    return file


def as_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def test_even_the_authority_must_make_sense(keys: Path, tmp_path: Path) -> None:
    site = tmp_path / "mednode.site"
    own = read_signed(admit(keys, site), Bundle).members
    stranger = Ed25519PrivateKey.generate().public_key()
    ph2 = sign_member(keys, "ph2", stranger)
    provision(tmp_path / "elsewhere", hosts=[HOST])
    foreign = sign_member(tmp_path / "elsewhere", "ph2", stranger)
    server = (keys / "server.pem").read_text()

    def with_ph2(key: str, certificate: str) -> list[Member]:
        return [*own, Member(name="ph2", identity_key=key, certificate=certificate)]

    text = identity_text(stranger)
    cases = {
        "another key for ph2": with_ph2(own[0].identity_key, as_pem(ph2)),
        "not signed by this federation": with_ph2(text, as_pem(foreign)),
        "is for 'dermino coordinator'": with_ph2(text, server),
        "names a member twice": [*own, *own],
        "does not list mednode": with_ph2(text, as_pem(ph2))[1:],
    }
    for words, members in cases.items():
        refused(site, wrongly_signed(keys, site, members=members), words)
    install(site, wrongly_signed(keys, site, members=with_ph2(text, as_pem(ph2))))


def test_a_bundle_cannot_claim_to_be_of_another_federation(keys: Path, tmp_path: Path) -> None:
    """Signed by its own authority, under the name of the one that this site is in."""
    site = tmp_path / "mednode.site"
    install(site, admit(keys, site))
    provision(tmp_path / "elsewhere", hosts=[HOST])
    theirs = read_signed(admit(tmp_path / "elsewhere", site), Bundle)
    ours = read_signed(site / "bundle.json", Bundle).federation_id
    claim = theirs.model_copy(update={"federation_id": ours})
    _, key = read_authority(tmp_path / "elsewhere")
    signature = key.sign(claim.signed_bytes(), ec.ECDSA(hashes.SHA384()))
    signed = claim.model_copy(update={"signature": base64.b64encode(signature).decode()})
    file = tmp_path / "claim.json"
    file.write_text(signed.text())
    refused(site, file, "signature does not fit")


def test_a_server_certificate_is_no_membership(keys: Path, tmp_path: Path) -> None:
    """Signed by the authority for the right name and key, but for a server or without a purpose."""
    site = tmp_path / "mednode.site"
    own = read_signed(admit(keys, site), Bundle).members[0]
    authority, key = read_authority(keys)
    identity = x509.load_pem_x509_certificate(own.certificate.encode()).public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mednode")])
    begin = datetime.datetime.now(UTC) - timedelta(hours=1)
    for purposes, words in (
        ([ExtendedKeyUsageOID.SERVER_AUTH], "for a server"),
        ([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH], "for a server"),
        ([], "does not say"),
    ):
        builder = (
            x509.CertificateBuilder(authority.subject, name, identity, 7)  # type: ignore[arg-type]
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(days=9))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        )
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        pem = as_pem(builder.sign(key, hashes.SHA384()))
        members = [Member(name="mednode", identity_key=own.identity_key, certificate=pem)]
        file = wrongly_signed(keys, site, certificate=pem, members=members)
        assert refused(site, file, words).code == "TLS_INVALID"


def test_another_federation_is_refused(keys: Path, tmp_path: Path) -> None:
    site = tmp_path / "mednode.site"
    install(site, admit(keys, site))
    provision(tmp_path / "elsewhere", hosts=[HOST])
    error = refused(site, admit(tmp_path / "elsewhere", site), "another federation")
    assert error.code == "ENROLMENT_INVALID"
    (site / "bundle.json").unlink()
    refused(site, admit(tmp_path / "elsewhere", site), "another federation")


def test_an_older_bundle_is_refused(keys: Path, tmp_path: Path) -> None:
    site = tmp_path / "mednode.site"
    certificate, key = read_authority(keys)
    good = read_signed(admit(keys, site), Bundle)

    def of(created: datetime.datetime, revoked: list[str]) -> Path:
        bundle = sign_bundle(
            certificate,
            key,
            **{name: getattr(good, name) for name in ("federation", "address", "site")},
            node_digest=good.node_key,
            certificate=good.certificate,
            members=good.members,
            revoked=revoked,
            now=created,
        )
        file = tmp_path / f"{created:%H%M}.json"
        file.write_text(bundle.text())
        return file

    noon = datetime.datetime(2030, 1, 1, 12, tzinfo=UTC)
    newer, older = of(noon, ["a" * 64]), of(noon - timedelta(minutes=1), [])
    now = utc_now()
    install(site, newer, now=now)
    error = refused(site, older, "older than the one installed", now=now)
    assert "2030-01-01 11:59:00" in error.what
    assert read_pins(site).revoked == ["a" * 64]
    install(site, of(noon + timedelta(minutes=1), []), now=now)
    assert read_pins(site).revoked == []


def test_certificates_outside_their_time_are_refused(keys: Path, tmp_path: Path) -> None:
    site = tmp_path / "mednode.site"
    bundle = admit(keys, site, days=30)
    now = datetime.datetime.now(UTC).replace(microsecond=0)
    error = refused(site, bundle, "expired on", now=now + timedelta(days=31))
    assert error.code == "TLS_INVALID"
    assert "dermino-client enrol --renew" in str(error.fix)
    assert f"{now + timedelta(days=31):%Y-%m-%d %H:%M:%S} UTC" in error.what
    early = now - timedelta(days=2)
    error = refused(site, bundle, "not valid before", now=early)
    assert error.code == "TLS_INVALID"
    assert "clock may be off" in error.what
    assert f"{early:%Y-%m-%d %H:%M:%S} UTC" in error.what
    certificate = x509.load_pem_x509_certificate((keys / "ca.crt").read_bytes())
    assert f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC" in error.what
    assert "timedatectl" in str(error.fix)
    assert refused(site, bundle, "authority", now=now + timedelta(days=3700)).code == "TLS_INVALID"
    install(site, bundle, now=now + timedelta(days=29))


def test_a_member_that_comes_back_with_another_key_is_refused(keys: Path, tmp_path: Path) -> None:
    site, other = tmp_path / "mednode.site", tmp_path / "ph2.site"
    admit(keys, other, "ph2")
    install(site, admit(keys, site))
    old = read_pins(site).members["ph2"]
    revoke(keys, "ph2", at_superlink=False)
    shutil.rmtree(other)
    admit(keys, other, "ph2")
    newer = admit(keys, site)
    error = refused(site, newer, "ph2 comes with another identity key")
    assert error.code == "ENROLMENT_INVALID"
    assert "--forget ph2" in str(error.fix)
    assert grouped(old.digest) in error.what
    forget_member(site, "ph2")
    install(site, newer)
    assert read_pins(site).members["ph2"].identity_key != old.identity_key
    assert read_pins(site).revoked == [old.digest]


def test_this_site_may_come_back_with_another_key(keys: Path, tmp_path: Path) -> None:
    """After it was revoked, keys/ and bundle.json moved away; what it knows of others stays."""
    site = tmp_path / "mednode.site"
    join(keys, tmp_path / "ph2.site", "ph2")
    install(site, admit(keys, site))
    since = read_pins(site).members["ph2"].since
    revoke(keys, "mednode", at_superlink=False)
    shutil.rmtree(site / "keys")
    (site / "bundle.json").unlink()
    install(site, admit(keys, site))
    pins = read_pins(site).members
    assert pins["mednode"].identity_key == identity_text(own_identity(site)[0].public_key())
    assert pins["ph2"].since == since


def test_a_new_node_key_is_used_when_the_coordinator_knows_it(keys: Path, tmp_path: Path) -> None:
    site = tmp_path / "mednode.site"
    first = admit(keys, site)
    shutil.copy(first, tmp_path / "first.json")
    install(site, first)
    before = (site / "keys/node.key").read_bytes()
    later = utc_now() + timedelta(minutes=1)
    enrol(site, "mednode", renew=True, new_node_key=True, now=later)
    following = (site / "keys/node.next.key").read_bytes()
    assert install(site, tmp_path / "first.json").old_node_key is None
    assert (site / "keys/node.key").read_bytes() == before
    done = install(site, admit(keys, site))
    assert done.old_node_key == site / "keys/node.old.key"
    assert (site / "keys/node.key").read_bytes() == following
    assert (site / "keys/node.old.key").read_bytes() == before
    assert not (site / "keys/node.next.key").exists()
    assert stat.S_IMODE((site / "keys/node.key").stat().st_mode) == 0o600
    node = load_ssh_private_key(following, None)
    assert isinstance(node, ec.EllipticCurvePrivateKey)
    assert done.bundle.node_key == key_digest(node.public_key())
    assert enrol(site, "mednode").again
