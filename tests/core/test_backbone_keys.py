"""Checkpoints named as their releases name them: what they become, and that it computes the same.

The names are written out from the public code of each release (see `dermino_core.backbone_keys`);
the real files were not at hand. Whole networks are compared by name and shape on torch's meta
device; small ones by value, with forward passes written here from the original names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.models.davit import DaVit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor

from dermino_core.backbone_catalogue import CATALOGUE
from dermino_core.backbone_keys import (
    cae_encoder,
    dino_teacher,
    open_clip_tower,
    sam_encoder,
    unicl_davit,
)
from dermino_core.backbone_weights import build_model

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def conv(name: str, out: int, into: int, size: int) -> Shapes:
    return {f"{name}.weight": (out, into, size, size), f"{name}.bias": (out,)}


def cae(
    width: int, depth: int, size: int = 224, patch: int = 16, prefix: str = "encoder."
) -> Shapes:
    """PanDerm's encoder, from its `modeling_finetune.py`."""
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (size // patch) ** 2 + 1, width),
        **conv("patch_embed.proj", width, 3, patch),
        **norm("norm", width),
    }
    for block in (f"blocks.{n}" for n in range(depth)):
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= {f"{block}.attn.qkv.weight": (3 * width, width)}
        shapes |= {f"{block}.attn.{part}_bias": (width,) for part in "qv"}
        shapes |= {f"{block}.gamma_{part}": (width,) for part in (1, 2)}
        shapes |= linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", 4 * width, width)
        shapes |= linear(f"{block}.mlp.fc2", width, 4 * width)
    rest: Shapes = {"mask_token": (1, 1, width), "decoder.norm.weight": (width,)}
    return {f"{prefix}{name}": shape for name, shape in shapes.items()} | (rest if prefix else {})


def sam(width: int, depth: int, prefix: str = "", side: int = 64, head: int = 64) -> Shapes:
    """LVM-Med's ViT, from its `unet_vit_classification.py`, with the neck that is not used."""
    shapes: Shapes = {
        **conv("patch_embed.proj", width, 3, 16),
        "pos_embed": (1, side, side, width),
        "neck.0.weight": (256, width, 1, 1),
    }
    for n in range(depth):
        block = f"blocks.{n}"
        positions = 2 * (side if n % 3 == 2 else 14) - 1
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width)
        shapes |= linear(f"{block}.attn.proj", width, width)
        shapes |= {f"{block}.attn.rel_pos_{axis}": (positions, head) for axis in "hw"}
        shapes |= linear(f"{block}.mlp.lin1", 4 * width, width)
        shapes |= linear(f"{block}.mlp.lin2", width, 4 * width)
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def davit(
    widths: tuple[int, ...], depths: tuple[int, ...], prefix: str = "image_encoder."
) -> Shapes:
    """MedImageInsight's image encoder, from its `davit_v1.py`, and parts of the text encoder."""
    shapes = norm("norms", widths[-1])
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        into, size = (3, 7) if stage == 0 else (widths[stage - 1], 3)
        shapes |= conv(f"convs.{stage}.proj", width, into, size)
        shapes |= norm(f"convs.{stage}.norm", into if stage else width)
        for n in range(depth):
            for kind, attention in (("spatial", "window_attn"), ("channel", "channel_attn")):
                block = f"blocks.{stage}.{n}.{kind}_block"
                shapes |= conv(f"{block}.conv1.fn.dw", width, 1, 3)
                shapes |= conv(f"{block}.conv2.fn.dw", width, 1, 3)
                shapes |= norm(f"{block}.{attention}.norm", width)
                shapes |= linear(f"{block}.{attention}.fn.qkv", 3 * width, width)
                shapes |= linear(f"{block}.{attention}.fn.proj", width, width)
                shapes |= norm(f"{block}.ffn.norm", width)
                shapes |= linear(f"{block}.ffn.fn.net.fc1", 4 * width, width)
                shapes |= linear(f"{block}.ffn.fn.net.fc2", width, 4 * width)
    rest: Shapes = {
        "image_projection": (widths[-1], 1024),
        "logit_scale": (),
        "lang_encoder.ln_final.weight": (1024,),
    }
    return {f"{prefix}{name}": shape for name, shape in shapes.items()} | rest


