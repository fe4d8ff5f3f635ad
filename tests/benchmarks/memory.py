"""Peak memory of an extraction, for more and more images. Run as a program it is one extraction.

python -m tests.benchmarks.memory --images DIR --count 1000 --cache DIR
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks.machine import module, run_child
from tests.benchmarks.tables import goal, table

SIDE = 224
FLAT_MIB_PER_1000 = 1.0
"""Growth that still counts as flat: a path, a digest and a row number are kept of each image."""


def write_jpegs(folder: Path, count: int) -> None:
    """Distinct small JPEG files, smooth as skin is: blurred noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(60, 230, (7, 7, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=85)
        (folder / f"{number:06d}.jpg").write_bytes(buffer.getvalue())


def measure_memory(work: Path, counts: list[int]) -> dict[str, object]:
    """Run and print one extraction per count; return the numbers."""
    images = work / "many"
    write_jpegs(images, max(counts))
    bills = {}
    for count in counts:
        command = module(
            "memory",
            *("--images", str(images), "--count", str(count)),
            *("--cache", str(work / f"cache-{count}")),
        )
        bills[count] = run_child(command)
    first, last = min(counts), max(counts)
    rows = [
        [f"{n}", f"{bill.peak_mib:.0f}", f"{bill.seconds:.1f}", f"{n / bill.seconds:.0f}"]
        for n, bill in bills.items()
    ]
    print(f"demo backbone, distinct JPEG files of {SIDE} pixels, each row a fresh process")
    print(table(["images", "peak MiB", "seconds", "images/s"], rows))
    growth = 1000 * (bills[last].peak_mib - bills[first].peak_mib) / (last - first)
    measured = f"{growth:+.2f} MiB per 1,000 images"
    text = f"memory flat from {first:,} to {last:,} images"
    print(goal(text, measured, reached=growth <= FLAT_MIB_PER_1000))
    return {
        "bills": {str(n): asdict(bill) for n, bill in bills.items()},
        "mib_per_1000_images": growth,
    }


def _first(folder: Path, count: int) -> Iterator[Path]:
    return (folder / f"{number:06d}.jpg" for number in range(count))


def main() -> None:
    """Extract the features of the first `count` files."""
    from dermino_core.features import extract_features

    parser = argparse.ArgumentParser(prog="memory")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    wanted = parser.parse_args()
    paths = list(_first(wanted.images, wanted.count))
    table_ = extract_features(paths, "demo", cache=wanted.cache, title="memory")
    if len(table_.rows) != wanted.count:
        raise RuntimeError(f"{len(table_.rows)} of {wanted.count} images were read")


if __name__ == "__main__":
    main()
