"""`make bench-pretrain`: a step of pretraining beside lightly's pieces in a plain loop.

python -m tests.benchmarks.pretraining            ViT-S/14 on a processor, ViT-B/14 on a GPU
python -m tests.benchmarks.pretraining --quick    a tiny ViT: shows that it works, not the numbers

Both sides get the same ViT, crops, batch, precision, number of prototypes and files. Each
measurement is a process of its own; the sides take turns, and a figure is the median of all timed
intervals of its side. The bound is the matrix-multiply peak measured in this run, divided by the
operations of an image, counted from the ViT's shapes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dermino_core.precision import resolve_device
from tests.benchmarks.machine import dermino, describe, load_line, module, run_child
from tests.benchmarks.pretraining_plan import Plan, Timing, configuration, write_pictures
from tests.benchmarks.step_cost import SHAPES, step_cost
from tests.benchmarks.tables import goal, table

MODES: Mapping[str, str] = {
    "crops": "crops made before: student, teacher, losses, optimiser",
    "decoded": "decoded images on the device: crops and colour too",
    "files": "from JPEG files",
}
WANTED_RATIO = 1.5
WANTED_RATE = 600.0
H200_TFLOPS = 790.0
"""What an H200 reaches in bf16 matrix products, in 1e12 operations a second."""


@dataclass(frozen=True)
class Size:
    """How much is run. `interval` is in steps; `rounds` is how often the sides take turns."""

    architecture: str
    batch: int
    prototypes: int
    interval: int
    intervals: int
    rounds: int
    pictures: int
    workers: int


QUICK = Size("vit_tiny_patch16_224", 4, 1024, 3, 1, 1, 16, 1)
CPU = Size("vit_small_patch14_dinov2", 8, 65536, 3, 2, 2, 160, 2)
CUDA = Size("vit_base_patch14_dinov2", 128, 65536, 40, 3, 2, 2000, 14)


@dataclass(frozen=True)
class Row:
    """One side in one mode: images/s of every timed interval, memory in MiB."""

    mode: str
    side: str
    rates: list[float]
    data_wait: float
    memory_mib: float

    @property
    def rate(self) -> float:
        """The median, in images/s."""
        return statistics.median(self.rates)


def measure_mode(plan: Plan, mode: str, sides: Sequence[str], rounds: int, work: Path) -> list[Row]:
    """The sides in turn, `rounds` times."""
    file, out = work / "plan.json", work / "timing.json"
    plan.write(file)
    timings: dict[str, list[Timing]] = {side: [] for side in sides}
    memory = dict.fromkeys(sides, 0.0)
    for _ in range(rounds):
        for side in sides:
            places = ("--plan", str(file), "--out", str(out))
            bill = run_child(module("pretraining_side", side, mode, *places))
            timing = Timing.read(out)
            timings[side].append(timing)
            memory[side] = max(memory[side], timing.device_mib or bill.peak_mib)
    rows = []
    for side, found in timings.items():
        seconds = [s for timing in found for s in timing.seconds]
        waited = [s for timing in found for s in timing.waited]
        rates = [plan.images_per_interval / s for s in seconds]
        rows.append(Row(mode, side, rates, sum(waited) / sum(seconds), memory[side]))
    return rows


def peak_of(plan: Plan, work: Path) -> dict[str, Any]:
    """Matrix-multiply peak in 1e9 operations a second, precision and device, in a process."""
    file, out = work / "plan.json", work / "peak.json"
    plan.write(file)
    run_child(module("pretraining_side", "peak", "--plan", str(file), "--out", str(out)))
    return json.loads(out.read_text(encoding="utf-8"))


def print_rows(rows: Sequence[Row], bound: float) -> None:
    """A table for each mode, with the ratio of the sides."""
    header = ["", "images/s", "lowest-highest", "of bound", "data wait", "GiB"]
    for mode in dict.fromkeys(row.mode for row in rows):
        of_mode = {row.side: row for row in rows if row.mode == mode}
        cells = [
            [
                row.side,
                f"{row.rate:.2f}",
                f"{min(row.rates):.2f}-{max(row.rates):.2f}",
                f"{100 * row.rate / bound:.1f} %",
                f"{100 * row.data_wait:.0f} %" if mode == "files" else "",
                f"{row.memory_mib / 1024:.1f}",
            ]
            for row in of_mode.values()
        ]
        print(f"\n  {MODES[mode]}")
        print(table(header, cells))
        if ratio := ratio_of(rows, mode):
            print(f"  dermino / lightly: {ratio:.2f}")


def ratio_of(rows: Sequence[Row], mode: str) -> float | None:
    """Our rate by the peer's; None if either was not measured."""
    rates = {row.side: row.rate for row in rows if row.mode == mode}
    return rates["dermino"] / rates["lightly"] if len(rates) == 2 else None


