"""KoLeo: spread image representations out. Sablayrolles et al. 2019, equation (4)."""

from __future__ import annotations

import torch
from torch import Tensor

from dermino_core.losses.numerics import float32_island

EPSILON = 1e-8
"""Added to distances. In half precision it is 0 and duplicates would give infinity."""


def koleo_loss(views: Tensor) -> Tensor:
    """Minus the mean log of each image's distance to its nearest neighbour, summed over views.

    Features are L2-normalised. Neighbours are sought within a view, so that two views of one image
    are never pushed apart, and within a process, as in DINOv2.

    Parameters
    ----------
    views
        The student's class tokens before the head, one batch per global view, [V, B, D].

    Returns
    -------
    A float32 scalar; 0 (with a gradient of 0) for a batch of one.

    Raises
    ------
    ValueError
        If `views` does not have three dimensions.
    """
    if views.ndim != 3:
        raise ValueError(f"views must have shape [V, B, D], not {tuple(views.shape)}")
    with float32_island(views):
        x = torch.nn.functional.normalize(views.float(), dim=-1, eps=EPSILON)
        batch = x.shape[1]
        if batch < 2:
            return (x * 0).sum()
        with torch.no_grad():
            similarity = x @ x.transpose(1, 2)
            similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
            nearest = similarity.argmax(dim=2)
        neighbours = torch.gather(x, 1, nearest.unsqueeze(-1).expand_as(x))
        distance = torch.nn.functional.pairwise_distance(x, neighbours, eps=EPSILON)
        return -(distance + EPSILON).log().mean(dim=1).sum()
