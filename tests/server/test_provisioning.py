"""Certificates that others accept, keys that nobody overwrites, Flower's own file left whole."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import verification
from typer.testing import CliRunner

from dermino_core.errors import DerminoError
from dermino_core.names import check_address, check_host, check_name
from dermino_server.certificates import renew_server_certificate
from dermino_server.commands.provision import provision_app
from dermino_server.flower_connection import write_connection
from dermino_server.provisioning import provision
from dermino_server.roster import read_federation

HOST = "coordinator.example.org"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("provisioned") / "keys"
    provision(out, hosts=[HOST, "10.0.0.5", "fd00::5"])
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "README.txt"
    }


def load(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


@pytest.mark.parametrize(
    "subject",
    [
        x509.DNSName(HOST),
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.5")),
        x509.IPAddress(ipaddress.ip_address("fd00::5")),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ],
)
def test_server_is_trusted_under_each_of_its_names(keys: Path, subject: x509.GeneralName) -> None:
    assert isinstance(subject, x509.DNSName | x509.IPAddress)
    store = verification.Store([load(keys / "ca.crt")])
    verifier = verification.PolicyBuilder().store(store).build_server_verifier(subject)
    chain = verifier.verify(load(keys / "server.pem"), [])
    assert len(chain) == 2


def test_server_is_not_trusted_under_another_name_or_authority(keys: Path, tmp_path: Path) -> None:
    store = verification.Store([load(keys / "ca.crt")])
    elsewhere = x509.DNSName("elsewhere.example.org")
    verifier = verification.PolicyBuilder().store(store).build_server_verifier(elsewhere)
    with pytest.raises(verification.VerificationError):
        verifier.verify(load(keys / "server.pem"), [])

    provision(tmp_path / "other", hosts=[HOST])
    store = verification.Store([load(tmp_path / "other" / "ca.crt")])
    verifier = verification.PolicyBuilder().store(store).build_server_verifier(x509.DNSName(HOST))
    with pytest.raises(verification.VerificationError):
        verifier.verify(load(keys / "server.pem"), [])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
@pytest.mark.parametrize(("host", "accepted"), [(HOST, True), ("elsewhere.example.org", False)])
def test_openssl_agrees(keys: Path, host: str, accepted: bool) -> None:
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver"]
    command += ["-verify_hostname", host, "-CAfile", str(keys / "ca.crt"), str(keys / "server.pem")]
    assert (subprocess.run(command, capture_output=True).returncode == 0) is accepted


def test_authority_signs_servers_only_and_outlives_them(keys: Path) -> None:
    authority, server = load(keys / "ca.crt"), load(keys / "server.pem")
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert not usage.digital_signature
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert server.not_valid_after_utc < authority.not_valid_after_utc
    # A hospital whose clock is somewhat behind still accepts a new certificate.
    assert server.not_valid_before_utc < datetime.datetime.now(datetime.UTC) - datetime.timedelta(
        minutes=30
    )


def test_lifetimes_follow_days(tmp_path: Path) -> None:
    provision(tmp_path, hosts=[HOST], days=30)
    lifetime = load(tmp_path / "server.pem").not_valid_after_utc - datetime.datetime.now(
        datetime.UTC
    )
    assert datetime.timedelta(days=29) < lifetime < datetime.timedelta(days=31)


def test_modes(keys: Path) -> None:
    for path in [keys, *keys.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700, path
        elif path.suffix == ".key":
            assert mode == 0o600, path
    assert sorted(file.name for file in keys.rglob("*.key")) == ["ca.key", "server.key"]
    assert (keys / "runs").is_dir()
    assert not [file for file in keys.rglob(".*") if file.is_file()]


def test_running_again_disturbs_nothing_and_adds_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "keys"
    made = provision(out, hosts=[HOST]).made
    assert {file.name for file in made} == {
        *("ca.key", "ca.crt", "server.key", "server.pem", "federation.json")
    }
    before = contents(out)
    for arguments in ({}, {"hosts": [HOST]}, {"port": 443, "superlink": "127.0.0.1:8000"}):
        assert provision(out, **arguments).made == ()
        assert contents(out) == before
    (out / "federation.json").unlink()
    (out / "runs").rmdir()
    assert [file.name for file in provision(out, hosts=[HOST]).made] == ["federation.json"]
    assert contents(out) == before
    assert (out / "runs").is_dir()
    (out / "federation.json").unlink()
    with pytest.raises(DerminoError, match="host name is missing"):
        provision(out)


@pytest.mark.parametrize(
    ("option", "value"),
    [("port", 8443), ("name", "other"), ("superlink", "127.0.0.1:9"), ("connection", "other")],
)
def test_what_was_said_once_is_not_silently_changed(
    tmp_path: Path, option: str, value: object
) -> None:
    provision(tmp_path, hosts=[HOST])
    before = contents(tmp_path)
    with pytest.raises(DerminoError, match=f"--{option}") as caught:
        provision(tmp_path, **{option: value})
    assert caught.value.code == "OUTPUT_EXISTS"
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("hosts", "name", "address"),
    [
        ([HOST, "10.0.0.5"], HOST, f"{HOST}:443"),
        (["10.0.0.5", HOST], "10.0.0.5", "10.0.0.5:443"),
        (["fd00::5"], "federation", "[fd00::5]:443"),
        (["a" * 60 + "." + "b" * 60], "a" * 60 + ".bb", "a" * 60 + "." + "b" * 60 + ":443"),
        (["a" * 62 + "." + "b" * 60], "a" * 62, "a" * 62 + "." + "b" * 60 + ":443"),
    ],
)
def test_name_and_address_of_a_federation(
    tmp_path: Path, hosts: list[str], name: str, address: str
) -> None:
    assert provision(tmp_path, hosts=hosts).federation == read_federation(tmp_path)
    assert (read_federation(tmp_path).name, read_federation(tmp_path).address) == (name, address)


def test_only_signing_needs_the_authority_key(tmp_path: Path) -> None:
    out, offline = tmp_path / "keys", tmp_path / "offline.key"
    provision(out, hosts=[HOST])
    shutil.move(out / "ca.key", offline)
    assert provision(out, hosts=[HOST]).made == ()
    for file in ("server.pem", "server.key"):
        (out / file).unlink()
    with pytest.raises(DerminoError, match="signing needs the authority") as caught:
        provision(out, hosts=[HOST])
    assert caught.value.code == "TLS_INVALID"
    assert "--ca-key" in str(caught.value)
    assert not (out / "server.key").exists()
    provision(out, hosts=[HOST], ca_key=offline)
    assert_trusted(out, HOST)
    assert not (out / "ca.key").exists()


def assert_trusted(out: Path, host: str) -> None:
    store = verification.Store([load(out / "ca.crt")])
    verifier = verification.PolicyBuilder().store(store).build_server_verifier(x509.DNSName(host))
    verifier.verify(load(out / "server.pem"), [])
    key = serialization.load_pem_private_key((out / "server.key").read_bytes(), None)
    assert key.public_key() == load(out / "server.pem").public_key()


def test_a_renewed_server_certificate_is_trusted_by_the_same_authority(tmp_path: Path) -> None:
    provision(tmp_path, hosts=[HOST, "10.0.0.5"], days=10)
    before = contents(tmp_path)
    day = datetime.datetime(2030, 5, 17, tzinfo=datetime.UTC)
    kept = renew_server_certificate(tmp_path, ["New.example.org"], days=400, now=day)
    assert [file.name for file in kept] == ["server-2030-05-17.key", "server-2030-05-17.pem"]
    after = contents(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"server.key", "server.pem"}
    assert after["server-2030-05-17.key"] == before["server.key"]
    assert after["server-2030-05-17.pem"] == before["server.pem"]
    for file in (kept[0], tmp_path / "server.key"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for host in (HOST, "new.example.org", "localhost"):
        assert_trusted(tmp_path, host)
    lifetime = load(tmp_path / "server.pem").not_valid_after_utc - datetime.datetime.now(
        datetime.UTC
    )
    assert datetime.timedelta(days=399) < lifetime < datetime.timedelta(days=401)
    again = renew_server_certificate(tmp_path, now=day)
    assert [file.name for file in again] == ["server-2030-05-17-2.key", "server-2030-05-17-2.pem"]
    assert not [name for name in contents(tmp_path) if name.startswith(".new")]


def test_renewing_without_the_authority_key_changes_nothing(tmp_path: Path) -> None:
    provision(tmp_path / "keys", hosts=[HOST])
    shutil.move(tmp_path / "keys" / "ca.key", tmp_path / "ca.key")
    before = contents(tmp_path)
    with pytest.raises(DerminoError, match="--ca-key"):
        renew_server_certificate(tmp_path / "keys")
    with pytest.raises(DerminoError, match="lifetime"):
        renew_server_certificate(tmp_path / "keys", days=10**7, ca_key=tmp_path / "ca.key")
    assert contents(tmp_path) == before
    renew_server_certificate(tmp_path / "keys", ca_key=tmp_path / "ca.key")
    assert_trusted(tmp_path / "keys", HOST)


def test_a_new_host_asks_for_a_new_certificate_by_the_same_authority(tmp_path: Path) -> None:
    provision(tmp_path, hosts=[HOST])
    before = contents(tmp_path)
    with pytest.raises(DerminoError, match="does not name new") as caught:
        provision(tmp_path, hosts=["new.example.org"])
    assert caught.value.code == "OUTPUT_EXISTS"
    assert "renew --host" in str(caught.value)
    assert contents(tmp_path) == before
    renew_server_certificate(tmp_path, ["new.example.org"])
    assert "new.example.org" in provision(tmp_path, hosts=["new.example.org"]).hosts
    assert contents(tmp_path)["ca.crt"] == before["ca.crt"]


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    tmp_path.chmod(0o755)
    with pytest.raises(DerminoError) as caught:
        provision(tmp_path, hosts=[HOST])
    assert caught.value.code == "OUTPUT_EXISTS"
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("missing", ["server.key", "server.pem"])
def test_half_a_pair_is_an_error(tmp_path: Path, missing: str) -> None:
    provision(tmp_path, hosts=[HOST])
    (tmp_path / missing).unlink()
    with pytest.raises(DerminoError, match="without") as caught:
        provision(tmp_path, hosts=[HOST])
    assert caught.value.code == "TLS_INVALID"


def test_an_authority_that_does_not_match_its_key_is_an_error(tmp_path: Path) -> None:
    provision(tmp_path / "a", hosts=[HOST])
    provision(tmp_path / "b", hosts=[HOST])
    shutil.copy(tmp_path / "b" / "ca.key", tmp_path / "a" / "ca.key")
    (tmp_path / "a" / "server.pem").unlink()
    (tmp_path / "a" / "server.key").unlink()
    with pytest.raises(DerminoError, match="do not belong together"):
        provision(tmp_path / "a", hosts=[HOST])


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "x.", "a b", "é", "x" * 64, "a\n"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(DerminoError):
        check_name(name)
    if name:
        for option in ("name", "connection"):
            with pytest.raises(DerminoError) as caught:
                provision(tmp_path / "keys", hosts=[HOST], **{option: name})
            assert caught.value.code == "CONFIG_INVALID"
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    "host",
    ["", "https://x.org", "x.org:443", "*.x.org", "-x.org", "a..b", "1.2.3", "a b", "x.org\n"],
)
def test_bad_hosts(host: str) -> None:
    with pytest.raises(DerminoError):
        check_host(host)


def test_good_names_hosts_and_addresses() -> None:
    assert [check_name(name) for name in ("a", "ph2", "Site_1.west-2")]
    assert check_host("Coordinator.Example.ORG") == HOST
    assert check_host("FD00:0::5") == "fd00::5"
    assert check_address("[::1]:8000") == "[::1]:8000"
    for bad in ("localhost", "https://x:1", "x:0", "x:70000", ":8000", "::1:8000"):
        with pytest.raises(DerminoError):
            check_address(bad)


@pytest.fixture
def flower_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    return tmp_path / "flower"


def test_command_prints_the_next_steps(tmp_path: Path, flower_home: Path) -> None:
    out = str(tmp_path / "keys")
    done = CliRunner().invoke(provision_app, ["init", "--out", out, "--host", HOST])
    assert done.exit_code == 0, done.output
    for expected in (
        "flower-superlink --host 127.0.0.1",
        "--enable-supernode-auth",
        f"dermino provision accept NAME.request.json --out {out}",
        "dermino-client enrol --site NAME",
        "dermino-client --site NAME --bundle NAME.bundle.json",
        f"connect to {HOST}:443",
    ):
        assert expected in done.output
    assert (tmp_path / "keys" / "README.txt").read_text() in done.output
    assert "PRIVATE KEY" not in done.output
    connections = tomllib.loads((flower_home / "config.toml").read_text())["superlink"]
    assert connections["coordinator"]["address"] == "127.0.0.1:8000"
    assert connections["coordinator"]["root-certificates"] == f"{out}/ca.crt"
    missing_host = CliRunner().invoke(provision_app, ["init", "--out", str(tmp_path / "new")])
    assert isinstance(missing_host.exception, DerminoError)
    assert not (tmp_path / "new").exists()


def test_the_fingerprint_to_read_by_phone_is_that_of_openssl(
    tmp_path: Path, flower_home: Path
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command")
    command = ["init", "--out", str(tmp_path / "keys"), "--host", HOST, "--connection", "mine"]
    shown = CliRunner().invoke(provision_app, command).output
    line = re.search(r"^ +((?:[0-9A-F]{4} ?){8})$", shown, re.MULTILINE)
    assert line
    command = [openssl, "x509", "-fingerprint", "-sha256", "-noout", "-in"]
    told = subprocess.run([*command, str(tmp_path / "keys/ca.crt")], capture_output=True, text=True)
    digits = told.stdout.strip().partition("=")[2].replace(":", "")
    assert line[1].replace(" ", "") == digits[:32]
    assert "[superlink.mine]" in (flower_home / "config.toml").read_text()


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": "dermino-federation"}', ""])
def test_a_damaged_federation_file_is_named(tmp_path: Path, damage: str) -> None:
    provision(tmp_path, hosts=[HOST])
    (tmp_path / "federation.json").write_text(damage)
    with pytest.raises(DerminoError, match="damaged") as caught:
        provision(tmp_path)
    assert (caught.value.code, caught.value.where) == (
        "ENROLMENT_INVALID",
        str(tmp_path / "federation.json"),
    )
    newer = {"format": "dermino-federation", "version": 2}
    (tmp_path / "federation.json").write_text(json.dumps(newer))
    with pytest.raises(DerminoError, match="version"):
        provision(tmp_path)


# ---------------------------------------------------------------- connections

EXISTING = """\
# my federations
[superlink]
default = "local"