def print_goals(rows: Sequence[Row], gflop: float, device: str, *, on_gpu: bool) -> None:
    """Every goal of the project beside what was measured."""
    ratio = ratio_of(rows, "files")
    if ratio is not None and not on_gpu:
        text = f"from JPEG files at least {WANTED_RATIO} times lightly's pieces on a processor"
        print(goal(text, f"{ratio:.2f}", reached=ratio >= WANTED_RATIO))
    if on_gpu:
        decoded = [row.rate for row in rows if row.mode == "decoded"]
        for rate in decoded:
            share = rate * gflop * 1e-3 / H200_TFLOPS
            text = f"ViT-B/14, images on the device: at least {WANTED_RATE:.0f} images/s on an H200"
            measured = f"{rate:.0f} on {device}; {100 * share:.0f} % of {H200_TFLOPS:.0f} TFLOP/s"
            print(goal(text, measured, reached=rate >= WANTED_RATE))
    else:
        print("  Not run on a GPU: the goal of 600 images/s on an H200 was not measured.")


def make_plan(size: Size, device: str, source: dict[str, Any], images: Path) -> Plan:
    """The plan of a size."""
    config = configuration(
        size.architecture,
        batch=size.batch,
        prototypes=size.prototypes,
        precision="auto",
        device=device,
        workers=size.workers,
        steps=size.interval * (size.intervals + 1),
        interval=size.interval,
        source=source,
    )
    return Plan(config, str(images), size.interval, size.intervals)


def shards_of(manifest: Path, images: Path, out: Path) -> dict[str, Any]:
    """Prepare shards as a person would; the source that names them."""
    run_child(dermino("data", "shards", str(manifest), "--images", str(images), "--out", str(out)))
    return {"shards": str(out)}


def run(size: Size, device: str, modes: Sequence[str], sides: Sequence[str], work: Path) -> object:
    """Measure and print; the figures."""
    manifest = write_pictures(work, size.pictures)
    images = work / "files"
    on_gpu = device.startswith("cuda")
    source: dict[str, Any] = {"manifest": str(manifest), "images": str(images)}
    if on_gpu and "files" in modes:
        source = shards_of(manifest, images, work / "shards")
    plan = make_plan(size, device, source, images)
    cost = step_cost(plan.resolved, SHAPES[size.architecture])
    before = peak_of(plan, work)
    print(
        f"\n{size.architecture}, 2 x {plan.resolved.crops.global_size} + "
        f"{plan.resolved.crops.local_count} x {plan.resolved.crops.local_size} pixels, "
        f"K = {size.prototypes:,}, batch {size.batch}, {before['precision']} on "
        f"{before['name']}, {size.workers} workers\n"
        f"  {cost.whole:.0f} GFLOP an image: student {cost.student:.0f}, teacher "
        f"{cost.teacher:.0f}, heads {cost.heads:.0f}",
        flush=True,
    )
    rows = []
    for mode in modes:
        able = [side for side in sides if side == "dermino" or mode != "decoded"]
        rows += measure_mode(plan, mode, able, size.rounds, work)
    after = peak_of(plan, work)
    peak = max(before["gflops"], after["gflops"])
    print(
        f"  matrix-multiply peak before and after: {before['gflops']:.0f} and "
        f"{after['gflops']:.0f} GFLOP/s; bound {peak / cost.whole:.2f} images/s"
    )
    print_rows(rows, peak / cost.whole)
    print()
    print_goals(rows, cost.whole, before["name"], on_gpu=on_gpu)
    return {
        "size": asdict(size),
        "gflop_per_image": asdict(cost),
        "peak": [before, after],
        "rows": [asdict(row) for row in rows],
    }


def _interrupt(_number: int, _frame: object) -> None:
    """SIGTERM ends the run as Ctrl-C does: children are ended, temporary folders removed."""
    raise KeyboardInterrupt


def main() -> int:
    """Read the command line and run; 1 if something could not be measured."""
    signal.signal(signal.SIGTERM, _interrupt)
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.pretraining",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a tiny ViT, about a minute")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--sides", nargs="+", choices=("dermino", "lightly"))
    parser.add_argument("--batch", type=int, help="images of a step")
    parser.add_argument("--workers", type=int, help="decoding processes")
    parser.add_argument("--rounds", type=int, help="how often the sides take turns")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    wanted = parser.parse_args()
    device = resolve_device(wanted.device)
    size = QUICK if wanted.quick else CUDA if device.startswith("cuda") else CPU
    given = {name: getattr(wanted, name) for name in ("batch", "workers", "rounds")}
    size = replace(size, **{name: value for name, value in given.items() if value is not None})
    print(", ".join(f"{key} {value}" for key, value in describe().items()))
    print(load_line())
    if wanted.quick:
        print("quick: sizes too small for the goals to mean anything")
    sides = wanted.sides or ["dermino", "lightly"]
    if "lightly" in sides and importlib.util.find_spec("lightly") is None:
        print("lightly is not installed (extra 'peers'): only dermino is measured")
        sides = [side for side in sides if side != "lightly"]
    try:
        with tempfile.TemporaryDirectory(prefix="dermino-bench-") as work:
            found = run(size, device, wanted.modes, sides, Path(work))
    except RuntimeError as error:
        print(f"could not be measured: {error}")
        return 1
    if wanted.out:
        content = {"quick": wanted.quick, **describe(), "found": found}
        wanted.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"\nnumbers: {wanted.out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(130)
