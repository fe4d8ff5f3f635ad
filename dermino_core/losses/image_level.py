"""Image-level self-distillation.

DermINO, equations (1)-(3); Caron et al. 2021 (DINO), equation (3).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from dermino_core.losses.numerics import float32_island
from dermino_core.losses.soft_cross_entropy import soft_cross_entropy


def image_level_loss(
    student_global: Tensor,
    student_local: Tensor | None,
    teacher: Tensor,
    *,
    temperature: float = 0.1,
    pairs: Literal["other", "same"] = "other",
) -> Tensor:
    """Cross-entropy between the teacher's targets and the student's scores of other crops.

    Parameters
    ----------
    student_global
        Student logits of the global crops, [N_g, B, K].
    student_local
        Student logits of the local crops, [N_l, B, K], or None without local crops.
    teacher
        Targets of the global crops, [N_g, B, K], rows summing to 1.
    temperature
        The student's, above 0.
    pairs
        Which global crops are paired. `other`: all i != j, as in the code of DINO and DINOv2;
        normalised by the number of pairs N_g (N_g - 1) + N_g N_l. `same`: i = j, as equation (1)
        is printed, with its normaliser N_g (1 + N_l). Both normalisers are 18 at N_g = 2, N_l = 8.

    Returns
    -------
    A float32 scalar; ln K when student and teacher are uniform.

    Raises
    ------
    ValueError
        If shapes do not fit, or `other` is asked of a single global crop without local crops.
    """
    n_global, batch, n_prototypes = teacher.shape
    n_local = 0 if student_local is None else len(student_local)
    if student_global.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student_global.shape)} and teacher {tuple(teacher.shape)} differ"
        )
    if student_local is not None and student_local.shape[1:] != (batch, n_prototypes):
        raise ValueError(
            f"local crops {tuple(student_local.shape)} do not fit [*, {batch}, {n_prototypes}]"
        )
    global_terms = n_global if pairs == "same" else n_global * (n_global - 1)
    terms = global_terms + n_global * n_local
    if terms == 0:
        raise ValueError("one global crop and no local crops: there is nothing to compare")
    with float32_island(teacher):
        targets = teacher.float()
        every = targets.sum(dim=0)
        weights = torch.full((batch,), 1.0 / (terms * max(batch, 1)), device=teacher.device)
        total = torch.zeros((), device=teacher.device)
        for view, own in zip(student_global, targets, strict=True):
            # A view's targets are those of all other global crops: their sum without its own.
            wish = own if pairs == "same" else every - own
            total = total + soft_cross_entropy(view, wish, weights, temperature=temperature)
        for view in () if student_local is None else student_local:
            total = total + soft_cross_entropy(view, every, weights, temperature=temperature)
        return total


def share_of_uniform(entropy: Tensor, n_prototypes: int) -> Tensor:
    """An entropy or cross-entropy as a share of ln K, its value at uniform output."""
    return entropy / math.log(n_prototypes)
