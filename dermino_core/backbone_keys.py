"""From the names of tensors in other people's checkpoints to timm's.

Names are those of the public code of each release, given below. The files of PanDerm, LVM-Med and
MedImageInsight were not at hand: what these functions return is loaded with strict keys and shapes,
so a file that is named otherwise is refused, never half loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]
    Convert = Callable[[Tensors], dict[str, torch.Tensor]]

_DAVIT_NAMES = (
    # MedImageInsight's davit_v1, then the older names that its own loader still accepts.
    (r"^(?:convs|conv_embeds)\.0\.proj\.", "stem.conv."),
    (r"^(?:convs|conv_embeds)\.0\.norm\.", "stem.norm."),
    (r"^(?:convs|conv_embeds)\.(\d+)\.proj\.", r"stages.\1.downsample.conv."),
    (r"^(?:convs|conv_embeds)\.(\d+)\.norm\.", r"stages.\1.downsample.norm."),
    (r"^main_blocks\.(\d+)\.(\d+)\.0\.", r"blocks.\1.\2.spatial_block."),
    (r"^main_blocks\.(\d+)\.(\d+)\.1\.", r"blocks.\1.\2.channel_block."),
    (r"^blocks\.(\d+)\.", r"stages.\1.blocks."),
    (r"\.conv([12])\.fn\.dw\.", r".cpe\1.proj."),
    (r"\.cpe\.0\.", ".cpe1."),
    (r"\.cpe\.1\.", ".cpe2."),
    (r"\.(?:window|channel)_attn\.norm\.", ".norm1."),
    (r"\.(?:window|channel)_attn\.fn\.", ".attn."),
    (r"\.ffn\.norm\.", ".norm2."),
    (r"\.ffn\.fn\.net\.", ".mlp."),
    (r"^norms\.", "head.norm."),
)


def as_in_timm(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Names that timm understands already."""
    return dict(tensors)


def open_clip_tower(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The image tower of an open_clip model whose tower is timm's: `visual.trunk.*`.

    So is BiomedCLIP's `open_clip_pytorch_model.bin`. The projection to the space shared with text
    (`visual.head.*`) and the text encoder are left out.
    """
    return _below(tensors, "visual.trunk.")


def cae_encoder(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The encoder of a context autoencoder, as PanDerm's: `encoder.*`, or these without a prefix.

    As in `classification/models/modeling_finetune.py` and `builder.py` of SiyuanYan1/PanDerm:
    queries and values have a bias of their own and keys have none; layer scales are `gamma_1` and
    `gamma_2`; the class token has a position, which is added to it here (timm's DeiT III has none).
    Regressor and decoder are left out.
    """
    import torch

    source = _below(tensors, "encoder.")
    named: dict[str, torch.Tensor] = {}
    for name, tensor in source.items():
        if name.endswith(".attn.q_bias"):
            value = source.get(name.replace("q_bias", "v_bias"))
            if value is not None:
                whole = torch.cat((tensor, torch.zeros_like(tensor), value))
                named[name.replace("q_bias", "qkv.bias")] = whole
        elif not name.endswith(".attn.v_bias"):
            named[re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)] = tensor
    positions = named.get("pos_embed")
    if positions is not None and "cls_token" in named:
        named["cls_token"] = named["cls_token"] + positions[:, :1]
        named["pos_embed"] = positions[:, 1:]
    return named


def sam_encoder(tensors: Tensors) -> dict[str, torch.Tensor]:
    """SAM's image encoder as LVM-Med uses it: bare names, or `image_encoder.*`.

    As in `model/unet_vit_classification.py` of duyhominhnguyen/LVM-Med, the tower has no absolute
    positions and ends with the last block: `pos_embed` and `neck.*` are left out.
    """
    return {
        name.replace(".mlp.lin", ".mlp.fc"): tensor
        for name, tensor in _below(tensors, "image_encoder.").items()
        if name != "pos_embed" and not name.startswith("neck.")
    }


def unicl_davit(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The DaViT of a UniCL model: `image_encoder.*` (in older files `visual.*`).

    As in `MedImageInsight/UniCLModel.py` and `ImageEncoder/davit_v1.py` of the release. The
    projection to the space shared with text and the text encoder are left out.
    """
    prefix = "image_encoder." if any(k.startswith("image_encoder.") for k in tensors) else "visual."
    named: dict[str, torch.Tensor] = {}
    for name, tensor in _below(tensors, prefix).items():
        for pattern, timms in _DAVIT_NAMES:
            name = re.sub(pattern, timms, name)
        named[name] = tensor
    return named


def dino_teacher(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The backbone of a DINOv2 training checkpoint: `backbone.*`, its blocks perhaps in chunks.

    As in `dinov2/models/vision_transformer.py` of facebookresearch/dinov2: a block in a chunk is
    `blocks.CHUNK.NUMBER.*`, numbered through. Heads are left out.
    """
    return {
        re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): tensor
        for name, tensor in _below(tensors, "backbone.").items()
    }


def _below(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """Those whose names start with `prefix`, without it; all of them if there are none."""
    found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return found or dict(tensors)
