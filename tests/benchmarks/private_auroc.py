"""What differential privacy costs: AUROC on real sites for several epsilons.

python -m tests.benchmarks.private_auroc [--cache FOLDER] [--repetitions N] [--rounds N]

PH2, ISIC 2017 and HAM10000 with DINOv2 ViT-S/14, each halved as dermino halves it. Every site is
promised the same (epsilon, delta) for each of its patients or lesions; FedAvg with DP-SGD at the
site, the strategy's defaults. Beside it: the same training without noise, FedAvg without privacy,
every site alone, and all training images pooled. A row is the mean over repetitions, which differ
in noise, sampling and initial head; intervals are of the test images (bootstrap, groups drawn as a
whole, all repetitions on the same replicates), and +- is the standard deviation over repetitions.

The defaults were chosen on the training halves alone, each split into 70 and 30 %.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dermino_client.prepare import PreparedSite, prepare_site
from dermino_client.site import read_sites
from dermino_client.work import CONVERGED_PENALTY
from dermino_core.heads import LinearHead, fit_converged
from dermino_core.metrics import bootstrap_weights, macro_auroc, mean_over_sites
from dermino_core.privacy.noise import secure_generator_name
from dermino_core.privacy.plan import PrivacyPlan, PrivacyRequest
from dermino_core.privacy.sgd import drawn_centre
from dermino_core.privacy.units import meaningful
from dermino_core.results import Estimate
from dermino_strategies.base import Arrays, SiteData
from dermino_strategies.fedavg import FedAvg, FedAvgSettings
from tests.benchmarks.machine import describe, load_line
from tests.benchmarks.tables import table
from tests.benchmarks.workload import real_workload, shared_folder

EPSILONS = (1.0, 3.0, 8.0)
DELTA = 1e-5

Heads = Callable[[int], Mapping[str, LinearHead]]
"""From the number of a repetition to the head that each site is measured with."""


@dataclass(frozen=True)
class Row:
    """One way to train: for each site the mean AUROC, its interval, and the spread."""

    title: str
    sites: dict[str, Estimate]
    spread: dict[str, float]
    mean: Estimate
    mean_spread: float

    def cells(self) -> list[str]:
        """Title, every site, mean."""
        cells = [_cell(self.sites[name], self.spread[name]) for name in self.sites]
        return [self.title, *cells, _cell(self.mean, self.mean_spread)]


def _cell(estimate: Estimate, spread: float) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    text = f"{estimate.value:.3f} ({estimate.low:.2f} to {estimate.high:.2f})"
    return text + (f" +-{spread:.3f}" if spread > 0 else "")


def training_data(site: PreparedSite) -> SiteData:
    """A site's training half, as its client gives it to a method."""
    features, labels, groups = site.half("train")
    return SiteData(site.name, features, labels, len(site.classes), groups=tuple(groups))


def federated(
    strategy: FedAvg, sites: Sequence[SiteData], rounds: int, plans: Sequence[PrivacyPlan] | None
) -> Heads:
    """FedAvg, private if there are plans; the same head for all sites."""

    def train(repetition: int) -> Mapping[str, LinearHead]:
        width = sites[0].features.shape[1]
        arrays: Arrays = strategy.initial_arrays(sites[0].n_classes, width, repetition)
        for round_ in range(1, rounds + 1):
            updates = {}
            for i, data in enumerate(sites):
                if plans is None:
                    updates[data.site] = strategy.site_update(data, arrays, round_, repetition)
                else:
                    updates[data.site] = strategy.private_site_update(
                        data, arrays, round_, plans[i]
                    )
            arrays = strategy.aggregate(arrays, updates)
        return dict.fromkeys([data.site for data in sites], strategy.head(arrays))

    return train


def alone(sites: Sequence[SiteData]) -> Heads:
    """Every site trains to the optimum on its own images."""
    heads = {data.site: _converged([data]) for data in sites}
    return lambda repetition: heads


def pooled(sites: Sequence[SiteData]) -> Heads:
    """One head trained to the optimum on everyone's images."""
    head = _converged(sites)
    return lambda repetition: dict.fromkeys([data.site for data in sites], head)


def _converged(sites: Sequence[SiteData]) -> LinearHead:
    features = np.concatenate([data.features for data in sites])
    labels = np.concatenate([data.labels for data in sites])
    return fit_converged(features, labels, sites[0].n_classes, penalty=CONVERGED_PENALTY)


