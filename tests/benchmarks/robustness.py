"""One bad hospital of five: what each method makes of it, and whether it is named.

python -m tests.benchmarks.robustness --cache DIR
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dermino_core.heads import LinearHead
from dermino_core.metrics import evaluate, mean_over_sites
from dermino_core.results import Estimate
from dermino_strategies.base import Arrays, SiteData, SiteUpdate, Strategy, Tuning
from dermino_strategies.facts import ATTACKS, FACTS
from dermino_strategies.fedavg import FedAvg, FedAvgSettings
from dermino_strategies.local_training import HEAD
from dermino_strategies.registry import STRATEGIES, get_strategy
from dermino_strategies.suspicion import Outline, outline, suspicious
from tests.benchmarks.machine import describe, load_line
from tests.benchmarks.tables import goal, table
from tests.benchmarks.workload import drawn_workload, real_workload, shared_folder

LEARNING_RATE = 5e-3
"""Of local training: the paper's 2e-4 has learned too little in ten rounds to show damage."""

WORST_LOSS = 0.05
"""Of mean AUROC at the honest sites, for an attack that counts as survived."""

VARIANTS = {"krum": [{}, {"keep": 3}], "qffl": [{}, {"q": 5.0}]}
BAD = "ham10000-b"


@dataclass(frozen=True)
class Hospital:
    """One site's halves. Groups (patients, lesions) are on one side only."""

    train: SiteData
    test: SiteData


@dataclass
class Attacked:
    """What came of one federation: its head, updates refused, and rounds each site was named in."""

    head: LinearHead
    refused: int = 0
    named: dict[str, int] = field(default_factory=dict)


def scaled(factor: float) -> Callable[[Arrays, SiteUpdate], SiteUpdate]:
    """An attack that sends `factor` times its change; -1 is its opposite.

    It lies consistently: the squared length that q-FFL sends along is that of what it sends.
    """

    def attack(arrays: Arrays, update: SiteUpdate) -> SiteUpdate:
        sent = {}
        for name, array in update.arrays.items():
            start = arrays[name].astype(np.float64) if name in HEAD else 0.0
            sent[name] = (start + factor * (array - start)).astype(array.dtype)
        moved = {k: v * factor**2 for k, v in update.metrics.items() if k == "moved"}
        return SiteUpdate(sent, update.examples, update.metrics | moved)

    return attack


def filled(value: float) -> Callable[[Arrays, SiteUpdate], SiteUpdate]:
    """An attack that sends `value` everywhere."""

    def attack(arrays: Arrays, update: SiteUpdate) -> SiteUpdate:
        del arrays
        sent = {name: np.full_like(array, value) for name, array in update.arrays.items()}
        return replace(update, arrays=sent)

    return attack


ON_UPDATES = {
    "nan": filled(np.nan),
    "inf": filled(np.inf),
    "scaled": scaled(1000.0),
    "sign-flipped": scaled(-1.0),
}


def attacked_federation(
    strategy: Strategy,
    sites: Mapping[str, SiteData],
    *,
    bad: str,
    attack: str,
    rounds: int,
    seed: int = 0,
) -> Attacked:
    """Run the rounds as the coordinator does, with `bad` sending what `attack` says.

    `attack` is one of :data:`dermino_strategies.facts.ATTACKS`, `none`, or `absent`: the others
    without it, which is what a survived attack is measured against.
    """
    if attack == "absent":
        sites = {name: data for name, data in sites.items() if name != bad}
    if attack == "label-flipped":
        data = sites[bad]
        sites = {**sites, bad: replace(data, labels=data.n_classes - 1 - data.labels)}
    first = next(iter(sites.values()))
    arrays = strategy.initial_arrays(first.n_classes, first.features.shape[1], seed)
    done = Attacked(strategy.head(arrays))
    for round_ in range(1, rounds + 1):
        updates = {}
        for name, data in sites.items():
            update = strategy.site_update(data, arrays, round_, seed)
            if name == bad and attack in ON_UPDATES:
                update = ON_UPDATES[attack](arrays, update)
            try:
                strategy.check_update(arrays, update)
                updates[name] = update
            except ValueError:
                done.refused += 1
        for name in {finding.site for finding in suspicious(_outlines(strategy, arrays, updates))}:
            done.named[name] = done.named.get(name, 0) + 1
        arrays = strategy.aggregate(arrays, updates)
    done.head = strategy.head(arrays)
    return done


