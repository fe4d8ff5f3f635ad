"""From a request to a member: signed for, kept in the roster, and out again, for good."""

from __future__ import annotations

import base64
import re
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from enrolling import HOST, admit, ask, invoke, refused  # beside this file
from federation import contents, join

from dermino_client.members import Members
from dermino_client.membership import own_identity
from dermino_core.certificate_checks import utc_now
from dermino_core.enrolment import Bundle, Request, check_bundle, grouped, read_signed
from dermino_core.errors import DerminoError
from dermino_server.bundles import refresh_bundles
from dermino_server.enrolment import federation_warnings
from dermino_server.provisioning import provision
from dermino_server.revocation import revoke
from dermino_server.roster import read_roster


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    out = tmp_path / "keys"
    provision(out, hosts=[HOST])
    return out


@pytest.fixture
def flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    return tmp_path / "flower"


# ---------------------------------------------------------------- the membership certificate


def member_certificate(keys: Path, name: str = "mednode") -> x509.Certificate:
    entry = read_roster(keys).member(name)
    assert entry is not None
    return x509.load_pem_x509_certificate(entry.certificate.encode())


def test_a_membership_certificate_is_for_a_client_only(keys: Path, tmp_path: Path) -> None:
    join(keys, tmp_path / "mednode.site", "mednode")
    certificate = member_certificate(keys)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == ["mednode"]
    private, pem = own_identity(tmp_path / "mednode.site")
    assert private.public_key() == certificate.public_key()
    assert x509.load_pem_x509_certificate(pem.encode()) == certificate
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=824) < left <= timedelta(days=825)
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command")
    (tmp_path / "member.pem").write_text(pem)
    for purpose, accepted in (("sslclient", True), ("sslserver", False)):
        command = [openssl, "verify", "-x509_strict", "-purpose", purpose]
        command += ["-CAfile", str(keys / "ca.crt"), str(tmp_path / "member.pem")]
        done = subprocess.run(command, capture_output=True)
        assert (done.returncode == 0) is accepted, (purpose, done)


def test_a_member_cannot_pose_as_the_coordinator(keys: Path, tmp_path: Path) -> None:
    """A TLS server with a member's certificate: refused for its purpose, whatever it is called."""
    site = tmp_path / "mednode.site"
    join(keys, site, "mednode")
    (tmp_path / "chain.pem").write_text(own_identity(site)[1])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "chain.pem", site / "keys" / "identity.key")
    trust = ssl.create_default_context(cafile=str(keys / "ca.crt"))
    trust.check_hostname = False
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    server.wrap_socket(connection, server_side=True)
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with (
            socket.create_connection(listener.getsockname(), 10) as plain,
            pytest.raises(ssl.SSLCertVerificationError, match="purpose"),
        ):
            trust.wrap_socket(plain)
        thread.join(timeout=10)


def test_lifetimes_follow_days_and_never_outlive_the_authority(keys: Path, tmp_path: Path) -> None:
    admit(keys, ask(tmp_path), days=30)
    left = member_certificate(keys).not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=29) < left < timedelta(days=31)
    admit(keys, ask(tmp_path, "ph2"), days=30_000)
    authority = x509.load_pem_x509_certificate((keys / "ca.crt").read_bytes())
    assert member_certificate(keys, "ph2").not_valid_after_utc == authority.not_valid_after_utc
    refused(keys, ask(tmp_path, "third"), "lifetime", days=0)


# ---------------------------------------------------------------- the roster


def test_the_same_request_again_changes_nothing(keys: Path, tmp_path: Path) -> None:
    request = ask(tmp_path)
    first = admit(keys, request)
    assert (first.kind, first.refreshed) == ("new", (first.bundle,))
    before = contents(keys)

    def never(*_: object) -> None:
        raise AssertionError("asked again")

    again = admit(keys, request, confirm=never)
    assert (again.kind, again.refreshed, again.stale) == ("same", (), False)
    assert again.entry == first.entry
    assert contents(keys) == before
    for file in ("mednode.pub", "mednode.bundle.json", "mednode.request.json"):
        (keys / "sites" / "mednode" / file).unlink()
    assert admit(keys, request, confirm=never).refreshed == (first.bundle,)
    after = contents(keys)
    assert set(after) == set(before)
    assert all(after[name] == before[name] for name in before if "bundle" not in name)


