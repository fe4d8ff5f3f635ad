"""Certificates that others accept, keys that nobody overwrites, Flower's own file left whole."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from typer.testing import CliRunner

from dermino_core.errors import DerminoError
from dermino_core.names import check_address, check_host, check_name
from dermino_server.commands.provision import provision as provision_command
from dermino_server.provisioning import (
    provision,
    register_sites,
    site_names,
    write_connection,
)

HOST = "coordinator.example.org"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("provisioned") / "keys"
    provision(out, hosts=[HOST, "10.0.0.5", "fd00::5"], sites=["mednode", "ph2"])
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


def test_site_keys_are_what_flower_wants(keys: Path) -> None:
    folder = keys / "sites" / "mednode"
    private = serialization.load_ssh_private_key((folder / "mednode.key").read_bytes(), None)
    public = serialization.load_ssh_public_key((folder / "mednode.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert private.curve.name == "secp384r1"
    assert private.public_key() == public
    assert (folder / "ca.crt").read_bytes() == (keys / "ca.crt").read_bytes()
    other = keys / "sites" / "ph2" / "ph2.pub"
    assert other.read_bytes().split()[1] != (folder / "mednode.pub").read_bytes().split()[1]


def test_modes(keys: Path) -> None:
    for path in [keys, *keys.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700, path
        elif path.suffix == ".key":
            assert mode == 0o600, path
    assert len(list(keys.rglob("*.key"))) == 4
    assert not [file for file in keys.rglob(".*") if file.is_file()]


def test_running_again_adds_a_site_and_disturbs_nothing(tmp_path: Path) -> None:
    out = tmp_path / "keys"
    provision(out, hosts=[HOST], sites=["mednode"])
    before = contents(out)
    again = provision(out, sites=["mednode", "fitzpatrick17k"])
    after = contents(out)
    assert {name: after[name] for name in before} == before
    added = {f"sites/fitzpatrick17k/{n}" for n in ("ca.crt", "fitzpatrick17k.key")}
    assert set(after) - set(before) == added | {"sites/fitzpatrick17k/fitzpatrick17k.pub"}
    assert again.sites == ("fitzpatrick17k", "mednode")
    assert len(again.made) == 3
    assert not provision(out, hosts=[HOST], sites=["mednode"]).made


def test_a_site_can_be_added_while_the_authority_key_is_offline(tmp_path: Path) -> None:
    provision(tmp_path, hosts=[HOST])
    (tmp_path / "ca.key").unlink()
    provision(tmp_path, sites=["late"])
    assert site_names(tmp_path) == ("late",)
    (tmp_path / "server.pem").unlink()
    (tmp_path / "server.key").unlink()
    with pytest.raises(DerminoError, match="cannot read") as caught:
        provision(tmp_path, hosts=[HOST])
    assert caught.value.code == "TLS_INVALID"


def test_a_key_that_the_hospital_made_is_kept(tmp_path: Path) -> None:
    provision(tmp_path, hosts=[HOST])
    own = tmp_path / "sites" / "ph2" / "ph2.pub"
    own.parent.mkdir(parents=True)
    own.write_text("ecdsa-sha2-nistp384 AAAA ours\n")
    assert provision(tmp_path, sites=["ph2"]).made == ()
    assert not own.with_suffix(".key").exists()


def test_a_private_key_without_its_public_half_is_never_overwritten(tmp_path: Path) -> None:
    provision(tmp_path, hosts=[HOST], sites=["ph2"])
    (tmp_path / "sites" / "ph2" / "ph2.pub").unlink()
    before = contents(tmp_path)
    with pytest.raises(DerminoError, match="never overwritten") as caught:
        provision(tmp_path, sites=["ph2"])
    assert caught.value.code == "OUTPUT_EXISTS"
    assert contents(tmp_path) == before


def test_a_new_host_asks_for_a_new_certificate_by_the_same_authority(tmp_path: Path) -> None:
    provision(tmp_path, hosts=[HOST], sites=["ph2"])
    before = contents(tmp_path)
    with pytest.raises(DerminoError, match="does not name new") as caught:
        provision(tmp_path, hosts=["new.example.org"])
    assert caught.value.code == "OUTPUT_EXISTS"
    assert contents(tmp_path) == before
    (tmp_path / "server.pem").unlink()
    (tmp_path / "server.key").unlink()
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
def test_bad_site_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(DerminoError) as caught:
        provision(tmp_path / "keys", hosts=[HOST], sites=[name])
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


def test_command_prints_the_next_steps(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(provision_command)
    out = str(tmp_path / "keys")
    done = CliRunner().invoke(app, ["--out", out, "--host", HOST, "--site", "ph2"])
    assert done.exit_code == 0, done.output
    for expected in (
        "flower-superlink --host 127.0.0.1",
        "--enable-supernode-auth",
        f"flwr supernode register {out}/sites/ph2/ph2.pub coordinator --name ph2",
        "dermino-client --site ph2",
        f'address = "{HOST}:443"',
    ):
        assert expected in done.output
    assert "PRIVATE KEY" not in done.output
    missing_host = CliRunner().invoke(app, ["--out", str(tmp_path / "new"), "--site", "ph2"])
    assert isinstance(missing_host.exception, DerminoError)
    assert not (tmp_path / "new").exists()


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


def test_registering_without_sites_or_superlink(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    with pytest.raises(DerminoError, match="no sites"):
        register_sites("coordinator", tmp_path)
    write_connection(tmp_path, "coordinator", "127.0.0.1:1", keys / "ca.crt")
    with pytest.raises(DerminoError, match="mednode") as caught:
        register_sites("coordinator", keys)
    assert caught.value.code == "CONNECTION_FAILED"
