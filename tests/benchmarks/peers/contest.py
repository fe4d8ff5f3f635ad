"""Runs contestants one after another, each in fresh processes and a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from dermino_core.errors import DerminoError
from tests.benchmarks.machine import module
from tests.benchmarks.peers.contestants import Contestant
from tests.benchmarks.peers.job_file import describe_job, random_backbone, write_job
from tests.benchmarks.peers.show import Row
from tests.benchmarks.peers.traffic import collect, whole_model
from tests.benchmarks.peers.tree import Failed, can_isolate, measure
from tests.benchmarks.workload import Workload, drawn_workload, real_workload, shared_folder

RANDOM_VIT = "vit_small_patch14_dinov2"
DRAWN_PER_SITE = 60
THREADS = min(2, os.cpu_count() or 1)
HEAD_BYTES = 4 * 770


class Contest:
    """The job, where everybody works, and what the rows need of it."""

    def __init__(self, work: Path, workload: Workload, backbone: Path, nvflare: str) -> None:
        self.work, self.workload, self.nvflare, self.longest = work, workload, nvflare, 1800.0
        self.logs: Path | None = None
        self.job = describe_job(workload, backbone, work) | {"threads": THREADS}
        self.sizes = {"train": workload.train, "test": workload.test}
        # Two rounds: down and up; then down once more, for the test.
        self.whole_model = whole_model(backbone, HEAD_BYTES, exchanges=5)
        self.heads: dict[str, Path] = {}

    def run(self, one: Contestant, why_not: str = "") -> Row:
        """Measure one; a failure is a row that says why."""
        row = Row(one.key, one.title, one.family)
        if one.network and not why_not and not can_isolate():
            why_not = "left out: it listens, and this machine allows no network of its own for it"
        if one.after and one.after not in self.heads and not why_not:
            why_not = f"left out: it needs what '{one.after}' leaves"
        if why_not:
            row.failed = why_not
            return row
        folder, settings = self.work / one.key, dict(one.settings)
        if one.cache:
            settings["features"] = str(self.work / one.cache)
            if not one.after:
                shutil.rmtree(self.work / one.cache, ignore_errors=True)
        job = write_job(self.job, folder, settings)
        command = one.command(job, self.workload.sites, self.workload.backbone, self.nvflare)
        try:
            bill = measure(
                command,
                folder / "log.txt",
                environment=_environment(folder),
                alone=one.network,
                longest=self.longest,
            )
            head = folder / ("run/model/model" if one.family == "dermino" else "head")
            self.heads[one.key] = _existing(head.with_suffix(".safetensors"))
            row.traffic = collect(folder)
        except (Failed, DerminoError, OSError, ValueError, KeyError) as error:
            self.heads.pop(one.key, None)
            row.failed = str(error)
            return row
        finally:
            self._keep_log(one.key, folder / "log.txt")
        row.seconds = row.job_seconds = bill.seconds
        marks = folder / "job_seconds.json"
        if marks.exists():
            row.job_seconds = float(json.loads(marks.read_text(encoding="utf-8")))
        row.cpu_seconds, row.peak_mib = bill.cpu_seconds, bill.peak_mib
        row.processes, row.loopback_bytes = bill.processes, bill.loopback_bytes
        row.others_seconds = bill.others_seconds
        return row

    def _keep_log(self, key: str, log: Path) -> None:
        if self.logs and log.exists():
            self.logs.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, self.logs / f"{key}.txt")

    def judge(self, rows: list[Row]) -> None:
        """AUROC of every head, measured by one judge in a process of its own."""
        if not self.heads:
            return
        folder = self.work / "judge"
        job = write_job(self.job, folder, {"features": str(self.work / "judged")})
        pairs = [f"{key}={head}" for key, head in self.heads.items()]
        out = folder / "scores.json"
        try:
            measure(module("peers.judge", str(job), str(out), *pairs), folder / "log.txt")
        except Failed as error:
            print(f"  no AUROC: {error}")
            return
        found = json.loads(out.read_text(encoding="utf-8"))
        for row in rows:
            if row.key in found:
                row.auroc, row.minus = found[row.key]["auroc"], found[row.key]["minus"]


def choose_workload(work: Path, per_site: int | None) -> tuple[Workload, Path]:
    """Real sites, or drawn ones with random weights where there are none; and a backbone file."""
    shared = shared_folder()
    if shared:
        workload = real_workload(shared, work, per_site=per_site)
        return workload, Path(workload.backbone)
    images = per_site or DRAWN_PER_SITE
    workload = drawn_workload(work, f"random:{RANDOM_VIT}", per_site=images)
    return workload, random_backbone(work, RANDOM_VIT)


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise Failed(f"it ended without {file.name}")
    return file


def _environment(folder: Path) -> dict[str, str]:
    """The same threads for all, and new homes and compiler caches: no help from runs before."""
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0"}
    quiet |= {"FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONWARNINGS": "ignore"}
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    return threads | quiet | compiled | {"HOME": str(home)}


def why_not_nvflare(python: str) -> str:
    """Empty if that python can run NVFlare's rows, else why they are left out."""
    if not python:
        return "left out: give --nvflare PYTHON, a python with nvflare, torch, timm, scikit-learn"
    check = "import nvflare, safetensors, sklearn, timm, torch; print(nvflare.__version__)"
    try:
        found = subprocess.run([python, "-c", check], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"left out: {error}"
    if found.returncode:
        return f"left out: {python}: {(found.stderr.strip().splitlines() or ['failed'])[-1]}"
    print(f"  nvflare {found.stdout.strip()}", file=sys.stderr)
    return ""
