"""`dermino health` against real servers: a SuperLink, and things that are not one."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dermino_core.errors import DerminoError
from dermino_server.commands.health import health as health_command
from dermino_server.health import (
    Check,
    ask_until_healthy,
    check_grpc,
    check_http,
    require_healthy,
)
from dermino_server.provisioning import provision

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def invoke(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(health_command)
    done = CliRunner().invoke(app, list(arguments))
    if isinstance(done.exception, DerminoError):
        return done.exception.exit_code, done.output + str(done.exception)
    return done.exit_code, done.output


@pytest.fixture
def grpc_server() -> Iterator[tuple[str, object]]:
    import grpc
    from grpc_health.v1 import health, health_pb2_grpc

    servicer = health.HealthServicer()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None).wait()


class Answer(http.server.BaseHTTPRequestHandler):
    status = 200
    asked: str = ""

    def do_GET(self) -> None:
        type(self).asked = self.path
        self.send_response(self.status)
        if self.status == 302:
            self.send_header("Location", "/health")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@pytest.fixture
def http_server() -> Iterator[tuple[str, type[Answer]]]:
    handler = type("Handler", (Answer,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_serving_and_not_serving(grpc_server: tuple[str, object]) -> None:
    from grpc_health.v1 import health, health_pb2

    address, servicer = grpc_server
    assert isinstance(servicer, health.HealthServicer)
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    assert check_grpc(address).ok
    code, output = invoke(address)
    assert code == 0
    assert output.splitlines()[0].startswith(f"grpc  {address}  serving  ")
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    code, output = invoke(address)
    assert code == 6
    assert f"grpc  {address}  not serving  " in output
    assert "To do" in output


def test_nobody_there() -> None:
    port = free_port()
    assert check_grpc(f"127.0.0.1:{port}", timeout=2).state == "unreachable"
    assert check_http(f"http://127.0.0.1:{port}", timeout=2).state == "unreachable"


def test_somebody_silent_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert check_grpc(address, timeout=0.5).state in ("no answer in time", "unreachable")
        assert check_http(f"http://{address}", timeout=0.5).state == "no answer in time"


def test_a_grpc_server_without_health() -> None:
    import grpc

    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert check_grpc(f"127.0.0.1:{port}").state == "no health service there"
    finally:
        server.stop(None).wait()


def test_http_statuses(http_server: tuple[str, type[Answer]]) -> None:
    url, handler = http_server
    assert check_http(url).ok
    assert handler.asked == "/health"
    assert check_http(f"{url}/v2/status").ok
    assert handler.asked == "/v2/status"
    for status in (204, 302, 404, 502):
        handler.status = status
        assert check_http(url).state == f"answered HTTP {status}"
    assert invoke("--http", url)[0] == 6


def test_http_where_https_is_asked(http_server: tuple[str, type[Answer]]) -> None:
    url, _ = http_server
    assert check_http(url.replace("http:", "https:")).state == "no TLS there"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "coordinator:443", "https://", "ftp://x"])
def test_not_a_url(url: str) -> None:
    with pytest.raises(DerminoError) as caught:
        check_http(url)
    assert caught.value.code == "CONFIG_INVALID"


def test_a_ca_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("hello")
    for ca in (tmp_path / "ca.crt", tmp_path / "absent.crt"):
        with pytest.raises(DerminoError) as caught:
            check_http("https://localhost:1", ca=ca)
        assert caught.value.code == "TLS_INVALID"


def test_nothing_to_ask_is_a_wrong_command_line() -> None:
    assert invoke()[0] == 2


def test_waiting_ends_when_all_serve() -> None:
    asked = []

    def slow_start() -> Check:
        asked.append(1)
        return Check("grpc", "x:1", "serving" if len(asked) == 3 else "unreachable", 0.0)

    assert [answer.ok for answer in ask_until_healthy([slow_start], wait=60)] == [True]
    assert len(asked) == 3
    bad = Check("http", "https://x", "answered HTTP 502", 0.0)
    assert ask_until_healthy([lambda: bad]) == [bad]


def test_every_bad_answer_is_named_with_advice() -> None:
    bad = [
        Check("grpc", "x:1", "unreachable", 0.0),
        Check("http", "https://x", "certificate not trusted (self-signed)", 0.0),
    ]
    with pytest.raises(DerminoError) as caught:
        require_healthy([*bad, Check("http", "https://y", "serving", 0.0)])
    assert caught.value.code == "CONNECTION_FAILED"
    assert "x:1" in caught.value.what
    assert "https://y" not in caught.value.what
    assert "--ca" in (caught.value.fix or "")


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
def test_a_real_superlink(tmp_path: Path, tls: bool) -> None:
    port, health_port = free_port(), free_port()
    options = ["--insecure"]
    if tls:
        provision(tmp_path / "keys", hosts=["coordinator.example.org"])
        options = ["--ssl-ca-certfile", str(tmp_path / "keys/ca.crt")]
        options += ["--ssl-certfile", str(tmp_path / "keys/server.pem")]
        options += ["--ssl-keyfile", str(tmp_path / "keys/server.key")]
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    command = [str(BIN / "flower-superlink"), *options, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--health-server-address", f"127.0.0.1:{health_port}"]
    with (tmp_path / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        url = f"{'https' if tls else 'http'}://localhost:{port}"
        ask = [f"127.0.0.1:{health_port}", "--http", url]
        trust = ["--ca", str(tmp_path / "keys/ca.crt")] if tls else []
        code, output = invoke(*ask, *trust, "--wait", "60")
        assert code == 0, output + (tmp_path / "superlink.log").read_text()
        assert output.count("serving") == 2
        assert check_grpc(f"127.0.0.1:{port}", timeout=2).state == "unreachable"
        if tls:
            code, output = invoke(*ask)
            assert code == 6
            assert "certificate not trusted" in output
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    assert invoke(*ask, *trust)[0] == 6
