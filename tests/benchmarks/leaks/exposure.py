"""Membership inference on everything a run gives out, from three places one can stand.

- `HEAD`: whoever has the released model file.
- `SUMS`: whoever sees the global arrays of every round: each participating hospital, and the
  coordinator under secure aggregation, to whom nothing else is ever visible.
- `UPLOADS`: the coordinator without secure aggregation, who sees what one hospital sends.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dermino_core.heads import LinearHead
from dermino_strategies.base import Arrays
from tests.benchmarks.leaks.membership import (
    confidence,
    decoded_ratio,
    likelihood_ratio,
    loss_threshold,
)
from tests.benchmarks.leaks.private_shadow import fast_private_training
from tests.benchmarks.leaks.scores import Figures, measure
from tests.benchmarks.leaks.victims import Flags, Floats, Hospital, Trace, Victim

HEAD, SUMS, UPLOADS = "released head", "sums of every round", "one hospital's uploads"


@dataclass(frozen=True)
class Place:
    """What is seen from one place, in every run of one hospital's images.

    `numbers` [runs, p]: all of it as one vector. `confidences` [runs, n, q]: of each image on
    every head there is to see. `last` [runs, n]: on the last one.
    """

    numbers: Floats
    confidences: Floats
    last: Floats


@dataclass(frozen=True)
class Observed:
    """All runs of a victim: who took part [runs, n], and what is seen, by hospital and place."""

    member: dict[str, Flags]
    places: dict[tuple[str, str], Place]


@dataclass
class _Seen:
    numbers: list[Floats] = field(default_factory=list)
    confidences: list[Floats] = field(default_factory=list)
    last: list[Floats] = field(default_factory=list)

    def place(self) -> Place:
        return Place(np.array(self.numbers), np.array(self.confidences), np.array(self.last))


def observe(
    victim: Victim,
    hospitals: Sequence[Hospital],
    shadows: int,
    targets: int,
    *,
    seed: int = 0,
) -> Observed:
    """Play shadow runs and then the attacked ones, every time with other patients."""
    rng = np.random.default_rng([seed, 1])
    member: dict[str, list[Flags]] = {hospital.name: [] for hospital in hospitals}
    seen: dict[tuple[str, str], _Seen] = {}
    features = {hospital.name: hospital.features.astype(np.float64) for hospital in hospitals}
    for run in range(shadows + targets):
        chosen = {hospital.name: hospital.draw(rng) for hospital in hospitals}
        with fast_private_training() if run < shadows else nullcontext():
            trace = victim.play([one.data(chosen[one.name]) for one in hospitals], seed=run)
        for hospital in hospitals:
            member[hospital.name].append(chosen[hospital.name])
            for where, heads, numbers in _places(trace, hospital.name):
                kept = seen.setdefault((hospital.name, where), _Seen())
                of_images = [confidence(h, features[hospital.name], hospital.labels) for h in heads]
                kept.numbers.append(numbers)
                kept.confidences.append(np.stack(of_images, axis=1).astype(np.float32))
                kept.last.append(of_images[-1])
    return Observed(
        {name: np.array(flags) for name, flags in member.items()},
        {key: one.place() for key, one in seen.items()},
    )


def _places(trace: Trace, site: str) -> list[tuple[str, list[LinearHead], Floats]]:
    """Place, the heads seen from there, and everything seen as one vector."""
    found = [(HEAD, [trace.head], _contrast(trace.head.arrays()))]
    uploads = [upload[site] for upload in trace.uploads]
    if set(uploads[0]) != {"weight", "bias"}:
        return found
    if len(trace.sums) > 1:
        found.append((SUMS, _heads(trace.sums), moves(trace.sent, trace.sums)))
    found.append((UPLOADS, _heads(uploads), moves(trace.sent, uploads)))
    return found


def _heads(arrays: Sequence[Arrays]) -> list[LinearHead]:
    return [LinearHead(one["weight"], one["bias"]) for one in arrays]


def moves(before: Sequence[Arrays], after: Sequence[Arrays]) -> Floats:
    """How far the head moved in every round, as one vector."""
    steps = [
        {name: new[name] - old[name] for name in ("weight", "bias")}
        for old, new in zip(before, after, strict=True)
    ]
    return np.concatenate([_contrast(step) for step in steps])


def _contrast(head: Arrays) -> Floats:
    """Rows against the first one: a softmax sees no more, and its gradient has no more."""
    rows = np.hstack([head["weight"], head["bias"][:, None]])
    return (rows[1:] - rows[0]).ravel()


ATTACKS = ("loss threshold", "LiRA", "decoding")


@dataclass(frozen=True)
class Exposure:
    """The attacks on one victim from one place: attack -> hospital -> figures."""

    method: str
    privacy: str
    place: str
    shadows: int
    attacks: dict[str, dict[str, Figures]]


def attack(
    victim: Victim,
    hospitals: Sequence[Hospital],
    *,
    shadows: int,
    targets: int,
    seed: int = 0,
) -> list[Exposure]:
    """Every attack from every place."""
    observed = observe(victim, hospitals, shadows, targets, seed=seed)
    found = []
    for where in (HEAD, SUMS, UPLOADS):
        attacks: dict[str, dict[str, Figures]] = {name: {} for name in ATTACKS}
        for hospital in hospitals:
            place = observed.places.get((hospital.name, where))
            if place is None:
                continue
            member = observed.member[hospital.name]
            for name, scores in scores_of(place, member[:shadows], shadows).items():
                attacks[name][hospital.name] = measure(
                    scores, member[shadows:], hospital.groups, seed=seed
                )
        if attacks[ATTACKS[0]]:
            found.append(Exposure(victim.name, victim.privacy, where, shadows, attacks))
    return found


def scores_of(place: Place, member: npt.NDArray[np.bool_], shadows: int) -> dict[str, Floats]:
    """Attack -> its scores [T, n] of the runs after the first `shadows`, with known members."""
    known, asked = slice(None, shadows), slice(shadows, None)
    return {
        "loss threshold": loss_threshold(place.last[known], member, place.last[asked]),
        "LiRA": likelihood_ratio(place.confidences[known], member, place.confidences[asked]),
        "decoding": decoded_ratio(
            place.numbers[known],
            member,
            place.numbers[asked],
            (place.confidences[known], place.confidences[asked]),
        ),
    }
