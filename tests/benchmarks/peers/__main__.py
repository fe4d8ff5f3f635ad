"""dermino beside its peers on the same job: one command, one table, one picture.

python -m tests.benchmarks.peers --nvflare PYTHON --out DIR     all rows on all images
python -m tests.benchmarks.peers --quick                        few images: shows that it works

PYTHON is one that has nvflare, torch, timm and scikit-learn; without it NVFlare is left out.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.machine import describe, load_line
from tests.benchmarks.peers.contest import Contest, choose_workload, why_not_nvflare
from tests.benchmarks.peers.contestants import CONTESTANTS
from tests.benchmarks.peers.plot import draw
from tests.benchmarks.peers.show import Row, goals, markdown, notes

QUICK_IMAGES = 24
WHOLE_MODEL = "bytes of the whole model"
LONGEST, LONGEST_QUICK = 1800.0, 600.0
"""Seconds after which a contestant is ended."""


def write_json(rows: list[Row], about: dict[str, object], out: Path) -> None:
    """All numbers; after every row, so that an interrupted run leaves what it has."""
    content = {"about": about, "rows": [row.as_json() for row in rows]}
    (out / "peers.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_table(rows: list[Row], about: dict[str, object], out: Path) -> str:
    """`peers.md` and `peers.svg`; returns the text."""
    machine = {name: value for name, value in about.items() if name != WHOLE_MODEL}
    parts = [
        ", ".join(f"{key} {value}" for key, value in machine.items()),
        markdown(rows),
        "\n".join(f"- {line.strip()}" for line in goals(rows)),
        notes(rows, int(str(about[WHOLE_MODEL]))),
    ]
    text = "\n\n".join(parts) + "\n"
    (out / "peers.md").write_text(text, encoding="utf-8")
    draw(rows, out / "peers.svg")
    return text


def again(file: Path, out: Path) -> None:
    """The table and the picture of numbers that were measured before."""
    content = json.loads(file.read_text(encoding="utf-8"))
    print(write_table([Row.from_json(row) for row in content["rows"]], content["about"], out))


def _interrupt(_number: int, _frame: object) -> None:
    """SIGTERM ends the run as Ctrl-C does: all processes are ended, temporary folders removed."""
    raise KeyboardInterrupt


def main() -> int:
    """Run everybody; 1 if a contestant failed that should have run."""
    signal.signal(signal.SIGTERM, _interrupt)
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="few images, fewer rows")
    parser.add_argument("--per-site", type=int, help="at most so many images of a site")
    parser.add_argument("--only", nargs="+", choices=[one.key for one in CONTESTANTS])
    parser.add_argument("--nvflare", default="", metavar="PYTHON", help="a python with nvflare")
    parser.add_argument("--out", type=Path, default=Path("build/peers"))
    parser.add_argument("--from", dest="numbers", type=Path, help="draw a peers.json again")
    wanted = parser.parse_args()
    wanted.out.mkdir(parents=True, exist_ok=True)
    if wanted.numbers:
        again(wanted.numbers, wanted.out)
        return 0
    per_site = wanted.per_site or (QUICK_IMAGES if wanted.quick else None)
    chosen = [one for one in CONTESTANTS if one.quick or not wanted.quick]
    if wanted.only:
        chosen = [one for one in CONTESTANTS if one.key in wanted.only]
    no_nvflare = why_not_nvflare(wanted.nvflare)
    start = time.perf_counter()
    print(", ".join(f"{key} {value}" for key, value in describe().items()))
    print(f"  {load_line()}", flush=True)
    with tempfile.TemporaryDirectory(prefix="dermino-peers-") as work:
        workload, backbone = choose_workload(Path(work), per_site)
        contest = Contest(Path(work), workload, backbone, wanted.nvflare)
        contest.longest = LONGEST_QUICK if wanted.quick else LONGEST
        contest.logs = wanted.out / "logs"
        about: dict[str, object] = {**describe(), "sites": workload.name, **contest.sizes}
        about[WHOLE_MODEL] = contest.whole_model
        print(f"  {workload.name}: {contest.sizes}", flush=True)
        rows: list[Row] = []
        for one in chosen:
            uses_nvflare = one.program[0] == "nvflare_job"
            row = contest.run(one, why_not=no_nvflare if uses_nvflare else "")
            rows.append(row)
            write_json(rows, about, wanted.out)
            text = row.failed or f"{row.seconds:.1f} s, {row.peak_mib:.0f} MiB"
            print(f"  {one.title}: {text}", flush=True)
        contest.judge(rows)
    write_json(rows, about, wanted.out)
    print(f"\n{write_table(rows, about, wanted.out)}")
    if wanted.quick:
        print("quick: sizes too small for the goals to mean anything")
    print(f"{time.perf_counter() - start:.0f} s; table, numbers and picture: {wanted.out}")
    return int(any(row.failed and row.failed != no_nvflare for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(130)
