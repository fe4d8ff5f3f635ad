"""What each way of learning from three real hospitals gives, and what a hospital gains by joining.

python -m tests.benchmarks.methods --cache DIR              about three minutes on one core
python -m tests.benchmarks.methods --cache DIR --seeds 2 --no-labels

Five divisions of every site into halves, no patient or lesion in both. Intervals: patients are
drawn with replacement, once for all divisions, so that one in the test halves of several counts as
one; sites are weighted equally. Differences are paired: same patients, same divisions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dermino_client.prepare import prepare_site
from dermino_client.site import read_sites
from dermino_core.evaluation.examples import Examples
from dermino_core.evaluation.label_efficiency import stratified_share
from dermino_core.evaluation.logistic import fit_logistic
from dermino_core.heads import LinearHead, fit_converged
from dermino_core.joining_curve import ALONE_PENALTY
from dermino_core.manifest import Record
from dermino_core.metrics import bootstrap_weights, macro_auroc, macro_f1
from dermino_core.splits import split_records
from dermino_strategies.base import Arrays, SiteData, SiteUpdate, Strategy
from dermino_strategies.fedavg import FedAvg, FedAvgSettings
from dermino_strategies.logistic import Logistic
from dermino_strategies.ridge import Ridge
from tests.benchmarks.machine import describe, load_line
from tests.benchmarks.tables import goal, table
from tests.benchmarks.workload import drawn_workload, real_workload, shared_folder

RIDGE = Ridge()
METHODS: dict[str, tuple[Strategy, int]] = {
    "FedAvg, the paper's": (FedAvg(), 2),
    "FedAvg, rate 5e-3": (FedAvg(FedAvgSettings(learning_rate=5e-3)), 2),
    "FedAvg, rate 5e-3, 10 rounds": (FedAvg(FedAvgSettings(learning_rate=5e-3)), 10),
    "ridge": (RIDGE, 1),
    "logistic": (Logistic(), 6),
}
PAPER, POOLED, ALONE, PERSONAL = "FedAvg, the paper's", "pooled logistic", "alone", "personal"
LABELS = (0, 10, 20, 40, 80)
DRAWS = 4
REPLICATES = 1000
WANTED_GAIN = 0.10

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Hospital:
    """All images of one site; `draws` [B, n] says how often each is in a bootstrap replicate."""

    data: SiteData
    draws: npt.NDArray[np.uint16]

    def halves(self, seed: int) -> tuple[SiteData, SiteData, npt.NDArray[np.uint16]]:
        """Training half, test half, and the test half's replicates."""
        data = self.data
        records = [Record(str(i), group=group) for i, group in enumerate(data.groups)]
        split = split_records(records, [str(label) for label in data.labels], seed=seed)
        train = np.array(split) == "train"
        return taken(data, train), taken(data, ~train), self.draws[:, ~train]


def taken(data: SiteData, rows: npt.NDArray) -> SiteData:
    """Some images of a site, by numbers or by a mask."""
    groups = tuple(np.asarray(data.groups)[rows])
    return SiteData(
        data.site, data.features[rows], data.labels[rows], data.n_classes, groups=groups
    )