def _outlines(
    strategy: Strategy, arrays: Arrays, updates: Mapping[str, SiteUpdate]
) -> dict[str, Outline]:
    found = {name: outline(strategy, arrays, update) for name, update in updates.items()}
    return {name: seen for name, seen in found.items() if seen is not None}


def honest_auroc(head: LinearHead, sites: Mapping[str, Hospital], bad: str) -> Estimate:
    """Mean AUROC over the test halves of all sites but the bad one."""
    return mean_over_sites(
        [
            evaluate(
                site.test.labels,
                head.probabilities(site.test.features),
                [str(c) for c in range(site.test.n_classes)],
                groups=site.test.groups,
                curves=False,
            ).auroc
            for name, site in sites.items()
            if name != bad
        ]
    )


def _halves(hospital: Hospital, prefix: str) -> dict[str, Hospital]:
    """Two hospitals of one, by the hash of the group."""

    def part(data: SiteData, name: str, side: int) -> SiteData:
        digests = [hashlib.sha256(group.encode()).digest()[0] % 2 for group in data.groups]
        keep = np.array(digests) == side
        groups = tuple(group for group, kept in zip(data.groups, keep, strict=True) if kept)
        return SiteData(name, data.features[keep], data.labels[keep], data.n_classes, groups=groups)

    return {
        f"{prefix}-{letter}": Hospital(
            part(hospital.train, f"{prefix}-{letter}", side),
            part(hospital.test, f"{prefix}-{letter}", side),
        )
        for side, letter in enumerate("ab")
    }


def load_hospitals(cache: Path, work: Path) -> tuple[str, dict[str, Hospital]]:
    """The three real sites (or the drawn ones, where there are none), and what they are."""
    from dermino_client.prepare import prepare_site
    from dermino_client.site import read_sites

    shared = shared_folder()
    workload = real_workload(shared, work) if shared else drawn_workload(work, "demo")
    hospitals = {}
    for described in read_sites(workload.sites):
        site = prepare_site(described, backbone=workload.backbone, cache=cache)
        halves = []
        for split in ("train", "test"):
            features, labels, groups = site.half(split)
            halves.append(
                SiteData(site.name, features, labels, len(site.classes), groups=tuple(groups))
            )
        hospitals[site.name] = Hospital(*halves)
    return workload.name, hospitals


def five_hospitals(three: Mapping[str, Hospital]) -> dict[str, Hospital]:
    """The smallest as it is, the two others in halves."""
    by_size = sorted(three, key=lambda name: (len(three[name].train.labels), name))
    five = {by_size[0]: three[by_size[0]]}
    for name in by_size[1:]:
        five |= _halves(three[name], name)
    return five


@dataclass(frozen=True)
class Cell:
    """One method under one attack by one site."""

    auroc: Estimate
    refused: int
    named: dict[str, int]


Found = dict[str, dict[str, dict[str, Cell]]]
"""Method -> bad site -> attack -> what came of it."""

COLUMNS = ("none", "absent", *ATTACKS)


def measure_attacks(five: Mapping[str, Hospital]) -> Found:
    """Every method that trains on features, every attack, by each of the sites."""
    found: Found = {}
    sites = {name: site.train for name, site in five.items()}
    for name, (method, settings_type) in sorted(STRATEGIES.items()):
        if issubclass(method, Tuning):
            continue
        local = issubclass(settings_type, FedAvgSettings)
        for variant in VARIANTS.get(name, [{}]):
            settings = ({"learning_rate": LEARNING_RATE} if local else {}) | variant
            strategy = get_strategy(name, settings)
            label = " ".join([name, *(f"{k}={v:g}" for k, v in variant.items())])
            found[label] = {bad: {} for bad in five}
            for bad, attack in itertools.product(five, COLUMNS):
                done = attacked_federation(
                    strategy, sites, bad=bad, attack=attack, rounds=FACTS[name].rounds
                )
                auroc = honest_auroc(done.head, five, bad)
                found[label][bad][attack] = Cell(auroc, done.refused, done.named)
    return found


