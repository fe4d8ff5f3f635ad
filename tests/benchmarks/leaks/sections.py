"""Which attacks are run on which methods, and how many times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dermino_strategies.fedavg import FedAvg, FedAvgSettings
from dermino_strategies.ridge import Ridge, RidgeSettings
from tests.benchmarks.leaks import attribute, products
from tests.benchmarks.leaks.exposure import Exposure, attack, moves
from tests.benchmarks.leaks.masked import attack_masked
from tests.benchmarks.leaks.noisy_sums import attack_noisy_sums
from tests.benchmarks.leaks.reconstruction import Gradient, Mover, Returned, Round, measure_return
from tests.benchmarks.leaks.report import (
    bounds_table,
    membership_table,
    property_table,
    returned_table,
    sums_table,
)
from tests.benchmarks.leaks.scores import bound
from tests.benchmarks.leaks.victims import Converged, Federation, Floats, Hospital, Victim, private

EPSILONS = (1.0, 3.0, 8.0)
DELTA = 1e-5


@dataclass(frozen=True)
class Sizes:
    """Runs with known members, by what a run costs; attacked runs; the smaller attacks' sizes."""

    shadows: int = 2048
    of_private: int = 512
    of_converged: int = 384
    of_ridge: int = 192
    targets: int = 32
    trials: int = 200
    sites: attribute.Sizes = field(default_factory=lambda: attribute.Sizes(images=60))
    slow_sites: attribute.Sizes = field(
        default_factory=lambda: attribute.Sizes(splits=4, shadows=256, images=60)
    )


QUICK = Sizes(
    shadows=48,
    of_private=8,
    of_converged=24,
    of_ridge=12,
    targets=4,
    trials=10,
    sites=attribute.Sizes(splits=2, shadows=24, targets=12, images=40),
    slow_sites=attribute.Sizes(splits=2, shadows=12, targets=6, images=40),
)
"""Shows that it works, not the numbers."""

PAPER = Federation("FedAvg, paper", FedAvg(), 2)
TUNED = Federation("FedAvg, 5e-3", FedAvg(FedAvgSettings(learning_rate=5e-3)), 2)
RIDGE = Federation("ridge", Ridge(), 1)


@dataclass(frozen=True)
class Ground:
    """Whom to attack and how thoroughly; `centre` is the public one of private runs."""

    hospitals: Sequence[Hospital]
    centre: tuple[float, ...]
    sizes: Sizes
    tell: Callable[[str], None]

    @property
    def largest(self) -> Hospital:
        """The hospital with the most images."""
        return max(self.hospitals, key=lambda one: len(one.labels))

    def private_fedavg(self) -> list[Federation]:
        """FedAvg at every budget. Its private training has settings of its own: no schedule."""
        open_ = Federation("FedAvg, private", FedAvg(FedAvgSettings(centre=self.centre)), 2)
        return [private(open_, self.largest, epsilon, delta=DELTA) for epsilon in EPSILONS]

    def private_ridge(self) -> list[Federation]:
        """Ridge at every budget."""
        open_ = Federation("ridge, private", Ridge(RidgeSettings(centre=self.centre)), 1)
        return [private(open_, self.largest, epsilon, delta=DELTA) for epsilon in EPSILONS]