def measure(title: str, sites: Sequence[PreparedSite], heads: Heads, repetitions: int) -> Row:
    """AUROC on the sites' test halves, over repetitions."""
    trained = [heads(repetition) for repetition in range(repetitions)]
    estimates, spread, values = {}, {}, []
    for site in sites:
        features, labels, groups = site.half("test")
        weights = bootstrap_weights(len(labels), groups=groups)
        scores = [each[site.name].probabilities(features) for each in trained]
        points = np.array([macro_auroc(labels, score)[0] for score in scores])
        draws = np.mean([macro_auroc(labels, score, weights) for score in scores], axis=0)
        low, high = np.nanpercentile(draws, [2.5, 97.5])
        estimates[site.name] = Estimate(
            value=float(points.mean()),
            low=float(low),
            high=float(high),
            standard_error=float(np.nanstd(draws, ddof=1)),
        )
        spread[site.name] = _spread(points)
        values.append(points)
    means = np.mean(values, axis=0)
    return Row(title, estimates, spread, mean_over_sites(list(estimates.values())), _spread(means))


def _spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def without_noise(plan: PrivacyPlan) -> PrivacyPlan:
    """The same training with the same clipping, and nothing promised."""
    return replace(plan, per_round=replace(plan.per_round, noise_multiplier=0.0))


def private_rows(
    centre: tuple[float, ...], sites: Sequence[PreparedSite], rounds: int, repetitions: int
) -> list[Row]:
    """One row for each epsilon, the smallest first, and one without noise."""
    strategy = FedAvg(FedAvgSettings(centre=centre))
    data = [training_data(site) for site in sites]
    kind = "" if centre else ", no centre"
    rows, plans = [], []
    for epsilon in EPSILONS:
        request = PrivacyRequest(epsilon=epsilon, delta=DELTA)
        plans = [strategy.privacy_plan(each, request, rounds) for each in data]
        heads = federated(strategy, data, rounds, plans)
        rows.append(measure(f"epsilon {epsilon:g}{kind}", sites, heads, repetitions))
    quiet = federated(strategy, data, rounds, [without_noise(plan) for plan in plans])
    return [*rows, measure(f"no noise{kind}", sites, quiet, repetitions)]


def describe_sites(sites: Sequence[PreparedSite], rounds: int) -> None:
    """Units, noise, and what cannot be promised in earnest."""
    for site in sites:
        data = training_data(site)
        _, labels, _ = site.half("test")
        notes = []
        for epsilon in EPSILONS:
            request = PrivacyRequest(epsilon=epsilon, delta=DELTA)
            plan = FedAvg().privacy_plan(data, request, rounds)
            notes.append(f"epsilon {epsilon:g}: noise {plan.per_round.noise_multiplier:.2f}")
            if warning := meaningful(epsilon, DELTA, plan.units):
                notes.append(warning)
        units = len(set(data.groups)) or len(data.labels)
        print(f"  {site.name}: {len(data.labels)} training images of {units} patients or lesions,")
        print(f"    {len(labels)} test images")
        print("\n".join(f"    {note}" for note in notes))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, help="feature cache to use; a fresh one by default")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    shared = shared_folder()
    if shared is None:
        print("No real images and weights here; set DERMINO_SHARED to their folder.")
        return
    print(" ".join(f"{key} {value}" for key, value in describe().items()))
    print(load_line())
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cache = options.cache or work / "cache"
        workload = real_workload(shared, work)
        sites = [
            prepare_site(site, backbone=workload.backbone, precision="bf16", cache=cache)
            for site in read_sites(workload.sites)
        ]
        centre = drawn_centre(workload.backbone, cache=cache, precision="bf16")
    data = [training_data(site) for site in sites]
    repetitions, rounds = options.repetitions, options.rounds
    print(
        f"{workload.name}; {rounds} rounds, delta {DELTA:g}, {repetitions} repetitions; "
        f"noise by {secure_generator_name()}"
    )
    describe_sites(sites, rounds)
    rows = private_rows(centre, sites, rounds, repetitions)
    rows += private_rows((), sites, rounds, repetitions)
    plain = federated(FedAvg(), data, rounds, None)
    rows.append(measure("FedAvg as in the paper", sites, plain, repetitions))
    rows.append(measure("every site alone, converged", sites, alone(data), 1))
    rows.append(measure("pooled, converged", sites, pooled(data), 1))
    header = ["AUROC", *(site.name for site in sites), "mean of sites"]
    print(table(header, [row.cells() for row in rows]))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
