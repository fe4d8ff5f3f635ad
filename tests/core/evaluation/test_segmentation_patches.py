"""Patch features against timm's own blocks; stored and streamed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from dermino_core.backbone import Backbone, load_backbone
from dermino_core.backbone_patches import pyramid_layers
from dermino_core.errors import DerminoError
from dermino_core.evaluation.segmentation_patches import (
    StoredPatches,
    StreamedPatches,
    patches_of,
)
from tests.core.evaluation.segmentation_pictures import PATCH, SIDE, tiny_backbone

PIXELS = np.random.default_rng(0).integers(0, 256, (19, SIDE, SIDE, 3), dtype=np.uint8)


def by_hand(backbone: Backbone, pixels: np.ndarray) -> list[np.ndarray]:
    """Normed tokens after each block, [B, h, w, D], class token left out."""
    model = backbone._model
    mean, std = (
        np.array(backbone.card.preprocessing.mean),
        np.array(backbone.card.preprocessing.std),
    )
    values = torch.from_numpy((pixels / 255 - mean) / std).float().permute(0, 3, 1, 2)
    grid = SIDE // PATCH
    found = []
    with torch.inference_mode():
        tokens = model.patch_embed(values)
        tokens = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + model.pos_embed
        for block in model.blocks:
            tokens = block(tokens)
            found.append(model.norm(tokens)[:, 1:].reshape(len(tokens), grid, grid, -1).numpy())
    return found


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (12, (2, 5, 8, 11)),
        (24, (5, 11, 17, 23)),
        (6, (0, 2, 3, 5)),
        (4, (0, 1, 2, 3)),
        (2, (0, 0, 0, 1)),
    ],
)
def test_four_depths_the_last_one_last(depth: int, layers: tuple[int, ...]) -> None:
    assert pyramid_layers(depth) == layers


@pytest.mark.parametrize("depth", [2, 4, 6])
def test_features_are_those_of_the_blocks(depth: int) -> None:
    backbone = tiny_backbone(depth=depth)
    reference = by_hand(backbone, PIXELS)
    features = backbone.patches(PIXELS)
    assert features.dtype == np.float16
    assert features.shape == (19, 4, SIDE // PATCH, SIDE // PATCH, 24)
    for place, layer in enumerate(pyramid_layers(depth)):
        np.testing.assert_allclose(features[:, place], reference[layer], atol=5e-3)
    np.testing.assert_array_equal(backbone.patches(PIXELS, 1), features[:, -1:])


def test_rows_are_rows() -> None:
    """Changing one patch of the image changes that token most, after one block."""
    backbone = tiny_backbone()
    one = np.full((1, SIDE, SIDE, 3), 90, np.uint8)
    other = one.copy()
    other[:, 1 * PATCH : 2 * PATCH, 5 * PATCH : 6 * PATCH] = 250
    changed = np.abs(backbone.patches(other)[0, 0] - backbone.patches(one)[0, 0]).sum(axis=-1)
    assert np.unravel_index(changed.argmax(), changed.shape) == (1, 5)


def test_class_and_register_tokens_are_left_out() -> None:
    backbone = load_backbone(
        "random:vit_small_patch14_reg4_dinov2", image_size=42, precision="fp32", device="cpu"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (1, 42, 42, 3), dtype=np.uint8)
    features = backbone.patches(pixels, 1)
    assert features.shape == (1, 1, 3, 3, 384)
    with torch.inference_mode():
        tokens = backbone._model.forward_features(backbone._values(pixels))
    np.testing.assert_allclose(features[0, 0].reshape(9, 384), tokens[0, 5:], atol=5e-3)


def test_bf16_is_the_same_to_its_precision() -> None:
    exact = load_backbone("demo", image_size=64, precision="fp32", device="cpu")
    rough = load_backbone("demo", image_size=64, precision="bf16", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    one, two = (b.patches(pixels).astype(float).ravel() for b in (exact, rough))
    assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) > 0.999
    assert not np.array_equal(one, two)


def test_what_cannot_give_patches() -> None:
    backbone = tiny_backbone()
    with pytest.raises(ValueError, match="expected uint8"):
        backbone.patches(PIXELS[:, :-1])
    small = {"depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 0}
    for other in (torch.nn.Flatten(), timm.create_model("samvit_base_patch16_224", **small)):
        backbone._model = other
        with pytest.raises(DerminoError, match="none per patch") as caught:
            backbone.patches(PIXELS)
        assert caught.value.code == "BACKBONE_UNAVAILABLE"


def test_features_that_are_not_finite() -> None:
    backbone = tiny_backbone()
    backbone._model.norm.weight.fill_(1e9)
    with pytest.raises(DerminoError, match="too large for half precision") as caught:
        backbone.patches(PIXELS)
    assert caught.value.code == "DEVICE_UNAVAILABLE"


def test_stored_and_streamed_features_agree(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    size = 19 * 2 * (SIDE // PATCH) ** 2 * 24 * 2
    stored = patches_of(backbone, PIXELS, 2, budget=size, title="test", scratch=tmp_path)
    streamed = patches_of(backbone, PIXELS, 2, budget=size - 1, title="test")
    assert isinstance(stored, StoredPatches)
    assert isinstance(streamed, StreamedPatches)
    assert (stored.nbytes, streamed.nbytes) == (size, 0)
    rows = np.array([17, 2, 2, 5])
    for depths in (1, 2):
        one, other = stored.take(rows, depths), streamed.take(rows, depths)
        assert one.shape == other.shape == (4, depths, SIDE // PATCH, SIDE // PATCH, 24)
        np.testing.assert_allclose(one, other, atol=5e-3)
        np.testing.assert_array_equal(one[1], one[2])
