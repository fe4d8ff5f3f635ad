"""Synthetic sites: the same under a seed, redrawn when stale, learnable but not by colour."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermino_core.datasets import synthetic
from dermino_core.datasets.synthetic import SITES, find_site, write_site
from dermino_core.errors import DerminoError


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name in ("a", "b"):
        write_site(tmp_path / name, site="synthetic-ph2", images=12, seed=3, masks=True)
    write_site(tmp_path / "c", site="synthetic-ph2", images=12, seed=4, masks=True)
    first, second, other = (digests(tmp_path / name) for name in "abc")
    assert first == second
    assert first.keys() == other.keys()
    assert not {k for k in first if k.startswith("images/") and first[k] == other[k]}


def test_the_number_of_threads_does_not_change_a_byte(tmp_path, monkeypatch):
    write_site(tmp_path / "many", site="synthetic-mednode", images=10)
    monkeypatch.setattr(synthetic.os, "sched_getaffinity", lambda _: {0})
    write_site(tmp_path / "one", site="synthetic-mednode", images=10)
    assert digests(tmp_path / "many") == digests(tmp_path / "one")


def test_default_sites_have_the_sizes_and_words_of_the_papers():
    assert [site.images for site in SITES] == [170, 200, 600]
    assert dict(find_site("synthetic-ph2").label_map) == {
        "common nevus": "benign",
        "atypical nevus": "benign",
        "melanoma": "malignant",
    }
    for site in SITES:
        assert set(site.label_map.values()) == {"benign", "malignant"}
        assert sum(site.skin_types) == pytest.approx(1.0)
        assert sum(case.share for case in site.cases) == pytest.approx(1.0)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_patients_of_a_whole_site(site):
    patients = synthetic._patients(site, site.images, 0)
    pictures = sorted(number for patient in patients for number in patient.pictures)
    assert pictures == list(range(1, site.images + 1))
    counts = Counter()
    for patient in patients:
        counts[patient.case.label] += len(patient.pictures)
    for case in site.cases:
        assert abs(counts[case.label] - case.share * site.images) <= 1
    several = sum(len(patient.pictures) > 1 for patient in patients)
    assert 0.05 < several / len(patients) < 0.35
    assert {patient.skin_type for patient in patients} <= {1, 2, 3, 4, 5, 6}


def test_manifest_names_readable_images_and_masks(tmp_path):
    manifest = write_site(tmp_path, site="synthetic-fitzpatrick", images=14, masks=True)
    rows = rows_of(manifest)
    assert len(rows) == 14
    groups = defaultdict(set)
    for row in rows:
        with Image.open(tmp_path / row["image"]) as image, Image.open(tmp_path / row["mask"]) as m:
            assert image.format == "JPEG"
            assert image.size == m.size == (256, 256)
            share = float((np.asarray(m) > 0).mean())
        assert 0.01 < share < 0.8
        groups[row["group"]].add((row["label"], row["skin_type"], row["sex"], row["age"]))
    assert all(len(facts) == 1 for facts in groups.values())


def test_the_lesion_is_where_the_mask_says(tmp_path):
    """On skin that is not dark, a lesion is darker than the ring around it."""
    manifest = write_site(tmp_path, site="synthetic-mednode", images=12, masks=True)
    darker = []
    for row in rows_of(manifest):
        image = np.asarray(Image.open(tmp_path / row["image"]).convert("L"), np.float32)
        mask = np.asarray(Image.open(tmp_path / row["mask"])) > 0
        darker.append(image[~mask].mean() - image[mask].mean())
    assert min(darker) > 5


def test_a_complete_folder_is_left_alone_and_a_stale_one_drawn_anew(tmp_path, monkeypatch):
    calls = []
    draw = synthetic._draw_all
    monkeypatch.setattr(synthetic, "_draw_all", lambda *a: (calls.append(a), draw(*a)))
    write_site(tmp_path, site="synthetic-ph2", images=6)
    write_site(tmp_path, site="synthetic-ph2", images=6)
    assert len(calls) == 1
    (tmp_path / "images" / "0003.jpg").unlink()
    write_site(tmp_path, site="synthetic-ph2", images=6)
    assert len(calls) == 2
    (tmp_path / "images" / "notes.txt").write_text("mine")
    write_site(tmp_path, site="synthetic-ph2", images=4)
    assert len(calls) == 3
    assert sorted(f.name for f in (tmp_path / "images").iterdir()) == [
        "0001.jpg",
        "0002.jpg",
        "0003.jpg",
        "0004.jpg",
        "notes.txt",
    ]
    monkeypatch.setattr(synthetic, "DRAWING_VERSION", 99)
    write_site(tmp_path, site="synthetic-ph2", images=4)
    assert len(calls) == 4


def test_an_interrupted_drawing_leaves_no_manifest(tmp_path, monkeypatch):
    write_site(tmp_path, site="synthetic-ph2", images=6)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_draw_all", stop)
    with pytest.raises(KeyboardInterrupt):
        write_site(tmp_path, site="synthetic-ph2", images=6, seed=1)
    assert not (tmp_path / "manifest.csv").exists()


@pytest.mark.parametrize("images", [0, 2, -1])
def test_too_few_images(tmp_path, images):
    with pytest.raises(DerminoError, match="at least 3") as caught:
        write_site(tmp_path, site="synthetic-ph2", images=images)
    assert caught.value.code == "CONFIG_INVALID"


def test_unknown_site_lists_the_known_ones(tmp_path):
    with pytest.raises(DerminoError, match="synthetic-mednode"):
        write_site(tmp_path, site="nowhere")


def test_a_manifest_of_someone_else_is_not_touched(tmp_path):
    (tmp_path / "manifest.csv").write_text("image,label\n")
    with pytest.raises(DerminoError) as caught:
        write_site(tmp_path, site="synthetic-ph2", images=6)
    assert caught.value.code == "OUTPUT_EXISTS"
    assert (tmp_path / "manifest.csv").read_text() == "image,label\n"


def auroc(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """Cross-validated AUROC of logistic regression; patients never straddle folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=0)
    scores = cross_val_predict(
        model, features, labels, groups=groups, cv=folds, method="predict_proba"
    )
    return float(roc_auc_score(labels, scores[:, 1]))


def texture(picture: np.ndarray) -> np.ndarray:
    """Spread of colour and of its differences at four distances."""
    values = [picture.std((0, 1))]
    for step in (1, 4, 12, 32):
        values.append(np.abs(picture[step:] - picture[:-step]).mean((0, 1)))
        values.append(np.abs(picture[:, step:] - picture[:, :-step]).std((0, 1)))
    middle = picture[64:-64, 64:-64]
    values += [middle.std((0, 1)), np.percentile(middle, (5, 95), axis=(0, 1)).ravel()]
    return np.concatenate(values)


@pytest.mark.slow
def test_classes_are_learnable_and_not_by_mean_colour(tmp_path):
    manifest = write_site(tmp_path, site="synthetic-fitzpatrick")
    rows = rows_of(manifest)
    labels = np.array([row["label"] == "malignant" for row in rows])
    groups = np.array([row["group"] for row in rows])
    pictures = [np.asarray(Image.open(tmp_path / row["image"]), np.float32) / 255 for row in rows]
    colour = auroc(np.stack([p.mean((0, 1)) for p in pictures]), labels, groups)
    textures = auroc(np.stack([texture(p) for p in pictures]), labels, groups)
    assert 0.4 < colour < 0.72
    assert 0.65 < textures < 0.97
