"""Everything after extraction, in process: rounds, evaluation, baselines, files, report.

The first pass also pays for the modules that only these stages import (scikit-learn, matplotlib);
the second does not. Flower and dermino themselves are imported before.

    python -m tests.benchmarks.after --sites DIR --backbone NAME --cache DIR --out FILE
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from dermino_core.reporting import write_report
from dermino_server.simulate import SimulationRequest, simulate

STAGES = ("federate", "baselines", "report")
"""What comes after the features are in memory. `prepare` reads manifests and the cache."""


def one_pass(request: SimulationRequest, out: Path) -> dict[str, float]:
    """Seconds of each stage; `federate` holds rounds, evaluation and their files."""
    folder, results = simulate(request, out)
    start = time.perf_counter()
    write_report(results, folder / "report.html")
    return {**results.seconds, "report": time.perf_counter() - start}


def main() -> None:
    """Fill the cache if it is not full, then time two passes."""
    parser = argparse.ArgumentParser(prog="after")
    parser.add_argument("--sites", type=Path, required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()
    request = SimulationRequest(sites=wanted.sites, backbone=wanted.backbone, cache=wanted.cache)
    with tempfile.TemporaryDirectory(prefix="dermino-bench-") as folder:
        passes = [one_pass(request, Path(folder) / str(n)) for n in range(wanted.passes)]
    wanted.out.write_text(json.dumps(passes, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