def test_what_the_coordinator_keeps(keys: Path, tmp_path: Path) -> None:
    request = ask(tmp_path)
    bundle = read_signed(admit(keys, request).bundle, Bundle)
    entry = read_roster(keys).member("mednode")
    assert entry is not None
    asked = read_signed(request, Request)
    assert (entry.identity_key, entry.node_key) == (asked.identity_key, asked.node_key)
    assert (entry.request, entry.requested) == (asked.digest, asked.created)
    assert abs(entry.enrolled - utc_now()) < timedelta(minutes=1)
    assert entry.node_id is None
    public = (keys / "sites/mednode/mednode.pub").read_text().split()
    assert (" ".join(public[:2]), public[2]) == (asked.node_key, "dermino-mednode")
    assert bundle.address == f"{HOST}:443"
    assert (bundle.site, bundle.federation) == ("mednode", HOST)
    assert bundle.authority == (keys / "ca.crt").read_text()
    everything = b"".join(contents(keys / "sites").values())
    assert b"PRIVATE" not in everything
    assert stat.S_IMODE((keys / "sites" / "mednode").stat().st_mode) == 0o700


def test_a_name_and_a_key_belong_to_one_site(keys: Path, tmp_path: Path) -> None:
    admit(keys, ask(tmp_path / "one"))
    error = refused(keys, ask(tmp_path / "two"), "mednode is taken")
    assert error.code == "ENROLMENT_INVALID"
    assert "revoke mednode" in str(error.fix)
    shutil.copytree(tmp_path / "one" / "mednode.site" / "keys", tmp_path / "ph2.site" / "keys")
    refused(keys, ask(tmp_path, "ph2"), "belongs to mednode")
    (tmp_path / "ph2.site" / "keys" / "identity.key").unlink()
    refused(keys, ask(tmp_path, "ph2"), "belongs to mednode")
    (tmp_path / "ph2.site" / "keys" / "node.key").unlink()
    admit(keys, ask(tmp_path, "ph2"))


def test_renewal_gives_a_new_certificate_for_the_same_key(keys: Path, tmp_path: Path) -> None:
    site = tmp_path / "mednode.site"
    bundle = join(keys, site, "mednode")
    first = member_certificate(keys)
    later = utc_now() + timedelta(minutes=10)
    request = ask(tmp_path, renew=True, now=later)
    old_request = keys / "sites/mednode/mednode.request.json"
    shutil.copy(old_request, tmp_path / "old.json")
    renewed = admit(keys, request, days=900)
    assert (renewed.kind, renewed.bundle) == ("renewal", bundle)
    assert member_certificate(keys).serial_number != first.serial_number
    assert member_certificate(keys).public_key() == first.public_key()
    assert len(read_roster(keys).sites) == 1
    assert "newer request" in refused(keys, tmp_path / "old.json", "newer request").what

    turned = ask(tmp_path, renew=True, new_node_key=True, now=later + timedelta(seconds=1))
    before = read_roster(keys).member("mednode")
    after = admit(keys, turned).entry
    assert before is not None
    assert [former.node_key for former in after.former_nodes] == [before.node_key]
    assert after.node_key != before.node_key
    assert after.enrolled == before.enrolled
    (site / "keys" / "node.next.key").unlink()
    back = ask(tmp_path, renew=True, now=later + timedelta(seconds=2))
    refused(keys, back, "goes back to a node key")
    thief = tmp_path / "thief.site"
    shutil.copytree(site / "keys", thief / "keys")
    (thief / "keys" / "identity.key").unlink()
    refused(keys, ask(tmp_path, "thief"), "belongs to mednode")


