"""Swapped prediction of cluster codes between views. Caron et al. 2020 (SwAV)."""

from __future__ import annotations

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
from dermino_core.pretraining.config import PretrainConfig, SwAVSection
from dermino_core.pretraining.method import Moment
from dermino_core.pretraining.packed_vit import PackedViT

N_GLOBAL = 2
"""Crops that codes are made of."""


class SwAV(Baseline):
    """SwAV on all crops, with a queue of earlier ones for batches smaller than the prototypes.

    The prototypes are held still for the first steps (`optimiser.freeze_last_layer`).
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
        section = config.swav
        self.queue = None
        if section.queue > 0:
            self.queue = Queue(section.queue, section.output).to(device)
        self.swapped = lightly("loss").SwaVLoss(
            temperature=section.temperature,
            sinkhorn_iterations=section.iterations,
            sinkhorn_epsilon=section.epsilon,
            sinkhorn_gather_distributed=world_size() > 1,
        )

    def build(self) -> nn.Module:
        """ViT, projection and prototypes."""
        return Clusters(self.backbone, self.config.swav)

    def losses(
        self, batch: Batch, moment: Moment, call: Callable[..., tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Cross-entropy between a crop's code and what every other crop says of it."""
        views = self.views(batch, moment, local=True)
        scores, features = call(views.global_crops, views.local_crops)
        earlier = self._earlier(moment, len(batch.images))
        with float32_island(scores):
            loss = self.swapped(
                list(scores[:N_GLOBAL].float()), list(scores[N_GLOBAL:].float()), earlier
            ).squeeze()
        if self.queue is not None:
            self.queue.push(_of_all_processes(features))
        share = loss.detach() / math.log(scores.shape[-1])
        return {"loss": loss, "loss/swapped": loss.detach(), "uniform/image": share}

    def after_step(self, moment: Moment) -> None:
        """The prototypes return to length 1."""
        self._clusters.last_layer.normalize()

    def untrained(self) -> dict[str, nn.Module]:
        """The queue."""
        return {} if self.queue is None else {"queue": self.queue}

    @property
    def _clusters(self) -> Clusters:
        return self.trained  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def _earlier(self, moment: Moment, batch_size: int) -> list[Tensor] | None:
        """Scores of this process's share of the queue, once it is full and due."""
        section, processes = self.config.swav, world_size()
        passes = moment.step * self.config.run.accumulate + moment.micro
        full = passes * batch_size * processes >= section.queue
        if self.queue is None or not full or moment.step < section.queue_from * moment.steps:
            return None
        mine = self.queue.share(moment.rank, processes)
        with float32_island(mine):
            return list(self._clusters.last_layer(mine))


class Clusters(nn.Module):
    """ViT, projection to a sphere, and prototypes on it, as `last_layer`."""

    def __init__(self, backbone: PackedViT, section: SwAVSection) -> None:
        super().__init__()
        modules = lightly("models.modules")
        self.backbone = backbone
        self.projection = modules.SwaVProjectionHead(backbone.width, section.hidden, section.output)
        self.last_layer = modules.SwaVPrototypes(section.output, section.prototypes)
        # The paper's scores are cosines.
        for layer in self.last_layer.heads:
            nn.init.zeros_(layer.bias.requires_grad_(requires_grad=False))
        self.last_layer.normalize()

    def forward(self, global_crops: Tensor, local_crops: Tensor | None) -> tuple[Tensor, Tensor]:
        """Read all crops in one pass.

        Parameters
        ----------
        global_crops, local_crops
            [2, B, 3, S, S] and [N, B, 3, s, s].

        Returns
        -------
        Scores [2 + N, B, K], and the global crops' features [2, B, output] without gradients.
        """
        crops = [global_crops.flatten(0, 1)]
        if local_crops is not None:
            crops.append(local_crops.flatten(0, 1))
        x = self.projection(torch.cat([tokens[:, 0] for tokens in self.backbone(crops)]))
        with float32_island(x):
            x = F.normalize(x.float(), dim=-1)
            scores = self.last_layer(x)
        batch = global_crops.shape[1]
        return scores.unflatten(0, (-1, batch)), x.detach().unflatten(0, (-1, batch))[:N_GLOBAL]


class Queue(nn.Module):
    """Features of the latest global crops of all processes, the same in every process.

    Parameters
    ----------
    length
        Images.
    width
        Of a feature.
    """

    features: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(N_GLOBAL, length, width))

    def push(self, features: Tensor) -> None:
        """Put [2, n, width] at the front; the oldest fall out."""
        length = self.features.shape[1]
        self.features.copy_(torch.cat([features, self.features], dim=1)[:, :length])

    def share(self, rank: int, processes: int) -> Tensor:
        """An equal part for each process, [2, length // processes, width]."""
        each = self.features.shape[1] // processes
        return self.features[:, rank * each : (rank + 1) * each]


def _of_all_processes(features: Tensor) -> Tensor:
    """[2, B, D] -> [2, processes x B, D]."""
    if world_size() == 1:
        return features
    rows = features.transpose(0, 1).contiguous()
    return lightly("models.utils").concat_all_gather(rows).transpose(0, 1)
