"""Does continued pretraining help? Real images, from DINOv2 ViT-S/14, measured on test halves.

python -m tests.benchmarks.pretraining_gain --out FOLDER [--steps N] [--only NAME ...]

PH2, ISIC 2017 and HAM10000 are halved (stratified, no lesion on both sides); training halves with
their diagnoses train the backbone, test halves measure it. For every site: retrieval (k = 5, the
training half as the gallery) and a ridge probe of benign against malignant. The figure is the mean
of the sites, with the paired bootstrap interval of its difference to the starting weights.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from dermino_core.features import extract_features
from dermino_core.manifest import Manifest, Record, read_manifest, write_manifest
from dermino_core.metrics import bootstrap_weights, macro_auroc
from dermino_core.pretraining.probe_scores import neighbour_scores, ridge_scores
from dermino_core.splits import split_records
from tests.benchmarks.machine import dermino, describe, run_child
from tests.benchmarks.tables import table
from tests.benchmarks.workload import REAL_SITES, shared_folder

DIAGNOSES: Mapping[str, Mapping[str, str]] = {
    "ph2": {
        "atypical_nevus": "melanocytic nevus",
        "common_nevus": "melanocytic nevus",
        "melanoma": "melanoma",
    },
    "isic2017": {"melanoma": "melanoma", "non_melanoma": "!melanoma"},
    "ham10000": {
        "akiec": "actinic keratosis",
        "bcc": "basal cell carcinoma",
        "bkl": "benign keratosis",
        "df": "dermatofibroma",
        "mel": "melanoma",
        "nv": "melanocytic nevus",
        "vasc": "vascular lesion",
    },
}
"""A site's own label -> what it says of the seven diagnoses."""

RECIPE: dict[str, Any] = {
    "model": {"architecture": "vit_small_patch14_dinov2"},
    "heads": {"prototypes": 256, "hidden": 512},
    "crops": {"global_size": 140, "local_count": 0},
    "prototypes": {"negatives": "all"},
    "data": {"image_side": 256, "workers": 0},
    "run": {"batch_size": 32, "checkpoint_every": 0.25},
    "monitor": {"trackers": []},
}
"""What fits two processor cores for a quarter of an hour; everything else is the preset's.

Two crops of 140 pixels instead of two of 224 and eight of 98, and 256 prototypes for a batch of 32.
Every lesion has one diagnosis, so an image with one is known not to have the six others.
"""


@dataclass(frozen=True)
class Variant:
    """What a run changes; `steps` as a multiple of the others', so that it takes as long."""

    changes: Mapping[str, Mapping[str, Any]]
    steps: float = 1.0


VARIANTS: Mapping[str, Variant] = {
    "recommended": Variant({}),
    "without supervised loss": Variant({"loss": {"supervised": 0.0}}),
    "without head warm-up": Variant({"optimiser": {"head_warmup": 0.0}}),
    "supervised loss alone": Variant(
        {
            "loss": {"image": 0.0, "patch": 0.0, "koleo": 0.0},
            "optimiser": {"head_warmup": 0.0},
        },
        steps=4 / 3,
    ),
}


def split_sites(shared: Path, work: Path) -> dict[str, Manifest]:
    """Write each site's table with diagnoses and halves, and the training table of all."""
    work.mkdir(parents=True, exist_ok=True)
    sites = {}
    for name, columns in REAL_SITES.items():
        root = shared / "data" / name
        binary = read_manifest(root / "labels.csv", root=root, columns=columns).records
        plain = read_manifest(root / "labels.csv", root=root).records
        halves = split_records(binary, [str(r.label) for r in binary], seed=0)
        records = [
            Record(r.image, DIAGNOSES[name][str(p.label)], split=half, group=r.group)
            for r, p, half in zip(binary, plain, halves, strict=True)
        ]
        write_manifest(work / f"{name}.csv", records)
        labelled = [
            Record(r.image, r.label, split=half, group=r.group)
            for r, half in zip(binary, halves, strict=True)
        ]
        sites[name] = Manifest(work / f"{name}.csv", root, labelled)
    return sites


