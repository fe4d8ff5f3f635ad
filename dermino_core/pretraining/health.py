"""What a run's numbers say, in words: a warning names the configuration field to change.

The rules look at medians of several records, because single steps are noisy, and each warning comes
once. They are rules of thumb: a warning asks a person to look, it never stops a run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import fmean, median

from dermino_core.pretraining.config import PretrainConfig

Record = Mapping[str, object]
"""What :class:`dermino_core.pretraining.tracking.Tracker` logs."""

RECENT = 5
"""Records whose median counts as now."""

SETTLED = 0.1
"""Fraction of the run after which prototypes in use are judged."""

UNIFORM = 0.98
"""Share of ln K above which a distribution says nothing."""

SHARP = 0.01
"""Share of ln K below which a target is a single prototype."""

FEW_PROTOTYPES = 0.1
"""Of as many as a batch could use."""

WINDOW = 0.2
"""Fraction of the run in which the loss has to fall."""

LEAST_FALL = 0.001
"""By which share of itself the loss has to fall within half a window."""

EXPLODED = 20.0
"""Times the usual gradient norm."""

USUAL = 50
"""Records that the usual gradient norm is the median of."""

WAITING = 0.3
"""Share of the time spent waiting for images."""

WARM = 2
"""First records of a process, in which workers still start."""

KNN_LOSS = 0.02
"""By which kNN AUROC may lie under the start's before it is worth a word."""


