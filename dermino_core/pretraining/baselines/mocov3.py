"""Contrast between two views, with a momentum encoder. Chen et al. 2021 (MoCo v3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dermino_core.backbone_card import Preprocessing
from dermino_core.losses.numerics import float32_island, world_size
from dermino_core.pretraining.baselines.baseline import Baseline, check_batch, lightly
from dermino_core.pretraining.batch import Batch
from dermino_core.pretraining.config import MoCoV3Section, PretrainConfig
from dermino_core.pretraining.method import Moment
from dermino_core.pretraining.network import follow
from dermino_core.pretraining.packed_vit import PackedViT


class MoCoV3(Baseline):
    """MoCo v3 on the two global crops.

    The trained ViT is exported, not its average, as in the paper. The paper's random patch
    projection (section 4.2) is `optimiser.patch_embed_scale = 0`.
    """

    def __init__(
        self,
        config: PretrainConfig,
        vit: VisionTransformer,
        preprocessing: Preprocessing,
        *,
        device: str,
    ) -> None:
        check_batch(config)
        super().__init__(config, vit, preprocessing, device=device)
        self.average = _average_of(self.trained, config)

    def build(self) -> nn.Module:
        """ViT, projection and prediction."""
        return Queries(self.backbone, self.config.mocov3)

    def losses(
        self, batch: Batch, moment: Moment, call: Callable[..., Tensor]
    ) -> dict[str, Tensor]:
        """Both ways of telling a view's other view from other images."""
        crops = self.views(batch, moment, local=False).global_crops
        with torch.no_grad():
            keys = [_of_all_processes(view) for view in self.average(crops)]
        queries = call(crops)
        temperature = self.config.mocov3.temperature
        first = contrastive_loss(queries[0], keys[1], temperature, rank=moment.rank)
        second = contrastive_loss(queries[1], keys[0], temperature, rank=moment.rank)
        loss = first + second
        by_chance = 4 * temperature * math.log(len(keys[0]))
        return {
            "loss": loss,
            "loss/contrastive": loss.detach(),
            "uniform/image": loss.detach() / by_chance,
        }

    def after_step(self, moment: Moment) -> None:
        """The average follows."""
        follow(self.average, self.trained, moment.settings.momentum)

    def untrained(self) -> dict[str, nn.Module]:
        """The average."""
        return {"average": self.average}


class Keys(nn.Module):
    """The ViT and its projection. Batch norms see one view at a time, as in the paper."""

    def __init__(self, backbone: PackedViT, projection: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = projection

    def forward(self, crops: Tensor) -> Tensor:
        """[2, B, 3, S, S] -> [2, B, output]."""
        (tokens,) = self.backbone([crops.flatten(0, 1)])
        views = tokens[:, 0].unflatten(0, crops.shape[:2])
        return torch.stack([self.projection(view) for view in views])


class Queries(Keys):
    """What is trained: also predicts the other view's projection."""

    def __init__(self, backbone: PackedViT, section: MoCoV3Section) -> None:
        head = lightly("models.modules").MoCoProjectionHead
        hidden, output = section.hidden, section.output
        super().__init__(
            backbone, head(backbone.width, hidden, output, num_layers=3, batch_norm=True)
        )
        self.prediction = head(output, hidden, output, num_layers=2, batch_norm=True)

    def forward(self, crops: Tensor) -> Tensor:
        """[2, B, 3, S, S] -> [2, B, output]."""
        return torch.stack([self.prediction(view) for view in super().forward(crops)])


def contrastive_loss(queries: Tensor, keys: Tensor, temperature: float, *, rank: int = 0) -> Tensor:
    """InfoNCE (equation 1, algorithm 1): which key is the query's own?

    lightly's NTXentLoss also contrasts queries with queries, which this paper does not.

    Parameters
    ----------
    queries
        [B, D].
    keys
        Of all processes, [processes x B, D], in the order of their ranks.
    rank
        Of this process.

    Returns
    -------
    Cross-entropy times twice the temperature.
    """
    with float32_island(queries):
        cosines = F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T
        own = torch.arange(len(queries), device=queries.device) + rank * len(queries)
        return 2 * temperature * F.cross_entropy(cosines / temperature, own)


def _average_of(trained: nn.Module, config: PretrainConfig) -> Keys:
    """A frozen copy without stochastic depth; its batch norms go on using their batch."""
    copied: Queries = copy.deepcopy(trained)  # pyright: ignore[reportAssignmentType]
    backbone = PackedViT(copied.backbone.vit, position_resize=config.model.position_resize)
    average = Keys(backbone, copied.projection)
    return average.requires_grad_(requires_grad=False).train()


def _of_all_processes(keys: Tensor) -> Tensor:
    if world_size() == 1:
        return keys
    return lightly("models.utils").concat_all_gather(keys.contiguous())
