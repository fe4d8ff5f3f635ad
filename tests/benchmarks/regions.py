"""One coordinator for all sites, or regions in between: bytes, time and memory at the top.

python -m tests.benchmarks.regions --sites 1000 10000 --sizes 30 100

What arrives is packed and read as Flower messages are, one at a time; nothing travels. A site sends
one of a few drawn updates under its own name. Every top is a process of its own, and the regions
before it work in another, so that the top's memory is its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from dermino_strategies.base import Additive, Arrays, SiteData
from dermino_strategies.protocol import TrainReply, pack_update, unpack_update
from dermino_strategies.regional import Region, RegionalSum
from dermino_strategies.registry import get_strategy
from dermino_strategies.running_sum import RunningSum
from tests.benchmarks.machine import describe, load_line, module, run_child
from tests.benchmarks.scale import peak_mib
from tests.benchmarks.tables import table

WIDTHS = {"fedavg": 768, "ridge": 128}
IMAGES, CLASSES, DRAWN = 40, 2, 8
RUN_ID = "0" * 32


@dataclass(frozen=True)
class Top:
    """What one round cost the coordinator at the top; `size` 0 for one without regions.

    Seconds are of the processor: what else the machine does is not counted.
    """

    method: str
    sites: int
    size: int
    messages: int
    megabytes: float
    seconds: float
    mib: float
    region_seconds: float = 0.0


def _strategy(method: str) -> tuple[Additive, Arrays]:
    strategy = get_strategy(method)
    if not isinstance(strategy, Additive):
        raise ValueError(f"{method} does not add")
    return strategy, strategy.initial_arrays(CLASSES, WIDTHS[method], 0)


def _names(sites: int) -> list[str]:
    return [f"site-{number:05d}" for number in range(sites)]


def _messages(strategy: Additive, arrays: Arrays) -> list[bytes]:
    """What a few drawn sites send, as bytes."""
    found = []
    for seed in range(DRAWN):
        rng = np.random.default_rng(seed)
        labels = np.arange(IMAGES) % CLASSES
        width = arrays["weight"].shape[1]
        features = (rng.normal(size=(IMAGES, width)) + 0.1 * labels[:, None]).astype(np.float32)
        update = strategy.site_update(SiteData("drawn", features, labels, CLASSES), arrays, 1, 0)
        facts: dict[str, Any] = {"images_total": IMAGES, "images_used": IMAGES, "seconds": 0.0}
        reply = TrainReply(
            classes=["a", "b"], precision="fp32", auroc_before=None, f1_before=None, **facts
        )
        found.append(_bytes(pack_update(reply, update, None)))
    return found


def _bytes(content: RecordDict) -> bytes:
    return recorddict_to_proto(content).SerializeToString()


def _content(wire: bytes) -> RecordDict:
    return recorddict_from_proto(ProtoRecordDict.FromString(wire))


def _summands(strategy: Additive, arrays: Arrays, names: list[str]) -> Iterator[tuple[str, Arrays]]:
    """Every site's message, read and checked as a coordinator does it."""
    wires = _messages(strategy, arrays)
    like = strategy.update_like(arrays)
    for name in names:
        update = unpack_update(_content(wires[int(name.rpartition("-")[2]) % DRAWN]), like)
        strategy.check_update(arrays, update)
        yield name, strategy.summand(update)


def sum_regions(method: str, sites: int, size: int, folder: Path) -> float:
    """Write what each region sends to a file; processor seconds that one region works."""
    strategy, arrays = _strategy(method)
    names = _names(sites)
    start, made = time.process_time(), 0
    for first in range(0, sites, size):
        region = Region.of(f"region-{first}", strategy, arrays, run_id=RUN_ID, round_=1)
        for name, summand in _summands(strategy, arrays, names[first : first + size]):
            region.add(name, summand)
        (folder / f"{made:06d}").write_bytes(_bytes(region.sum().pack()))
        made += 1
    return (time.process_time() - start) / made


def top_of_regions(method: str, sites: int, size: int, folder: Path) -> Top:
    """Add up the regions' files; leaves the total in `folder/total.npz`."""
    strategy, arrays = _strategy(method)
    like = strategy.summand_like(arrays)
    top = Region.of("top", strategy, arrays, run_id=RUN_ID, round_=1, members=_names(sites))
    files = sorted(folder.iterdir())
    before, start = peak_mib(), time.process_time()
    megabytes = 0.0
    for file in files:
        wire = file.read_bytes()
        megabytes += len(wire) / 1e6
        top.add_region(RegionalSum.unpack(_content(wire), like))
    total = top.total()
    strategy.from_sum(arrays, total)
    seconds = time.process_time() - start
    np.savez(folder / "total.npz", **total)  # type: ignore[arg-type]
    return Top(method, sites, size, len(files), megabytes, seconds, peak_mib() - before)


