"""Who is attacked: hospitals with real features, and every array that a run of theirs gives out.

In each run every patient of every hospital takes part with probability 1/2, on its own: "in" and
"out" then differ by one patient, which is what differential privacy is about. A patient's images
are all in or all out, so that no twin of a member is counted as a stranger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dermino_client.prepare import prepare_site, select_records
from dermino_client.site import read_sites
from dermino_client.work import CONVERGED_PENALTY
from dermino_core.heads import LinearHead, fit_converged
from dermino_core.privacy.plan import PrivacyPlan, PrivacyRequest
from dermino_strategies.base import Additive, Arrays, Private, SiteData, SiteUpdate
from tests.benchmarks.workload import Workload

Floats = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Hospital:
    """All images that may take part: features [n, D], labels, patients and sexes [n].

    `female` is 1 or 0, NaN where the table does not say.
    """

    name: str
    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.str_]
    female: npt.NDArray[np.float64]

    def draw(self, rng: np.random.Generator) -> Flags:
        """Whose images take part, [n]: every patient with probability 1/2."""
        names, patient = np.unique(self.groups, return_inverse=True)
        return (rng.random(len(names)) < 0.5)[patient]

    def data(self, chosen: npt.NDArray) -> SiteData:
        """What a site half sees of the chosen images (flags or row numbers)."""
        return SiteData(
            self.name,
            self.features[chosen],
            self.labels[chosen],
            n_classes=2,
            groups=tuple(self.groups[chosen]),
        )


def load_hospitals(workload: Workload, cache: Path) -> list[Hospital]:
    """The hospitals of a workload, features from the cache where it has them."""
    hospitals = []
    for site in read_sites(workload.sites):
        ready = prepare_site(site, backbone=workload.backbone, precision="bf16", cache=cache)
        records = select_records(site).records
        if len(records) != len(ready.labels):
            raise RuntimeError(f"{site.name}: {ready.unreadable} images are unreadable")
        sexes = {"female": 1.0, "male": 0.0}
        female = np.array([sexes.get(record.sex or "", np.nan) for record in records])
        groups = np.array(ready.groups)
        hospitals.append(Hospital(site.name, ready.features, ready.labels, groups, female))
    return hospitals


def drawn_hospitals(
    images: Mapping[str, int], *, width: int = 32, signal: float = 0.5, seed: int = 0
) -> list[Hospital]:
    """Hospitals whose features are normal numbers; what `signal` adds tells class and sex."""
    rng = np.random.default_rng(seed)
    hospitals = []
    for name, n in images.items():
        labels, female = np.arange(n) % 2, rng.permutation(n) % 2
        x = rng.standard_normal((n, width))
        x[:, 0] += signal * (2 * labels - 1)
        x[:, 1] += signal * (2 * female - 1)
        groups = np.array([f"{name} {i}" for i in range(n)])
        features = x.astype(np.float32)
        hospitals.append(
            Hospital(name, features, labels.astype(np.int64), groups, female.astype(float))
        )
    return hospitals


@dataclass(frozen=True)
class Trace:
    """What a run gives out, round by round.

    `sent[r]`: the global arrays before round r; `uploads[r]`: what each site sends, which only a
    coordinator without secure aggregation sees; `sums[r]`: the global arrays made of their sum,
    which the coordinator and every site see in any case; `head`: the model at the end.
    """

    sent: list[Arrays]
    uploads: list[dict[str, Arrays]]
    sums: list[Arrays]
    head: LinearHead


class Victim(Protocol):
    """A method as it is attacked."""

    @property
    def name(self) -> str:
        """Of the method."""
        ...

    @property
    def privacy(self) -> str:
        """`none`, or the budget."""
        ...

    def play(self, sites: Sequence[SiteData], seed: int) -> Trace:
        """One whole run."""
        ...


@dataclass(frozen=True)
class Federation:
    """A method of dermino, with or without a privacy plan, the same for every site."""

    name: str
    strategy: Additive
    rounds: int
    privacy: str = "none"
    plan: PrivacyPlan | None = None

    def play(self, sites: Sequence[SiteData], seed: int) -> Trace:
        """As a run under secure aggregation: summands are added, and `from_sum` sees the sum.

        The initial arrays are the same in every run, because the attacker knows them.
        """
        width = sites[0].features.shape[1]
        arrays = self.strategy.initial_arrays(sites[0].n_classes, width, seed=0)
        sent, uploads, sums = [], [], []
        for round_ in range(1, self.rounds + 1):
            updates, total = self.exchange(sites, arrays, round_, seed)
            sent.append(arrays)
            uploads.append({name: update.arrays for name, update in updates.items()})
            arrays = self.strategy.from_sum(arrays, total)
            sums.append(arrays)
        return Trace(sent, uploads, sums, self.strategy.head(arrays))

    def summed(self, sites: Sequence[SiteData], seed: int) -> tuple[dict[str, SiteUpdate], Arrays]:
        """The first round only: every site's update, and the sum of their summands."""
        first = self.strategy.initial_arrays(sites[0].n_classes, sites[0].features.shape[1], 0)
        return self.exchange(sites, first, 1, seed)

    def exchange(
        self, sites: Sequence[SiteData], arrays: Arrays, round_: int, seed: int
    ) -> tuple[dict[str, SiteUpdate], Arrays]:
        """One round from these arrays: every site's update, and the sum of their summands."""
        updates = {site.site: self._update(site, arrays, round_, seed) for site in sites}
        return updates, add(self.strategy, list(updates.values()))

    def _update(self, site: SiteData, arrays: Arrays, round_: int, seed: int) -> SiteUpdate:
        if self.plan is None:
            return self.strategy.site_update(site, arrays, round_, seed)
        if not isinstance(self.strategy, Private):
            raise TypeError(f"{self.strategy.name} has no private variant")
        return self.strategy.private_site_update(site, arrays, round_, self.plan)


