"""The backbone that comes with dermino: small, whole, and better than chance weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dermino_core.backbone import describe_backbone, load_backbone
from dermino_core.datasets.synthetic import write_site
from dermino_core.datasets.synthetic_sites import find_site
from dermino_core.demo_backbone import demo_folder
from dermino_core.demo_backbone.rebuild import MONITOR_SEED, PRETRAINING_SEED
from dermino_core.features import extract_features
from dermino_core.manifest import read_manifest
from dermino_core.metrics import macro_auroc
from dermino_core.pretraining.config_file import read_config
from dermino_core.pretraining.probe_scores import neighbour_scores
from dermino_core.splits import split_records

SITE = "synthetic-ph2"


def test_it_is_small_and_described() -> None:
    folder = demo_folder()
    assert (folder / "model.safetensors").stat().st_size <= 6 * 1024 * 1024
    card = describe_backbone("demo", cache_dir=None)
    assert card.pretrained
    assert card.source == "comes with dermino"
    described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert described["fingerprint"] == card.fingerprint
    assert described["pretraining"]["method"] == "hybrid"
    backbone = load_backbone("demo", precision="fp32", device="cpu")
    size = card.preprocessing.image_size
    features = backbone.embed(np.zeros((1, size, size, 3), dtype=np.uint8))
    assert features.shape == (1, card.width)


def test_its_recipe_is_a_configuration_and_its_pictures_are_not_the_demos() -> None:
    config = read_config(demo_folder() / "pretrain.toml")
    assert config.model.start == "random"
    assert 0 not in {PRETRAINING_SEED, MONITOR_SEED}
    assert PRETRAINING_SEED != MONITOR_SEED
    record = json.loads((demo_folder() / "record.json").read_text(encoding="utf-8"))
    first, last = record["probes"][0], record["probes"][-1]
    assert last["knn_auroc"] > first["knn_auroc"] + 0.1


@pytest.mark.slow
def test_it_retrieves_better_than_random_weights(tmp_path: Path) -> None:
    """On pictures of a seed that neither its training nor its monitor has seen."""
    manifest = read_manifest(write_site(tmp_path / "images", site=SITE, images=240, seed=7))
    names = find_site(SITE).label_map
    labels = [names[str(record.label)] for record in manifest.records]
    train = np.array(split_records(manifest.records, labels)) == "train"
    y = np.array([label == "malignant" for label in labels], dtype=np.int64)
    paths = [manifest.path_of(record) for record in manifest.records]
    auroc = {}
    for spec in ("demo", "random:dermino_demo"):
        x = extract_features(paths, spec, cache=tmp_path / "cache", title=spec).vectors
        scores = neighbour_scores(x[train], y[train], x[~train], 2, neighbours=5)
        auroc[spec] = float(macro_auroc(y[~train], scores)[0])
    assert auroc["demo"] > auroc["random:dermino_demo"] + 0.1
