"""What can be learned about a hospital's images from what leaves it, as Markdown tables.

python -m tests.benchmarks.leaks --cache DIR --out FILE.md    about 5 minutes of one core
python -m tests.benchmarks.leaks --quick                      shows that it works, not the numbers
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dermino_core.privacy.sgd import drawn_centre
from tests.benchmarks.leaks.sections import QUICK, SECTIONS, Ground, Sizes
from tests.benchmarks.leaks.victims import Hospital, drawn_hospitals, load_hospitals
from tests.benchmarks.machine import describe
from tests.benchmarks.workload import real_workload, shared_folder

TITLES = {
    "membership": "Membership inference on heads",
    "sums": "Membership inference on ridge's sums",
    "properties": "Properties of a hospital",
    "reconstruction": "Reconstruction of features",
}
DRAWN = {"ham10000": 160, "isic2017": 80, "ph2": 60}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the attacks and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.leaks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cache", type=Path, help="features are kept here; default: nowhere")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--quick", action="store_true", help="small sizes, drawn features: seconds")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    wanted = parser.parse_args(arguments)
    start = time.process_time()
    hospitals, centre, origin = _hospitals(wanted.cache, quick=wanted.quick)
    facts = ", ".join(f"{key} {value}" for key, value in describe().items())
    sizes = ", ".join(f"{one.name} {len(one.labels)}" for one in hospitals)
    blocks = [f"{origin}; {sizes} images, every patient in a run with probability 1/2; {facts}."]
    ground = Ground(hospitals, centre, QUICK if wanted.quick else Sizes(), _tell)
    for name in wanted.only:
        table = SECTIONS[name](ground)
        blocks.append(f"### {TITLES[name]}\n\n{table}")
    blocks.append(f"{time.process_time() - start:.0f} s of processor time.")
    text = "\n\n".join(blocks) + "\n"
    print(text)
    if wanted.out:
        wanted.out.write_text(text, encoding="utf-8")
    return 0


def _hospitals(cache: Path | None, *, quick: bool) -> tuple[list[Hospital], tuple[float, ...], str]:
    """The hospitals, the public centre of their private runs, and what they are."""
    shared = None if quick else shared_folder()
    if shared is None:
        return drawn_hospitals(DRAWN), (), "DRAWN FEATURES, THE FIGURES SAY NOTHING OF HOSPITALS"
    with tempfile.TemporaryDirectory(prefix="dermino-leaks-") as work:
        workload, kept = real_workload(shared, Path(work)), cache or Path(work) / "cache"
        centre = drawn_centre(workload.backbone, cache=kept, precision="bf16")
        return load_hospitals(workload, kept), centre, workload.name


def _tell(line: str) -> None:
    print(f"{time.process_time():5.0f} s  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