def show_attacks(found: Found, bad: str) -> None:
    """AUROC with one bad site, what became of it, and the worst that each site could do."""
    rows = [[m, *(_interval(c.auroc) for c in by[bad].values())] for m, by in found.items()]
    print(f"\nmean AUROC of the other four sites' test images (95 % interval), bad: {bad}")
    print(table(["method", *COLUMNS], rows))
    rows = []
    for method, by in found.items():
        rounds = FACTS[method.split()[0]].rounds
        rows.append([method, *(_fate(cell, bad, rounds) for cell in by[bad].values())])
    print("\nrounds in which it was refused (r) or named (n), of all; +: honest sites named")
    print(table(["method", *COLUMNS], rows))
    print("\nof the five sites, each being the bad one: refused or named in at least one round;")
    print("false alarms: honest sites named, of all sites in all rounds without a bad one")
    rows = [[method, *_caught(by), _false_alarms(by, method)] for method, by in found.items()]
    print(table(["method", *ATTACKS, "false alarms"], rows))
    print("\nAUROC lost beside 'absent': the worst of five, each site being the bad one")
    rows = [
        [m, *(f"{max(_loss(cells, a) for cells in by.values()):+.3f}" for a in ATTACKS)]
        for m, by in found.items()
    ]
    print(table(["method", *ATTACKS], rows))
    for method, by in found.items():
        claimed = FACTS[method.split()[0]].survives
        lost = [a for a in claimed if any(_loss(c, a) > WORST_LOSS for c in by.values())]
        text = f"{method} survives {', '.join(claimed)} (loses at most {WORST_LOSS})"
        print(goal(text, f"lost to {', '.join(lost) or 'none'}", reached=not lost))


def _loss(cells: Mapping[str, Cell], attack: str) -> float:
    return (cells["absent"].auroc.value or 0) - (cells[attack].auroc.value or 0)


def _interval(auroc: Estimate) -> str:
    if auroc.value is None or auroc.low is None or auroc.high is None:
        return "undefined"
    return f"{auroc.value:.3f} ({auroc.low:.2f} to {auroc.high:.2f})"


def _fate(cell: Cell, bad: str, rounds: int) -> str:
    honest = sum(count for name, count in cell.named.items() if name != bad)
    more = f" +{honest}" if honest else ""
    if cell.refused:
        return f"{cell.refused}r/{rounds}{more}"
    return f"{cell.named.get(bad, 0)}n/{rounds}{more}"


def _caught(by: Mapping[str, Mapping[str, Cell]]) -> list[str]:
    """Of all bad sites, those that were refused or named, for each attack."""
    hits = {
        attack: sum(bool(c[attack].refused or c[attack].named.get(bad)) for bad, c in by.items())
        for attack in ATTACKS
    }
    return [f"{hits[attack]}/{len(by)}" for attack in ATTACKS]


def _false_alarms(by: Mapping[str, Mapping[str, Cell]], method: str) -> str:
    cells = next(iter(by.values()))  # without an attack it does not matter who is the bad one
    rounds = FACTS[method.split()[0]].rounds
    return f"{sum(cells['none'].named.values())}/{len(by) * rounds}"


KINDS = {
    "one source": "every site draws from the largest source",
    "three sources": "each site draws from one of the three",
    "skewed": "each site also has its own share of the classes, anything from 0 to 1",
}


def draw_sites(
    pool: Mapping[str, SiteData], count: int, kind: str, rng: np.random.Generator
) -> dict[str, SiteData]:
    """Honest sites of 20 to 400 images, drawn from real features; they may share images."""
    largest = max(pool, key=lambda name: len(pool[name].labels))
    sites = {}
    for number in range(count):
        source = pool[largest if kind == "one source" else rng.choice(sorted(pool))]
        images = len(source.labels)
        size = int(np.exp(rng.uniform(np.log(20), np.log(min(400, 0.8 * images)))))
        share = rng.uniform() if kind == "skewed" else 0.5
        weight = np.where(source.labels == 1, share, 1 - share) + 0.02
        rows = rng.choice(images, size, replace=False, p=weight / weight.sum())
        name = f"site-{number}"
        sites[name] = SiteData(name, source.features[rows], source.labels[rows], source.n_classes)
    return sites


def measure_alarms(three: Mapping[str, Hospital], trials: int, seed: int) -> list[list[str]]:
    """How often an honest site is named, and a bad one, for kinds and numbers of sites."""
    pool = {
        name: SiteData(
            name,
            np.concatenate([site.train.features, site.test.features]),
            np.concatenate([site.train.labels, site.test.labels]),
            site.train.n_classes,
        )
        for name, site in three.items()
    }
    rows = []
    for kind in KINDS:
        for count in (3, 4, 5, 8, 12):
            rng = np.random.default_rng([seed, count, list(KINDS).index(kind)])
            tally = _Tally()
            for trial in range(trials):
                _one_trial(draw_sites(pool, count, kind, rng), rng, trial, tally)
            rows.append([kind, str(count), *tally.cells()])
    return rows