def plain_vit(width: int, depth: int, *, scale: bool, tokens: int, patch: int = 16) -> Shapes:
    """A ViT as timm and DINOv2 name it."""
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        **conv("patch_embed.proj", width, 3, patch),
        **norm("norm", width),
    }
    for block in (f"blocks.{n}" for n in range(depth)):
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width)
        shapes |= linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", 4 * width, width)
        shapes |= linear(f"{block}.mlp.fc2", width, 4 * width)
        if scale:
            shapes |= {f"{block}.ls{part}.gamma": (width,) for part in (1, 2)}
    return shapes


def biomedclip() -> Shapes:
    tower = plain_vit(768, 12, scale=False, tokens=197)
    rest: Shapes = {
        "visual.head.proj.weight": (512, 768),
        "text.proj.0.weight": (640, 768),
        "logit_scale": (),
    }
    return {f"visual.trunk.{name}": shape for name, shape in tower.items()} | rest


def dino_checkpoint() -> Shapes:
    """A teacher in four chunks of three blocks, and its heads."""
    tower: Shapes = {"mask_token": (1, 768)}
    for name, shape in plain_vit(768, 12, scale=True, tokens=257, patch=14).items():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts.insert(1, str(int(parts[1]) // 3))
        tower[".".join(parts)] = shape
    heads: Shapes = {"dino_head.mlp.0.weight": (2048, 768)}
    return {f"backbone.{name}": shape for name, shape in tower.items()} | heads


def on_meta(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "released"),
    [
        ("panderm", cae(1024, 24)),
        ("panderm-base", cae(768, 12, prefix="")),
        ("lvm-med", sam(768, 12)),
        ("lvm-med", sam(768, 12, prefix="image_encoder.")),
        ("medimageinsight", davit((256, 512, 1024, 2048), (1, 1, 9, 1))),
        ("medimageinsight", davit((256, 512, 1024, 2048), (1, 1, 9, 1), prefix="visual.")),
        ("biomedclip", biomedclip()),
        ("dermino", dino_checkpoint()),
    ],
)
def test_a_release_has_the_names_and_shapes_of_the_network(name: str, released: Shapes) -> None:
    entry = CATALOGUE[name]
    size = entry.preprocessing.image_size
    with torch.device("meta"):
        model, _ = build_model(entry.architecture, size, fixed_size=entry.fixed_size)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in entry.convert(on_meta(released)).items()}
    found.pop("mask_token", None)
    assert found == expected


def test_a_damaged_release_is_not_completed() -> None:
    released = on_meta(cae(64, 1))
    del released["encoder.blocks.0.attn.v_bias"]
    assert "blocks.0.attn.qkv.bias" not in cae_encoder(released)
    assert set(open_clip_tower({"surprise": torch.empty(1)})) == {"surprise"}


def test_the_older_names_of_davit_mean_the_same() -> None:
    new = davit((8, 16), (1, 2))
    pairs = (
        ("image_encoder.convs", "image_encoder.conv_embeds"),
        ("image_encoder.blocks", "image_encoder.main_blocks"),
        (".spatial_block.", ".0."),
        (".channel_block.", ".1."),
        (".conv1.fn.dw.", ".cpe.0.proj."),
        (".conv2.fn.dw.", ".cpe.1.proj."),
        (".window_attn.norm.", ".norm1."),
        (".channel_attn.norm.", ".norm1."),
        (".window_attn.fn.", ".attn."),
        (".channel_attn.fn.", ".attn."),
        (".ffn.norm.", ".norm2."),
        (".ffn.fn.net.", ".mlp."),
    )
    old: Shapes = {}
    for name, shape in new.items():
        for current, former in pairs:
            name = name.replace(current, former)
        old[name] = shape
    assert unicl_davit(on_meta(old)).keys() == unicl_davit(on_meta(new)).keys()


