"""Learning rate, weight decay, momentum and temperature as functions of the run's fraction."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dermino_core.pretraining.config import PretrainConfig


@dataclass(frozen=True)
class Settings:
    """What the schedules say for one optimiser step.

    `backbone_rate`, `head_rate` and `last_layer_rate` are learning rates before the layer-wise
    factors; `momentum` is the teacher's.
    """

    backbone_rate: float
    head_rate: float
    last_layer_rate: float
    weight_decay: float
    momentum: float
    teacher_temperature: float


def cosine(first: float, last: float, fraction: float) -> float:
    """From `first` at fraction 0 to `last` at 1, half a cosine wave."""
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * min(max(fraction, 0.0), 1.0)))


def peak_rate(config: PretrainConfig, batch_of_all: int) -> float:
    """The backbone's peak learning rate: base x sqrt(batch / 1024), or the base as it is."""
    rate = config.optimiser.learning_rate
    return rate * math.sqrt(batch_of_all / 1024) if config.optimiser.scaling == "sqrt" else rate


def settings_at(config: PretrainConfig, step: int, steps: int, *, batch_of_all: int) -> Settings:
    """The settings of optimiser step `step` of `steps` (from 0).

    Parameters
    ----------
    batch_of_all
        Images that one optimiser step sees in all processes.
    """
    optimiser, teacher = config.optimiser, config.teacher
    fraction = step / max(1, steps - 1)
    rate = peak_rate(config, batch_of_all)
    head = optimiser.head_learning_rate or rate
    frozen = is_head_warmup(config, step, steps)
    start = optimiser.head_warmup if optimiser.head_warmup < 1 else 0.0
    backbone = (
        0.0
        if frozen
        else _warm_cosine(
            rate, optimiser.final_learning_rate, step, steps, begin=start, warmup=optimiser.warmup
        )
    )
    heads = _warm_cosine(
        head, optimiser.final_learning_rate, step, steps, begin=0.0, warmup=optimiser.warmup
    )
    momentum = cosine(*teacher.momentum, fraction)
    if teacher.horizon > 0:
        momentum = min(momentum, math.exp(-1.0 / max(1.0, teacher.horizon * steps)))
    if frozen:
        momentum = min(momentum, _momentum_of_warmup(config, steps))
    low, high = teacher.temperature
    rise = 1.0 if teacher.temperature_warmup == 0 else fraction / teacher.temperature_warmup
    return Settings(
        backbone_rate=backbone,
        head_rate=heads,
        last_layer_rate=0.0 if step < optimiser.freeze_last_layer * steps else heads,
        weight_decay=cosine(*optimiser.weight_decay, fraction),
        momentum=momentum,
        teacher_temperature=low + (high - low) * min(1.0, rise),
    )


def is_head_warmup(config: PretrainConfig, step: int, steps: int) -> bool:
    """Whether the backbone is frozen at this step."""
    return step < round(config.optimiser.head_warmup * steps)


def _momentum_of_warmup(config: PretrainConfig, steps: int) -> float:
    """The teacher's heads follow within a fifth of the warm-up, so that targets are not noise."""
    return math.exp(-5.0 / max(1.0, config.optimiser.head_warmup * steps))


def _warm_cosine(
    peak: float, final: float, step: int, steps: int, *, begin: float, warmup: float
) -> float:
    """Linear from 0 over `warmup`, then a cosine to `final`; both within [begin, 1] of the run."""
    first = round(begin * steps)
    rising = max(1, round(warmup * (steps - first)))
    done = step - first
    if done < rising:
        return peak * (done + 1) / rising
    left = max(1, steps - first - rising - 1)
    return cosine(peak, min(final, peak), (done - rising) / left)
