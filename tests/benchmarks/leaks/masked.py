"""What a coordinator sees of one hospital under secure aggregation: a masked summand.

Keys are drawn here as the sites' key agreement would give them; number format and masks are the
ones that run. The sum over the sites has no masks left, and is attacked as `SUMS` elsewhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from dermino_strategies.secure_aggregation.masks import add_mask, pair_sign
from dermino_strategies.secure_aggregation.ring import FixedPoint, Vector
from tests.benchmarks.leaks.exposure import Exposure
from tests.benchmarks.leaks.membership import decode, likelihood_ratio
from tests.benchmarks.leaks.scores import measure
from tests.benchmarks.leaks.victims import Federation, Hospital

MASKED = "one hospital's masked upload"


def fixed_point(federation: Federation, width: int, sites: int) -> FixedPoint:
    """The number format of this method's summands."""
    strategy = federation.strategy
    arrays = strategy.initial_arrays(2, width, seed=0)
    return FixedPoint(strategy.summand_limits(arrays), strategy.summand_like(arrays), sites)


def mask(plain: dict[str, Vector]) -> dict[str, Vector]:
    """Each site's vector as it leaves the building: one fresh key for each pair of sites."""
    masked = {site: vector.copy() for site, vector in plain.items()}
    for one, other in combinations(sorted(plain), 2):
        key = secrets.token_bytes(32)
        add_mask(masked[one], key, pair_sign(one, other))
        add_mask(masked[other], key, pair_sign(other, one))
    return masked


def attack_masked(
    federation: Federation,
    hospitals: Sequence[Hospital],
    *,
    shadows: int,
    targets: int,
    seed: int = 0,
) -> Exposure:
    """The decoding attack on the masked uploads of the first round."""
    form = fixed_point(federation, hospitals[0].features.shape[1], len(hospitals))
    rng = np.random.default_rng([seed, 3])
    member = {hospital.name: [] for hospital in hospitals}
    numbers = {hospital.name: [] for hospital in hospitals}
    for run in range(shadows + targets):
        chosen = {hospital.name: hospital.draw(rng) for hospital in hospitals}
        updates, _ = federation.summed([one.data(chosen[one.name]) for one in hospitals], run)
        for name, flags in chosen.items():
            member[name].append(flags)
        plain = {
            name: form.flatten(federation.strategy.summand(update))
            for name, update in updates.items()
        }
        for name, vector in mask(plain).items():
            numbers[name].append(vector.view(np.int64) / 2.0**63)
    figures = {}
    for hospital in hospitals:
        seen, truth = np.array(numbers[hospital.name]), np.array(member[hospital.name])
        of_shadow, of_target = decode(seen[:shadows], truth[:shadows], seen[shadows:])
        scores = likelihood_ratio(of_shadow[:, :, None], truth[:shadows], of_target[:, :, None])
        figures[hospital.name] = measure(scores, truth[shadows:], hospital.groups, seed=seed)
    attacks = {"loss threshold": {}, "LiRA": {}, "decoding": figures}
    return Exposure(federation.name, federation.privacy, MASKED, shadows, attacks)
