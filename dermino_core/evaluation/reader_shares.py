"""How much training data a model needs to be as accurate as readers (paper, Fig. 6c)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dermino_core.errors import DerminoError
from dermino_core.evaluation.measure import EVERYONE, Measure, Outcome, measured
from dermino_core.evaluation.reader_sheets import UNASSISTED
from dermino_core.evaluation.reader_study import READERS

SHARE = "share="
"""How a `setting` of the label efficiency begins: `share=0.05`."""


def accuracy_by_share(
    readers: Sequence[Measure], efficiency: Sequence[Measure], *, seed: int = 0
) -> Outcome:
    """Accuracy of models trained on a share of the data, minus that of unassisted readers.

    Parameters
    ----------
    readers
        Of :func:`~dermino_core.evaluation.reader_study.reader_study`; its means over all readers
        and by experience are used.
    efficiency
        Of the label efficiency: those of metric `accuracy` with a setting `share=...` are used.
    seed
        Draws one side's replicates anew, so that the two are independent.

    Returns
    -------
    Outcome
        Metric `accuracy difference`, method `METHOD - readers`, for each group and share; and
        notes that say from which share on the model is at least as accurate.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` if either side has no such measure.
    """
    means = [
        m
        for m in readers
        if (m.method, m.metric, m.setting) == (READERS, "accuracy", UNASSISTED)
        and (m.group == EVERYONE or m.group.startswith("experience="))
        and m.value is not None
    ]
    shares = sorted(
        (m for m in efficiency if m.metric == "accuracy" and _share(m) is not None), key=_share_of
    )
    if not means or not shares:
        missing = "no mean accuracy of unassisted readers" if not means else "no accuracy by share"
        raise DerminoError("DATA_TOO_FEW", f"There is {missing} to compare.")
    rng = np.random.default_rng(seed)
    measures: list[Measure] = []
    notes = [
        "The models' accuracy is that of the whole test half, the readers' that of the "
        f"{means[0].n} items they were shown."
    ]
    for method in dict.fromkeys(m.method for m in shares):
        for mean in means:
            rows = [_difference(m, mean, rng) for m in shares if m.method == method]
            measures += rows
            notes.append(_from_when(method, mean.group, rows))
    return Outcome(measures, notes=notes)


def _share(measure: Measure) -> float | None:
    """The share of the training half in a measure's setting."""
    if not measure.setting.startswith(SHARE):
        return None
    try:
        return float(measure.setting.removeprefix(SHARE))
    except ValueError:
        return None


def _share_of(measure: Measure) -> float:
    return _share(measure) or 0.0


def _difference(model: Measure, readers: Measure, rng: np.random.Generator) -> Measure:
    value = np.nan if model.value is None or readers.value is None else model.value - readers.value
    drawn = None
    if model.replicates is not None and readers.replicates is not None:
        drawn = rng.choice(model.replicates, len(readers.replicates)) - readers.replicates
    return measured(
        f"{model.method} - {READERS}",
        "accuracy difference",
        value,
        drawn,
        n=model.n,
        group=readers.group,
        setting=model.setting,
        why_undefined=model.undefined_because or "undefined",
    )


def _from_when(method: str, group: str, rows: Sequence[Measure]) -> str:
    """From which share on every difference is 0 or more."""
    who = "the readers" if group == EVERYONE else f"the readers with {group}"
    first = None
    for row in reversed(rows):
        if row.value is None or row.value < 0:
            break
        first = row.setting
    if first is None:
        return f"{method} is at no share as accurate as {who}."
    return f"{method} is at least as accurate as {who} from {first} of the training half on."
