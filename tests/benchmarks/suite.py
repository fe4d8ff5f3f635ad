"""The evaluation suite beside a plain script that embeds the images anew for each task.

Two backbones (DINOv2 ViT-S/14 and the demo) on the three real sites: retrieval, both probes and
calibration, with 1,000 bootstrap replicates each. Both sides load the same backbones with the same
arithmetic and the same halves; the script uses scikit-learn, and repeats `roc_auc_score`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from dermino_core.manifest import Manifest, read_manifest, write_manifest
from dermino_core.splits import split_records
from tests.benchmarks.machine import dermino, module, run_child
from tests.benchmarks.tables import table
from tests.benchmarks.workload import REAL_SITES

REPLICATES = 1000
TASKS = ("retrieval", "linear probe", "logistic regression", "calibration")


def write_sites(shared: Path, work: Path, per_site: int | None) -> list[Path]:
    """Tables of the real sites with their halves, of at most `per_site` images each."""
    files = []
    for name, columns in REAL_SITES.items():
        root = shared / "data" / name
        records = read_manifest(root / "labels.csv", root=root, columns=columns).records
        step = 1 if per_site is None else max(1, len(records) // per_site)
        chosen = records[::step]
        halves = split_records(chosen, [str(record.label) for record in chosen])
        file = work / f"{name}.csv"
        pairs = zip(chosen, halves, strict=True)
        write_manifest(file, [replace(record, split=half) for record, half in pairs])
        files.append(file)
    return files


def measure_suite(shared: Path, work: Path, *, per_site: int | None) -> dict[str, float]:
    """Seconds of both sides in fresh processes, printed with their ratio."""
    tables = write_sites(shared, work, per_site)
    roots = [str(shared / "data" / name) for name in REAL_SITES]
    backbones = [str(shared / "weights" / "dinov2_vits14.safetensors"), "demo"]
    ours = dermino(
        *("evaluate", "--backbone", *backbones, "--manifest", *map(str, tables)),
        *("--images", *roots, "--tasks", "retrieval,classification,calibration"),
        *("--cache", str(work / "cache"), "--out", str(work / "run"), "--no-report"),
    )
    places = ["--tables", *map(str, tables), "--roots", *roots, "--backbones", *backbones]
    seconds = {
        "dermino, empty cache": run_child(ours).seconds,
        "plain script": run_child(module("suite", *places)).seconds,
    }
    first = seconds["dermino, empty cache"]
    rows = [[side, f"{value:.1f}", f"{value / first:.1f}"] for side, value in seconds.items()]
    print(table(["", "seconds", "ratio"], rows))
    return seconds


def plain_script(manifest: Manifest, spec: str) -> None:
    """Every task on one data set with one backbone, each from the image files."""
    from sklearn.calibration import calibration_curve
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.array([record.label == "malignant" for record in manifest.records])
    train = np.array([record.split == "train" for record in manifest.records])
    rng = np.random.default_rng(0)
    for task in TASKS:
        features = embed(manifest, spec)
        if task == "retrieval":
            model = KNeighborsClassifier(5, metric="cosine")
        elif task == "linear probe":
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        else:
            search = LogisticRegressionCV(Cs=7, max_iter=500, cv=5)
            model = make_pipeline(StandardScaler(), search)
        score = model.fit(features[train], labels[train]).predict_proba(features[~train])[:, 1]
        truth = labels[~train]
        if task == "calibration":
            calibration_curve(truth, score, n_bins=10)
        for _ in range(REPLICATES):
            rows = rng.integers(0, len(truth), len(truth))
            if 0 < truth[rows].sum() < len(rows):
                roc_auc_score(truth[rows], score[rows])


def embed(manifest: Manifest, spec: str) -> np.ndarray:
    """Features [n, D], decoded one after another."""
    from dermino_core.backbone import load_backbone
    from dermino_core.images import decode_image, prepare_image

    backbone = load_backbone(spec)
    found = []
    card = backbone.card.preprocessing
    side, how, crop = card.image_size, card.interpolation, card.crop_pct
    records, size = manifest.records, backbone.batch_size
    for start in range(0, len(records), size):
        batch = []
        for record in records[start : start + size]:
            image = decode_image(manifest.path_of(record).read_bytes())
            batch.append(prepare_image(image, side, interpolation=how, crop_pct=crop))
        found.append(backbone.embed(np.stack(batch)))
    return np.concatenate(found)


def main() -> None:
    """The plain side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", type=Path, required=True)
    parser.add_argument("--roots", nargs="+", type=Path, required=True)
    parser.add_argument("--backbones", nargs="+", required=True)
    arguments = parser.parse_args()
    for file, root in zip(arguments.tables, arguments.roots, strict=True):
        for spec in arguments.backbones:
            plain_script(read_manifest(file, root=root), spec)


if __name__ == "__main__":
    main()
