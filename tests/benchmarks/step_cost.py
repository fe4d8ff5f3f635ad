"""Floating-point operations of one pretraining step, counted from shapes.

A multiply-add is two operations. Matrix products and attention only, as is usual; a backward pass
costs two forward passes. Nothing is taken off for stochastic depth, so the bound is the same for
whoever computes the step. ViT-B/14 with 2 x 224 + 8 x 98 pixels and K = 65,536: 593 GFLOP an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dermino_core.pretraining.config import PretrainConfig

FORWARD_AND_BACKWARD = 3
MLP_RATIO = 4


@dataclass(frozen=True)
class Shape:
    """A ViT: numbers per token, blocks, and pixels of the sides of a patch and a local crop."""

    width: int
    depth: int
    patch: int
    local: int


SHAPES: Mapping[str, Shape] = {
    "vit_tiny_patch16_224": Shape(192, 12, 16, 96),
    "vit_small_patch14_dinov2": Shape(384, 12, 14, 98),
    "vit_base_patch14_dinov2": Shape(768, 12, 14, 98),
}
"""The architectures measured here, by their timm names."""


@dataclass(frozen=True)
class StepCost:
    """GFLOP (1e9) of one image: the student's ViT with its backward pass, the teacher's, heads."""

    student: float
    teacher: float
    heads: float

    @property
    def whole(self) -> float:
        """GFLOP of one image."""
        return self.student + self.teacher + self.heads


def vit_gflop(shape: Shape, side: int) -> float:
    """GFLOP of one forward pass of one crop of `side` pixels."""
    patches = (side // shape.patch) ** 2
    tokens = patches + 1
    linear = 2 * tokens * (4 + 2 * MLP_RATIO) * shape.width**2
    attention = 4 * tokens**2 * shape.width
    embedding = 2 * patches * 3 * shape.patch**2 * shape.width
    return 1e-9 * (shape.depth * (linear + attention) + embedding)


def head_gflop(config: PretrainConfig, width: int) -> float:
    """GFLOP of one token through one projection head."""
    heads = config.heads
    first = width * heads.hidden
    second = heads.hidden**2
    third = heads.hidden * heads.bottleneck
    return 2e-9 * (first + second + third + heads.bottleneck * heads.prototypes)


def step_cost(config: PretrainConfig, shape: Shape) -> StepCost:
    """The cost of an image with two global crops and `crops.local_count` local ones.

    The number of masked patches is the mean of its law.
    """
    crops, masking = config.crops, config.masking
    of_global = 2 * vit_gflop(shape, crops.global_size)
    of_local = crops.local_count * vit_gflop(shape, shape.local)
    patches = (crops.global_size // shape.patch) ** 2
    masked = 2 * patches * masking.share_of_crops * sum(masking.ratio) / 2
    student_tokens, teacher_tokens = 2 + crops.local_count + masked, 2 + masked
    tokens = FORWARD_AND_BACKWARD * student_tokens + teacher_tokens
    return StepCost(
        student=FORWARD_AND_BACKWARD * (of_global + of_local),
        teacher=of_global,
        heads=tokens * head_gflop(config, shape.width),
    )