@dataclass
class _Tally:
    rounds: int = 0
    sites: int = 0
    length: int = 0
    direction: int = 0
    alarmed: int = 0
    early: int = 0
    caught: dict[str, int] = field(default_factory=dict)

    def cells(self) -> list[str]:
        """Shares in percent."""
        false = [self.length / self.sites, self.direction / self.sites, self.alarmed / self.rounds]
        true = [self.caught.get(a, 0) / self.early for a in ("scaled", "sign-flipped")]
        labels = self.caught.get("label-flipped", 0) / self.early
        return [f"{100 * share:.2f}" for share in false] + [
            f"{100 * share:.0f}" for share in (*true, labels)
        ]


def _one_trial(
    sites: Mapping[str, SiteData], rng: np.random.Generator, trial: int, tally: _Tally
) -> None:
    """Five rounds of FedAvg; in the first two, what each attack by the first site would show."""
    strategy = FedAvg(
        FedAvgSettings(
            learning_rate=float(rng.choice([2e-4, 1e-3, 5e-3])),
            local_epochs=int(rng.choice([1, 2, 5])),
            batch_size=int(rng.choice([8, 32])),
        )
    )
    data = next(iter(sites.values()))
    bad, width = data.site, data.features.shape[1]
    flipped = replace(data, labels=data.n_classes - 1 - data.labels)
    arrays = strategy.initial_arrays(data.n_classes, width, trial)
    for round_ in range(1, 6):
        updates = {n: strategy.site_update(d, arrays, round_, trial) for n, d in sites.items()}
        outlines = _outlines(strategy, arrays, updates)
        findings = suspicious(outlines)
        tally.rounds += 1
        tally.sites += len(sites)
        tally.length += sum(finding.reason == "length" for finding in findings)
        tally.direction += sum(finding.reason == "direction" for finding in findings)
        tally.alarmed += bool(findings)
        if round_ <= 2:
            tally.early += 1
            sent = {name: ON_UPDATES[name](arrays, updates[bad]) for name in ON_UPDATES}
            sent["label-flipped"] = strategy.site_update(flipped, arrays, round_, trial)
            for name in ("scaled", "sign-flipped", "label-flipped"):
                seen = suspicious(outlines | _outlines(strategy, arrays, {bad: sent[name]}))
                caught = any(finding.site == bad for finding in seen)
                tally.caught[name] = tally.caught.get(name, 0) + caught
        arrays = strategy.aggregate(arrays, updates)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="robustness")
    parser.add_argument("--cache", type=Path, required=True, help="where features are kept")
    parser.add_argument("--bad", help=f"the bad site shown in full (default {BAD}, or the last)")
    parser.add_argument("--trials", type=int, default=40, help="federations per row of alarms")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    wanted = parser.parse_args()
    logging.getLogger("dermino.strategies").setLevel(logging.ERROR)
    print(", ".join(f"{key} {value}" for key, value in describe().items()))
    print(load_line())
    with tempfile.TemporaryDirectory(prefix="dermino-bench-") as work:
        title, three = load_hospitals(wanted.cache, Path(work))
    five = five_hospitals(three)
    bad = wanted.bad or (BAD if BAD in five else sorted(five)[-1])
    sizes = ", ".join(f"{name} {len(site.train.labels)}" for name, site in five.items())
    print(f"{title}; training images: {sizes}; local learning rate {LEARNING_RATE:g}")
    found = measure_attacks(five)
    show_attacks(found, bad)
    alarms = measure_alarms(three, wanted.trials, wanted.seed)
    print(
        f"\npercent: honest sites named, rounds with any; bad ones named in the first two rounds; "
        f"{wanted.trials} federations of 5 rounds each row"
    )
    header = ["sites", "number", "by length", "by direction", "rounds with any"]
    print(table([*header, "scaled", "sign-flipped", "label-flipped"], alarms))
    for kind, meaning in KINDS.items():
        print(f"  {kind}: {meaning}")
    if wanted.out:
        content = {"machine": describe(), "attacks": _plain(found), "alarms": alarms}
        wanted.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _plain(found: Found) -> object:
    return {
        method: {
            bad: {
                attack: {
                    "auroc": cell.auroc.model_dump(),
                    "refused": cell.refused,
                    "named": cell.named,
                }
                for attack, cell in cells.items()
            }
            for bad, cells in by.items()
        }
        for method, by in found.items()
    }


if __name__ == "__main__":
    main()
