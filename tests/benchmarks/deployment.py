"""A real deployment on loopback: from `dermino federate` to its report, features cached.

python -m tests.benchmarks.deployment --cache DIR [--quick] [--ways ridge ...]

A SuperLink with TLS, three `dermino-client`s that poll it every three seconds, and a fresh process
for every command, as at the coordinator's. The seconds are those of the command: submitting,
rounds, evaluation, results and report. The weights are compared with those of a simulation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tomli_w
from safetensors.numpy import load_file

from tests.benchmarks.machine import describe, load_line
from tests.benchmarks.tables import goal, table
from tests.benchmarks.workload import Workload, drawn_workload, real_workload, shared_folder
from tests.server.federation import BIN, Federation, free_port, until

WANTED_SECONDS = 15.0
WANTED_DIFFERENCE = 1e-8
WAYS: dict[str, tuple[str, ...]] = {
    "ridge": ("--strategy", "ridge"),
    "ridge, no statistics": ("--strategy", "ridge", "--no-statistics"),
    "ridge, personal": ("--strategy", "ridge", "--personal"),
    "fedavg": ("--strategy", "fedavg"),
}


@dataclass(frozen=True)
class Timing:
    """One `dermino federate`: its seconds, those of its exchanges, and what it gave."""

    way: str
    seconds: float
    exchanges: list[float]
    mean_auroc: float
    difference: float
    """Largest absolute difference between its weights and the simulation's."""


class Deployment(Federation):
    """The federation of a workload's sites, with their features in one cache."""

    def __init__(self, folder: Path, workload: Workload, cache: Path) -> None:
        self._files = {file.stem: file for file in sorted(workload.sites.glob("*.toml"))}
        images = dict.fromkeys(self._files, 0)
        super().__init__(folder, images=images, backbone=workload.backbone)
        self._cache = cache

    @property
    def environment(self) -> dict[str, str]:
        """With the cache that is full already, and Flower's usual waiting."""
        rest = {**super().environment, "DERMINO_CACHE": str(self._cache)}
        rest.pop("FLWR_SUPEREXEC_TASK_POLL_INTERVAL")
        return rest

    def write_site(self, name: str, images: int, *, like: str = "", **coordinator: str) -> None:
        """The workload's site file, with a coordinator."""
        content = tomllib.loads(self._files[name].read_text(encoding="utf-8"))
        folder = self.site_folder(name)
        content["backbone"] = {"name": self.backbone}
        content["coordinator"] = {
            "address": f"127.0.0.1:{self.port}",
            "root_certificates": str(folder / "ca.crt"),
            "private_key": str(folder / "keys" / "node.key"),
        }
        content["node"] = {"port": free_port()}
        self.sites.mkdir(exist_ok=True)
        (self.sites / f"{name}.toml").write_text(tomli_w.dumps(content), encoding="utf-8")


def measure(workload: Workload, folder: Path, cache: Path, ways: list[str]) -> list[Timing]:
    """Start the federation once, run every way on it, and end it."""
    running = Deployment(folder, workload, cache)
    running.provision()
    try:
        running.start_superlink()
        running.register()
        for name in running.images:
            running.start_client(name)
        for name in running.images:
            if not until(lambda name=name: running.connected(name), seconds=600):
                raise RuntimeError(f"{name} did not connect: {running.log(name)[-2000:]}")
        return [_run(running, way) for way in ways]
    finally:
        running.stop_all()


def _run(running: Deployment, way: str) -> Timing:
    name = way.replace(", ", "-").replace(" ", "-")
    out, simulated = running.folder / name, running.folder / f"{name}-simulated"
    command = running.federate_command(out, *WAYS[way], "--report")
    start = time.monotonic()
    done = running.run(*command)
    seconds = time.monotonic() - start
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    command = [str(BIN / "dermino"), "simulate", "--sites", str(running.sites), "--no-report"]
    again = running.run(*command, *WAYS[way], "--out", str(simulated))
    if again.returncode:
        raise RuntimeError(again.stdout + again.stderr)
    real, other = (load_file(run / "model" / "model.safetensors") for run in (out, simulated))
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return Timing(
        way=way,
        seconds=seconds,
        exchanges=[record["seconds"] for record in results["rounds"]],
        mean_auroc=results["mean"]["global"]["auroc"]["value"],
        difference=max(float(np.abs(real[name] - array).max()) for name, array in other.items()),
    )


def show(timings: list[Timing]) -> None:
    """The table and the goals."""
    rows = [
        [
            t.way,
            f"{t.seconds:.1f}",
            " + ".join(f"{seconds:.1f}" for seconds in t.exchanges),
            f"{t.mean_auroc:.3f}",
            f"{t.difference:.1e}",
        ]
        for t in timings
    ]
    print(table(["", "submit to report s", "of it exchanges s", "AUROC", "difference"], rows))
    print("  difference: largest, between the weights of the deployment and of the simulation")
    for t in timings:
        if t.way == "ridge":
            text = f"ridge from submit to report in under {WANTED_SECONDS:g} s"
            print(goal(text, f"{t.seconds:.1f} s", reached=t.seconds < WANTED_SECONDS))
            text = f"weights equal the simulation's to {WANTED_DIFFERENCE:g}"
            reached = t.difference <= WANTED_DIFFERENCE
            print(goal(text, f"{t.difference:.1e}", reached=reached))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--cache", type=Path, help="features, kept between runs")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--quick", action="store_true", help="drawn sites, the demo backbone")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    print(describe())
    print(load_line())
    with tempfile.TemporaryDirectory(prefix="dermino-deployment-") as temporary:
        work = Path(temporary)
        shared = None if arguments.quick else shared_folder()
        workload = real_workload(shared, work) if shared else drawn_workload(work, "demo")
        cache = (arguments.cache or work / "cache").absolute()
        print(f"{workload.name}: {workload.images} images")
        timings = measure(workload, work, cache, arguments.ways)
    show(timings)
    if arguments.out:
        content = {"machine": describe(), "timings": [asdict(t) for t in timings]}
        arguments.out.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