def drawn(shapes: Shapes) -> dict[str, Tensor]:
    """Weights that leave no part of the network without effect."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.3 * torch.randn(shape, generator=generator) + float(name.endswith("norm.weight"))
        for name, shape in shapes.items()
    }


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | float = 0.0) -> Tensor:
    """[..., N, D] each."""
    return torch.softmax(scale * (q @ k.transpose(-2, -1)) + bias, dim=-1) @ v


def cae_forward(w: dict[str, Tensor], images: Tensor, depth: int, heads: int) -> Tensor:
    """The class token after the last norm, from the names of PanDerm's code."""
    w = {name.removeprefix("encoder."): tensor for name, tensor in w.items()}
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16)
    x = torch.cat((w["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), dim=1)
    x = x + w["pos_embed"]
    width = x.shape[-1]

    def normed(name: str, values: Tensor) -> Tensor:
        return F.layer_norm(values, (width,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    for n in range(depth):
        b = f"blocks.{n}"
        y = normed(f"{b}.norm1", x)
        q, k, v = (y @ part.T for part in w[f"{b}.attn.qkv.weight"].split(width))
        q, v = q + w[f"{b}.attn.q_bias"], v + w[f"{b}.attn.v_bias"]
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        y = attend(q, k, v, (width // heads) ** -0.5).transpose(1, 2).flatten(2)
        y = F.linear(y, w[f"{b}.attn.proj.weight"], w[f"{b}.attn.proj.bias"])
        x = x + w[f"{b}.gamma_1"] * y
        y = F.linear(normed(f"{b}.norm2", x), w[f"{b}.mlp.fc1.weight"], w[f"{b}.mlp.fc1.bias"])
        y = F.linear(F.gelu(y), w[f"{b}.mlp.fc2.weight"], w[f"{b}.mlp.fc2.bias"])
        x = x + w[f"{b}.gamma_2"] * y
    return normed("norm", x)[:, 0]


def test_panderm_computes_what_its_own_code_does() -> None:
    weights = drawn(cae(32, 2, size=64))
    model = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=4, num_classes=0,
        no_embed_class=True, init_values=1e-6,
    ).eval()  # fmt: skip
    model.load_state_dict(cae_encoder(weights))
    compare(model, partial(cae_forward, weights, depth=2, heads=4), 64)


def sam_forward(w: dict[str, Tensor], images: Tensor, depth: int, heads: int) -> Tensor:
    """The mean over patches of the last block, on a grid that is one window, without windows."""
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16)
    side, width = x.shape[-1], x.shape[1]
    x = x.flatten(2).transpose(1, 2)
    index = torch.arange(side)[:, None] - torch.arange(side)[None, :] + side - 1
    for n in range(depth):
        b = f"blocks.{n}"
        y = F.layer_norm(x, (width,), w[f"{b}.norm1.weight"], w[f"{b}.norm1.bias"], eps=1e-6)
        y = F.linear(y, w[f"{b}.attn.qkv.weight"], w[f"{b}.attn.qkv.bias"])
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in y.split(width, -1))
        grid = q.unflatten(2, (side, side))
        rows = resized(w[f"{b}.attn.rel_pos_h"], side)[index]
        columns = resized(w[f"{b}.attn.rel_pos_w"], side)[index]
        bias = torch.einsum("bnhwc,hkc->bnhwk", grid, rows)[..., :, None]
        bias = bias + torch.einsum("bnhwc,wkc->bnhwk", grid, columns)[..., None, :]
        y = attend(q, k, v, (width // heads) ** -0.5, bias.flatten(4).flatten(2, 3))
        y = y.transpose(1, 2).flatten(2)
        x = x + F.linear(y, w[f"{b}.attn.proj.weight"], w[f"{b}.attn.proj.bias"])
        y = F.layer_norm(x, (width,), w[f"{b}.norm2.weight"], w[f"{b}.norm2.bias"], eps=1e-6)
        y = F.gelu(F.linear(y, w[f"{b}.mlp.lin1.weight"], w[f"{b}.mlp.lin1.bias"]))
        x = x + F.linear(y, w[f"{b}.mlp.lin2.weight"], w[f"{b}.mlp.lin2.bias"])
    return x.mean(1)


def resized(positions: Tensor, side: int) -> Tensor:
    """[n, C] -> [2 side - 1, C], linear, pixel centres aligned."""
    count = 2 * side - 1
    rows = []
    for n in range(count):
        at = (n + 0.5) * len(positions) / count - 0.5
        below = math.floor(at)
        low, high = (positions[min(max(m, 0), len(positions) - 1)] for m in (below, below + 1))
        rows.append(low + (at - below) * (high - low))
    return torch.stack(rows)


def test_lvm_med_computes_what_its_own_code_does() -> None:
    """At 224 pixels, whose grid of 14 is one window; its positions are of a grid of 64."""
    weights = drawn(sam(32, 3, head=8))
    model = VisionTransformerSAM(
        img_size=1024, patch_size=16, embed_dim=32, depth=3, num_heads=4, num_classes=0,
        use_rel_pos=True, use_abs_pos=False, window_size=14, global_attn_indexes=(2,),
        neck_chans=0,
    ).eval()  # fmt: skip
    model.neck = torch.nn.Identity()
    model.load_state_dict(sam_encoder(weights))
    compare(model, partial(sam_forward, weights, depth=3, heads=4), 224)


def davit_forward(w: dict[str, Tensor], x: Tensor, heads: tuple[int, ...], window: int) -> Tensor:
    """The normed mean, from the names of MedImageInsight's code; grids divide into windows."""
    w = {name.removeprefix("image_encoder."): tensor for name, tensor in w.items()}

    def normed(name: str, values: Tensor) -> Tensor:
        """[B, C, H, W]."""
        last = values.movedim(1, -1)
        last = F.layer_norm(last, last.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])
        return last.movedim(-1, 1)

    def matrix(name: str, values: Tensor) -> Tensor:
        return F.linear(values, w[f"{name}.weight"], w[f"{name}.bias"])

    def deep(name: str, values: Tensor) -> Tensor:
        weight = w[f"{name}.weight"]
        return F.conv2d(values, weight, w[f"{name}.bias"], padding=1, groups=len(weight))

    for stage, count in enumerate(heads):
        if stage:
            x = normed(f"convs.{stage}.norm", x)
        proj = w[f"convs.{stage}.proj.weight"], w[f"convs.{stage}.proj.bias"]
        x = F.conv2d(x, *proj, stride=2 if stage else 4, padding=1 if stage else 3)
        if not stage:
            x = normed("convs.0.norm", x)
        side, width = x.shape[-1], x.shape[1]
        for kind in ("spatial", "channel"):
            b = f"blocks.{stage}.0.{kind}_block"
            name = f"{b}.{'window' if kind == 'spatial' else 'channel'}_attn"
            x = x + deep(f"{b}.conv1.fn.dw", x)
            y = normed(f"{name}.norm", x).movedim(1, -1)
            if kind == "spatial":
                parts = [
                    y[:, i : i + window, j : j + window].flatten(1, 2)
                    for i in range(0, side, window)
                    for j in range(0, side, window)
                ]
            else:
                parts = [y.flatten(1, 2)]
            out = []
            for part in parts:
                q, k, v = (
                    piece.unflatten(-1, (count, -1)).transpose(1, 2)
                    for piece in matrix(f"{name}.fn.qkv", part).split(width, -1)
                )
                if kind == "spatial":
                    z = attend(q, k, v, (width // count) ** -0.5)
                else:
                    turned = (t.transpose(-2, -1) for t in (q, k, v))
                    z = attend(*turned, scale=part.shape[1] ** -0.5).transpose(-2, -1)
                out.append(matrix(f"{name}.fn.proj", z.transpose(1, 2).flatten(2)))
            if kind == "spatial":
                per_row = side // window
                squares = [z.unflatten(1, (window, window)) for z in out]
                rows = [
                    torch.cat(squares[n : n + per_row], dim=2)
                    for n in range(0, len(squares), per_row)
                ]
                y = torch.cat(rows, dim=1)
            else:
                y = out[0].unflatten(1, (side, side))
            x = x + y.movedim(-1, 1)
            x = x + deep(f"{b}.conv2.fn.dw", x)
            y = normed(f"{b}.ffn.norm", x).movedim(1, -1)
            y = matrix(f"{b}.ffn.fn.net.fc2", F.gelu(matrix(f"{b}.ffn.fn.net.fc1", y)))
            x = x + y.movedim(-1, 1)
    return normed("norms", x.mean((2, 3)))


def test_medimageinsight_computes_what_its_own_code_does() -> None:
    weights = drawn(davit((8, 16), (1, 1)))
    model = DaVit(
        num_classes=0, depths=(1, 1), embed_dims=(8, 16), num_heads=(2, 4), window_size=4,
        down_kernel_size=3, channel_attn_v2=True, named_blocks=True,
    ).eval()  # fmt: skip
    named = unicl_davit(weights)
    model.load_state_dict(named)
    compare(model, partial(davit_forward, weights, heads=(2, 4), window=4), 64)


def test_a_chunked_teacher_is_renamed_block_by_block() -> None:
    named = dino_teacher({"backbone.blocks.3.11.ls1.gamma": torch.ones(1)})
    assert list(named) == ["blocks.11.ls1.gamma"]


def compare(model: torch.nn.Module, reference: Callable[[Tensor], Tensor], size: int) -> None:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(images)
        assert expected.std(dim=0).min() > 1e-3
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
