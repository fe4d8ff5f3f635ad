"""Build a network and put weights into it: seeded random ones, or a checkpoint with strict keys."""

from __future__ import annotations

import difflib
import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermino_core.backbone_card import Preprocessing, fingerprint_of
from dermino_core.backbone_catalogue import (
    CATALOGUE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SAM_ARCHITECTURE,
)
from dermino_core.backbone_keys import as_in_timm
from dermino_core.errors import DerminoError
from dermino_core.tensor_files import damaged, read_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

DEMO_ARCHITECTURE = "dermino_demo"
DEMO_IMAGE_SIZE = 128
RANDOM_SEED = 0

KNOWN_SHAPES: dict[tuple[int, int, int, bool, int], str] = {
    (384, 12, 14, True, 0): "vit_small_patch14_dinov2",
    (768, 12, 14, True, 0): "vit_base_patch14_dinov2",
    (1024, 24, 14, True, 0): "vit_large_patch14_dinov2",
    (1536, 40, 14, True, 0): "vit_giant_patch14_dinov2",
    (384, 12, 14, True, 4): "vit_small_patch14_reg4_dinov2",
    (768, 12, 14, True, 4): "vit_base_patch14_reg4_dinov2",
    (1024, 24, 14, True, 4): "vit_large_patch14_reg4_dinov2",
    (1536, 40, 14, True, 4): "vit_giant_patch14_reg4_dinov2",
    (192, 12, 16, False, 0): "vit_tiny_patch16_224",
    (384, 12, 16, False, 0): "vit_small_patch16_224",
    (768, 12, 16, False, 0): "vit_base_patch16_224",
    (1024, 24, 16, False, 0): "vit_large_patch16_224",
    (1024, 24, 14, False, 0): "vit_large_patch14_224",
    (1280, 32, 14, False, 0): "vit_huge_patch14_224",
    (384, 12, 8, False, 0): "vit_small_patch8_224",
    (768, 12, 8, False, 0): "vit_base_patch8_224",
}
"""(width, depth, patch size, layer scale, register tokens) -> the architecture's name in timm."""

DROPPED_KEYS = frozenset({"mask_token", "head.weight", "head.bias"})
"""Parts of a checkpoint that features do not use: the masked-image token, the classifier."""

_STEPS = "num_batches_tracked"


