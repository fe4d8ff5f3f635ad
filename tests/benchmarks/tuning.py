"""Does tuning the backbone help, and how much of it does a federation recover?

python -m tests.benchmarks.tuning --work FOLDER [--set KEY=VALUE ...] [--ways pooled alone ...]

Three real hospitals with DINOv2 ViT-S/14, halves as `dermino simulate` makes them (seed 0). The
backbone's last blocks are tuned on the training halves: all images in one place, or federated, as
many epochs in all. Then every image is embedded again by the tuned backbone, the federated ridge
is fitted on the training halves, and the test halves measure it, once. `alone`: every hospital
tunes by itself and fits a ridge of its own.

Nothing here was chosen by the test halves. Intervals: patients are drawn with replacement;
differences are paired; the trained models are held fixed, so another seed gives other numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dermino_client.prepare import PreparedSite, prepare_site
from dermino_client.site import Site, read_sites
from dermino_client.tuned import site_images
from dermino_core.heads import LinearHead
from dermino_core.metrics import bootstrap_weights, macro_auroc
from dermino_strategies.base import Arrays, SiteData, SiteImages, SiteUpdate
from dermino_strategies.lora import LoRA, LoRASettings
from dermino_strategies.ridge import Ridge
from tests.benchmarks.machine import describe, load_line
from tests.benchmarks.tables import goal, table
from tests.benchmarks.workload import Workload, drawn_workload, real_workload, shared_folder

FROZEN, POOLED, FEDERATED, ALONE = "frozen", "pooled", "federated", "alone"
WANTED_SHARE = 0.8
REPLICATES = 1000

Floats = npt.NDArray[np.float64]


@dataclass
class Cost:
    """Of one tuning. Bytes are one site's in all rounds; seconds those of all sites, in turn."""

    rounds: int = 0
    up: int = 0
    down: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    embedding_seconds: float = 0.0


@dataclass
class Score:
    """Test AUROC of one way at every site, and its replicates [B]."""

    value: dict[str, float] = field(default_factory=dict)
    drawn: dict[str, Floats] = field(default_factory=dict)

    def mean(self) -> tuple[float, Floats]:
        """Over the sites, and its replicates."""
        return (
            float(np.mean(list(self.value.values()))),
            np.mean(list(self.drawn.values()), axis=0),
        )


Scores = dict[str, Score]


def training_data(site: PreparedSite) -> SiteData:
    """The training half with its images."""
    features, labels, groups = site.half("train")
    images = site_images(site, "train")
    classes = len(site.classes)
    return SiteData(site.name, features, labels, classes, groups=tuple(groups), images=images)


def in_one_place(sites: Sequence[SiteData]) -> SiteData:
    """All training halves together."""
    images = [site.images for site in sites if site.images is not None]
    first = images[0]
    return SiteData(
        "pooled",
        np.concatenate([site.features for site in sites]),
        np.concatenate([site.labels for site in sites]),
        sites[0].n_classes,
        images=SiteImages(
            tuple(path for of in images for path in of.paths),
            first.backbone,
            first.cache,
            first.precision,
            first.device,
        ),
    )


def tune(
    strategy: LoRA, sites: Sequence[SiteData], rounds: int, seed: int
) -> tuple[Arrays, Cost, list[dict[str, float]]]:
    """The rounds as the coordinator runs them, what they cost, and the sites' losses."""
    arrays = strategy.initial_arrays(sites[0].n_classes, sites[0].features.shape[1], seed)
    cost, losses = Cost(rounds), []
    start, cpu = time.monotonic(), time.process_time()
    for round_ in range(1, rounds + 1):
        cost.down += sum(array.nbytes for array in arrays.values())
        updates: dict[str, SiteUpdate] = {}
        for site in sites:
            updates[site.site] = strategy.site_update(site, arrays, round_, seed)
            strategy.check_update(arrays, updates[site.site])
        first = next(iter(updates.values()))
        cost.up += sum(array.nbytes for array in first.arrays.values())
        losses.append({name: update.metrics["train-loss"] for name, update in updates.items()})
        arrays = strategy.aggregate(arrays, updates)
    cost.seconds, cost.cpu_seconds = time.monotonic() - start, time.process_time() - cpu
    return arrays, cost, losses


