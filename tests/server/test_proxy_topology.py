"""The topology of deploy/ as processes on loopback: SuperLink, nginx in front, SuperNodes behind.

The proxy's configuration is rendered from deploy/proxy/dermino.conf.template, the same file that
operators use.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dermino_client.enrol import enrol
from dermino_server.enrolment import accept
from dermino_server.flower_nodes import find_node
from dermino_server.health import ask_until_healthy, check_grpc, check_http
from dermino_server.provisioning import provision
from dermino_server.revocation import revoke

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
TEMPLATE = Path(__file__).resolve().parents[2] / "deploy" / "proxy" / "dermino.conf.template"
BIN = Path(sys.executable).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="no nginx: install it to test the proxy"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Federation:
    folder: Path
    stack: ExitStack
    superlink_port: int = field(default_factory=free_port)
    proxy_port: int = field(default_factory=free_port)
    health_port: int = field(default_factory=free_port)
    lists_asked: int = 0
    """How often the operator's own commands asked for the list of nodes."""

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    def provision(self) -> None:
        provision(
            self.keys,
            hosts=["coordinator.example.org"],
            superlink=f"localhost:{self.superlink_port}",
        )

    def node_key(self, site: str) -> Path:
        return self.folder / f"{site}.site" / "keys" / "node.key"

    def enrol(self, site: str) -> str | None:
        """The hospital's request, and the coordinator's answer: the id of its node."""
        request = enrol(self.folder / f"{site}.site", site).file
        return accept(self.keys, request, confirm=lambda *_: None).entry.node_id

    def environment(self, home: str) -> dict[str, str]:
        return os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "FLWR_HOME": str(self.folder / home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }

    def start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        self.stack.callback(stop, process)
        return process

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def start_superlink(self) -> subprocess.Popen[bytes]:
        command = [str(BIN / "flower-superlink"), "--host", "127.0.0.1"]
        command += ["--port", str(self.superlink_port)]
        command += ["--ssl-ca-certfile", str(self.keys / "ca.crt")]
        command += ["--ssl-certfile", str(self.keys / "server.pem")]
        command += ["--ssl-keyfile", str(self.keys / "server.key")]
        command += ["--enable-supernode-auth", "--database", str(self.folder / "superlink.db")]
        command += ["--disable-runtime-dependency-installation"]
        command += ["--health-server-address", f"127.0.0.1:{self.health_port}"]
        return self.start("superlink", command)

    def start_proxy(self) -> subprocess.Popen[bytes]:
        values = {
            "DERMINO_LISTEN": f"127.0.0.1:{self.proxy_port}",
            "DERMINO_UPSTREAM": f"127.0.0.1:{self.superlink_port}",
            "DERMINO_TLS": str(self.keys),
            "DERMINO_ACCESS_LOG": str(self.folder / "access.log"),
        }
        text = TEMPLATE.read_text()
        for name, value in values.items():
            text = text.replace("${" + name + "}", value)
        (self.folder / "dermino.conf").write_text(text)
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/nginx-{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        # As root, nginx would hand its workers to a user who may not enter the test's folder.
        user = "user root;" if os.geteuid() == 0 else ""
        main = self.folder / "nginx.conf"
        main.write_text(
            f"daemon off; worker_processes 1; {user}\n"
            f"pid {self.folder}/nginx.pid; error_log {self.folder}/nginx-error.log;\n"
            f"events {{ worker_connections 256; }}\n"
            f"http {{\n{temporary}include {self.folder}/dermino.conf;\n}}\n"
        )
        return self.start("nginx", [str(NGINX), "-c", str(main)])

    def start_supernode(
        self, name: str, key: Path, ca: Path | None, *, health: int | None = None
    ) -> subprocess.Popen[bytes]:
        command = [str(BIN / "flower-supernode"), "--superlink", f"localhost:{self.proxy_port}"]
        command += ["--auth-supernode-private-key", str(key), "--port", str(free_port())]
        command += [] if ca is None else ["--root-certificates", str(ca)]
        command += [] if health is None else ["--health-server-address", f"127.0.0.1:{health}"]
        return self.start(name, command)

    def request(self, method: str, path: str, body: bytes = b"", *, direct: bool = False) -> int:
        trust = ssl.create_default_context(cafile=str(self.keys / "ca.crt"))
        port = self.superlink_port if direct else self.proxy_port
        connection = http.client.HTTPSConnection("localhost", port, timeout=20, context=trust)
        try:
            connection.request(method, path, body, {"Content-Type": "application/protobuf"})
            return connection.getresponse().status
        finally:
            connection.close()

    def flwr_supernode(self, *arguments: str) -> dict:
        done = subprocess.run(
            [str(BIN / "flwr"), "supernode", *arguments, "coordinator", "--format", "json"],
            env=self.environment("operator"),
            capture_output=True,
            text=True,
            timeout=60,
        )
        return json.loads(done.stdout)

    def statuses(self) -> list[str]:
        return [node["status"] for node in self.flwr_supernode("list")["nodes"]]


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(condition, *, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("topology")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        made = Federation(folder, stack)
        made.provision()
        made.start_superlink()
        made.start_proxy()
        ca = made.keys / "ca.crt"
        answers = ask_until_healthy(
            [
                lambda: check_grpc(f"127.0.0.1:{made.health_port}"),
                lambda: check_http(f"https://localhost:{made.proxy_port}", ca=ca),
            ],
            wait=90,
        )
        assert all(answer.ok for answer in answers), (
            answers,
            made.log("superlink").read_text(),
            made.log("nginx").read_text(),
        )
        patch.setenv("FLWR_HOME", str(folder / "operator"))
        first = [made.enrol("mednode"), made.enrol("ph2")]
        assert all(first)
        assert [made.enrol("mednode"), made.enrol("ph2")] == first
        made.lists_asked = made.log("superlink").read_text().count("/v1/control/list-nodes")
        yield made


def test_the_door_opens_for_the_fleet_api_only(federation: Federation) -> None:
    ask = federation.request
    assert ask("GET", "/health") == 200
    assert ask("HEAD", "/health") == 200
    assert ask("POST", "/health") == 403
    assert ask("POST", "/v1/fleet/activate-node") == 401, "the SuperLink itself must answer"
    assert ask("GET", "/v1/fleet/activate-node") == 403
    closed = [
        "/",
        "/docs",
        "/openapi.json",
        "/health/",
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/pull-message",
        "/v1/fleet",
        "/v1/fleet/",
        "/V1/control/list-nodes",
    ]
    for path in closed:
        assert {ask("GET", path), ask("POST", path)} <= {403, 404}, path


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet/%2e%2e%2fcontrol%2flist-nodes",
        "/v1/fleet//../control/list-nodes",
        "//v1/control/list-nodes",
        "/v1//control/list-nodes",
        "/v1/control/../fleet/activate-node",
        "/v1/control/list-nodes/../../fleet/activate-node",
        "/v1/control/list-nodes%00/../../fleet/activate-node",
        "/v1/fleet/..;/control/list-nodes",
        "/v1/fleet\\..\\control/list-nodes",
        "/v1/fleet/activate-node?x=/v1/control/list-nodes",
        "/health/../v1/control/list-nodes",
    ],
)
def test_no_disguised_path_gets_through(federation: Federation, path: str) -> None:
    assert federation.request("POST", path) in (400, 404)


