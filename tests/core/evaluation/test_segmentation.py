"""The whole task: from files to Dice and Jaccard with intervals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from dermino_core.backbone import Backbone
from dermino_core.errors import DerminoError
from dermino_core.evaluation import segmentation as task
from dermino_core.evaluation.measure import Outcome
from dermino_core.evaluation.segmentation import (
    MaskedImage,
    SegmentationSettings,
    masked_images,
    mirrored,
    segmentation,
)
from dermino_core.evaluation.segmentation_data import mask_square
from dermino_core.evaluation.segmentation_model import load_segmentation_model
from dermino_core.evaluation.segmentation_training import head_logits, masks_of
from dermino_core.manifest import read_manifest
from dermino_core.metrics import bootstrap_weights
from dermino_core.splits import split_records
from tests.core.evaluation.segmentation_pictures import SIDE, draw_lesions, tiny_backbone

QUICK = SegmentationSettings(epochs=20, learning_rate=2e-2, batch_size=4, channels=8, dropout=0)
SHORT = replace(QUICK, epochs=2)


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> list[MaskedImage]:
    return draw_lesions(tmp_path_factory.mktemp("lesions"), 10)


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone()


def value_of(outcome: Outcome, method: str, metric: str) -> float:
    (measure,) = [m for m in outcome.measures if (m.method, m.metric) == (method, metric)]
    assert measure.value is not None
    return measure.value


@pytest.mark.slow
def test_both_heads_learn_a_few_images_by_heart(
    backbone: Backbone, lesions: list[MaskedImage]
) -> None:
    outcome = segmentation(backbone, lesions, lesions, settings=QUICK, replicates=50)
    assert [(m.method, m.metric) for m in outcome.measures] == [
        ("linear", "dice"),
        ("linear", "jaccard"),
        ("upernet", "dice"),
        ("upernet", "jaccard"),
    ]
    for head in ("linear", "upernet"):
        dice, jaccard = (value_of(outcome, head, metric) for metric in ("dice", "jaccard"))
        assert dice > 0.9
        assert jaccard < dice
    for measure in outcome.measures:
        assert measure.n == 10
        assert measure.setting == ""
        assert measure.low is not None
        assert measure.high is not None
        assert measure.value is not None
        assert measure.low <= measure.value <= measure.high
    assert list(outcome.notes) == []


def test_features_kept_and_computed_anew_train_the_same_head(
    backbone: Backbone, lesions: list[MaskedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    patches = Backbone.patches

    def counted(self: Backbone, batch: np.ndarray, depths: int = 4) -> np.ndarray:
        calls.append(len(batch))
        return patches(self, batch, depths)

    monkeypatch.setattr(Backbone, "patches", counted)
    settings = replace(SHORT, dropout=0.1)
    half = 5 * 4 * (SIDE // 4) ** 2 * 24 * 2
    seen, values = {}, {}
    for name, budget in (("kept", 2 * half), ("anew", 0), ("one half", half)):
        calls.clear()
        outcome = segmentation(
            backbone,
            lesions[:5],
            lesions[5:],
            settings=replace(settings, cache_bytes=budget),
            replicates=10,
            save_to=tmp_path / name,
        )
        seen[name] = sum(calls)
        values[name] = [measure.value for measure in outcome.measures]
    assert seen == {"kept": 10, "anew": 2 * (2 * 5 + 5), "one half": 5 + 2 * 5}
    for head in ("linear", "upernet"):
        weights = [load_file(tmp_path / name / head / "model.safetensors") for name in seen]
        for other in weights[1:]:
            for key, value in weights[0].items():
                np.testing.assert_allclose(other[key], value, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(values["anew"], values["kept"], atol=1e-2)
    np.testing.assert_allclose(values["one half"], values["kept"], atol=1e-2)


def test_scores_are_means_over_images_drawn_by_patient(
    backbone: Backbone, lesions: list[MaskedImage], tmp_path: Path
) -> None:
    """Scored again by hand, with the head from its folder."""
    test = [replace(lesion, unit=f"patient {n // 3}") for n, lesion in enumerate(lesions[4:])]
    test.append(replace(test[0], mask=tmp_path / "nowhere.png", unit="patient 9"))
    outcome = segmentation(
        backbone,
        lesions[:4],
        test,
        settings=SHORT,
        heads=("linear",),
        replicates=40,
        seed=3,
        save_to=tmp_path,
    )
    head, info = load_segmentation_model(tmp_path / "linear")
    dice = []
    for lesion in test[:-1]:
        assert lesion.mask is not None
        pixels = np.array(Image.open(lesion.image))[None]
        predicted = masks_of(head_logits(head, backbone.patches(pixels, 1)), (SIDE, SIDE))[0]
        truth = np.asarray(Image.open(lesion.mask))
        dice.append(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))
    first = outcome.measures[0]
    assert first.value == pytest.approx(np.mean(dice), abs=1e-3)
    units = [lesion.unit for lesion in test[:-1]]
    draws = bootstrap_weights(6, groups=units, replicates=40, seed=3)
    expected = [np.mean(np.repeat(dice, draw)) for draw in draws]
    np.testing.assert_allclose(first.replicates, expected, atol=1e-3)
    assert len(set(np.round(expected, 9))) <= 3
    assert first.n == info.n_test == 6
    assert outcome.notes == ("1 test images are left out: mask: no such file (1).",)


def test_scores_at_the_size_of_the_mask_file(backbone: Backbone, tmp_path: Path) -> None:
    lesions = draw_lesions(tmp_path / "large", 6, shape=(96, 160), cell=12)
    outcomes = {
        where: segmentation(
            backbone,
            lesions,
            lesions,
            settings=replace(QUICK, score_at=where),
            heads=("linear",),
            replicates=10,
            save_to=tmp_path / where,
        )
        for where in ("input", "original")
    }
    assert [m.setting for m in outcomes["original"].measures] == ["original size"] * 2
    head, _ = load_segmentation_model(tmp_path / "original" / "linear")
    dice: dict[str, list[float]] = {"input": [], "original": []}
    for lesion in lesions:
        assert lesion.mask is not None
        truth = np.asarray(Image.open(lesion.mask))
        pixels = np.array(Image.open(lesion.image).resize((SIDE, SIDE), 3))[None]
        logits = head_logits(head, backbone.patches(pixels, 1))
        for where, mask in (("input", mask_square(truth, SIDE) > 0), ("original", truth)):
            predicted = masks_of(logits, mask.shape)[0]
            dice[where].append(2 * (predicted & mask).sum() / (predicted.sum() + mask.sum()))
    for where, outcome in outcomes.items():
        assert value_of(outcome, "linear", "dice") == pytest.approx(np.mean(dice[where]), abs=1e-6)
    assert np.mean(dice["input"]) != pytest.approx(np.mean(dice["original"]), abs=1e-6)


def test_an_empty_mask_scores_all_or_nothing(
    backbone: Backbone, lesions: list[MaskedImage], tmp_path: Path
) -> None:
    skin = np.random.default_rng(0).normal((225, 180, 165), 6, (SIDE, SIDE, 3)).astype(np.uint8)
    Image.fromarray(skin).save(tmp_path / "skin.png")
    Image.new("L", (SIDE, SIDE)).save(tmp_path / "empty.png")
    healthy = MaskedImage(tmp_path / "skin.png", tmp_path / "empty.png", "healthy")
    ill = replace(lesions[0], mask=tmp_path / "empty.png")
    for test, expected in ((healthy, 1.0), (ill, 0.0)):
        outcome = segmentation(
            backbone, lesions, [test], settings=QUICK, heads=("linear",), replicates=5
        )
        assert [m.value for m in outcome.measures] == [expected, expected]
        assert "1 test images have an empty mask" in outcome.notes[0]


def test_too_few_masks(backbone: Backbone, lesions: list[MaskedImage]) -> None:
    nameless = [replace(lesion, mask=None) for lesion in lesions]
    for train, test, words in (
        (nameless, lesions, "0 training images.*no mask is named for it"),
        (lesions[:1], lesions, "1 training images"),
        (lesions, nameless, "0 test images"),
        (lesions, [], "0 test images"),
    ):
        with pytest.raises(DerminoError, match=words) as caught:
            segmentation(backbone, train, test, settings=SHORT)
        assert caught.value.code == "DATA_TOO_FEW"


def test_flips_turn_images_and_masks_together(
    backbone: Backbone, lesions: list[MaskedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lesion stays where the image is dark; all four positions occur."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    turns: set[tuple[bool, ...]] = set()
    train = task.__dict__["mirrored"]

    def noted(arrays: np.ndarray, mirrors: np.ndarray) -> np.ndarray:
        turned = train(arrays, mirrors)
        turns.update(tuple(map(bool, mirror)) for mirror in mirrors)
        if arrays.ndim == 4:
            pairs.append((turned, np.empty(0)))
        else:
            pairs[-1] = (pairs[-1][0], turned)
        return turned

    monkeypatch.setattr(task, "mirrored", noted)
    settings = replace(SHORT, epochs=4, flips=True)
    segmentation(backbone, lesions, lesions[:1], settings=settings, heads=("linear",), replicates=2)
    assert turns == {(False, False), (False, True), (True, False), (True, True)}
    assert len(pairs) == 8
    for pixels, masks in pairs:
        np.testing.assert_array_equal(pixels[..., 0] < 130, masks == 1)


def test_mirroring_is_numpys() -> None:
    arrays = np.arange(4 * 3 * 5 * 2).reshape(4, 3, 5, 2)
    turns = np.array([[False, False], [False, True], [True, False], [True, True]])
    turned = mirrored(arrays, turns)
    expected = [arrays[0], np.fliplr(arrays[1]), np.flipud(arrays[2]), np.rot90(arrays[3], 2)]
    np.testing.assert_array_equal(turned, np.stack(expected))
    assert arrays[3, 0, 0, 0] == 90


@pytest.mark.slow
@pytest.mark.long
def test_real_lesions(shared_data: Path, dinov2_small: Path) -> None:
    """PH2 with DINOv2 ViT-S/14: a linear head outlines unseen lesions; UperNet does better."""
    manifest = read_manifest(shared_data / "ph2" / "labels.csv")
    records = manifest.records
    units = [record.image for record in records]
    split = np.array(split_records(records, [record.label or "" for record in records], seed=0))
    halves = [masked_images(manifest, np.flatnonzero(split == s), units) for s in ("train", "test")]
    outcome = segmentation(str(dinov2_small), halves[0], halves[1])
    linear, upernet = (value_of(outcome, head, "dice") for head in ("linear", "upernet"))
    assert linear > 0.85
    assert upernet > linear