def load_tuned(folder: Path) -> tuple[Arrays, Cost, list[dict[str, float]]]:
    """What an earlier call left: a way that was tuned is not tuned again."""
    with np.load(folder / "tuned.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    told = json.loads((folder / "tuned.json").read_text(encoding="utf-8"))
    return arrays, Cost(**told["cost"]), told["losses"]


def ridge_head(sites: Sequence[PreparedSite]) -> LinearHead:
    """The federated ridge, one round."""
    strategy, updates = Ridge(), {}
    first = sites[0]
    arrays = strategy.initial_arrays(len(first.classes), first.width, 0)
    for site in sites:
        features, labels, groups = site.half("train")
        data = SiteData(site.name, features, labels, len(site.classes), groups=tuple(groups))
        updates[site.name] = strategy.site_update(data, arrays, 1, 0)
    return strategy.head(strategy.aggregate(arrays, updates))


def measure(score: Score, site: PreparedSite, head: LinearHead) -> None:
    """A head on a site's test half."""
    features, labels, groups = site.half("test")
    draws = bootstrap_weights(len(labels), groups=groups, replicates=REPLICATES, seed=0)
    probabilities = head.probabilities(features)
    score.value[site.name] = float(macro_auroc(labels, probabilities)[0])
    score.drawn[site.name] = macro_auroc(labels, probabilities, draws)


class Run:
    """The three hospitals, and each way of tuning measured on them."""

    def __init__(self, workload: Workload, work: Path) -> None:
        self.described: list[Site] = read_sites(workload.sites)
        self.backbone, self.work, self.cache = workload.backbone, work, work / "cache"
        self.scores: dict[str, Scores] = {"ridge": {}, "own head": {}}
        self.costs: dict[str, Cost] = {}
        self.losses: dict[str, Any] = {}
        self.sites = [self.embedded(site, self.backbone) for site in self.described]
        score = self.scores["ridge"].setdefault(FROZEN, Score())
        head = ridge_head(self.sites)
        for site in self.sites:
            measure(score, site, head)

    def embedded(self, site: Site, backbone: str) -> PreparedSite:
        """A site with features of a backbone."""
        return prepare_site(site, backbone=backbone, cache=self.cache)

    def tuned(self, name: str, strategy: LoRA, rounds: int, *, alone: str = "") -> None:
        """Tune, embed again, fit the ridge, measure."""
        sites = [site for site in self.sites if alone in ("", site.name)]
        data = [training_data(site) for site in sites]
        if name == POOLED:
            data = [in_one_place(data)]
        how = f"{strategy.settings.model_dump_json()} {rounds}"
        digest = hashlib.sha256(how.encode()).hexdigest()[:12]
        folder = self.work / "backbones" / f"{name}-{alone or 'all'}-{digest}"
        if (folder / "tuned.npz").is_file():
            arrays, cost, losses = load_tuned(folder)
        else:
            arrays, cost, losses = tune(strategy, data, rounds, seed=0)
            strategy.write_backbone(folder, self.backbone, arrays)
            np.savez(folder / "tuned.npz", **arrays)  # pyright: ignore[reportArgumentType]
            done = json.dumps({"cost": asdict(cost), "losses": losses})
            (folder / "tuned.json").write_text(done, encoding="utf-8")
        start = time.monotonic()
        seen = [
            self.embedded(site, str(folder)) for site in self.described if alone in ("", site.name)
        ]
        cost.embedding_seconds = time.monotonic() - start
        self.costs[f"{name} {alone}".strip()], self.losses[f"{name} {alone}".strip()] = cost, losses
        ridge, own = (self.scores[key].setdefault(name, Score()) for key in self.scores)
        head = ridge_head(seen)
        for site in seen:
            measure(ridge, site, head)
            measure(own, site, strategy.head(arrays))


def interval(value: float, drawn: Floats) -> str:
    """A signed number with its 95 % interval."""
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def show(run: Run) -> dict[str, Any]:
    """Tables, the goal, and all of it for a file."""
    names = [site.name for site in run.sites]
    frozen = run.scores["ridge"][FROZEN]
    base, base_drawn = frozen.mean()
    rows, found = [], {}
    for head, scores in run.scores.items():
        for way, score in scores.items():
            mean, drawn = score.mean()
            low, high = np.nanpercentile(drawn, [2.5, 97.5])
            change = "" if way == FROZEN else interval(mean - base, drawn - base_drawn)
            rows.append(
                [
                    f"{way}, {head}",
                    *(f"{score.value[name]:.3f}" for name in names),
                    f"{mean:.3f} ({low:.3f} to {high:.3f})",
                    change,
                ]
            )
            found[f"{way}, {head}"] = {
                "auroc": score.value,
                "mean": [mean, low, high],
                "minus frozen ridge": [
                    mean - base,
                    *np.nanpercentile(drawn - base_drawn, [2.5, 97.5]),
                ],
            }
    print("\ntest AUROC; 95 % intervals, differences paired")
    print(table(["backbone, head", *names, "mean", "minus frozen"], rows))
    rows = [
        [
            name,
            str(cost.rounds),
            f"{cost.up / 1e6:.2f}" if name.startswith(FEDERATED) else "",
            f"{cost.down / 1e6:.2f}" if name.startswith(FEDERATED) else "",
            f"{cost.seconds:.0f}",
            f"{cost.cpu_seconds:.0f}",
            f"{cost.embedding_seconds:.0f}",
        ]
        for name, cost in run.costs.items()
    ]
    print("\nMB of one site in all rounds; seconds of all sites one after the other")
    head = ["tuning", "rounds", "MB up", "MB down", "s", "s of CPU", "s embedding again"]
    print(table(head, rows))
    if {POOLED, FEDERATED} <= set(run.scores["ridge"]):
        found["share"] = share(run, base, base_drawn)
    return found


def share(run: Run, base: float, base_drawn: Floats) -> list[float]:
    """Of what pooling gains, how much the federation gains; with its interval."""
    pooled, pooled_drawn = run.scores["ridge"][POOLED].mean()
    federated, federated_drawn = run.scores["ridge"][FEDERATED].mean()
    value = (federated - base) / (pooled - base)
    drawn = (federated_drawn - base_drawn) / (pooled_drawn - base_drawn)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    minus = interval(federated - pooled, federated_drawn - pooled_drawn)
    print(f"\nfederated minus pooled, ridge: {minus}")
    text = f"{value:.0%} ({low:.0%} to {high:.0%})"
    aim = f"federated tuning gains {WANTED_SHARE:.0%} of what pooled tuning gains"
    print(goal(aim, text, reached=value >= WANTED_SHARE and pooled > base))
    return [float(value), float(low), float(high)]


def settings_from(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` as JSON values, else as words."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found


def write(run: Run, options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Everything that is known so far."""
    content = {
        "machine": describe(),
        "load": os.getloadavg(),
        "settings": LoRASettings.model_validate(settings).model_dump(),
        "pooled settings": options.pooled_set,
        "rounds": options.rounds,
        "costs": {name: asdict(cost) for name, cost in run.costs.items()},
        "losses": run.losses,
        "found": show(run),
    }
    (options.work / "tuning.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="caches, backbones, tuning.json")
    parser.add_argument("--rounds", type=int, default=LoRA.usual_rounds)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of `lora`")
    parser.add_argument(
        "--pooled-set",
        nargs="*",
        default=["learning_rate=1e-3"],
        metavar="KEY=VALUE",
        help="in place of --set, where all images are in one place or a hospital is alone",
    )
    parser.add_argument(
        "--ways",
        nargs="*",
        default=[POOLED, FEDERATED],
        choices=[POOLED, FEDERATED, ALONE],
        help="one after the other; what an earlier call tuned is not tuned again",
    )
    parser.add_argument("--drawn", type=int, help="drawn hospitals with so many images, instead")
    options = parser.parse_args(arguments)
    settings = settings_from(options.set)
    federated = LoRA(LoRASettings.model_validate(settings))
    epochs = options.rounds * federated.settings.local_epochs
    own = settings | settings_from(options.pooled_set) | {"local_epochs": epochs}
    together = LoRA(LoRASettings.model_validate(own))
    shared = None if options.drawn else shared_folder()
    options.work.mkdir(parents=True, exist_ok=True)
    print(load_line())
    workload = (
        real_workload(shared, options.work)
        if shared
        else drawn_workload(options.work, "demo", per_site=options.drawn)
    )
    print(f"{workload.name}, {workload.train} training and {workload.test} test images")
    run = Run(workload, options.work)
    for way in options.ways:
        if way == ALONE:
            for site in run.sites:
                run.tuned(ALONE, together, 1, alone=site.name)
        else:
            run.tuned(way, *((together, 1) if way == POOLED else (federated, options.rounds)))
        write(run, options, settings)


if __name__ == "__main__":
    main()