def configuration(
    shared: Path, work: Path, steps: int, changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The run's TOML content."""
    content = json.loads(json.dumps(RECIPE))
    content["model"]["start"] = str(shared / "weights" / "dinov2_vits14.safetensors")
    content["run"]["steps"] = steps
    content["data"]["sources"] = [
        {"name": name, "manifest": str(work / f"{name}.csv"), "images": str(shared / "data" / name)}
        for name in REAL_SITES
    ]
    for section, fields in changes.items():
        content.setdefault(section, {}).update(fields)
    return content


def measure(sites: Mapping[str, Manifest], backbone: str, cache: Path) -> dict[str, Any]:
    """Scores of every test image, by task and site."""
    found: dict[str, Any] = {"retrieval": {}, "probe": {}}
    for name, manifest in sites.items():
        paths = [manifest.path_of(record) for record in manifest.records]
        features = extract_features(paths, backbone, cache=cache, title=name).vectors
        labels = np.array([r.label == "malignant" for r in manifest.records], dtype=np.int64)
        train = np.array([r.split == "train" for r in manifest.records])
        halves = features[train], labels[train], features[~train], 2
        found["retrieval"][name] = neighbour_scores(*halves, neighbours=5)
        found["probe"][name] = ridge_scores(*halves)
    return found


def replicates(sites: Mapping[str, Manifest], scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean AUROC of the sites: first the point, then its bootstrap replicates."""
    rows = []
    for seed, (name, manifest) in enumerate(sites.items()):
        test = [r for r in manifest.records if r.split == "test"]
        labels = np.array([r.label == "malignant" for r in test], dtype=np.int64)
        groups = [r.group or r.image for r in test]
        draws = bootstrap_weights(len(test), groups=groups, seed=seed)
        one = np.ones((1, len(test)), dtype=draws.dtype)
        rows.append(macro_auroc(labels, scores[name], np.concatenate([one, draws])))
    return np.mean(rows, axis=0)


def compare(sites: Mapping[str, Manifest], before: dict, after: dict) -> dict[str, list[float]]:
    """Task -> value, difference, and its 95 % interval."""
    found = {}
    for task in before:
        start, now = replicates(sites, before[task]), replicates(sites, after[task])
        low, high = np.nanpercentile((now - start)[1:], [2.5, 97.5])
        found[task] = [float(now[0]), float(now[0] - start[0]), float(low), float(high)]
    return found


def main() -> None:
    """Train the variants, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--set", nargs="*", default=[], help="section.field=value")
    arguments = parser.parse_args()
    shared = shared_folder()
    if shared is None:
        parser.error("no real images and weights here; set DERMINO_SHARED to their folder")
    # Paths in a configuration are relative to its file.
    out = arguments.out.resolve()
    sites = split_sites(shared, out)
    cache = out / "cache"
    start = str(shared / "weights" / "dinov2_vits14.safetensors")
    before = measure(sites, start, cache)
    rows = []
    for task, scores in before.items():
        rows.append(["starting weights", task, f"{replicates(sites, scores)[0]:.3f}", "", "", ""])
    results: dict[str, Any] = {"machine": describe(), "steps": arguments.steps}
    for name in arguments.only:
        run = out / name.replace(" ", "-")
        file = run.with_suffix(".toml")
        variant = VARIANTS[name]
        steps = round(arguments.steps * variant.steps)
        content = configuration(shared, out, steps, variant.changes)
        file.write_text(tomli_w.dumps(content), encoding="utf-8")
        began = time.monotonic()
        settings = [part for setting in arguments.set for part in ("--set", setting)]
        run_child(dermino("pretrain", str(file), "--out", str(run), "--resume", *settings))
        minutes = (time.monotonic() - began) / 60
        found = compare(sites, before, measure(sites, str(run / "model"), cache))
        results[name] = {"steps": steps, "minutes": minutes, **found}
        for task, (value, gain, low, high) in found.items():
            interval = f"{low:+.3f} to {high:+.3f}"
            rows.append([name, task, f"{value:.3f}", f"{gain:+.3f}", interval, f"{minutes:.1f}"])
    header = ["weights", "task", "AUROC", "gain", "95 % interval", "minutes"]
    print(table(header, rows))
    (out / "gain.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
