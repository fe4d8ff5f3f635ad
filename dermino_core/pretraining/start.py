"""The ViT that a run starts from."""

from __future__ import annotations

from typing import cast

from timm.models import VisionTransformer

from dermino_core.backbone_card import Preprocessing
from dermino_core.pretraining.config import ModelSection


def starting_vit(model: ModelSection, *, seed: int) -> tuple[VisionTransformer, Preprocessing]:
    """The ViT with its starting weights, at the image size of the backbone to export.

    Parameters
    ----------
    seed
        Of random weights.

    Returns
    -------
    The model in float32 on the CPU, and the preprocessing of the exported backbone.

    Raises
    ------
    DerminoError
        BACKBONE_UNAVAILABLE, CONFIG_INVALID, MODEL_INVALID as for every backbone specification.
    """
    import torch

    from dermino_core.backbone import checkpoint_of
    from dermino_core.backbone_weights import build_model, fill_randomly, load_checkpoint
    from dermino_core.pretraining.packed_vit import resize_positions

    built, preprocessing = build_model(model.architecture, model.export_size)
    vit = cast(VisionTransformer, built)
    if model.start == "random":
        fill_randomly(vit, seed)
        return vit, preprocessing
    start = model.architecture if model.start == "pretrained" else model.start
    weights = load_checkpoint(vit, checkpoint_of(start), model.architecture)
    positions = weights.get("pos_embed")
    if model.position_resize == "dinov2" and positions is not None and vit.pos_embed is not None:
        prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        side = round((positions.shape[1] - prefix) ** 0.5)
        grid = vit.patch_embed.grid_size
        resized = resize_positions(positions, grid, (side, side), prefix, "dinov2")
        with torch.no_grad():
            vit.pos_embed.copy_(resized)
    return vit, preprocessing