def top_of_sites(method: str, sites: int, folder: Path) -> Top:
    """Add up the sites themselves, as a coordinator does now."""
    strategy, arrays = _strategy(method)
    names = _names(sites)
    megabytes = sites * float(np.mean([len(w) for w in _messages(strategy, arrays)])) / 1e6
    running = RunningSum(names)
    before, start = peak_mib(), time.process_time()
    for name, summand in _summands(strategy, arrays, names):
        running.add(name, summand)
    total = running.total()
    strategy.from_sum(arrays, total)
    seconds = time.process_time() - start
    np.savez(folder / "total.npz", **total)  # type: ignore[arg-type]
    return Top(method, sites, 0, sites, megabytes, seconds, peak_mib() - before)


def measure(method: str, sites: int, sizes: list[int], work: Path) -> list[Top]:
    """One round without regions and with regions of each size, and whether the sums agree."""
    found: list[Top] = []
    totals: dict[int, dict[str, Any]] = {}
    for size in (0, *sizes):
        folder = work / f"{method}-{sites}-{size}"
        folder.mkdir()
        place = ["--method", method, "--sites", str(sites), "--sizes", str(size)]
        place += ["--folder", str(folder)]
        out = work / "one.json"
        if size:
            run_child(module("regions", *place, "--one", "regions", "--out", str(out)))
        each = json.loads(out.read_text(encoding="utf-8")) if size else 0.0
        run_child(module("regions", *place, "--one", "top", "--out", str(out)))
        cost = json.loads(out.read_text(encoding="utf-8"))
        found.append(Top(**cost | {"region_seconds": each}))
        with np.load(folder / "total.npz") as saved:
            totals[size] = dict(saved)
        for file in folder.iterdir():
            file.unlink()
    first = totals[sizes[0]]
    same = all((totals[size][key] == first[key]).all() for size in sizes for key in first)
    worst = max(
        float(np.abs(totals[0][key] - first[key]).max() / max(np.abs(first[key]).max(), 1e-300))
        for key in first
    )
    print(
        f"{method}, {sites} sites: sums of regions of {sizes} "
        f"{'have the same bits' if same else 'DIFFER'}; the sum in the order of names is off by "
        f"{worst:.1e} of the largest entry"
    )
    return found


def main() -> int:
    """The table, or with `--one` a single process of it."""
    parser = argparse.ArgumentParser(prog="regions")
    parser.add_argument("--sites", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[30, 100])
    parser.add_argument("--methods", nargs="+", default=list(WIDTHS))
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    one = parser.add_argument_group("one process")
    one.add_argument("--one", choices=["regions", "top"])
    one.add_argument("--method", default="fedavg")
    one.add_argument("--folder", type=Path)
    wanted = parser.parse_args()
    if wanted.one:
        (sites,), (size,) = wanted.sites, wanted.sizes
        if wanted.one == "regions":
            content: Any = sum_regions(wanted.method, sites, size, wanted.folder)
        elif size:
            content = asdict(top_of_regions(wanted.method, sites, size, wanted.folder))
        else:
            content = asdict(top_of_sites(wanted.method, sites, wanted.folder))
        wanted.out.write_text(json.dumps(content), encoding="utf-8")
        return 0
    print(", ".join(f"{key} {value}" for key, value in describe().items()))
    print(load_line())
    found: list[Top] = []
    with tempfile.TemporaryDirectory(prefix="dermino-bench-") as work:
        for method in wanted.methods:
            for sites in wanted.sites:
                found += measure(method, sites, wanted.sizes, Path(work))
    rows = [
        [
            f"{cost.method}, width {WIDTHS[cost.method]}",
            str(cost.sites),
            f"of {cost.size}" if cost.size else "none",
            str(cost.messages),
            f"{cost.megabytes:.1f}",
            f"{cost.seconds:.2f}",
            f"{cost.mib:.1f}",
            f"{cost.region_seconds:.2f}" if cost.size else "",
        ]
        for cost in found
    ]
    header = ["method", "sites", "regions", "messages", "MB in", "CPU s at the top", "MiB more"]
    print(table([*header, "CPU s a region"], rows))
    if wanted.out:
        content = {"machine": describe(), "tops": [asdict(cost) for cost in found]}
        wanted.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
