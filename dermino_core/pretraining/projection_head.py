"""From tokens to prototype scores. DermINO section 4.1.2; Caron et al. 2021 (DINO), appendix C."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dermino_core.losses.numerics import float32_island
from dermino_core.pretraining.unit_rows import unit_rows

EPSILON = 1e-12


class ProjectionHead(nn.Module):
    """MLP to a bottleneck, L2 norm, then a weight-normed linear layer with gain 1 and no bias.

    A score is therefore the cosine between the bottleneck vector and a prototype.

    Parameters
    ----------
    width
        Numbers per token.
    prototypes
        K.
    hidden, bottleneck
        Widths of the MLP's two hidden layers and of its output.
    """

    def __init__(self, width: int, prototypes: int, *, hidden: int, bottleneck: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = PrototypeLayer(bottleneck, prototypes)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., width] -> cosines [..., K]."""
        x = self.mlp(tokens)
        with float32_island(x):
            x = F.normalize(x.float(), dim=-1, eps=EPSILON)
        return self.last_layer(x)


class PrototypeLayer(nn.Module):
    """Linear without bias whose rows are normalised to length 1."""

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(prototypes, width))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., K]."""
        return F.linear(x, unit_rows(self.weight))
