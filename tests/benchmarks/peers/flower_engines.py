"""The plain Flower app as its users run it: on a SuperLink with SuperNodes, or on Ray.

    python -m tests.benchmarks.peers.flower_engines {deployed,ray} JOB

`deployed`: a SuperLink and one SuperNode per site on loopback, without TLS, all settings Flower's
own; then `flwr run`. `ray`: `run_simulation`, one site at a time with both cores.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from tests.benchmarks.peers.task import JOB_VARIABLE, Job, log_job_seconds

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).resolve().parents[3]
CONNECTION = "peers"
PATIENCE = 60.0
"""Seconds that a service has to listen, and to end."""


def main() -> None:
    """Run one engine."""
    engine, file = sys.argv[1:]
    os.environ[JOB_VARIABLE] = file
    job = Job.read(file)
    {"deployed": deployed, "ray": ray}[engine](job)
    if not (job.folder / "head.safetensors").exists():
        raise SystemExit("the run ended without a model; its log is above")


def ray(job: Job) -> None:
    """Flower's simulation engine."""
    from flwr.simulation import run_simulation

    from tests.benchmarks.peers.flower_app import client_app, server_app

    resources = {"num_cpus": job.threads, "num_gpus": 0.0}
    start = {"num_cpus": job.threads, "include_dashboard": False}
    run_simulation(
        server_app,
        client_app,
        num_supernodes=len(job.sites),
        backend_config={"client_resources": resources, "init_args": start},
    )


def deployed(job: Job) -> None:
    """SuperLink, SuperNodes, `flwr run`; ends what it started."""
    link, app = free_port(), job.folder / "app"
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "FLWR_HOME": str(job.folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    _write_app(app)
    _write_connection(job.folder / "flwr" / "config.toml", link)
    with _services(environment) as start_service:
        command = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(link)]
        start_service([*command, "--disable-runtime-dependency-installation"])
        _wait_for(link)
        for name in job.site_names:
            port = free_port()
            command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}"]
            start_service([*command, "--port", str(port), "--node-config", f'site="{name}"'])
            _wait_for(port)
        start = time.perf_counter()
        run = [str(BIN / "flwr"), "run", str(app), CONNECTION, "--stream"]
        subprocess.run(run, env=environment, cwd=job.folder, check=True)
        log_job_seconds(job, time.perf_counter() - start)


def _write_app(folder: Path) -> None:
    folder.mkdir(parents=True)
    module = "tests.benchmarks.peers.flower_app"
    components = {"serverapp": f"{module}:server_app", "clientapp": f"{module}:client_app"}
    flower = {"publisher": "peers", "components": components, "config": {}}
    project = {"name": "peers", "version": "1.0.0", "license": "Apache-2.0", "dependencies": []}
    content = {"project": project, "tool": {"flwr": {"app": flower}}}
    (folder / "pyproject.toml").write_text(tomli_w.dumps(content), encoding="utf-8")


def _write_connection(file: Path, port: int) -> None:
    file.parent.mkdir(parents=True)
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    content = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    file.write_text(tomli_w.dumps(content), encoding="utf-8")


@contextmanager
def _services(environment: dict[str, str]) -> Iterator[Callable[[list[str]], None]]:
    """Gives a function that starts a service; ends them all, SuperNodes before the SuperLink."""
    running: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> None:
        program = [str(BIN / command[0]), *command[1:]]
        running.append(subprocess.Popen(program, env=environment))

    try:
        yield start
    finally:
        for group in (running[1:], running[:1]):
            for process in group:
                process.terminate()
            for process in group:
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def free_port() -> int:
    """On loopback, now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for(port: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens on port {port}")


if __name__ == "__main__":
    main()
