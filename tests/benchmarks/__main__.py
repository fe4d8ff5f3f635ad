"""`make bench`: what is measured, side by side, and not asserted.

python -m tests.benchmarks                   everything, about 20 minutes on two cores
python -m tests.benchmarks --quick           small sizes: shows that it works, not the numbers
python -m tests.benchmarks --only job-b after --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks.job import run_jobs
from tests.benchmarks.machine import dermino, describe, load_line, module, run_child
from tests.benchmarks.memory import measure_memory
from tests.benchmarks.neighbours import measure_neighbours
from tests.benchmarks.secure_aggregation import bytes_table, seconds_table, wanted_grid
from tests.benchmarks.secure_aggregation import measure as measure_secure_aggregation
from tests.benchmarks.suite import measure_suite
from tests.benchmarks.tables import goal, table
from tests.benchmarks.workload import Workload, drawn_workload, real_workload, shared_folder

VIT_B = "random:vit_base_patch14_dinov2"
WANTED_SHARE = 0.5
WANTED_AFTER_SECONDS = 3.0
NO_REAL_IMAGES = "  left out: no real images and weights here; set DERMINO_SHARED to their folder"


def job_s(work: Path, *, quick: bool) -> object:
    """The whole job on the real sites."""
    shared = shared_folder()
    if shared is None:
        print(NO_REAL_IMAGES)
        return None
    workload = real_workload(shared, work, per_site=40 if quick else None)
    return run_jobs(workload, work, wanted_ratio=8, repeats=1)


def job_b(work: Path, *, quick: bool) -> object:
    """The whole job with a ViT-B on drawn sites."""
    workload = drawn_workload(work, VIT_B, per_site=20 if quick else 60)
    found = run_jobs(workload, work, wanted_ratio=20, repeats=1 if quick else 2)
    print("  A larger job gains more: imports and loading the backbone weigh less in it.")
    return found


def extraction(work: Path, *, quick: bool) -> object:
    """Images/s against the matrix-multiply peak."""
    out = work / "extraction.json"
    size = ["--images", "32", "--backbones", "ViT-S/14"] if quick else ["--images", "160"]
    run_child(module("extraction", *size, "--out", str(out)))
    found = json.loads(out.read_text(encoding="utf-8"))
    rows = []
    for row in found:
        bound = row["bound"]
        peak = max(row["peak_before"], row["peak_after"])
        row["share"] = row["files_rate"] / bound
        rows.append(
            [
                f"{row['backbone']} {row['arithmetic']}",
                f"{row['gflop_per_image']:.1f}",
                f"{row['peak_before']:.0f}/{row['peak_after']:.0f}",
                f"{peak / row['gflop_per_image']:.1f}",
                f"{row['forward_rate']:.1f}",
                f"{100 * row['forward_rate'] / bound:.0f} %",
                f"{row['files_rate']:.1f}",
                f"{100 * row['share']:.0f} %",
                f"{row['files_rate_with_start']:.1f}",
                f"{row['start_seconds']:.1f}",
            ]
        )
    print(f"{found[0]['images']} JPEG files of a synthetic hospital, fresh cache, images/s")
    header = ["backbone", "GFLOP", "GEMM GFLOP/s", "bound", "forward", "share"]
    header += ["from JPEG", "share", "with start", "start s"]
    print(table(header, rows))
    print(
        "  GEMM: peak before/after the row. 'from JPEG': read, hash, decode, forward, store, with\n"
        "  the backbone loaded; 'with start': also importing torch and timm, fingerprinting,\n"
        "  loading, and compiling where the row is compiled."
    )
    for row in found:
        if row["backbone"] == "ViT-B/14" and row["arithmetic"] != "bf16 compiled":
            text = f"ViT-B/14 {row['arithmetic']} from JPEG at least 50 % of the GEMM bound"
            reached = row["share"] >= WANTED_SHARE
            print(goal(text, f"{100 * row['share']:.0f} %", reached=reached))
    return found


def memory(work: Path, *, quick: bool) -> object:
    """Peak memory from few to many images."""
    return measure_memory(work, [500, 2000] if quick else [1000, 5000, 20000])


def after(work: Path, *, quick: bool) -> object:
    """Rounds, evaluation, baselines and report."""
    workload = _after_workload(work, quick=quick)
    cache, out = work / "cache-after", work / "after.json"
    places = ("--sites", str(workload.sites), "--backbone", workload.backbone)
    fill = ("--cache", str(cache), "--out", str(work / "fill"), "--no-report")
    run_child(dermino("simulate", *places, *fill))
    run_child(module("after", *places, "--cache", str(cache), "--out", str(out)))
    found = json.loads(out.read_text(encoding="utf-8"))
    stages = list(found[0])
    totals = [sum(seconds for stage, seconds in one.items() if stage != "prepare") for one in found]
    rows = [
        [f"pass {n}", *(f"{one[stage]:.2f}" for stage in stages), f"{total:.2f}"]
        for n, (one, total) in enumerate(zip(found, totals, strict=True), start=1)
    ]
    print(f"{workload.name}: {workload.images} images, features in the cache, seconds")
    print(table(["", *stages, "all after prepare"], rows))
    print("  Pass 1 also imports what only these stages need (scikit-learn, matplotlib).")
    reached = totals[0] < WANTED_AFTER_SECONDS
    print(goal("everything after extraction under 3 s", f"{totals[0]:.2f} s", reached=reached))
    return {"passes": found, "totals": totals}


def suite(work: Path, *, quick: bool) -> object:
    """`dermino evaluate` beside a script that embeds anew for each task."""
    shared = shared_folder()
    if shared is None:
        print(NO_REAL_IMAGES)
        return None
    return measure_suite(shared, work, per_site=40 if quick else None)


def secure_aggregation(work: Path, *, quick: bool) -> object:
    """What hiding single updates costs a round, beside the plain mean."""
    del work
    cells = measure_secure_aggregation(wanted_grid(quick=quick))
    print(seconds_table(cells))
    print(bytes_table(cells))
    return [asdict(cell) for cell in cells]


def neighbours(work: Path, *, quick: bool) -> object:
    """Exact search beside faiss and scikit-learn."""
    del work
    return measure_neighbours(4000 if quick else 20_000)


def _after_workload(work: Path, *, quick: bool) -> Workload:
    shared = shared_folder()
    if shared is None or quick:
        return drawn_workload(work, "demo", per_site=60 if quick else None)
    return real_workload(shared, work)


SECTIONS: dict[str, Callable[..., object]] = {
    "job-s": job_s,
    "job-b": job_b,
    "extraction": extraction,
    "memory": memory,
    "after": after,
    "suite": suite,
    "neighbours": neighbours,
    "secure-aggregation": secure_aggregation,
}


def _interrupt(_number: int, _frame: object) -> None:
    """SIGTERM ends the run as Ctrl-C does: children are ended, temporary folders removed."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the sections; 1 if one of them could not be measured."""
    signal.signal(signal.SIGTERM, _interrupt)
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="small sizes, about 3 minutes")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    wanted = parser.parse_args()
    found: dict[str, object] = {"quick": wanted.quick, **describe()}
    print(", ".join(f"{key} {value}" for key, value in describe().items()))
    if wanted.quick:
        print("quick: sizes too small for the goals to mean anything")
    failed = False
    for name in wanted.only:
        print(f"\n{name}: {SECTIONS[name].__doc__}\n  {load_line()}", flush=True)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="dermino-bench-") as work:
            try:
                found[name] = SECTIONS[name](Path(work), quick=wanted.quick)
            except RuntimeError as error:
                failed = True
                print(f"  could not be measured: {error}")
        print(f"  section took {time.perf_counter() - start:.0f} s", flush=True)
    if wanted.out:
        wanted.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"\nnumbers: {wanted.out}")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(130)
