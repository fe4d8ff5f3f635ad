"""Exact nearest neighbours by cosine, beside faiss and scikit-learn.

    python -m tests.benchmarks.neighbours            20,000 x 20,000 x 384
    python -m tests.benchmarks.neighbours --large    100,000 x 100,000 x 768 as well, ours only
    python -m tests.benchmarks.neighbours --quick    shows that it works, not the numbers

Each side searches in a process of its own, after importing its library, several times; its best
time counts. Normalising the vectors is part of it. Run it under `taskset -c 1` with
OMP_NUM_THREADS=1 to compare single threads.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.benchmarks.machine import load_line, module, run_child
from tests.benchmarks.tables import goal, table

OURS, OURS_FP32 = "dermino", "dermino, float32"
SIDES = {OURS: "torch", OURS_FP32: "torch", "faiss-cpu": "faiss", "scikit-learn": "sklearn"}
"""Side -> the module it needs."""

PEERS = ("faiss-cpu", "scikit-learn")
K = 5
CLUSTERS = 100

Search = Callable[[np.ndarray, np.ndarray], np.ndarray]


def vectors(n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and gallery as features are: in clusters, and pointing much the same way."""
    rng = np.random.default_rng(0)
    centres = 0.5 + 0.5 * rng.standard_normal((CLUSTERS, width), dtype=np.float32)
    sides = []
    for _ in range(2):
        x = rng.standard_normal((n, width), dtype=np.float32)
        x += centres[rng.integers(0, CLUSTERS, n)]
        sides.append(x)
    return sides[0], sides[1]


def search_of(side: str) -> Search:
    """Queries and gallery to the indices of the K nearest, imports done."""
    if side == "faiss-cpu":
        import faiss

        def with_faiss(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
            queries, gallery = queries.copy(), gallery.copy()
            faiss.normalize_L2(queries)
            faiss.normalize_L2(gallery)
            index = faiss.IndexFlatIP(gallery.shape[1])
            index.add(gallery)
            return index.search(queries, K)[1]

        return with_faiss
    if side == "scikit-learn":
        from sklearn.neighbors import NearestNeighbors

        def with_sklearn(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
            brute = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine")
            return brute.fit(gallery).kneighbors(queries, return_distance=False)

        return with_sklearn
    import torch  # noqa: F401

    from dermino_core.evaluation import neighbours

    if side == OURS_FP32:
        neighbours.resolve_precision = lambda *_: "fp32"

    def ours(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        return neighbours.nearest(queries, gallery, K, device="cpu")[1]

    return ours


def one_side(side: str, n: int, width: int, repeats: int, out: Path) -> None:
    """Search, and write what it cost and what it found."""
    queries, gallery = vectors(n, width)
    search = search_of(side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    walls, cpus, found = [], [], np.empty(0)
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        found = search(queries, gallery)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    bill = {"seconds": min(walls), "cpu_seconds": min(cpus), "grown_mib": grown}
    out.with_suffix(".json").write_text(json.dumps(bill), encoding="utf-8")
    np.save(out.with_suffix(".npy"), found)


def measure(sides: list[str], n: int, width: int, repeats: int) -> dict[str, dict[str, float]]:
    """Run every side, print the table, return the numbers."""
    found: dict[str, dict[str, float]] = {}
    indices: dict[str, np.ndarray] = {}
    print(f"\n{n:,} queries x {n:,} gallery x {width}, k = {K}\n  {load_line()}", flush=True)
    with tempfile.TemporaryDirectory(prefix="dermino-bench-") as folder:
        for number, side in enumerate(sides):
            out = Path(folder) / str(number)
            sizes = ("--images", str(n), "--width", str(width), "--repeats", str(repeats))
            bill = run_child(module("neighbours", "--side", side, *sizes, "--out", str(out)))
            found[side] = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
            found[side]["peak_mib"] = bill.peak_mib
            indices[side] = np.load(out.with_suffix(".npy"))
    rows = [
        [
            side,
            f"{one['seconds']:.2f}",
            f"{one['cpu_seconds']:.2f}",
            f"{one['grown_mib']:.0f}",
            f"{one['peak_mib']:.0f}",
            f"{one['cpu_seconds'] / found[sides[0]]['cpu_seconds']:.2f}",
            f"{100 * (indices[side] == indices[sides[0]]).mean():.3f} %",
        ]
        for side, one in found.items()
    ]
    header = ["", "seconds", "CPU s", "search MiB", "process MiB", "CPU ratio", "same"]
    print(table(header, rows))
    return found


def measure_neighbours(n: int, *, width: int = 384, repeats: int = 3) -> object:
    """All sides that are installed, beside the goal."""
    sides = []
    for side, needs in SIDES.items():
        if importlib.util.find_spec(needs) is None:
            print(f"{side} is left out: it is not installed (pip install {side})")
        else:
            sides.append(side)
    found = measure(sides, n, width, repeats)
    if peers := [found[side]["cpu_seconds"] for side in PEERS if side in found]:
        ratio = min(peers) / found[OURS]["cpu_seconds"]
        text = "at least as fast as the better of faiss and scikit-learn, in CPU seconds"
        print(goal(text, f"ratio {ratio:.2f}", reached=ratio >= 1))
    return found


def main() -> None:
    """Compare the sides, or be one."""
    parser = argparse.ArgumentParser(prog="neighbours")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    if wanted.side:
        one_side(wanted.side, wanted.images, wanted.width, wanted.repeats, wanted.out)
        return
    images = 4000 if wanted.quick else wanted.images
    measure_neighbours(images, width=wanted.width, repeats=wanted.repeats)
    if wanted.large:
        measure([OURS], 100_000, 768, 1)


if __name__ == "__main__":
    main()