def add(strategy: Additive, updates: Sequence[SiteUpdate]) -> Arrays:
    """The sum over the sites: all that is ever seen under secure aggregation."""
    summands = [strategy.summand(update) for update in updates]
    return {name: np.sum([one[name] for one in summands], axis=0) for name in summands[0]}


@dataclass(frozen=True)
class Converged:
    """Logistic heads solved to their optimum: each site's own, and one of the pooled images.

    What no method here sends. It is the reference for a head that has fitted its images.
    """

    name: str = "logistic, converged"
    privacy: str = "none"
    penalty: float = CONVERGED_PENALTY

    def play(self, sites: Sequence[SiteData], seed: int) -> Trace:
        """The site heads as if they were uploads, the pooled head as if it were the result."""
        del seed
        width, n_classes = sites[0].features.shape[1], sites[0].n_classes
        nothing = LinearHead.initial(n_classes, width, how="zeros", seed=0).arrays()
        own = {
            site.site: fit_converged(
                site.features, site.labels, n_classes, penalty=self.penalty
            ).arrays()
            for site in sites
        }
        features = np.concatenate([site.features for site in sites])
        labels = np.concatenate([site.labels for site in sites])
        pooled = fit_converged(features, labels, n_classes, penalty=self.penalty)
        return Trace([nothing], [own], [], pooled)


def private(
    federation: Federation, hospital: Hospital, epsilon: float, *, delta: float = 1e-5
) -> Federation:
    """The same federation within (epsilon, delta) for each patient over all its rounds.

    The plan is made once, for half of a hospital: were it made for the patients who happen to take
    part, and differ with them, the plan itself would tell how many they are.
    """
    if not isinstance(federation.strategy, Private):
        raise TypeError(f"{federation.name} has no private variant")
    half = hospital.data(np.arange(len(hospital.labels)) % 2 == 0)
    request = PrivacyRequest(epsilon=epsilon, delta=delta)
    plan = federation.strategy.privacy_plan(half, request, federation.rounds)
    return replace(federation, privacy=f"ε = {epsilon:g}", plan=plan)
