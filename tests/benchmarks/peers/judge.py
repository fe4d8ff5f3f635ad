"""One judge for all: AUROC of every contestant's head on the same vectors of the test images.

The vectors are those of plain timm in fp32, which is the peers' own arithmetic and not dermino's.

    python -m tests.benchmarks.peers.judge JOB OUT KEY=HEAD...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from dermino_core.metrics import bootstrap_weights, macro_auroc
from tests.benchmarks.peers.contestants import OURS

Floats = npt.NDArray[np.float64]
Score = dict[str, float | None]

MEAN = "mean"


def interval(value: float, drawn: Floats) -> Score:
    """A number with its 95 % bootstrap interval; all `None` where it is undefined."""
    drawn = drawn[~np.isnan(drawn)]
    if np.isnan(value) or len(drawn) < 2:
        return {"value": None if np.isnan(value) else value, "low": None, "high": None}
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def scores_of(
    heads: Mapping[str, Mapping[str, npt.NDArray]],
    tests: Mapping[str, tuple[npt.NDArray, npt.NDArray, list[str]]],
    *,
    replicates: int = 1000,
    references: tuple[str, ...] = OURS,
) -> dict[str, dict[str, dict[str, Score]]]:
    """AUROC of each head at each site and in the mean, and paired differences to the references.

    Parameters
    ----------
    heads
        Key -> `weight` [C, D] and `bias` [C].
    tests
        Site -> vectors [n, D], class indices [n], and groups that the bootstrap draws together.

    Returns
    -------
    Key -> `auroc` (site or "mean" -> score) and `minus` (reference -> score of the mean).
    """
    drawn: dict[str, dict[str, Floats]] = {key: {} for key in heads}
    for number, (site, (vectors, labels, groups)) in enumerate(tests.items()):
        draws = bootstrap_weights(len(labels), groups=groups, replicates=replicates, seed=number)
        draws = np.concatenate([np.ones((1, len(labels)), draws.dtype), draws])
        for key, head in heads.items():
            scores = vectors @ head["weight"].T.astype(np.float64) + head["bias"]
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
            drawn[key][site] = macro_auroc(labels, scores, draws)
    found: dict[str, dict[str, dict[str, Score]]] = {}
    for key, by_site in drawn.items():
        by_site[MEAN] = np.mean(list(by_site.values()), axis=0)
        found[key] = {"auroc": {s: interval(float(v[0]), v[1:]) for s, v in by_site.items()}}
    for key, by_site in drawn.items():
        minus = {}
        for other in references:
            if other in drawn and other != key:
                difference = by_site[MEAN] - drawn[other][MEAN]
                minus[other] = interval(float(difference[0]), difference[1:])
        found[key]["minus"] = minus
    return found


def main() -> None:
    """Score heads; embed the test halves first where their vectors are missing."""
    from tests.benchmarks.peers.task import Hospital, Job

    job_file, out, *pairs = sys.argv[1:]
    job = Job.read(job_file)
    tests = {}
    for name in job.site_names:
        hospital = Hospital(job, name)
        vectors, labels = hospital.vectors("test")
        groups = hospital.site["test"]["groups"]
        tests[name] = (vectors.double().numpy(), labels.numpy(), groups)
    heads = {key: load_file(file) for key, file in (pair.split("=", 1) for pair in pairs)}
    Path(out).write_text(json.dumps(scores_of(heads, tests)), encoding="utf-8")


if __name__ == "__main__":
    main()