def membership(ground: Ground) -> str:
    """Membership inference on heads, and what differential privacy allows."""
    hospitals, sizes = ground.hospitals, ground.sizes
    victims: list[tuple[Victim, int]] = [(PAPER, sizes.shadows), (TUNED, sizes.shadows)]
    victims += [(one, sizes.of_private) for one in ground.private_fedavg()]
    victims += [(Converged(), sizes.of_converged), (RIDGE, sizes.of_ridge)]
    found: list[Exposure] = []
    for victim, shadows in victims:
        ground.tell(f"membership: {victim.name}, {victim.privacy}")
        found += attack(victim, hospitals, shadows=shadows, targets=sizes.targets)
    ground.tell("membership: masked uploads")
    masked = {"shadows": sizes.shadows // 4, "targets": sizes.targets}
    found.append(attack_masked(PAPER, hospitals, **masked))
    bounds = bounds_table({epsilon: bound(epsilon, DELTA) for epsilon in EPSILONS})
    return f"{membership_table(found)}\n\n{bounds}"


def sums(ground: Ground) -> str:
    """Ridge's sums: by leverage, and noisy ones by their likelihood ratio."""
    size = {"targets": ground.sizes.targets}
    ground.tell("membership: ridge's sums")
    found = dict(products.attack_sums(RIDGE, ground.hospitals, **size))
    for one in ground.private_ridge():
        ground.tell(f"membership: ridge's sums, {one.privacy}")
        for where, figures in attack_noisy_sums(one, ground.hospitals, **size).items():
            found[f"{one.privacy}, {where}"] = figures
    return sums_table(found)


def properties(ground: Ground) -> str:
    """Property inference on the largest hospital whose table names the sexes."""
    sizes = ground.sizes
    known = attribute.shares_known(ground.hospitals)
    hospital = max(known, key=lambda one: len(one.labels))
    others = [one for one in ground.hospitals if one.name != hospital.name]
    seen: list[tuple[str, attribute.Upload, attribute.Sizes]] = [
        ("the mean of all features (for comparison)", _mean_features, sizes.sites)
    ]
    for federations, size in (
        ((PAPER, TUNED), sizes.sites),
        (ground.private_fedavg(), sizes.slow_sites),
    ):
        for one in federations:
            name = f"{one.name}, {one.privacy}: its uploads"
            seen.append((name, _uploads(one), size))
    seen.append(("FedAvg, paper: sums of every round", _sums(PAPER, others), sizes.slow_sites))
    rows = []
    for name, upload, size in seen:
        ground.tell(f"properties of {hospital.name}: {name}")
        told, guessed = attribute.malignant(hospital, upload, size)
        rows.append((name, attribute.women(hospital, upload, size), told, guessed))
    return property_table(rows)


def reconstruction(ground: Ground) -> str:
    """Features from an upload, of the largest hospital's images."""
    hospital = ground.largest
    rows: list[tuple[str, Returned]] = []

    def add(name: str, mover: Mover, images: int, sites: int = 1) -> None:
        size = {"images": images, "sites": sites, "trials": ground.sizes.trials}
        rows.append((name, measure_return(hospital, mover, **size)))

    ground.tell(f"reconstruction: {hospital.name}")
    for images in (1, 2, 8, 32):
        add(f"plain gradient of {_many(images)}", Gradient(), images)
    for images in (1, 2, 8, 32):
        settings = FedAvgSettings(local_epochs=1, batch_size=images)
        one_step = Round(Federation("one step", FedAvg(settings), 1))
        add(f"FedAvg, one step of Adam on {_many(images)}", one_step, images)
    for images in (8, 100):
        add(f"FedAvg, paper, a site of {_many(images)}", Round(PAPER), images)
    for sites in (3, 5, 10):
        add(f"plain gradients, sum of {sites} sites of 1 image", Gradient(), 1, sites)
        add(f"FedAvg, paper, sum of {sites} sites of 1 image", Round(PAPER), 1, sites)
    for one in ground.private_fedavg():
        for images in (2, 100):
            add(f"{one.name}, {one.privacy}, a site of {images} images", Round(one), images)
    return returned_table(rows)


def _many(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"


def _mean_features(hospital: Hospital, rows: attribute.Rows, seed: int) -> Floats:
    del seed
    return hospital.features[rows].mean(axis=0)


def _uploads(federation: Federation) -> attribute.Upload:
    def upload(hospital: Hospital, rows: attribute.Rows, seed: int) -> Floats:
        trace = federation.play([hospital.data(rows)], seed)
        return moves(trace.sent, [one[hospital.name] for one in trace.uploads])

    return upload


def _sums(federation: Federation, others: Sequence[Hospital]) -> attribute.Upload:
    def upload(hospital: Hospital, rows: attribute.Rows, seed: int) -> Floats:
        rng = np.random.default_rng([seed, 5])
        rest = [other.data(other.draw(rng)) for other in others]
        trace = federation.play([hospital.data(rows), *rest], seed)
        return moves(trace.sent, trace.sums)

    return upload


SECTIONS: dict[str, Callable[[Ground], str]] = {
    "membership": membership,
    "sums": sums,
    "properties": properties,
    "reconstruction": reconstruction,
}