def test_the_paths_that_are_closed_are_real_ones(federation: Federation) -> None:
    """Without this, a 404 above could come from the SuperLink."""
    assert federation.request("POST", "/v1/control/list-nodes", direct=True) == 200
    assert federation.request("GET", "/openapi.json", direct=True) == 200
    log = (federation.folder / "superlink.log").read_text()
    assert log.count("/v1/control/list-nodes") == federation.lists_asked + 1


def test_bodies_over_64_megabytes_are_refused(federation: Federation) -> None:
    limit = 64 * 2**20
    # The SuperLink's own answer to 63 MB that are no message.
    assert federation.request("POST", "/v1/fleet/push-object", bytes(63 * 2**20)) == 400
    trust = ssl.create_default_context(cafile=str(federation.keys / "ca.crt"))
    connection = http.client.HTTPSConnection("localhost", federation.proxy_port, context=trust)
    connection.putrequest("POST", "/v1/fleet/push-object")
    connection.putheader("Content-Length", str(limit + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_plain_http_request_reaches_nothing(federation: Federation) -> None:
    connection = http.client.HTTPConnection("localhost", federation.proxy_port, timeout=20)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 400
    connection.close()


def test_a_registered_site_lives_through_a_restart_until_it_is_unregistered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        made = Federation(tmp_path, stack)
        made.provision()
        superlink = made.start_superlink()
        made.start_proxy()
        url, ca = f"https://localhost:{made.proxy_port}", made.keys / "ca.crt"
        assert ask_until_healthy([lambda: check_http(url, ca=ca)], wait=90)[0].ok
        monkeypatch.setenv("FLWR_HOME", str(tmp_path / "operator"))
        made.enrol("mednode")
        assert made.statuses() == ["registered"]

        health = free_port()
        key = made.node_key("mednode")
        node = made.start_supernode("mednode", key, ca, health=health)
        assert until(lambda: made.statuses() == ["online"]), made.log("mednode").read_text()
        assert check_grpc(f"127.0.0.1:{health}").ok

        stop(superlink)
        assert check_http(url, ca=ca).state == "answered HTTP 502"
        made.start_superlink()
        assert ask_until_healthy([lambda: check_http(url, ca=ca)], wait=90)[0].ok
        reconnected = "Connection successful after"
        assert until(lambda: reconnected in made.log("mednode").read_text())
        assert made.statuses() == ["online"]

        node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=30) == 0
        assert until(lambda: made.statuses() == ["offline"], seconds=20)
        assert not check_grpc(f"127.0.0.1:{health}", timeout=2).ok

        node = made.start_supernode("again", key, ca)
        assert until(lambda: made.statuses() == ["online"]), made.log("again").read_text()
        revoke(made.keys, "mednode")
        # Refused (HTTP 401), flower-supernode ends as if someone had stopped it.
        assert node.wait(timeout=60) == 0
        assert "terminated gracefully" in made.log("again").read_text()
        line = " ".join((made.keys / "sites/mednode/mednode.pub").read_text().split()[:2])
        assert find_node("coordinator", line)[1] == "unregistered"
        node = made.start_supernode("refused", key, ca)
        assert node.wait(timeout=60) == 1
        assert "[code: 2004]" in made.log("refused").read_text()


def test_an_unregistered_key_is_refused(federation: Federation, tmp_path: Path) -> None:
    enrol(tmp_path / "stray", "stray")
    key = tmp_path / "stray" / "keys" / "node.key"
    node = federation.start_supernode("stray", key, federation.keys / "ca.crt")
    assert node.wait(timeout=60) == 1
    log = federation.log("stray").read_text()
    assert "Exit Code: 305" in log
    assert "[code: 2004] Failed to activate SuperNode." in log
    assert federation.statuses().count("online") == 0


@pytest.mark.parametrize("authority", ["none", "other"])
def test_a_site_without_the_authority_refuses(
    federation: Federation, tmp_path: Path, authority: str
) -> None:
    ca = None
    if authority == "other":
        provision(tmp_path / "other", hosts=["localhost"])
        ca = tmp_path / "other" / "ca.crt"
    key = federation.node_key("ph2")
    name = f"ph2-{authority}"
    node = federation.start_supernode(name, key, ca)
    assert node.wait(timeout=60) == 1
    log = federation.log(name).read_text()
    assert "Exit Code: 305" in log
    assert "CERTIFICATE_VERIFY_FAILED" in log
    assert federation.statuses().count("online") == 0
