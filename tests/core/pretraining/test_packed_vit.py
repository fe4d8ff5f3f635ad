"""Reading crops together equals reading them apart, with timm's own forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dermino_core.errors import DerminoError
from dermino_core.pretraining.packed_vit import PackedBlock, PackedViT, attention, resize_positions

TINY = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0, "dynamic_img_size": True}


def tiny(name: str = "vit_tiny_patch16_224", size: int = 64, **more: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=size, **{**TINY, **more})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("vit_tiny_patch16_224", 16),
        ("vit_small_patch14_dinov2", 14),
        ("vit_small_patch14_reg4_dinov2", 14),
    ],
)
def test_equals_timm_for_every_crop_size(name: str, patch: int) -> None:
    model = tiny(name, 4 * patch)
    sizes = (4 * patch, 2 * patch, 3 * patch)
    crops = [torch.randn(2 + i, 3, size, size) for i, size in enumerate(sizes)]
    with torch.no_grad():
        expected = [model.forward_features(crop) for crop in crops]  # pyright: ignore
        packed = PackedViT(copy.deepcopy(model)).eval()(crops)  # pyright: ignore
    for ours, theirs in zip(packed, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_equal_timm() -> None:
    model = tiny()
    other = copy.deepcopy(model)
    crops = [torch.randn(2, 3, 64, 64), torch.randn(3, 3, 32, 32)]
    packed = PackedViT(other)  # pyright: ignore[reportArgumentType]
    sum(x.square().sum() for x in packed(crops)).backward()  # pyright: ignore
    sum(model.forward_features(c).square().sum() for c in crops).backward()  # pyright: ignore
    for (name, ours), theirs in zip(other.named_parameters(), model.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_checkpointing_changes_no_gradient() -> None:
    crops = [torch.randn(2, 3, 64, 64)]

    def gradient(*, checkpointing: bool) -> Tensor:
        packed = PackedViT(tiny(), checkpointing=checkpointing).train()  # pyright: ignore
        packed(crops)[0].square().sum().backward()
        return packed.vit.patch_embed.proj.weight.grad  # pyright: ignore

    torch.testing.assert_close(gradient(checkpointing=True), gradient(checkpointing=False))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_attention_in_either_arithmetic_is_that_of_the_formula(kind: torch.dtype) -> None:
    """On a CPU bf16 goes another way than torch's kernel; values and gradients are the same."""
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 9, 16).to(kind).requires_grad_() for _ in range(3)]
    exact = [part.detach().double().requires_grad_() for part in parts]
    found = attention(*parts)
    q, k, v = exact
    expected = (q @ k.transpose(-2, -1) / 16**0.5).softmax(dim=-1) @ v
    loose = {"rtol": 0.0, "atol": 0.03 if kind == torch.bfloat16 else 1e-5}
    torch.testing.assert_close(found.double(), expected, **loose)
    found.float().square().sum().backward()
    expected.square().sum().backward()
    for part, reference in zip(parts, exact, strict=True):
        assert part.grad is not None
        torch.testing.assert_close(part.grad.double(), reference.grad, rtol=0.05, atol=0.1)


def test_masked_patches_do_not_see_their_pixels() -> None:
    packed = PackedViT(tiny()).eval()  # pyright: ignore[reportArgumentType]
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 0] = True
    image = torch.randn(1, 3, 64, 64)
    other = image.clone()
    other[:, :, :16, :16] = 7.0
    token = torch.randn(1, 48)
    with torch.no_grad():
        one = packed([image], masks=[mask], mask_token=token)[0]
        two = packed([other], masks=[mask], mask_token=token)[0]
        three = packed([other])[0]
    torch.testing.assert_close(one, two)
    assert not torch.allclose(one, three, atol=1e-3)


@pytest.mark.slow
def test_drop_path_leaves_out_whole_crops_and_keeps_the_mean() -> None:
    packed = PackedViT(tiny(), drop_path=0.5).train()  # pyright: ignore[reportArgumentType]
    block = packed.vit.blocks[-1]
    assert isinstance(block, PackedBlock)
    assert block.drop_share == 0.5
    x = torch.randn(4, 5, 48)
    residual = block.eval()._attend([x])[0]
    block.train()
    total = torch.zeros_like(x)
    for seed in range(400):
        torch.manual_seed(seed)
        y = block._residual([x], block._attend)[0] - x
        assert (y.abs().amax(dim=(1, 2)) == 0).sum() == 2
        total += y
    torch.testing.assert_close(
        total / 400, residual, rtol=0, atol=0.2 * float(residual.abs().max())
    )


def by_hand(how: str) -> Callable[[Tensor], Tensor]:
    return lambda square: F.interpolate(
        square,
        **({"size": (7, 7), "antialias": True} if how == "timm" else {"scale_factor": 7.1 / 16}),
        mode="bicubic",
    )


@pytest.mark.parametrize("how", ["timm", "dinov2"])
def test_positions_are_resized_as_named(how: str) -> None:
    positions = torch.randn(1, 1 + 256, 8)
    ours = resize_positions(positions, (7, 7), (16, 16), 1, how)  # pyright: ignore
    square = positions[:, 1:].reshape(1, 16, 16, 8).permute(0, 3, 1, 2)
    expected = by_hand(how)(square).permute(0, 2, 3, 1).reshape(1, 49, 8)
    torch.testing.assert_close(ours[:, 1:], expected)
    torch.testing.assert_close(ours[:, :1], positions[:, :1])


def test_other_transformers_are_refused() -> None:
    model = timm.create_model("vit_small_patch16_rope_224", num_classes=0)
    with pytest.raises(DerminoError, match="cannot be pretrained"):
        PackedViT(model)  # pyright: ignore[reportArgumentType]
