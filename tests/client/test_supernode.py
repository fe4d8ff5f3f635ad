"""Before connecting: key, authority and certificate, against a real TLS server on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from dermino_client.site import CoordinatorSection, Site
from dermino_client.supernode import _explain, command, preflight, run
from dermino_core.errors import DerminoError
from dermino_server.provisioning import provision

MakeSite = Callable[..., Site]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    provision(folder, hosts=["127.0.0.1"])
    return with_site_key(folder)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strangers")
    provision(folder, hosts=["elsewhere.example"], local=False)
    return with_site_key(folder)


def with_site_key(folder: Path) -> Path:
    key = folder / "sites" / "clinic" / "clinic.key"
    key.parent.mkdir(parents=True)
    key.write_bytes(openssh(ec.generate_private_key(ec.SECP384R1())))
    key.chmod(0o600)
    return folder


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server on loopback whose every connection gets `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=10)


@contextmanager
def tls_server(folder: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")

    def answer(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                secure.recv(1)
        except OSError:  # the client hung up: what these tests are about
            return

    with serving(answer) as port:
        yield port


def joining(make_site: MakeSite, keys: Path, port: int, **changes: str) -> Site:
    coordinator = {
        "address": f"127.0.0.1:{port}",
        "root_certificates": str(keys / "ca.crt"),
        "private_key": str(keys / "sites" / "clinic" / "clinic.key"),
    }
    return make_site(coordinator=coordinator | changes)


def refused(site: Site, words: str) -> DerminoError:
    with pytest.raises(DerminoError, match=words) as caught:
        preflight(site)
    assert (caught.value.code, caught.value.exit_code) == ("TLS_INVALID", 6)
    assert caught.value.fix
    return caught.value


def test_the_right_authority_passes(
    make_site: MakeSite, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tls_server(keys) as port:
        site = joining(make_site, keys, port)
        assert preflight(site) == site.coordinator
        assert f"certificate of 127.0.0.1:{port} is valid" in capsys.readouterr().out
        by_name = joining(make_site, keys, port, address=f"localhost:{port}")
        assert preflight(by_name) == by_name.coordinator


def test_another_authority_is_refused(make_site: MakeSite, keys: Path, strangers: Path) -> None:
    with tls_server(keys) as port:
        ca = strangers / "ca.crt"
        error = refused(joining(make_site, keys, port, root_certificates=str(ca)), "is not trusted")
    assert str(ca) in str(error)
    assert "--bundle" in str(error)


def test_a_certificate_for_another_host_is_refused(make_site: MakeSite, strangers: Path) -> None:
    """The impostor's certificate is signed by the right authority, for another machine."""
    with tls_server(strangers) as port:
        refused(joining(make_site, strangers, port), "not trusted.*(IP address|match)")


def test_a_server_without_tls_is_refused(make_site: MakeSite, keys: Path) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with serving(answer) as port:
        error = refused(joining(make_site, keys, port), "does not speak TLS")
    assert "never connects without TLS" in str(error)


