"""The hospital's side: keys that stay, one request, warnings in time, and the commands."""

from __future__ import annotations

import datetime
import shutil
import stat
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
)
from federation import contents, join  # tests/server
from typer.testing import CliRunner

from dermino_client.commands.enrol import enrol as enrol_command
from dermino_client.commands.enrol import members as members_command
from dermino_client.enrol import Installed, enrol, install_bundle
from dermino_client.membership import start_warnings
from dermino_core.enrolment import Request, check_request, grouped, read_signed
from dermino_core.errors import DerminoError
from dermino_server.enrolment import accept
from dermino_server.provisioning import provision

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


# ---------------------------------------------------------------- keys and request


def test_keys_are_private_and_what_flower_wants(tmp_path: Path) -> None:
    site = tmp_path / "deep" / "mednode.site"
    done = enrol(site, "mednode")
    assert done.file == site / "mednode.request.json"
    assert sorted(file.name for file in done.made) == ["identity.key", "node.key"]
    assert not done.again
    for folder in (site, site / "keys"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for key in done.made:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    node = load_ssh_private_key((site / "keys/node.key").read_bytes(), None)
    assert isinstance(node, ec.EllipticCurvePrivateKey)
    assert node.curve.name == "secp384r1"
    assert (site / "keys/identity.key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    request = read_signed(done.file, Request)
    check_request(request)
    assert request.name == "mednode"
    assert b"PRIVATE" not in done.file.read_bytes()


def test_running_again_is_harmless(tmp_path: Path) -> None:
    site = tmp_path / "mednode.site"
    first = enrol(site, "mednode")
    before = contents(site)
    again = enrol(site, "mednode")
    assert (again.request, again.made, again.again) == (first.request, (), True)
    assert contents(site) == before
    # A power cut between the two keys, or before the request.
    for missing in ("keys/node.key", "keys/identity.key", "mednode.request.json"):
        (site / missing).unlink()
        mended = enrol(site, "mednode")
        assert not mended.again
        check_request(mended.request)
        assert enrol(site, "mednode").request == mended.request


def test_renewal_keeps_the_identity_and_may_change_the_node_key(tmp_path: Path) -> None:
    site = tmp_path / "mednode.site"
    now = datetime.datetime(2030, 1, 1, tzinfo=UTC)
    first = enrol(site, "mednode", now=now).request
    same_keys = enrol(site, "mednode", renew=True, now=now + timedelta(days=1)).request
    assert same_keys.identity_key == first.identity_key
    assert same_keys.node_key == first.node_key
    assert same_keys.digest != first.digest
    assert enrol(site, "mednode").request == same_keys
    before = (site / "keys/node.key").read_bytes()
    turned = enrol(site, "mednode", renew=True, new_node_key=True)
    assert [file.name for file in turned.made] == ["node.next.key"]
    assert turned.request.identity_key == first.identity_key
    assert turned.request.node_key != first.node_key
    assert (site / "keys/node.key").read_bytes() == before
    assert enrol(site, "mednode", renew=True, new_node_key=True).request.node_key == (
        turned.request.node_key
    )
    with pytest.raises(DerminoError, match="--renew"):
        enrol(site, "mednode", new_node_key=True)


@pytest.mark.parametrize("name", ["", "..", "a/b", "x" * 64, "a b"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(DerminoError):
        enrol(tmp_path / "site", name)
    assert not (tmp_path / "site").exists()


def test_a_folder_belongs_to_one_site(tmp_path: Path) -> None:
    enrol(tmp_path, "mednode")
    before = contents(tmp_path)
    with pytest.raises(DerminoError, match=r"another site.*mednode\.request"):
        enrol(tmp_path, "ph2")
    assert contents(tmp_path) == before


KEYS = {
    "identity": ("keys/identity.key", lambda: b"nothing"),
    "identity of another kind": (
        "keys/identity.key",
        lambda: ec.generate_private_key(ec.SECP384R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
    ),
    "node": ("keys/node.key", lambda: b"\x00"),
    "node on another curve": (
        "keys/node.key",
        lambda: ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
        ),
    ),
}


@pytest.mark.parametrize("kind", KEYS)
def test_damaged_keys_are_named_and_kept(tmp_path: Path, kind: str) -> None:
    file, content = KEYS[kind]
    enrol(tmp_path, "mednode")
    (tmp_path / file).write_bytes(content())
    before = contents(tmp_path)
    with pytest.raises(DerminoError) as caught:
        enrol(tmp_path, "mednode")
    assert (caught.value.code, caught.value.where) == ("TLS_INVALID", str(tmp_path / file))
    assert contents(tmp_path) == before


def test_a_member_whose_key_is_gone_gets_no_new_one_by_accident(keys: Path, tmp_path: Path) -> None:
    for lost in ("identity.key", "node.key"):
        site = tmp_path / lost
        join(keys, site, f"site-{lost[0]}")
        (site / "keys" / lost).unlink()
        before = contents(site)
        with pytest.raises(DerminoError, match="is missing") as caught:
            enrol(site, f"site-{lost[0]}")
        assert caught.value.code == "TLS_INVALID"
        assert contents(site) == before


# ---------------------------------------------------------------- warnings


def test_warnings_at_the_start(keys: Path, tmp_path: Path) -> None:
    site = tmp_path / "mednode.site"
    assert start_warnings(site) == []
    install(site, admit(keys, site, days=100))
    server = x509.load_pem_x509_certificate((keys / "server.pem").read_bytes())
    now = datetime.datetime.now(UTC)
    assert start_warnings(site, server.public_bytes(Encoding.DER), now=now) == []
    (soon,) = start_warnings(site, now=now + timedelta(days=90, hours=1))
    assert "the membership of mednode expires in 9 days" in soon
    assert "enrol --renew --site mednode" in soon
    (later,) = start_warnings(site, now=now + timedelta(days=99, hours=1))
    assert "in 0 days" in later
    assert start_warnings(site, now=now + timedelta(days=69)) == []
    for encoding in (Encoding.PEM, Encoding.DER):
        content = server.public_bytes(encoding)
        first, second = start_warnings(site, content, now=now + timedelta(days=820, hours=1))
        assert "the coordinator's server certificate expires in 4 days" in first
        assert "provision renew" in first
        assert "the membership of mednode expired on" in second
    assert "the authority of" in start_warnings(site, now=now + timedelta(days=3645))[-1]
    assert "not a whole certificate" in start_warnings(site, b"\x00", now=now)[0]
    assert "clock says" in start_warnings(site, now=now - timedelta(days=1))[0]


# ---------------------------------------------------------------- commands


def app(*arguments: str | Path, folder: Path) -> Any:
    """`dermino-client` with just these two commands, with sites in `folder`."""
    commands = typer.Typer()
    commands.command()(enrol_command)
    commands.command("members")(members_command)
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(
        commands, [*words, "--site", "mednode", "--sites-dir", str(folder)], catch_exceptions=True
    )


def test_commands_from_an_empty_folder(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = app("enrol", folder=tmp_path)
    assert done.exit_code == 0, done.output
    site = tmp_path / "mednode.site"
    request = read_signed(site / "mednode.request.json", Request)
    assert grouped(request.digest) in done.output
    assert "PRIVATE" not in done.output
    assert "the request is" in app("enrol", folder=tmp_path).output
    bundle = admit(keys, site)
    assert isinstance(app("enrol", "--bundle", bundle, folder=tmp_path).exception, DerminoError)
    done = app("enrol", "--bundle", bundle, "--yes", folder=tmp_path)
    assert done.exit_code == 0, done.output
    assert f"joined the federation {HOST}" in done.output
    assert f"{HOST}:443" in done.output
    with_both = app("enrol", "--bundle", bundle, "--renew", folder=tmp_path)
    assert isinstance(with_both.exception, DerminoError)
    assert "mednode: from a bundle on" in app("members", folder=tmp_path).output
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DERMINO_SITES", raising=False)
    commands = typer.Typer()
    commands.command()(enrol_command)
    assert CliRunner().invoke(commands, ["--site", "ph2"]).exit_code == 0
    assert (tmp_path / "sites" / "ph2.site" / "keys" / "identity.key").is_file()
    missing = CliRunner().invoke(commands, []).exception
    assert isinstance(missing, DerminoError)
    assert "Which site?" in missing.what


def test_the_folder_of_the_site_file_is_used(make_site: Any, tmp_path: Path) -> None:
    place = tmp_path / "kept"
    site = make_site(node={"folder": str(place)})
    commands = typer.Typer()
    commands.command()(enrol_command)
    words = ["--site", "clinic", "--sites-dir", str(site.file.parent)]
    assert CliRunner().invoke(commands, words).exit_code == 0
    assert (place / "clinic.request.json").is_file()
    site.file.write_text("[site]\nname = 3\n")
    wrong = CliRunner().invoke(commands, words).exception
    assert isinstance(wrong, DerminoError)
    assert wrong.code == "CONFIG_INVALID"