@dataclass
class Score:
    """A metric of one model at one site: each division's value, and replicates of their mean."""

    values: list[float] = field(default_factory=list)
    replicates: list[Floats] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Over the divisions."""
        return float(np.mean(self.values))

    @property
    def drawn(self) -> Floats:
        """[B]: of that mean."""
        return np.nanmean(np.stack(self.replicates), axis=0)


Scores = dict[str, dict[str, dict[str, Score]]]
"""Metric -> model -> site."""


@dataclass
class Cost:
    """Of a whole run: rounds, bytes of one site up and down, and seconds of computing."""

    rounds: int = 0
    up: int = 0
    down: int = 0
    site_seconds: float = 0.0
    server_seconds: float = 0.0


def load(cache: Path, work: Path) -> tuple[str, dict[str, Hospital]]:
    """The real sites, or the drawn ones where there are none, and what they are."""
    shared = shared_folder()
    workload = real_workload(shared, work) if shared else drawn_workload(work, "demo")
    found = {}
    for described in read_sites(workload.sites):
        site = prepare_site(described, backbone=workload.backbone, cache=cache)
        data = SiteData(
            site.name,
            site.features,
            site.labels,
            len(site.classes),
            groups=tuple(site.groups),
        )
        draws = bootstrap_weights(
            len(site.labels), groups=site.groups, replicates=REPLICATES, seed=len(found)
        )
        found[site.name] = Hospital(data, draws)
    return workload.name, found


def federate(
    strategy: Strategy, sites: Mapping[str, SiteData], rounds: int, seed: int
) -> tuple[Arrays, Cost]:
    """The rounds as the coordinator runs them, and what they cost."""
    first = next(iter(sites.values()))
    arrays = strategy.initial_arrays(first.n_classes, first.features.shape[1], seed)
    cost = Cost(rounds)
    for round_ in range(1, rounds + 1):
        cost.down += sum(array.nbytes for array in arrays.values())
        updates: dict[str, SiteUpdate] = {}
        start = time.process_time()
        for name, data in sites.items():
            updates[name] = strategy.site_update(data, arrays, round_, seed)
            strategy.check_update(arrays, updates[name])
        middle = time.process_time()
        arrays = strategy.aggregate(arrays, updates)
        cost.up += sum(array.nbytes for array in next(iter(updates.values())).arrays.values())
        cost.site_seconds += (middle - start) / len(sites)
        cost.server_seconds += time.process_time() - middle
    return arrays, cost


def pooled(sites: Mapping[str, SiteData]) -> Examples:
    """All sites' images in one place."""
    return Examples(
        np.concatenate([data.features for data in sites.values()]),
        np.concatenate([data.labels for data in sites.values()]),
        tuple(f"{name} {group}" for name, data in sites.items() for group in data.groups),
    )


def add(
    scores: Scores,
    model: str,
    test: SiteData,
    draws: npt.NDArray[np.uint16],
    probabilities: Floats,
) -> None:
    """Measure one model at one site in one division."""
    predicted, labels = probabilities.argmax(axis=1), test.labels
    found = {
        "auroc": (macro_auroc(labels, probabilities), macro_auroc(labels, probabilities, draws)),
        "f1": (
            macro_f1(labels, predicted, test.n_classes),
            macro_f1(labels, predicted, test.n_classes, draws),
        ),
    }
    for metric, (value, replicates) in found.items():
        score = scores.setdefault(metric, {}).setdefault(model, {}).setdefault(test.site, Score())
        score.values.append(float(value[0]))
        score.replicates.append(replicates)


def alone(train: SiteData) -> LinearHead:
    """What a site reaches by itself; without images, a head of zeros."""
    if not len(train.labels):
        return LinearHead.initial(2, train.features.shape[1], how="zeros", seed=0)
    return fit_converged(train.features, train.labels, 2, penalty=ALONE_PENALTY)


def measure_methods(
    hospitals: Mapping[str, Hospital], seeds: int
) -> tuple[Scores, dict[str, Cost]]:
    """Every method on every division."""
    scores: Scores = {}
    costs: dict[str, Cost] = {}
    for seed in range(seeds):
        halves = {name: hospital.halves(seed) for name, hospital in hospitals.items()}
        sites = {name: train for name, (train, _, _) in halves.items()}
        shared: dict[str, LinearHead] = {}
        final: Arrays = {}
        for name, (strategy, rounds) in METHODS.items():
            arrays, costs[name] = federate(strategy, sites, rounds, seed)
            shared[name] = strategy.head(arrays)
            if strategy is RIDGE:
                final = arrays
        together = fit_logistic(pooled(sites), 2, seed=seed)
        for train, test, draws in halves.values():
            for name, head in shared.items():
                add(scores, name, test, draws, head.probabilities(test.features))
            own = {
                PERSONAL: RIDGE.personal(train, final).head,
                ALONE: alone(train),
            }
            for name, head in own.items():
                add(scores, name, test, draws, head.probabilities(test.features))
            add(scores, POOLED, test, draws, together.probabilities(test.features))
    return scores, costs