[superlink.supergrid]
address = "supergrid.flower.ai"  # theirs

[superlink.coordinator]
address = "old:1"
# an old note
insecure = true

[superlink.coordinator.options]
num-supernodes = 3

# the local one
[superlink.local]
address = ":local:"
"""


def test_connection_in_a_new_file_is_the_default(tmp_path: Path, keys: Path) -> None:
    file = write_connection(tmp_path / "home", "coordinator", "localhost:8000", keys / "ca.crt")
    assert tomllib.loads(file.read_text()) == {
        "superlink": {
            "default": "coordinator",
            "coordinator": {
                "address": "localhost:8000",
                "root-certificates": str((keys / "ca.crt").resolve()),
            },
        }
    }


def test_connection_is_appended_and_the_rest_stays(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(EXISTING)
    write_connection(tmp_path, "new.one", "10.0.0.5:8000", None)
    assert file.read_text().startswith(EXISTING)
    entry = tomllib.loads(file.read_text())["superlink"]["new.one"]
    assert entry == {"address": "10.0.0.5:8000", "insecure": True}
    once = file.read_text()
    write_connection(tmp_path, "new.one", "10.0.0.5:8000", None)
    assert file.read_text() == once


def test_connection_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(EXISTING)
    write_connection(tmp_path, "coordinator", "new:2", None)
    start = EXISTING.index("[superlink.coordinator]")
    end = EXISTING.index("\n# the local one")
    text = file.read_text()
    assert text.startswith(EXISTING[:start])
    assert text.endswith(EXISTING[end:])
    assert tomllib.loads(text)["superlink"]["coordinator"] == {"address": "new:2", "insecure": True}


@pytest.mark.parametrize(
    "text",
    [
        'superlink = { coordinator = { address = "old:1" } }\n',
        '[superlink]\ncoordinator.address = "old:1"\n',
        "[superlink\n",
        'superlink = "x"\n',
        'note = """\n[superlink.coordinator]\n"""\n[superlink.coordinator]\naddress = "old:1"\n',
    ],
)
def test_files_that_cannot_be_edited_by_table_are_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(DerminoError) as caught:
        write_connection(tmp_path, "coordinator", "new:2", None)
    assert caught.value.code == "CONFIG_INVALID"
    assert file.read_text() == text


def test_default_is_no_connection_name(tmp_path: Path) -> None:
    with pytest.raises(DerminoError, match="default"):
        write_connection(tmp_path, "default", "x:1", None)


def test_flower_reads_the_connection(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flwr.cli.flower_config import read_superlink_connection

    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    write_connection(tmp_path, "dotted.name", "localhost:8000", keys / "ca.crt")
    connection = read_superlink_connection("dotted.name")
    assert connection.address == "localhost:8000"
    assert connection.root_certificates == str((keys / "ca.crt").resolve())
