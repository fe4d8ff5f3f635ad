"""The whole job, each time in a fresh process: dermino against the plain Flower client."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from statistics import median

from dermino_core.results import Estimate, read_results
from tests.benchmarks.machine import Bill, dermino, module, run_child
from tests.benchmarks.tables import goal, table
from tests.benchmarks.workload import Workload

PLAIN = {"plain fp32": "fp32", "plain bf16 autocast": "bf16"}


def run_jobs(
    workload: Workload, work: Path, *, wanted_ratio: float, repeats: int
) -> dict[str, object]:
    """Run and print one setting; return its numbers.

    Rounds of measurement are interleaved: dermino cold and warm, then one plain client, then
    dermino again, so that a slow minute of the machine does not fall on one side only.
    """
    passes = {
        images: PLAIN_PASSES[images] * getattr(workload, images) for images in ("train", "test")
    }
    print(
        f"{workload.name}: {workload.images} images ({workload.train} train, {workload.test} "
        f"test), 2 rounds, 2 local epochs, batch 32.\nForward passes: dermino {workload.images}, "
        f"plain {sum(passes.values())}."
    )
    bills: dict[str, list[Bill]] = {}
    scores: dict[str, Estimate] = {}
    for label, precision in PLAIN.items():
        for _ in range(repeats):
            for kind in ("dermino cold", "dermino warm"):
                bills.setdefault(kind, []).append(_dermino(workload, work, kind, scores))
        bills[label] = [_plain(workload, work, label, precision, scores)]
    return _show(workload, bills, scores, wanted_ratio)


PLAIN_PASSES = {"train": 4, "test": 2}
"""Times the plain client runs the ViT over an image: rounds x epochs; rounds."""


def _dermino(workload: Workload, work: Path, kind: str, scores: dict[str, Estimate]) -> Bill:
    run, cache = work / "run", work / "cache"
    shutil.rmtree(run, ignore_errors=True)
    if kind == "dermino cold":
        shutil.rmtree(cache, ignore_errors=True)
    command = dermino(
        *("simulate", "--sites", str(workload.sites), "--backbone", workload.backbone),
        *("--cache", str(cache), "--out", str(run)),
    )
    bill = run_child(command)
    print(f"  {kind}: {bill.seconds:.1f} s", flush=True)
    results = read_results(run / "results.json")
    scores[kind] = results.mean["global"].auroc
    return bill


def _plain(
    workload: Workload, work: Path, label: str, precision: str, scores: dict[str, Estimate]
) -> Bill:
    out = work / "plain.json"
    command = module(
        "plain_flower",
        *("--sites", str(workload.sites), "--backbone", workload.backbone),
        *("--precision", precision, "--out", str(out)),
    )
    bill = run_child(command)
    print(f"  {label}: {bill.seconds:.1f} s", flush=True)
    rounds: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
    scores[label] = Estimate(value=rounds[max(rounds, key=int)])
    return bill


def _show(
    workload: Workload,
    bills: dict[str, list[Bill]],
    scores: dict[str, Estimate],
    wanted_ratio: float,
) -> dict[str, object]:
    typical = {kind: _median(several) for kind, several in bills.items()}
    cold = typical["dermino cold"].seconds
    rows = []
    for kind in ("dermino cold", "dermino warm", *PLAIN):
        bill = typical[kind]
        rows.append(
            [
                kind,
                f"{bill.seconds:.1f}",
                f"{bill.seconds / cold:.2f}",
                f"{bill.cpu_seconds:.1f}",
                f"{bill.peak_mib:.0f}",
                f"{1000 * bill.seconds / workload.images:.0f}",
                _score(scores[kind]),
                str(len(bills[kind])),
            ]
        )
    header = ["job", "seconds", "x cold", "CPU s", "peak MiB", "ms/image", "mean AUROC", "runs"]
    print(table(header, rows))
    print(
        "  Peak: the largest process; the plain client's loader processes come on top.\n"
        "  dermino's job also makes the local and pooled baselines, the intervals and the report."
    )
    ratio = typical["plain fp32"].seconds / cold
    text = f"at least {wanted_ratio:g} times faster than plain fp32"
    print(goal(text, f"{ratio:.1f} times", reached=ratio >= wanted_ratio))
    share = typical["dermino warm"].seconds / cold
    print(goal("a second run under a tenth", f"{100 * share:.0f} %", reached=share < 0.1))
    difference = abs((scores["plain fp32"].value or 0) - (scores["dermino cold"].value or 0))
    spread = scores["dermino cold"].standard_error or 0
    print(
        f"  Same protocol, other order of images: AUROC differs by {difference:.4f} "
        f"(standard error of the mean {spread:.4f})."
    )
    return {
        "images": workload.images,
        "bills": {kind: [asdict(bill) for bill in several] for kind, several in bills.items()},
        "auroc": {kind: score.value for kind, score in scores.items()},
        "ratio_plain_fp32": ratio,
        "ratio_plain_bf16": typical["plain bf16 autocast"].seconds / cold,
        "warm_share": share,
    }


def _median(bills: list[Bill]) -> Bill:
    return Bill(
        median(bill.seconds for bill in bills),
        median(bill.cpu_seconds for bill in bills),
        max(bill.peak_mib for bill in bills),
    )


def _score(score: Estimate) -> str:
    if score.value is None:
        return "undefined"
    if score.low is None or score.high is None:
        return f"{score.value:.4f}"
    return f"{score.value:.4f} ({score.low:.2f} to {score.high:.2f})"
