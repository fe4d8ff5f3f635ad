"""A real federation on loopback: SuperLink with TLS and node authentication, real clients."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from dermino_client.enrol import enrol, install_bundle
from dermino_core.datasets.synthetic import find_site, write_site
from dermino_server.enrolment import Accepted, accept
from dermino_server.provisioning import provision

BIN = Path(sys.executable).parent
CONNECTION = "loopback"
SITES = {"synthetic-mednode": 60, "synthetic-ph2": 60, "synthetic-fitzpatrick": 80}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def until(condition: Callable[[], bool], *, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return condition()


@dataclass
class Federation:
    """Everything below one folder; every process is ended by its pid."""

    folder: Path
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=lambda: dict(SITES))
    backbone: str = "demo"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def sites(self) -> Path:
        return self.folder / "sites"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self.folder / "flwr"),
            "DERMINO_CACHE": str(self.folder / "cache"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        }

    def log(self, name: str) -> str:
        file = self.folder / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def start(self, name: str, *command: str) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        self.processes[name] = process
        return process

    def run(self, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.folder,
            check=False,
        )

    def site_folder(self, name: str) -> Path:
        return self.sites / f"{name}.site"

    def provision(self) -> None:
        """Enrol every site as people would, but for the registration: that needs the SuperLink."""
        self.init()
        for name, images in self.images.items():
            self.write_site(name, images)
            self.enrol(name)

    def init(self) -> None:
        provision(
            self.keys,
            hosts=["127.0.0.1"],
            port=self.port,
            superlink=f"127.0.0.1:{self.port}",
            connection=CONNECTION,
        )

    def enrol(self, name: str) -> None:
        request = enrol(self.site_folder(name), name).file
        bundle = self.accept(request, register=False).bundle
        install_bundle(self.site_folder(name), name, bundle, yes=True)

    def accept(self, request: Path, *, register: bool) -> Accepted:
        with self._as_operator():
            return accept(self.keys, request, confirm=lambda *_: None, register=register)

    def register(self) -> None:
        for request in sorted(self.keys.glob("sites/*/*.request.json")):
            self.accept(request, register=True)

    @contextmanager
    def _as_operator(self) -> Iterator[None]:
        before = os.environ.copy()
        os.environ.update(self.environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def write_site(self, name: str, images: int, *, like: str = "", **coordinator: str) -> None:
        """The site file of `name`, with images such as the synthetic site `like` has."""
        like = like or name
        manifest = write_site(self.folder / "data" / name, site=like, images=images)
        content = {
            "site": {"name": name},
            "data": {"manifest": str(manifest), "images": str(manifest.parent)},
            "labels": dict(find_site(like).label_map),
            "backbone": {"name": "demo", "precision": "fp32"},
            "coordinator": {
                "address": f"127.0.0.1:{self.port}",
                "root_certificates": str(self.site_folder(name) / "ca.crt"),
                "private_key": str(self.site_folder(name) / "keys" / "node.key"),
            }
            | coordinator,
            "node": {"port": free_port()},
        }
        self.sites.mkdir(exist_ok=True)
        (self.sites / f"{name}.toml").write_text(tomli_w.dumps(content))

    def start_superlink(self) -> None:
        self.start(
            "superlink",
            str(BIN / "flower-superlink"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--ssl-ca-certfile", str(self.keys / "ca.crt")),
            *("--ssl-certfile", str(self.keys / "server.pem")),
            *("--ssl-keyfile", str(self.keys / "server.key")),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
            *("--database", str(self.folder / "superlink.db")),
        )
        assert until(self._listening, seconds=60), self.log("superlink")

    def _listening(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def start_client(self, name: str, *extra: str) -> subprocess.Popen:
        command = [str(BIN / "dermino-client"), "--site", name, "--sites-dir", str(self.sites)]
        return self.start(name, *command, *extra)

    def connected(self, name: str) -> bool:
        return "joining" in self.log(name) and "SuperNode ID" in self.log(name)

    def federate_command(self, out: Path, *extra: str) -> list[str]:
        sites = [part for name in self.images for part in ("--site", name)]
        return [
            *(str(BIN / "dermino"), "federate", "--superlink", CONNECTION, *sites),
            *("--backbone", self.backbone, "--no-report", "--out", str(out), *extra),
        ]

    def federate(self, out: Path, *extra: str) -> subprocess.CompletedProcess[str]:
        return self.run(*self.federate_command(out, *extra))

    def stop_all(self) -> None:
        """Clients first: a SuperNode whose SuperLink is gone takes its time to give up."""
        for name in sorted(self.processes, key=lambda name: name == "superlink"):
            process = self.processes[name]
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def join(keys: Path, folder: Path, name: str) -> Path:
    """Enrol one site without a SuperLink; returns its join bundle, which is installed, too."""
    request = enrol(folder, name).file
    bundle = accept(keys, request, confirm=lambda *_: None, register=False).bundle
    install_bundle(folder, name, bundle, yes=True)
    return bundle


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for locks."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def leaves(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value in JSON content that is neither a list nor a table."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, (*path, key))
    else:
        yield path
