"""What the loop asks of a pretraining method: DermINO's, or a baseline of the paper's Table 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from timm.models import VisionTransformer
from torch import Tensor, nn

from dermino_core.pretraining.batch import Batch
from dermino_core.pretraining.schedules import Settings


@dataclass(frozen=True)
class Moment:
    """Where the run is.

    Attributes
    ----------
    step, steps
        Optimiser step from 0, and their number.
    micro
        Pass within the step, from 0.
    rank
        Of this process.
    settings
        What the schedules say.
    """

    step: int
    steps: int
    micro: int
    rank: int
    settings: Settings


class Method(Protocol):
    """A model with its objective.

    Attributes
    ----------
    trained
        The module whose parameters the optimiser changes. Its call is where gradients of several
        processes are averaged, so `losses` calls it through `call`.
    parts
        Its submodules by name, each clipped by itself; `backbone` is the ViT.
    last_layers
        Names of parameters held still for the first steps.
    """

    @property
    def trained(self) -> nn.Module: ...
    @property
    def parts(self) -> Mapping[str, nn.Module]: ...
    @property
    def last_layers(self) -> frozenset[str]: ...

    def losses(self, batch: Batch, moment: Moment, call: Callable[..., Any]) -> dict[str, Tensor]:
        """Scalars to log by name; `loss` is what is minimised. No waiting for the device."""
        ...

    def after_step(self, moment: Moment) -> None:
        """What follows an optimiser step, such as the teacher's average."""
        ...

    def untrained(self) -> dict[str, nn.Module]:
        """Modules beside `trained` that a checkpoint holds (teacher, centres)."""
        ...

    def exported(self) -> VisionTransformer:
        """The ViT whose weights are exported."""
        ...

    def embed(self, pixels: Tensor) -> Tensor:
        """Features of the exported ViT, [B, D], of normalised pixels [B, 3, S, S]."""
        ...
