"""LoRA: the last blocks of the backbone are tuned at the sites; the coordinator averages adapters.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", averaged as in McMahan et al.
2017. With `freeze_a` only `B` is trained, and the mean of the sites' changes is the change of the
mean (FFA-LoRA: Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning"). With
`method = "blocks"` the last blocks themselves are trained, and their changes averaged.

Each site decodes its training images once, draws views of each, and keeps what the frozen blocks
make of them; a round then costs the last blocks only. Images never leave, features neither.

What leaves the building, per round: the adapters that are trained (or the changes of the blocks),
the weights and biases of a linear head, the number of training images, the mean training loss.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from dermino_core.backbone_card import BackboneCard
from dermino_core.errors import DerminoError
from dermino_core.heads import LinearHead
from dermino_core.tuning.adapters import Adaptation
from dermino_core.tuning.recipe import Augmentation, Recipe
from dermino_strategies.base import (
    Additive,
    Arrays,
    Settings,
    SiteData,
    SiteUpdate,
    Tuning,
)
from dermino_strategies.fedavg import LARGEST_SITE, LARGEST_WEIGHT

HEAD = ("weight", "bias")


class LoRASettings(Settings):
    """What is tuned, how it is trained in a round, and the views it is trained on."""

    method: Literal["lora", "blocks"] = Field(
        default="lora", description="low-rank adapters, or the last blocks themselves"
    )
    blocks: int = Field(default=4, ge=1, le=64, description="how many of the last blocks")
    rank: int = Field(default=8, ge=1, le=256, description="of the adapters")
    alpha: float = Field(default=16.0, gt=0, le=1024, description="adapters count alpha / rank")
    freeze_a: bool = Field(
        default=True, description="train B only: then averaging adapters is exact (FFA-LoRA)"
    )
    mlp_ratio: float = Field(
        default=4.0, gt=0, le=16, description="hidden width over token width in the backbone"
    )
    local_epochs: int = Field(default=2, ge=1, le=1000)
    learning_rate: float = Field(default=2e-3, gt=0, le=1, description="peak, of the blocks")
    head_learning_rate: float = Field(default=1e-3, gt=0, le=1, description="peak, of the head")
    decay: float = Field(
        default=1.0, gt=0, le=1, description="of both rates, from a round to the next"
    )
    batch_size: int = Field(default=32, ge=1)
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    warmup: float = Field(default=0.1, ge=0, le=1, description="share of a round's steps")
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    balanced: bool = Field(default=False, description="every class weighs the same at a site")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    views: int = Field(default=8, ge=1, le=256, description="drawn of each image, kept on disk")
    view_share: float = Field(
        default=0.625, gt=0, le=1, description="a view's side over the backbone's image size"
    )
    smallest_area: float = Field(
        default=0.5, gt=0, le=1, description="least share of the image in a view"
    )
    turns: bool = Field(default=True, description="mirror views, turn them by right angles")
    colour: float = Field(
        default=0.2, ge=0, le=1, description="most that brightness and the like change"
    )


class LoRA(Additive, Tuning):
    """Example-weighted federated averaging of adapters and a linear head."""

    name = "lora"
    usual_rounds = 5

    def __init__(self, settings: LoRASettings | None = None) -> None:
        self.settings = settings or LoRASettings()
        s = self.settings
        self.adaptation = Adaptation(
            method=s.method,
            blocks=s.blocks,
            rank=s.rank,
            alpha=s.alpha,
            freeze_a=s.freeze_a,
            mlp_ratio=s.mlp_ratio,
        )

    def initial_arrays(self, n_classes: int, width: int, seed: int) -> Arrays:
        """The arrays that leave the backbone as it is, and a head of zeros."""
        arrays: Arrays = dict(self.adaptation.initial(width, seed))
        return arrays | LinearHead.arrays_like(n_classes, width)

    def update_like(self, arrays: Arrays) -> Arrays:
        """What is trained: a frozen `A` stays where it is known already."""
        return {
            name: np.zeros_like(array)
            for name, array in arrays.items()
            if self.adaptation.is_trained(name)
        }

    def site_update(self, data: SiteData, arrays: Arrays, round_: int, seed: int) -> SiteUpdate:
        """Train from the global arrays for the local epochs; send what was trained.

        Raises
        ------
        DerminoError
            CONFIG_INVALID if the site's data came without images, or the backbone does not fit;
            IMAGE_UNREADABLE, CACHE_UNWRITABLE.
        """
        images = data.images
        if images is None:
            raise DerminoError(
                "CONFIG_INVALID",
                f"{self.name} trains on images, and the site was prepared without them.",
                fix="Run `dermino-client check` to prepare the site again.",
            )
        from dermino_core.tuning.site_training import Round, tune

        trained, loss = tune(
            Round(
                site=data.site,
                paths=images.paths,
                backbone=images.backbone,
                cache=images.cache,
                precision=images.precision,
                device=images.device,
                labels=data.labels,
                n_classes=data.n_classes,
                adaptation=self.adaptation,
                recipe=self._recipe(round_),
                augmentation=self._augmentation(),
                views=self.settings.views,
                view_share=self.settings.view_share,
                view_seed=seed,
                seed=(seed, round_, zlib.crc32(data.site.encode())),
            ),
            arrays,
        )
        kept = {name: trained[name] for name in self.update_like(arrays)}
        return SiteUpdate(kept, examples=len(data.labels), metrics={"train-loss": loss})

    def _recipe(self, round_: int) -> Recipe:
        s = self.settings
        slower = s.decay ** (round_ - 1)
        return Recipe(
            epochs=s.local_epochs,
            learning_rate=s.learning_rate * slower,
            head_learning_rate=s.head_learning_rate * slower,
            batch_size=s.batch_size,
            weight_decay=s.weight_decay,
            warmup=s.warmup,
            label_smoothing=s.label_smoothing,
            balanced=s.balanced,
            clip=s.clip,
        )

    def _augmentation(self) -> Augmentation:
        s = self.settings
        return Augmentation(smallest_area=s.smallest_area, turns=s.turns, colour=s.colour)

    def write_backbone(self, folder: Path, spec: str, arrays: Arrays) -> BackboneCard:
        """The backbone that `spec` names with the adapters merged into its weights, as a folder.

        Raises
        ------
        DerminoError
            CONFIG_INVALID if the backbone does not fit.
        """
        from dermino_core.tuning.backbone import write_tuned_backbone

        name = f"{Path(spec).stem}, tuned"  # no path of this machine: the folder travels
        return write_tuned_backbone(folder, spec, self.adaptation, arrays, name=name)

    def check_backbone(self, spec: str) -> None:
        """Refuse a backbone that cannot be tuned so.

        Raises
        ------
        DerminoError
            CONFIG_INVALID.
        """
        from dermino_core.tuning.backbone import check_backbone

        check_backbone(spec, self.adaptation)

    def summand_like(self, arrays: Arrays) -> Arrays:
        """What is trained times the site's images, and the number of images."""
        like = {name: np.zeros(array.shape) for name, array in self.update_like(arrays).items()}
        return like | {"examples": np.zeros(1)}

    def summand_limits(self, arrays: Arrays) -> dict[str, float]:
        """No entry above 2^10, no site more than 2^24 images."""
        limits = dict.fromkeys(self.update_like(arrays), LARGEST_WEIGHT * LARGEST_SITE)
        return limits | {"examples": LARGEST_SITE}

    def summand(self, update: SiteUpdate) -> Arrays:
        """What was trained times the site's images, and the number of images."""
        weighted = {
            name: array.astype(np.float64) * update.examples
            for name, array in update.arrays.items()
        }
        return weighted | {"examples": np.array([float(update.examples)])}

    def from_sum(self, arrays: Arrays, total: Arrays) -> Arrays:
        """The weighted mean of what is trained; a frozen `A` as it was."""
        images = float(total["examples"][0])
        mean: dict[str, npt.NDArray] = {
            name: (total[name] / images).astype(array.dtype)
            for name, array in arrays.items()
            if name in total
        }
        return {name: mean.get(name, array) for name, array in arrays.items()}

    def head(self, arrays: Arrays) -> LinearHead:
        """The averaged head, on features of the tuned backbone."""
        return LinearHead.from_arrays({name: arrays[name] for name in HEAD})
