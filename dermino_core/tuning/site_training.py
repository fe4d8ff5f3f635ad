"""One round at one site: images -> activations of the frozen blocks -> trained arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dermino_core.backbone import describe_backbone
from dermino_core.precision import resolve_device
from dermino_core.tuning.activations import Wanted, activations
from dermino_core.tuning.adapters import Adaptation
from dermino_core.tuning.network import split_network, view_side
from dermino_core.tuning.recipe import Augmentation, Recipe
from dermino_core.tuning.training import train


@dataclass(frozen=True)
class Round:
    """What one round at one site takes.

    Attributes
    ----------
    paths, labels
        The training images, in the same order.
    backbone, cache, precision, device
        As the site prepared its features.
    views, view_share, view_seed
        How many views of each image, how large, and which.
    seed
        Of batches and of the view that is taken of each image.
    """

    site: str
    paths: tuple[Path, ...]
    backbone: str
    cache: Path
    precision: str
    device: str
    labels: npt.NDArray[np.integer]
    n_classes: int
    adaptation: Adaptation
    recipe: Recipe
    augmentation: Augmentation
    views: int
    view_share: float
    view_seed: int
    seed: tuple[int, ...]


def tune(
    job: Round, arrays: Mapping[str, npt.NDArray]
) -> tuple[dict[str, npt.NDArray[np.float32]], float]:
    """Train from `arrays`; the arrays after the round, and the mean loss of its last epoch.

    Raises
    ------
    DerminoError
        CONFIG_INVALID for a backbone that cannot be tuned so; IMAGE_UNREADABLE, CACHE_UNWRITABLE,
        RUN_FAILED.
    """
    card = describe_backbone(job.backbone, cache_dir=job.cache)
    frozen, trained = split_network(
        job.backbone, job.adaptation, job.n_classes, precision=job.precision
    )
    device = resolve_device(job.device)
    frozen, trained = frozen.to(device), trained.to(device)
    side = view_side(job.view_share, card.preprocessing.image_size, card.patch_size)
    wanted = Wanted(
        card=card,
        cut=frozen.cut,
        side=side,
        tokens=frozen.tokens(side),
        views=job.views,
        augmentation=job.augmentation,
        precision=job.precision,
        seed=job.view_seed,
    )
    tokens = activations(job.paths, wanted, frozen, cache=job.cache, title=job.site)
    return train(
        trained,
        arrays,
        tokens,
        job.labels,
        job.recipe,
        seed=job.seed,
        bf16=job.precision == "bf16",
        title=f"tuning, {job.site}",
    )
