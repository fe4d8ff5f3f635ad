"""A segmentation model's folder: complete, strict, and tied to its backbone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dermino_core.backbone import load_backbone
from dermino_core.errors import DerminoError
from dermino_core.evaluation.segmentation import SegmentationSettings, segmentation
from dermino_core.evaluation.segmentation_model import (
    load_segmentation_model,
    segment_image,
)
from dermino_core.evaluation.segmentation_training import head_logits, masks_of
from dermino_core.model_folder import load_model
from tests.core.evaluation.segmentation_pictures import draw_lesions

SIZE = 64
SETTINGS = SegmentationSettings(
    image_size=SIZE, epochs=12, learning_rate=1e-2, batch_size=3, channels=8
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both heads on the demo backbone, in `linear/` and `upernet/`; images in `lesions/`."""
    folder = tmp_path_factory.mktemp("trained")
    lesions = draw_lesions(folder / "lesions", 6, shape=(96, 128), cell=12)
    segmentation(
        "demo",
        lesions,
        lesions,
        settings=SETTINGS,
        replicates=20,
        precision="fp32",
        device="cpu",
        save_to=folder,
        title="drawn lesions",
    )
    return folder


@pytest.mark.parametrize("name", ["linear", "upernet"])
def test_an_image_is_segmented_as_in_training(name: str, trained: Path) -> None:
    """Through the folder: at the image's own size, where its lesion is."""
    image = trained / "lesions" / "0.png"
    mask, _ = segment_image(image, trained / name, device="cpu")
    assert mask.shape == (96, 128)
    assert mask.dtype == bool
    head, _ = load_segmentation_model(trained / name)
    backbone = load_backbone("demo", image_size=SIZE, precision="fp32", device="cpu")
    pixels = np.array(Image.open(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    logits = head_logits(head, backbone.patches(pixels[None], head.depths))
    np.testing.assert_array_equal(mask, masks_of(logits, (96, 128))[0])
    truth = np.asarray(Image.open(trained / "lesions" / "0-mask.png"))
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.6


def test_a_photograph_is_turned_upright_first(trained: Path, tmp_path: Path) -> None:
    upright = Image.open(trained / "lesions" / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    mask, _ = segment_image(tmp_path / "turned.png", trained / "linear", device="cpu")
    expected, _ = segment_image(trained / "lesions" / "1.png", trained / "linear", device="cpu")
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("name", ["linear", "upernet"])
def test_what_the_folder_says(name: str, trained: Path) -> None:
    assert {file.name for file in (trained / name).iterdir()} == {
        "model.json",
        "model.safetensors",
        "README.md",
    }
    head, info = load_segmentation_model(trained / name)
    assert not head.training
    assert info.head == name
    assert info.settings == SETTINGS
    assert (info.n_train, info.n_test) == (6, 6)
    assert set(info.scores) == {"dice", "jaccard"}
    backbone = load_backbone("demo", image_size=SIZE, device="cpu")
    assert info.backbone.fingerprint == backbone.card.fingerprint
    card = (trained / name / "README.md").read_text()
    assert f"# drawn lesions: {name}" in card
    assert info.backbone.fingerprint[:16] in card
    assert "not for diagnosis" in card
    assert "has seen drawn lesions only" in card
    dice = info.scores["dice"]
    assert f"| dice | {dice.value:.3f} ({dice.low:.3f} to {dice.high:.3f}) |" in card


def test_damaged_folders_are_refused(trained: Path, tmp_path: Path) -> None:
    weights = load_file(trained / "upernet" / "model.safetensors")
    text = (trained / "upernet" / "model.json").read_text()
    name = "fuse.0.weight"
    damage: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "Missing key": ({k: v for k, v in weights.items() if k != name}, text),
        "Unexpected key": (weights | {"extra": torch.zeros(1)}, text),
        "size mismatch": (weights | {name: weights[name][:, 1:].contiguous()}, text),
        "NaN or infinite": (weights | {name: weights[name] * torch.nan}, text),
        "kind": (weights, text.replace("segmentation-head", "linear-head")),
        "Extra inputs": (weights, json.dumps(json.loads(text) | {"more": 1})),
        "JSON": (weights, text[:-20]),
        "epochs": (weights, text.replace('"epochs": 12', '"epochs": 0')),
    }
    for number, (words, (tensors, described)) in enumerate(damage.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        (folder / "model.json").write_text(described)
        with pytest.raises(DerminoError, match=words) as caught:
            load_segmentation_model(folder)
        assert caught.value.code == "MODEL_INVALID"
    (tmp_path / "0" / "model.safetensors").write_bytes(b"short")
    (tmp_path / "0" / "model.json").write_text(text)
    for folder in (tmp_path / "0", tmp_path / "nowhere", trained):
        with pytest.raises(DerminoError, match="cannot be used"):
            load_segmentation_model(folder)
    with pytest.raises(DerminoError, match="cannot be used"):
        load_model(trained / "linear")


def test_another_backbone_is_refused(trained: Path) -> None:
    image = trained / "lesions" / "0.png"
    with pytest.raises(DerminoError, match="was trained on the backbone") as caught:
        segment_image(
            image, trained / "linear", backbone="random:vit_tiny_patch16_224", device="cpu"
        )
    assert caught.value.code == "BACKBONE_MISMATCH"


def test_the_same_backbone_at_another_size_is_another(trained: Path, tmp_path: Path) -> None:
    described = json.loads((trained / "linear" / "model.json").read_text())
    described["settings"]["image_size"] = 2 * SIZE
    for file in (trained / "linear").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.json").write_text(json.dumps(described))
    with pytest.raises(DerminoError, match="was trained on the backbone"):
        segment_image(trained / "lesions" / "0.png", tmp_path, device="cpu")


def test_an_unreadable_image(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DerminoError, match="no such file") as caught:
        segment_image(tmp_path / "nowhere.png", trained / "linear", device="cpu")
    assert caught.value.code == "IMAGE_UNREADABLE"