class Health:
    """Reads the records of a run in their order and says what looks wrong.

    Parameters
    ----------
    config
        When judging starts depends on its schedules.
    steps
        Optimiser steps of the whole run.

    Example
    -------
    >>> health = Health(PretrainConfig(), steps=100)
    >>> health.step({"step": 1, "loss": float("nan")})
    ['The loss is not a finite number at step 1: ...']
    """

    def __init__(self, config: PretrainConfig, steps: int) -> None:
        self._steps = max(1, steps)
        self._taught = max(0.3, config.teacher.temperature_warmup, config.optimiser.head_warmup)
        self._said: set[str] = set()
        self._recent: dict[str, deque[float]] = {}
        self._losses: deque[tuple[float, float]] = deque()
        self._norms: dict[str, deque[float]] = {}
        self._records = 0
        self._first_probe: dict[str, float] = {}

    def step(self, record: Record) -> list[str]:
        """Warnings that this step record gives rise to for the first time."""
        self._records += 1
        number = record.get("step")
        fraction = (number if isinstance(number, int) else 0) / self._steps
        values = _numbers(record)
        for name, value in values.items():
            self._recent.setdefault(name, deque(maxlen=RECENT)).append(value)
        found = [
            self._not_finite(values, number),
            self._collapse(fraction),
            self._plateau(values, fraction),
            self._explosion(values),
            self._waiting(),
        ]
        return self._new(found)

    def probe(self, result: Record) -> list[str]:
        """Warnings that this probe gives rise to for the first time; the first one is the start."""
        values = _numbers(result)
        watched = {name: values[name] for name in ("knn_auroc", "rank_me") if name in values}
        if not all(math.isfinite(value) for value in watched.values()):
            return self._new([_SICK_FEATURES])
        if not self._first_probe:
            self._first_probe = watched
            return []
        found: list[tuple[str, str] | None] = []
        start, now = self._first_probe, watched
        if "rank_me" in start and "rank_me" in now and now["rank_me"] < 0.5 * start["rank_me"]:
            found.append(("rank", _rank(start["rank_me"], now["rank_me"])))
        if "knn_auroc" in start and "knn_auroc" in now:
            lost = start["knn_auroc"] - now["knn_auroc"]
            if lost > KNN_LOSS:
                found.append(("knn", _neighbours(start["knn_auroc"], now["knn_auroc"])))
        return self._new(found)

    def replay(self, records: Iterable[Record]) -> None:
        """Take in what was logged before a run was resumed; nothing is said twice."""
        for record in records:
            if record.get("kind") == "step":
                self.step(record)
            elif record.get("kind") == "probe":
                self.probe(record)
        self._records = 0
        self._recent.pop("data_wait", None)

    def _new(self, found: Iterable[tuple[str, str] | None]) -> list[str]:
        fresh = [item for item in found if item is not None and item[0] not in self._said]
        self._said.update(key for key, _ in fresh)
        return [text for _, text in fresh]

    def _now(self, name: str) -> float:
        """Median of the last records, NaN until there are enough or if one is not finite."""
        values = self._recent.get(name, ())
        whole = len(values) == RECENT and all(math.isfinite(value) for value in values)
        return median(values) if whole else math.nan

    def _not_finite(self, values: Mapping[str, float], step: object) -> tuple[str, str] | None:
        watched = (name for name in values if name == "loss" or name.startswith("gradient/"))
        sick = [name for name in watched if not math.isfinite(values[name])]
        if not sick:
            return None
        what = "The loss" if "loss" in sick else f"The gradient of {sick[0].partition('/')[2]}"
        return (
            "finite",
            f"{what} is not a finite number at step {step}: the weights are lost from here on. "
            "Resume from the last checkpoint before it with a lower optimiser.learning_rate and "
            "optimiser.head_learning_rate, or with run.precision = 'fp32'.",
        )

    def _collapse(self, fraction: float) -> tuple[str, str] | None:
        entropy, loss = self._now("teacher/entropy"), self._now("uniform/image")
        if fraction >= self._taught and entropy > UNIFORM and loss > UNIFORM:
            return (
                "flat",
                f"The teacher's targets are nearly uniform ({_percent(entropy)} of ln K) and the "
                f"image loss is still at {_percent(loss)} of ln K: the image level teaches "
                "nothing. Lower teacher.temperature or heads.prototypes, or raise "
                "optimiser.head_learning_rate.",
            )
        if fraction >= SETTLED and entropy < SHARP and loss < SHARP:
            return (
                "point",
                f"Teacher and student agree on everything (image loss {_percent(loss)} of ln K): "
                "all images may have fallen onto one point. Use loss.targets = 'sinkhorn', raise "
                "loss.koleo, or lower optimiser.learning_rate.",
            )
        used = self._now("teacher/prototypes_in_use")
        if fraction >= SETTLED and used < FEW_PROTOTYPES:
            return (
                "prototypes",
                f"A batch uses only {_percent(used)} of the prototypes that it could use: images "
                "are falling together. Use loss.targets = 'sinkhorn', raise loss.koleo, or lower "
                "optimiser.head_learning_rate.",
            )
        return None

    def _plateau(self, values: Mapping[str, float], fraction: float) -> tuple[str, str] | None:
        """The mean of the window's second half against that of its first."""
        name = next((key for key in ("uniform/image", "loss/image", "loss") if key in values), None)
        if name is None or not math.isfinite(values[name]):
            return None
        self._losses.append((fraction, values[name]))
        while self._losses and self._losses[0][0] < fraction - WINDOW:
            self._losses.popleft()
        if fraction < self._taught + WINDOW or fraction > 1 - WINDOW / 2:
            return None
        half = fraction - WINDOW / 2
        before = [value for at, value in self._losses if at <= half]
        after = [value for at, value in self._losses if at > half]
        if len(before) < RECENT or len(after) < RECENT:
            return None
        if fmean(before) - fmean(after) >= LEAST_FALL * abs(fmean(before)):
            return None
        return (
            "plateau",
            f"The {'loss' if name == 'loss' else 'image loss'} has not fallen for a fifth of the "
            "run. If kNN AUROC has stopped rising as well, raise optimiser.learning_rate, take "
            "more images or harder crops (crops.global_scale), or end the run earlier (run.steps).",
        )

    def _explosion(self, values: Mapping[str, float]) -> tuple[str, str] | None:
        for name, value in values.items():
            if not name.startswith("gradient/") or not math.isfinite(value):
                continue
            norms = self._norms.setdefault(name, deque(maxlen=USUAL))
            usual = median(norms) if len(norms) > RECENT else 0.0
            norms.append(value)
            if usual > 0 and self._now(name) > EXPLODED * usual:
                part = name.partition("/")[2]
                return (
                    f"exploded {part}",
                    f"The gradient of {part} has grown to {self._now(name) / usual:.0f} times its "
                    "usual size. Lower optimiser.learning_rate or optimiser.clip, or lengthen "
                    "optimiser.warmup.",
                )
        return None

    def _waiting(self) -> tuple[str, str] | None:
        waited = self._now("data_wait")
        if self._records < WARM + RECENT or not waited > WAITING:
            return None
        return (
            "waiting",
            f"{_percent(waited)} of the time is spent waiting for images. Prepare them once with "
            "dermino data shards, raise data.workers, or lower data.image_side.",
        )


_SICK_FEATURES = (
    "features",
    "The backbone's features are not finite numbers: the run has diverged. Start again from the "
    "last good checkpoint with a lower optimiser.learning_rate.",
)


def _rank(start: float, now: float) -> str:
    return (
        f"The rank of the features (RankMe) fell from {start:.0f} to {now:.0f}: they are losing "
        "directions, and tasks that need those will suffer. Raise loss.koleo, set loss.anchor to "
        "about 1, or lower loss.supervised or optimiser.learning_rate."
    )


def _neighbours(start: float, now: float) -> str:
    return (
        f"kNN AUROC fell from {start:.3f} at the start to {now:.3f}: the run is destroying what "
        "the backbone knew. Lower optimiser.learning_rate, set loss.anchor to about 1, lengthen "
        "optimiser.head_warmup, or hold more blocks still (model.frozen_blocks)."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _numbers(record: Record) -> dict[str, float]:
    """The numeric entries. None is what a number that was not finite became in a file."""
    return {
        name: math.nan if value is None else float(value)
        for name, value in record.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }
