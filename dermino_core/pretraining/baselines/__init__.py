"""Baselines of the paper's Table 2: other objectives on the same ViT, crops and loop.

MAE, MoCo v3 and SwAV, with heads from lightly (extra `baselines`), and its losses where they are
those of the papers. Plain DINOv2 is the preset `dinov2` of DermINO's own method. None of them reads
labels.
"""

from __future__ import annotations

from timm.models import VisionTransformer

from dermino_core.backbone_card import Preprocessing
from dermino_core.errors import DerminoError
from dermino_core.pretraining.baselines.baseline import Baseline
from dermino_core.pretraining.baselines.mae import MAE
from dermino_core.pretraining.baselines.mocov3 import MoCoV3
from dermino_core.pretraining.baselines.swav import SwAV
from dermino_core.pretraining.config import PretrainConfig

BASELINES: dict[str, type[Baseline]] = {"mae": MAE, "mocov3": MoCoV3, "swav": SwAV}


def make_baseline(
    config: PretrainConfig, vit: VisionTransformer, preprocessing: Preprocessing, *, device: str
) -> Baseline:
    """The baseline that `method` names.

    Raises
    ------
    DerminoError
        CONFIG_INVALID if the configuration does not suit it, DEPENDENCY_MISSING without lightly.
    """
    if config.run.sharding == "fsdp":
        raise DerminoError(
            "CONFIG_INVALID",
            f"The baseline {config.method} cannot be sharded.",
            where="run.sharding",
            fix="Use run.sharding = 'ddp'.",
        )
    return BASELINES[config.method](config, vit, preprocessing, device=device)