def measure_labels(hospitals: Mapping[str, Hospital], seeds: int) -> dict[int, Scores]:
    """Alone, federated and personal against the labels of one site, the others having all."""
    found: dict[int, Scores] = {}
    strategy = RIDGE
    for seed in range(seeds):
        halves = {name: hospital.halves(seed) for name, hospital in hospitals.items()}
        sites = {name: train for name, (train, _, _) in halves.items()}
        first = next(iter(sites.values()))
        start = strategy.initial_arrays(2, first.features.shape[1], seed)
        updates = {n: strategy.site_update(data, start, 1, seed) for n, data in sites.items()}
        for name, (train, test, draws) in halves.items():
            for count in [*LABELS, -1]:
                for rows in chosen(train, count, seed):
                    few = taken(train, rows)
                    part = {n: u for n, u in updates.items() if n != name}
                    if len(rows):
                        part[name] = strategy.site_update(few, start, 1, seed)
                    arrays = strategy.aggregate(start, part)
                    models = {
                        "federated": strategy.head(arrays),
                        PERSONAL: strategy.personal(few, arrays, took_part=len(rows) > 0).head,
                        ALONE: alone(few),
                    }
                    scores = found.setdefault(count, {})
                    for model, head in models.items():
                        add(scores, model, test, draws, head.probabilities(test.features))
    return found


def chosen(train: SiteData, count: int, seed: int) -> list[npt.NDArray]:
    """Rows of each draw of so many labels; -1 is all of them."""
    n = len(train.labels)
    if count < 0 or count >= n:
        return [np.arange(n)]
    if count == 0:
        return [np.zeros(0, int)]
    return [
        np.asarray(stratified_share(train.labels, train.groups, count / n, seed=[seed, draw]))
        for draw in range(DRAWS)
    ]


def interval(value: float, drawn: Floats, *, sign: bool = False) -> str:
    """A number with its 95 % interval."""
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})" if sign else f"{value:.3f}"


def over_sites(by_site: Mapping[str, Score]) -> tuple[float, Floats]:
    """Mean over the sites, and its replicates."""
    mean = float(np.mean([score.mean for score in by_site.values()]))
    return mean, np.mean([score.drawn for score in by_site.values()], axis=0)


def difference(one: Mapping[str, Score], other: Mapping[str, Score], site: str = "") -> str:
    """Paired, at one site or in the mean over all."""
    pairs = [(one[s], other[s]) for s in ([site] if site else one)]
    value = float(np.mean([a.mean - b.mean for a, b in pairs]))
    drawn = np.mean([a.drawn - b.drawn for a, b in pairs], axis=0)
    return interval(value, drawn, sign=True)


