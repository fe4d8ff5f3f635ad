"""The numbers of tuning, apart from torch: how views differ, how blocks are trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Augmentation:
    """How views differ from their image.

    Attributes
    ----------
    smallest_area
        Least share of the image's area in a view.
    aspect
        Most that a view's sides differ before it is made square.
    turns
        Whether views are mirrored and turned by right angles.
    colour
        Most that brightness, contrast and saturation change; the hue turns by an eighth of it.
    """

    smallest_area: float = 0.5
    aspect: float = 1.25
    turns: bool = True
    colour: float = 0.2


@dataclass(frozen=True)
class Recipe:
    """How the last blocks are trained in one round.

    Attributes
    ----------
    epochs
        Each image once per epoch, in one of its views.
    learning_rate, head_learning_rate
        Peaks, of the blocks and of the head; a linear rise over `warmup` of the round's steps,
        then a cosine to zero.
    balanced
        Whether every class weighs the same in the loss, however many images it has.
    clip
        Largest norm of the gradient.
    """

    epochs: int = 2
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    batch_size: int = 32
    weight_decay: float = 0.01
    warmup: float = 0.1
    label_smoothing: float = 0.0
    balanced: bool = False
    clip: float = 1.0