def test_a_fourth_hospital_disturbs_nobody(keys: Path, tmp_path: Path) -> None:
    """Those who are there need no new file: its certificate is enough."""
    names = ("mednode", "ph2", "fitzpatrick17k")
    for name in names:
        join(keys, tmp_path / f"{name}.site", name)
    before = {name: contents(tmp_path / f"{name}.site") for name in names}
    certificates = {name: member_certificate(keys, name) for name in names}
    accepted = admit(keys, ask(tmp_path, "fourth"))
    assert len(accepted.refreshed) == 4
    assert {name: contents(tmp_path / f"{name}.site") for name in names} == before
    assert {name: member_certificate(keys, name) for name in names} == certificates
    new = read_roster(keys).member("fourth")
    assert new is not None
    key = Members(tmp_path / "mednode.site", new_members="authority").identity_key(
        "fourth", new.certificate
    )
    assert base64.b64encode(key.public_bytes_raw()).decode() == new.identity_key
    for name in (*names, "fourth"):
        listed = read_signed(keys / f"sites/{name}/{name}.bundle.json", Bundle)
        check_bundle(listed)
        assert [member.name for member in listed.members] == sorted([*names, "fourth"])
    fifth = admit(keys, ask(tmp_path, "fifth"), refresh=False)
    assert fifth.refreshed == (fifth.bundle,)
    assert len(read_signed(fifth.bundle, Bundle).members) == 5
    assert refresh_bundles(keys, read_roster(keys), only="ph2") == (
        keys / "sites/ph2/ph2.bundle.json",
    )
    assert len(refresh_bundles(keys, read_roster(keys))) == 3
    assert refresh_bundles(keys, read_roster(keys)) == ()
    file = keys / "sites/ph2/ph2.bundle.json"
    for damage in (b"[]", b"\xff", b"[" * 99_999, file.read_bytes().replace(b"443", b"444")):
        file.write_bytes(damage)
        assert refresh_bundles(keys, read_roster(keys)) == (file,)


def test_a_revoked_site_and_its_keys_never_come_back(keys: Path, tmp_path: Path) -> None:
    for name in ("mednode", "ph2"):
        join(keys, tmp_path / f"{name}.site", name)
    gone = read_roster(keys).member("mednode")
    assert gone is not None
    done = revoke(keys, "mednode", at_superlink=False)
    assert (done.already, done.stale) == (False, False)
    assert [file.name for file in done.refreshed] == ["ph2.bundle.json"]
    assert not (keys / "sites/mednode/mednode.bundle.json").exists()
    told = read_signed(keys / "sites/ph2/ph2.bundle.json", Bundle)
    assert [member.name for member in told.members] == ["ph2"]
    assert told.revoked == [gone.identity_digest]
    assert revoke(keys, "mednode", at_superlink=False).already

    refused(keys, ask(tmp_path), "was revoked")
    refused(keys, ask(tmp_path, renew=True, now=utc_now() + timedelta(minutes=1)), "was revoked")
    # Under another name, and one key at a time.
    for kept in ("identity.key", "node.key"):
        other = tmp_path / "other.site"
        (other / "keys").mkdir(parents=True)
        shutil.copy(tmp_path / "mednode.site" / "keys" / kept, other / "keys")
        refused(keys, ask(tmp_path, "other"), "was revoked")
        shutil.rmtree(other)
    fresh = admit(keys, ask(tmp_path / "anew"))
    assert fresh.kind == "new"
    assert [entry.status for entry in read_roster(keys).sites] == ["revoked", "member", "member"]
    assert read_signed(fresh.bundle, Bundle).revoked == [gone.identity_digest]
    with pytest.raises(DerminoError, match="no site nobody") as caught:
        revoke(keys, "nobody", at_superlink=False)
    assert "mednode, ph2" in str(caught.value)


def test_refusing_to_confirm_writes_nothing(keys: Path, tmp_path: Path) -> None:
    seen = []

    def no(request: Request, kind: str) -> None:
        seen.append((request.name, kind))
        raise DerminoError("ENROLMENT_INVALID", "no", fix="never")

    refused(keys, ask(tmp_path), "no", confirm=no)
    assert seen == [("mednode", "new")]