def test_nobody_there_is_only_a_warning(
    make_site: MakeSite, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    site = joining(make_site, keys, port)
    assert preflight(site) == site.coordinator
    assert f"127.0.0.1:{port} cannot be reached yet" in capsys.readouterr().err
    unknown = joining(make_site, keys, port, address=f"nowhere.invalid:{port}")
    assert preflight(unknown) == unknown.coordinator
    assert "nowhere.invalid" in capsys.readouterr().err


def test_no_coordinator(make_site: MakeSite) -> None:
    with pytest.raises(DerminoError, match="has not joined a federation") as caught:
        preflight(make_site())
    assert (caught.value.code, caught.value.exit_code) == ("CONFIG_INVALID", 3)


def openssh(key: Any) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


KEYS = {
    "wrong curve": (lambda: openssh(ec.generate_private_key(ec.SECP256R1())), "not a P-384 key"),
    "no curve": (lambda: openssh(ed25519.Ed25519PrivateKey.generate()), "not a P-384 key"),
    "text": (lambda: b"this is no key", "cannot be read"),
    "nothing": (lambda: b"", "cannot be read"),
    "binary": (lambda: bytes(range(256)), "cannot be read"),
    "PEM of another kind": (
        lambda: ec.generate_private_key(ec.SECP384R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("kind", KEYS)
def test_unusable_keys(make_site: MakeSite, keys: Path, tmp_path: Path, kind: str) -> None:
    content, words = KEYS[kind]
    key = tmp_path / "my.key"
    key.write_bytes(content())
    error = refused(joining(make_site, keys, 1, private_key=str(key)), words)
    assert str(key) in str(error)
    assert "dermino-client enrol" in str(error)


def test_a_key_behind_a_password(make_site: MakeSite, keys: Path, tmp_path: Path) -> None:
    """flower-supernode cannot ask for it, so it is refused before."""
    keygen = shutil.which("ssh-keygen")
    if keygen is None:
        pytest.skip("ssh-keygen is not installed")
    key = tmp_path / "locked.key"
    subprocess.run(
        [keygen, "-q", "-t", "ecdsa", "-b", "384", "-N", "secret", "-f", str(key)], check=True
    )
    refused(joining(make_site, keys, 1, private_key=str(key)), "cannot be read")


def test_missing_files(make_site: MakeSite, keys: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    refused(joining(make_site, keys, 1, private_key=missing), "private key is missing")
    error = refused(joining(make_site, keys, 1, root_certificates=missing), "CA certificate is mis")
    assert "impostor" in str(error)
    for name, content in (("empty", b""), ("text", b"hello"), ("key", None)):
        authority = tmp_path / name
        authority.write_bytes((keys / "ca.key").read_bytes() if content is None else content)
        refused(joining(make_site, keys, 1, root_certificates=str(authority)), "cannot be read")
    refused(joining(make_site, keys, 1, root_certificates=str(tmp_path)), "cannot be read")


def test_a_key_others_can_read_is_warned_about(
    make_site: MakeSite, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "open.key"
    shutil.copy(keys / "sites" / "clinic" / "clinic.key", key)
    with tls_server(keys) as port:
        key.chmod(0o644)
        preflight(joining(make_site, keys, port, private_key=str(key)))
        assert f"{key} can be read by others" in capsys.readouterr().err
        key.chmod(0o600)
        preflight(joining(make_site, keys, port, private_key=str(key)))
        assert capsys.readouterr().err == ""


def test_command_line(make_site: MakeSite, keys: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    site = joining(make_site, keys, 9092)
    site = make_site(
        coordinator={
            "address": "127.0.0.1:9092",
            "root_certificates": "ca.crt",
            "private_key": "clinic.key",
        },
        node={"cache": str(cache), "port": 9188, "health_address": "127.0.0.1:9189"},
    )
    coordinator = site.coordinator
    assert coordinator is not None
    secret = tmp_path / "runtime.secret"
    whole = command(site, coordinator, secret)
    program, arguments = whole[:3], whole[3:]
    assert program == [sys.executable, "-m", "dermino_client.supernode_flower"]
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    here = site.file.parent
    assert given.pop("--node-config") == str(cache / "node" / "clinic.toml")
    assert given == {
        "--superlink": "127.0.0.1:9092",
        "--root-certificates": str(here / "ca.crt"),
        "--auth-supernode-private-key": str(here / "clinic.key"),
        "--port": "9188",
        "--health-server-address": "127.0.0.1:9189",
        "--isolation": "process",
        "--superexec-auth-secret-file": str(secret),
    }
    assert not any("insecure" in argument for argument in arguments)
    config = tomllib.loads((cache / "node" / "clinic.toml").read_text())
    assert config == {"site-file": str(site.file)}


def test_command_line_without_health_address(make_site: MakeSite, keys: Path) -> None:
    site = joining(make_site, keys, 9092)
    assert site.coordinator is not None
    assert "--health-server-address" not in command(site, site.coordinator, Path("secret"))


def test_the_supernode_knows_every_option(make_site: MakeSite, keys: Path) -> None:
    """Also that it starts no app by itself, and that it installs no dependencies of apps."""
    from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

    site = joining(make_site, keys, 9092)
    assert site.coordinator is not None
    given = _parse_args_run_supernode().parse_args(command(site, site.coordinator, Path("s"))[3:])
    assert given.isolation == "process"
    assert given.superexec_auth_secret_file == "s"
    assert given.runtime_dependency_install is False
    assert given.host == "127.0.0.1"


FAKE = """#!/bin/sh
echo "$@" > {seen}
stat -c %a "$(echo "$@" | sed 's/.*secret-file //')" >> {seen}
echo $FLWR_TELEMETRY_ENABLED $FLWR_DISABLE_UPDATE_CHECK >> {seen}
{rest}
"""


@pytest.fixture
def fake_supernode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`fake_supernode("exit 1")` puts a script in the place of flower-supernode."""

    def make(rest: str) -> Path:
        program, seen = tmp_path / "bin" / "flower-supernode", tmp_path / "seen"
        program.parent.mkdir(exist_ok=True)
        program.write_text(FAKE.format(seen=seen, rest=rest))
        program.chmod(0o755)
        monkeypatch.setattr("dermino_client.supernode._program", lambda: [str(program)])
        return seen

    return make


def test_running_ends_with_the_supernode(
    make_site: MakeSite,
    keys: Path,
    fake_supernode: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its runner ends too, and the secret is gone."""
    site = joining(make_site, keys, 9092)
    assert site.coordinator is not None
    seen = fake_supernode("sleep 0.5; exit 1")
    pids = seen.parent / "pids"
    runner = ["/bin/sh", "-c", f"echo $$ >> {pids}; exec sleep 60"]
    monkeypatch.setattr("dermino_client.supernode.runner_command", lambda *_: runner)
    with pytest.raises(DerminoError, match="ended with exit code 1"):
        run(site, site.coordinator)
    arguments, mode, switches = seen.read_text().splitlines()
    assert "--isolation process" in arguments
    assert mode == "600"
    assert switches == "0 1"
    assert not Path(arguments.split("--superexec-auth-secret-file ")[1]).exists()
    (pid,) = pids.read_text().splitlines()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_runner_that_cannot_run_ends_the_supernode(
    make_site: MakeSite,
    keys: Path,
    fake_supernode: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A site whose guard does not work leaves the federation; it does not run without it."""
    site = joining(make_site, keys, 9092)
    assert site.coordinator is not None
    fake_supernode("exec sleep 60")
    monkeypatch.setattr(
        "dermino_client.supernode.runner_command", lambda *_: ["/bin/sh", "-c", "exit 3"]
    )
    with pytest.raises(DerminoError, match="answers messages cannot run") as caught:
        run(site, site.coordinator)
    assert (caught.value.code, caught.value.exit_code) == ("DEPENDENCY_MISSING", 3)


@pytest.mark.parametrize(
    ("code", "output", "kind", "words"),
    [
        (1, "... CERTIFICATE_VERIFY_FAILED: self signed", "TLS_INVALID", "a new bundle"),
        (1, "Error: Failed to activate SuperNode", "TLS_INVALID", "provision accept"),
        (0, "ApiError [code: 2004] no such node", "TLS_INVALID", "request of this site"),
        (0, "Stopping", "TLS_INVALID", "no longer accepts clinic"),
        (1, "Port 9094 is in use", "CONNECTION_FAILED", "node.port"),
        (-9, "", "CONNECTION_FAILED", "exit code -9"),
    ],
)
def test_endings_are_explained(
    make_site: MakeSite, keys: Path, code: int, output: str, kind: str, words: str
) -> None:
    site = joining(make_site, keys, 9092, private_key="mine.key")
    coordinator: CoordinatorSection | None = site.coordinator
    assert coordinator is not None
    error = _explain(site, coordinator, code, output)
    assert error.code == kind
    assert error.exit_code == 6
    assert words in str(error)
    assert "127.0.0.1:9092" in str(error)
