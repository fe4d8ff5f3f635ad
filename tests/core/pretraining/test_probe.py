"""The probe: numbers against independent references, images from real files."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from dermino_core.backbone_card import Preprocessing
from dermino_core.errors import DerminoError
from dermino_core.pretraining.config import MonitorSection
from dermino_core.pretraining.probe import Probe
from dermino_core.pretraining.probe_scores import (
    PENALTIES,
    ProbeResult,
    ProbeStart,
    neighbour_scores,
    rank_me,
    ridge_scores,
)

SMALL = Preprocessing(16, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
COLOURS = {"nevus": (200, 40, 40), "melanoma": (40, 40, 200), "BCC": (40, 200, 40)}
SHARED = Path(os.environ.get("DERMINO_SHARED", "../shared"))


def make_table(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """Rows of (label, split, group); a noisy square of the label's colour for each."""
    rng = np.random.default_rng(0)
    lines = ["image,label,split,group"]
    for index, (label, split, group) in enumerate(rows):
        colour = COLOURS.get(label, (128, 128, 128))
        noise = rng.integers(-30, 30, (24, 20, 3))
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
            folder / f"{index}.png"
        )
        lines.append(f"{index}.png,{label},{split},{group}")
    table = folder / "table.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def balanced(count: int, *, split: bool = True) -> list[tuple[str, str, str]]:
    return [
        (label, ("train", "test")[i % 2] if split else "", "")
        for i in range(count)
        for label in COLOURS
    ]


def mean_colour(images: np.ndarray) -> np.ndarray:
    return images.mean(axis=(1, 2)) - 100.0


def data(rng: np.random.Generator, n: int, width: int, classes: int) -> tuple[np.ndarray, ...]:
    labels = np.r_[np.arange(classes), rng.integers(0, classes, n - classes)]
    centres = rng.normal(size=(classes, width))
    features = centres[labels] + 5 + rng.normal(size=(n, width)) * rng.uniform(0.5, 4, width)
    return features, labels


@pytest.mark.parametrize(("n", "width", "classes"), [(40, 10, 3), (30, 60, 2), (150, 40, 5)])
def test_ridge_is_sklearns_with_leave_one_out(n: int, width: int, classes: int) -> None:
    rng = np.random.default_rng(n)
    train, labels = data(rng, n, width, classes)
    test, _ = data(rng, 20, width, classes)
    mean, scale = train.mean(axis=0), train.std(axis=0)
    reference = RidgeCV(alphas=PENALTIES).fit((train - mean) / scale, np.eye(classes)[labels])
    expected = reference.predict((test - mean) / scale)
    np.testing.assert_allclose(ridge_scores(train, labels, test, classes), expected, atol=1e-9)


def test_ridge_ignores_a_feature_that_never_changes() -> None:
    rng = np.random.default_rng(1)
    train, labels = data(rng, 30, 6, 2)
    test, _ = data(rng, 9, 6, 2)
    stuck = [np.c_[x, np.full(len(x), 3.3)] for x in (train, test)]
    np.testing.assert_allclose(
        ridge_scores(stuck[0], labels, stuck[1], 2), ridge_scores(train, labels, test, 2), atol=1e-9
    )