def test_the_authority_key_may_be_offline(keys: Path, tmp_path: Path, flower: Path) -> None:
    offline = tmp_path / "safe" / "ca.key"
    offline.parent.mkdir()
    shutil.move(keys / "ca.key", offline)
    request, other = ask(tmp_path), ask(tmp_path, "ph2")

    def never(*_: object) -> None:
        raise AssertionError("asked before it was known that signing is possible")

    error = refused(keys, request, "signing needs the authority", confirm=never)
    assert "--ca-key" in str(error.fix)
    assert admit(keys, request, ca_key=offline).kind == "new"
    assert admit(keys, request).kind == "same"
    assert admit(keys, other, ca_key=offline).kind == "new"
    assert not (keys / "ca.key").exists()
    assert invoke("list", "--out", keys).exit_code == 0
    assert revoke(keys, "ph2", at_superlink=False).stale
    again = admit(keys, request)
    assert (again.kind, again.stale) == ("same", True)
    assert admit(keys, request, ca_key=offline).refreshed == (again.bundle,)
    assert not admit(keys, request).stale
    wrong = tmp_path / "wrong.key"
    provision(tmp_path / "wrong", hosts=[HOST])
    shutil.copy(tmp_path / "wrong" / "ca.key", wrong)
    refused(keys, ask(tmp_path, "third"), "do not belong together", ca_key=wrong)


def test_many_accepts_at_once_lose_nobody(keys: Path, tmp_path: Path) -> None:
    requests = [ask(tmp_path, f"site{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda request: admit(keys, request), requests))
    assert len(read_roster(keys).members) == 8
    for file in keys.glob("sites/*/*.bundle.json"):
        check_bundle(read_signed(file, Bundle))
    last = max(len(read_signed(f, Bundle).members) for f in keys.glob("sites/*/*.bundle.json"))
    assert last == 8


@pytest.mark.parametrize("damage", ["{", '{"sites": [{}]}', "[]"])
def test_a_damaged_roster_stops_everything(keys: Path, tmp_path: Path, damage: str) -> None:
    (keys / "roster.json").write_text(damage)
    request = ask(tmp_path)
    assert "roster.json" in str(refused(keys, request, "damaged").where)
    assert isinstance(invoke("list", "--out", keys).exception, DerminoError)
    missing = invoke("list", "--out", tmp_path / "nowhere").exception
    assert isinstance(missing, DerminoError)
    assert missing.code == "CONFIG_NOT_FOUND"


def test_list_and_its_warnings(keys: Path, tmp_path: Path, flower: Path) -> None:
    empty = invoke("list", "--out", keys)
    assert "no site is enrolled yet" in empty.output
    admit(keys, ask(tmp_path), days=20)
    admit(keys, ask(tmp_path, "ph2"))
    admit(keys, ask(tmp_path, "left"))
    assert invoke("revoke", "left", "--out", keys, "--no-unregister").exit_code == 0
    shown = invoke("list", "--out", keys)
    entry = read_roster(keys).member("mednode")
    assert entry is not None
    assert grouped(entry.identity_digest) in shown.output
    assert f"mednode: member until {entry.expires:%Y-%m-%d}, not registered" in shown.output
    assert "left: revoked on" in shown.output
    assert "not yet unregistered" in shown.output
    assert re.search("the membership of mednode expires in (19|20) days", shown.output)
    assert "ph2 expires" not in shown.output

    roster, now = read_roster(keys), datetime.now(UTC)
    assert len(federation_warnings(keys, roster, now=now)) == 1
    server = federation_warnings(keys, roster, now=now + timedelta(days=800))
    assert [line.partition(" ex")[0] for line in server] == [
        "the server certificate",
        "the membership of mednode",
        "the membership of ph2",
    ]
    assert "dermino provision renew" in server[0]
    assert "expired on" in server[1]
    assert "dermino-client enrol --renew" in server[2]
    late = federation_warnings(keys, roster, now=now + timedelta(days=3640))
    assert "the authority's certificate expires in" in late[0]
    assert invoke("renew", "--out", keys, "--days", "10").exit_code == 0
    shown = invoke("list", "--out", keys).output
    assert re.search("the server certificate expires in (9|10) days", shown)
