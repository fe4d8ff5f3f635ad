"""What the baselines have in common: crops without labels, a trained ViT, and lightly."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from dermino_core.backbone_card import Preprocessing
from dermino_core.errors import DerminoError
from dermino_core.losses.numerics import world_size
from dermino_core.pretraining.batch import Batch
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.method import Moment
from dermino_core.pretraining.packed_vit import PackedViT
from dermino_core.pretraining.randomness import torch_generator
from dermino_core.pretraining.views import Views, make_views


def lightly(module: str) -> Any:
    """A module of lightly, such as `models.modules`.

    Raises
    ------
    DerminoError
        DEPENDENCY_MISSING if it cannot be imported.
    """
    try:
        return importlib.import_module(f"lightly.{module}")
    except ImportError as error:
        raise DerminoError(
            "DEPENDENCY_MISSING",
            f"The baselines take heads and losses from lightly, which cannot be imported: {error}.",
            where="method",
            fix='Run pip install "dermino[baselines]", or use method = "hybrid".',
        ) from error


class Baseline(ABC):
    """A :class:`~dermino_core.pretraining.method.Method` with one trained ViT, which is exported.

    Parameters
    ----------
    trained
        Holds the ViT as `backbone`; every other child is a head.
    last_layers
        Names of its parameters that are held still for the first steps.
    """

    trained: nn.Module
    parts: Mapping[str, nn.Module]
    last_layers: frozenset[str]

    def __init__(
        self,
        config: PretrainConfig,
        vit: VisionTransformer,
        preprocessing: Preprocessing,
        *,
        device: str,
    ) -> None:
        self.config = config
        self.preprocessing = preprocessing
        self.backbone = PackedViT(
            vit,
            drop_path=config.model.drop_path,
            position_resize=config.model.position_resize,
            checkpointing=config.model.activation_checkpointing,
        )
        self.trained = synchronised(self.build(), device).to(device)
        self.parts = dict(self.trained.named_children())
        self.last_layers = frozenset(
            name for name, _ in self.trained.named_parameters() if "last_layer" in name
        )

    @abstractmethod
    def build(self) -> nn.Module:
        """The module to train, around `self.backbone`, on the CPU."""

    @abstractmethod
    def losses(self, batch: Batch, moment: Moment, call: Callable[..., Any]) -> dict[str, Tensor]:
        """Scalars to log by name; `loss` is what is minimised."""

    def after_step(self, moment: Moment) -> None:  # noqa: B027
        """Nothing follows a step, unless a method says so."""

    def untrained(self) -> dict[str, nn.Module]:
        """Nothing beside the trained module."""
        return {}

    def exported(self) -> VisionTransformer:
        """The trained ViT."""
        return self.backbone.vit

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """Class tokens of the trained ViT."""
        was_training = self.backbone.training
        (tokens,) = self.backbone.eval()([pixels])
        self.backbone.train(was_training)
        return tokens[:, 0]

    def views(self, batch: Batch, moment: Moment, *, local: bool) -> Views:
        """Two global crops of every image, and the local ones if asked for."""
        config = self.config
        if not local:
            crops = config.crops.model_copy(update={"local_count": 0})
            config = config.model_copy(update={"crops": crops})
        return make_views(
            batch.images,
            batch.sizes,
            config,
            self.backbone.patch_size,
            torch_generator(config.run.seed, "views", moment),
            mean=self.preprocessing.mean,
            std=self.preprocessing.std,
        )


def synchronised(module: nn.Module, device: str) -> nn.Module:
    """The module with batch norms over all processes on GPUs; torch has none for the CPU."""
    if device.startswith("cuda") and world_size() > 1:
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return module


def check_batch(config: PretrainConfig) -> None:
    """Refuse a batch without a second image.

    Raises
    ------
    DerminoError
        CONFIG_INVALID.
    """
    if config.run.batch_size < 2:
        raise DerminoError(
            "CONFIG_INVALID",
            f"The baseline {config.method} compares the images of a batch, and run.batch_size is "
            "1.",
            where="run.batch_size",
            fix="Use at least 2 images; several hundred are usual.",
        )