def show_methods(scores: Scores, costs: Mapping[str, Cost]) -> None:
    """Tables, and the goals."""
    sites = list(scores["auroc"][PAPER])
    for metric, by_model in scores.items():
        rows = []
        for model, by_site in by_model.items():
            row = [model, *(f"{by_site[site].mean:.3f}" for site in sites)]
            row.append(interval(*over_sites(by_site)))
            row += [difference(by_site, by_model[other]) for other in (PAPER, POOLED, ALONE)]
            rows.append(row)
        header = [metric, *sites, "mean", f"minus {PAPER}", f"minus {POOLED}", f"minus {ALONE}"]
        print(f"\n{metric}, mean of the divisions; differences with paired 95 % intervals")
        print(table(header, rows))
    rows = []
    for model, cost in costs.items():
        seconds = [f"{cost.site_seconds:.2f}", f"{cost.server_seconds:.2f}"]
        megabytes = [f"{cost.up / 1e6:.3f}", f"{cost.down / 1e6:.3f}"]
        rows.append([model, str(cost.rounds), *megabytes, *seconds])
    print("\na run: megabytes of one site, seconds of CPU at one site and at the coordinator")
    print(table(["method", "rounds", "MB up", "MB down", "s site", "s coordinator"], rows))
    auroc = {model: over_sites(by_site) for model, by_site in scores["auroc"].items()}
    best = max(("ridge", "logistic"), key=lambda name: auroc[name][0])
    gain = auroc[best][0] - auroc[PAPER][0]
    print(goal(f"{best} 0.10 AUROC above {PAPER}", f"{gain:+.3f}", reached=gain >= WANTED_GAIN))
    _, high = np.percentile(auroc[best][1] - auroc[POOLED][1], [2.5, 97.5])
    text = difference(scores["auroc"][best], scores["auroc"][POOLED])
    print(goal(f"{best} not below pooled beyond chance", text, reached=bool(high >= 0)))
    _not_below_alone("all labels", scores["auroc"])


def _not_below_alone(when: str, by_model: Mapping[str, Mapping[str, Score]]) -> None:
    for site, score in by_model[PERSONAL].items():
        other = by_model[ALONE][site]
        _, high = np.percentile(score.drawn - other.drawn, [2.5, 97.5])
        text = difference(by_model[PERSONAL], by_model[ALONE], site)
        aim = f"personal not below alone beyond chance, {when}, {site}"
        print(goal(aim, text, reached=bool(high >= 0)))


def show_labels(found: Mapping[int, Scores]) -> None:
    """AUROC against labels: each site, and the mean."""
    sites = list(found[-1]["auroc"][ALONE])
    rows = []
    for count, scores in found.items():
        by_model = scores["auroc"]
        name = "all" if count < 0 else str(count)
        for model in (ALONE, "federated", PERSONAL):
            row = [f"{name} {model}", *(f"{by_model[model][site].mean:.3f}" for site in sites)]
            row.append(interval(*over_sites(by_model[model])))
            row += [difference(by_model[model], by_model[o]) for o in (ALONE, "federated")]
            rows.append(row)
    print("\nAUROC against the labels of the site, the others having all of theirs")
    print(table(["labels", *sites, "mean", "minus alone", "minus federated"], rows))
    for count, scores in found.items():
        by_model = scores["auroc"]
        name = "all labels" if count < 0 else f"{count} labels"
        _not_below_alone(name, by_model)
        if 20 <= count <= 80:
            means = {model: over_sites(by_site)[0] for model, by_site in by_model.items()}
            better = max(means[ALONE], means["federated"])
            text = f"{means[PERSONAL]:.3f} against {better:.3f}"
            aim = f"personal above the better of alone and federated, {name}"
            print(goal(aim, text, reached=means[PERSONAL] > better))


def as_json(scores: Scores) -> dict[str, object]:
    """Values of every division."""
    return {
        metric: {
            model: {site: score.values for site, score in by_site.items()}
            for model, by_site in by_model.items()
        }
        for metric, by_model in scores.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="feature cache")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--no-labels", action="store_true", help="leave the label counts out")
    parser.add_argument("--out", type=Path, help="all values as JSON")
    options = parser.parse_args(arguments)
    print(load_line())
    with tempfile.TemporaryDirectory() as work:
        name, hospitals = load(options.cache, Path(work))
    print(f"{name}, {options.seeds} divisions")
    scores, costs = measure_methods(hospitals, options.seeds)
    show_methods(scores, costs)
    written: dict[str, object] = {"machine": describe(), "methods": as_json(scores)}
    written["costs"] = {model: asdict(cost) for model, cost in costs.items()}
    if not options.no_labels:
        labels = measure_labels(hospitals, options.seeds)
        show_labels(labels)
        written["labels"] = {str(count): as_json(found) for count, found in labels.items()}
    if options.out:
        options.out.write_text(json.dumps(written, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