def build_model(
    architecture: str, image_size: int | None, *, fixed_size: bool = True
) -> tuple[nn.Module, Preprocessing]:
    """An untrained network without classifier, and its preprocessing.

    The default image size is timm's, except for DINOv2: 224 instead of the 518 pixels of its last
    training phase, as in the paper. `fixed_size` is False for a network that is no ViT.

    Raises
    ------
    DerminoError
        BACKBONE_UNAVAILABLE for a name that timm does not know (close matches are listed) or that
        is no ViT; CONFIG_INVALID for an image size that is no multiple of the patch size.
    """
    import timm
    from timm.models import VisionTransformer, get_pretrained_cfg

    if architecture == DEMO_ARCHITECTURE:
        size = image_size or DEMO_IMAGE_SIZE
        _check_size(size, 16)
        model: nn.Module = VisionTransformer(
            img_size=size, patch_size=16, embed_dim=192, depth=6, num_heads=3, num_classes=0
        )
        return model, Preprocessing(size, 1.0, "bicubic", IMAGENET_MEAN, IMAGENET_STD)
    if architecture == SAM_ARCHITECTURE:
        size = image_size or 224
        _check_size(size, 16)
        return _sam_tower(), Preprocessing(size, 1.0, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    if not timm.is_model(architecture):
        known = [*CATALOGUE, *timm.list_models("*vit*")]
        close = difflib.get_close_matches(architecture, known, n=5, cutoff=0.5)
        raise DerminoError(
            "BACKBONE_UNAVAILABLE",
            f"timm knows no model named {architecture!r}.",
            fix=f"Did you mean {', '.join(close)}?" if close else "Check the name.",
        )
    cfg: Any = get_pretrained_cfg(architecture)
    default = 224 if "dinov2" in architecture or cfg is None else int(cfg.input_size[-1])
    size = image_size or default
    given: dict[str, Any] = {"img_size": size} if fixed_size else {}
    try:
        model = timm.create_model(architecture, pretrained=False, num_classes=0, **given)
    except (AssertionError, TypeError, RuntimeError, ValueError) as error:
        if isinstance(error, AssertionError) and image_size is not None:
            raise DerminoError(
                "CONFIG_INVALID",
                f"{architecture} cannot read images of {size} pixels: {error}.",
                fix="Use a multiple of the patch size.",
            ) from error
        raise _no_vit(architecture) from error
    if fixed_size and not hasattr(getattr(model, "patch_embed", None), "patch_size"):
        raise _no_vit(architecture)
    _check_size(size, stride_of(model), "patch size" if fixed_size else "stride")
    if cfg is None:
        return model, Preprocessing(size, 1.0, "bicubic", IMAGENET_MEAN, IMAGENET_STD)
    kind = cfg.interpolation if cfg.interpolation in ("bilinear", "bicubic") else "bicubic"
    return model, Preprocessing(size, float(cfg.crop_pct), kind, tuple(cfg.mean), tuple(cfg.std))


def _sam_tower() -> nn.Module:
    """SAM's ViT-B as in LVM-Med: features are the mean over the last block's patches.

    Its relative positions are of 1024 pixels; timm interpolates them to the size of the image.
    """
    import timm
    from torch import nn

    model: Any = timm.create_model(
        "samvit_base_patch16", pretrained=False, num_classes=0, use_abs_pos=False, neck_chans=0
    )
    model.neck = nn.Identity()
    return model


def stride_of(model: nn.Module) -> int:
    """Pixels along a side for which one position of the last layer stands; a ViT's patch size."""
    parts: Any = model
    if hasattr(parts, "patch_embed"):
        return int(parts.patch_embed.patch_size[0])
    return int(parts.feature_info[-1]["reduction"])


def hub_repository(architecture: str) -> str | None:
    """The hub repository of a timm model's pretrained weights, None if there are none."""
    from timm.models import get_pretrained_cfg

    cfg: Any = get_pretrained_cfg(architecture)
    repository = getattr(cfg, "hf_hub_id", None)
    if repository and repository.endswith("/"):
        tag = f".{cfg.tag}" if cfg.tag else ""
        repository += f"{cfg.architecture}{tag}"
    return repository


def fill_randomly(model: nn.Module, seed: int) -> None:
    """Seeded weights that are the same with every version of torch and on every machine.

    Uniform with variance 1 / fan-in; norms and layer scales 1, biases 0. Each tensor draws from
    its own stream, named by the seed and the tensor's name.
    """
    import numpy as np
    import torch

    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if name.endswith("bias"):
            values = np.zeros(shape, dtype=np.float32)
        elif len(shape) == 1:
            values = np.ones(shape, dtype=np.float32)
        else:
            word = hashlib.sha256(f"dermino {seed} {name}".encode()).digest()
            raw = np.random.PCG64(int.from_bytes(word[:16], "big")).random_raw(math.prod(shape))
            unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
            token = name.endswith(("token", "pos_embed"))
            scale = 0.02 if token else 1.0 / math.sqrt(math.prod(shape[1:]))
            values = ((2.0 * unit - 1.0) * (scale * math.sqrt(3.0))).astype(np.float32)
            values = values.reshape(shape)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))