def test_neighbours_are_sklearns_with_softmax_votes() -> None:
    rng = np.random.default_rng(2)
    train, labels = data(rng, 50, 8, 4)
    test, _ = data(rng, 30, 8, 4)
    reference = KNeighborsClassifier(
        5, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(train, labels)
    np.testing.assert_allclose(
        neighbour_scores(train, labels, test, 4, neighbours=5),
        reference.predict_proba(test),
        atol=1e-9,
    )


def test_neighbours_of_a_tiny_training_half() -> None:
    scores = neighbour_scores(np.eye(2), np.array([0, 1]), np.array([[3.0, 0.0]]), 2, neighbours=5)
    votes = np.exp(np.array([1.0, 0.0]) / 0.07)
    np.testing.assert_allclose(scores[0], votes / votes.sum())


def test_rank_of_known_matrices() -> None:
    assert rank_me(np.eye(7)) == pytest.approx(7)
    assert rank_me(np.outer(np.arange(1, 6), np.arange(1, 4))) == pytest.approx(1)
    assert rank_me(np.zeros((4, 3))) == 1.0
    shares = np.array([4, 2, 1]) / 7
    expected = math.exp(-sum(s * math.log(s) for s in shares))
    assert rank_me(np.diag([4.0, 2.0, 1.0])) == pytest.approx(expected)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_rank_lies_between_one_and_the_smaller_side(
    n: int, width: int, seed: int, size: float
) -> None:
    features = np.random.default_rng(seed).normal(size=(n, width)) * size
    assert 1 - 1e-9 <= rank_me(features) <= min(n, width) + 1e-9


def test_measures_what_the_images_hold(tmp_path: Path) -> None:
    probe = Probe(MonitorSection(manifest=make_table(tmp_path, balanced(12))), SMALL)
    assert probe.classes == ("bcc", "melanoma", "nevus")
    assert probe.images.shape == (36, 16, 16, 3)
    result = probe.measure(mean_colour)
    assert result.knn_auroc == result.linear_auroc == 1.0
    assert result.features.shape == (36, 3)
    expected = roc_auc_score(
        probe.labels[probe.tested], result.neighbour_scores, multi_class="ovr", average="macro"
    )
    assert result.knn_auroc == pytest.approx(expected)
    noise = probe.measure(lambda images: np.random.default_rng(0).normal(size=(len(images), 8)))
    assert noise.linear_auroc < 0.9


def test_same_images_and_numbers_whatever_the_order_of_calls(tmp_path: Path) -> None:
    monitor = MonitorSection(manifest=make_table(tmp_path, balanced(40)), max_images=30)
    one, two = Probe(monitor, SMALL), Probe(monitor, SMALL)
    np.testing.assert_array_equal(one.images, two.images)
    assert one.measure(mean_colour).record() == two.measure(mean_colour).record()
    counts = np.bincount(one.labels * 2 + one.tested)
    assert counts.tolist() == [5] * 6


def test_a_patient_is_never_on_both_sides(tmp_path: Path) -> None:
    rows = [(label, "", f"{label}{i // 3}") for i in range(18) for label in COLOURS]
    probe = Probe(MonitorSection(manifest=make_table(tmp_path, rows)), SMALL)
    sides = [{g for g, t in zip(probe.groups, probe.tested, strict=True) if t == s} for s in (0, 1)]
    assert sides[0]
    assert not sides[0] & sides[1]


def test_leaves_out_what_cannot_be_scored(tmp_path: Path) -> None:
    rows = [*balanced(4), ("", "train", ""), ("nevus|melanoma", "test", ""), ("rare", "test", "")]
    table = make_table(tmp_path, rows)
    (tmp_path / "0.png").write_bytes(b"no image")
    probe = Probe(MonitorSection(manifest=table), SMALL)
    assert probe.unreadable == 1
    assert probe.classes == ("bcc", "melanoma", "nevus")
    assert len(probe.images) == 11


def test_spellings_of_a_name_are_one_class(tmp_path: Path) -> None:
    rows = [(name, split, "") for name in ("Nevus", "nevus ", "melanoma", "MELANOMA")
            for split in ("train", "test")]  # fmt: skip
    probe = Probe(MonitorSection(manifest=make_table(tmp_path, rows)), SMALL)
    assert probe.classes == ("melanoma", "nevus")


def test_validation_images_stand_in_for_test_images(tmp_path: Path) -> None:
    rows = [(label, ("train", "val")[i % 2], "") for i in range(6) for label in COLOURS]
    probe = Probe(MonitorSection(manifest=make_table(tmp_path, rows)), SMALL)
    assert probe.tested.sum() == 9


def test_features_that_are_not_finite_give_no_number(tmp_path: Path) -> None:
    probe = Probe(MonitorSection(manifest=make_table(tmp_path, balanced(4))), SMALL)
    good, bad = probe.measure(mean_colour), probe.measure(lambda x: mean_colour(x) * np.nan)
    numbers = ("knn_auroc", "linear_auroc", "rank_me")
    assert all(math.isnan(bad.record()[name]) for name in numbers)
    assert bad.gain_over(good.start()) == {}


def test_gain_over_the_start_survives_a_restart(tmp_path: Path) -> None:
    probe = Probe(MonitorSection(manifest=make_table(tmp_path, balanced(30))), SMALL)
    rng = np.random.default_rng(3)
    weak = probe.measure(lambda x: mean_colour(x) + rng.normal(scale=150, size=(len(x), 3)))
    strong = probe.measure(mean_colour)
    weak.start().save(tmp_path / "start.npz")
    gain = strong.gain_over(ProbeStart.load(tmp_path / "start.npz"))
    for name in ("knn", "linear"):
        before, after = (getattr(r, f"{name}_auroc") for r in (weak, strong))
        assert gain[f"{name}_gain"] == pytest.approx(after - before)
        assert 0 < gain[f"{name}_gain_low"] <= gain[f"{name}_gain"] <= gain[f"{name}_gain_high"]


def test_a_start_of_other_images_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    probe = Probe(MonitorSection(manifest=make_table(tmp_path, balanced(4))), SMALL)
    result = probe.measure(mean_colour)
    other = ProbeStart(result.neighbour_scores, result.linear_scores, result.test_labels[::-1])
    with pytest.raises(DerminoError, match="other images"):
        result.gain_over(other)
    for content in (b"", b"PK\x03\x04 broken", b"text"):
        (tmp_path / "start.npz").write_bytes(content)
        with pytest.raises(DerminoError, match="cannot be read") as error:
            ProbeStart.load(tmp_path / "start.npz")
        assert error.value.code == "CHECKPOINT_INVALID"


def test_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DerminoError, match="no table of images") as error:
        Probe(MonitorSection(), SMALL)
    assert error.value.code == "CONFIG_INVALID"
    table = make_table(tmp_path, [("nevus", "train", ""), ("nevus", "test", "")])
    with pytest.raises(DerminoError, match="only 'nevus'") as error:
        Probe(MonitorSection(manifest=table), SMALL)
    assert error.value.code == "DATA_TOO_FEW"
    for index in range(2):
        (tmp_path / f"{index}.png").unlink()
    with pytest.raises(DerminoError, match="2 images could not be decoded"):
        Probe(MonitorSection(manifest=table), SMALL)


@pytest.mark.slow
def test_real_images_colour_alone_is_better_than_chance() -> None:
    table = SHARED / "data" / "ph2" / "labels.csv"
    if not table.exists():
        pytest.skip(f"the real images are not in {SHARED} (DERMINO_SHARED)")
    probe = Probe(MonitorSection(manifest=table), SMALL)
    result: ProbeResult = probe.measure(mean_colour)
    assert len(probe.images) == 200
    assert result.linear_auroc > 0.6