def infer_architecture(file: Path) -> str:
    """The timm name of a checkpoint's architecture, from its metadata, else from its shapes.

    Raises
    ------
    DerminoError
        BACKBONE_UNAVAILABLE if neither tells, or the file is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as checkpoint:
            metadata = checkpoint.metadata() or {}
            shapes = {k: tuple(checkpoint.get_slice(k).get_shape()) for k in checkpoint.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise damaged(file, error) from error
    named = metadata.get("architecture") or metadata.get("timm_model")
    if named:
        return named
    found = KNOWN_SHAPES.get(signature) if (signature := _signature(shapes)) else None
    if found is None or "norm_pre.weight" in shapes:
        raise DerminoError(
            "BACKBONE_UNAVAILABLE",
            "The architecture of this checkpoint cannot be told from its tensors.",
            where=file,
            fix=f"Name it as timm does: --backbone NAME@{file}",
        )
    return found


def load_checkpoint(
    model: nn.Module,
    file: Path,
    architecture: str,
    convert: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]] = as_in_timm,
) -> dict[str, torch.Tensor]:
    """Put a checkpoint's weights into `model`, strictly; return them as named in timm.

    `convert` renames the file's tensors; then keys may be timm's or those of the original DINOv2
    release. The position embedding is resized by timm's own filter; in the returned weights it is
    as it was in the file. :data:`DROPPED_KEYS`, the classifier and batch norm's count of training
    steps are left out knowingly.

    Raises
    ------
    DerminoError
        BACKBONE_UNAVAILABLE for missing, unexpected, misshapen or non-finite tensors, named.
    """
    import torch

    source = {name: tensor.float() for name, tensor in convert(read_tensors(file)).items()}
    bad = sorted(name for name, tensor in source.items() if not torch.isfinite(tensor).all())
    if bad:
        raise _unfit(file, architecture, [f"not finite: {_few(bad)}"])
    expected = {k: v for k, v in model.state_dict().items() if not k.endswith(_STEPS)}
    first = "patch_embed.proj.weight"
    if {first} & set(source) & set(expected) and source[first].shape != expected[first].shape:
        raise _unfit(file, architecture, _misshapen(source, expected, [first]))
    positions = source.get("pos_embed")
    if "register_tokens" in source:
        source.setdefault("mask_token", torch.zeros(1, source["register_tokens"].shape[-1]))
        positions = None if positions is None else positions[:, 1:]
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        weights: dict[str, torch.Tensor] = adapt(source, model) if adapt else source
    except (RuntimeError, KeyError, AttributeError, AssertionError, ValueError) as error:
        raise _unfit(file, architecture, [f"timm cannot convert it ({error})"]) from error
    dropped = DROPPED_KEYS | _classifier_keys(model)
    weights = {k: v for k, v in weights.items() if k not in dropped and not k.endswith(_STEPS)}
    problems: list[str] = []
    if missing := sorted(set(expected) - set(weights)):
        problems.append(f"missing: {_few(missing)}")
    if unexpected := sorted(set(weights) - set(expected)):
        problems.append(f"unexpected: {_few(unexpected)}")
    problems += _misshapen(weights, expected, sorted(set(weights) & set(expected)))
    if problems:
        raise _unfit(file, architecture, problems)
    model.load_state_dict({**model.state_dict(), **weights}, strict=True)
    if positions is not None:
        weights["pos_embed"] = positions
    return weights


def fingerprint_weights(
    architecture: str, weights: Mapping[str, torch.Tensor], preprocessing: Preprocessing
) -> str:
    """:func:`dermino_core.backbone_card.fingerprint_of` for torch tensors."""
    bare = architecture.split(".", maxsplit=1)[0]
    arrays = ((name, tensor.detach().float().numpy()) for name, tensor in weights.items())
    return fingerprint_of(bare, arrays, preprocessing)


def _classifier_keys(model: nn.Module) -> set[str]:
    """Names of the classifier that timm's own checkpoint of this architecture has."""
    found = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    layers = (found,) if isinstance(found, str) else found
    return {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def _signature(shapes: Mapping[str, Sequence[int]]) -> tuple[int, int, int, bool, int] | None:
    patches = shapes.get("patch_embed.proj.weight")
    if patches is None or len(patches) != 4:
        return None
    depth = 1 + max((int(n) for n in _block_numbers(shapes)), default=-1)
    registers = shapes.get("register_tokens") or shapes.get("reg_token") or (0, 0, 0)
    return patches[0], depth, patches[2], "blocks.0.ls1.gamma" in shapes, registers[1]


def _block_numbers(names: Mapping[str, object]) -> Iterator[str]:
    for name in names:
        parts = name.split(".")
        if parts[0] == "blocks" and len(parts) > 1 and parts[1].isdigit():
            yield parts[1]


def _misshapen(
    weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], names: Sequence[str]
) -> list[str]:
    wrong = [
        f"{name} {list(weights[name].shape)} instead of {list(expected[name].shape)}"
        for name in names
        if weights[name].shape != expected[name].shape
    ]
    return [f"wrong shapes: {_few(wrong)}"] if wrong else []


def _few(names: Sequence[str], limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _check_size(size: int, patch: int, name: str = "patch size") -> None:
    if size <= 0 or size % patch:
        raise DerminoError(
            "CONFIG_INVALID",
            f"The image size {size} is no multiple of the {name} {patch}.",
            fix=f"Use for example {max(1, round(size / patch)) * patch}.",
        )


def _unfit(file: Path, architecture: str, problems: Sequence[str]) -> DerminoError:
    return DerminoError(
        "BACKBONE_UNAVAILABLE",
        f"The checkpoint does not fit {architecture}: {'; '.join(problems)}.",
        where=file,
        fix=f"Use the checkpoint of this architecture, or name another: NAME@{file}",
    )


def _no_vit(architecture: str) -> DerminoError:
    return DerminoError(
        "BACKBONE_UNAVAILABLE",
        f"{architecture!r} is not a ViT with a free image size.",
        fix="Choose one of timm's vit_* models, or a name that `dermino backbones` lists.",
    )
