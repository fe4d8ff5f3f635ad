"""What is tuned in a ViT, as named arrays, and how they change its weights.

LoRA, Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3: a linear
layer `W` [out, in] becomes `W + alpha / rank * B A` with `A` [rank, in] and `B` [out, rank]; `A`
starts random, `B` at 0. The mean of the sites' `B A` is not the product of the means; with `A`
frozen it is, exactly (FFA-LoRA: Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated
Learning", section 3).

The other way is to change the last blocks themselves; then the arrays are the changes of their
weights, so that 0 is the backbone as it was.

Arrays are named from the end, `last1` being the last block, because neither names nor shapes may
depend on how deep the backbone is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from dermino_core.errors import DerminoError

if TYPE_CHECKING:
    import torch

Arrays = dict[str, npt.NDArray[np.float32]]

LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
"""The linear layers of a block, by their names in timm."""

NORMS = ("norm1", "norm2")
BLOCK_PARTS = tuple(f"{part}.{kind}" for part in (*LAYERS, *NORMS) for kind in ("weight", "bias"))
"""The weights of a block that can be tuned: all but layer scales."""


@dataclass(frozen=True)
class Adaptation:
    """What of a ViT is tuned.

    Attributes
    ----------
    method
        `lora`: low-rank adapters of every linear layer; `blocks`: all weights but layer scales.
    blocks
        How many of the last blocks.
    rank, alpha
        Of the adapters; `alpha / rank` scales their product.
    freeze_a
        Whether `A` stays as it was drawn.
    mlp_ratio
        Width of a block's hidden layer over the width of its tokens.
    """

    method: Literal["lora", "blocks"] = "lora"
    blocks: int = 4
    rank: int = 8
    alpha: float = 16.0
    freeze_a: bool = True
    mlp_ratio: float = 4.0

    @property
    def scale(self) -> float:
        """What `B A` is multiplied by."""
        return self.alpha / self.rank

    def layer_shapes(self, width: int) -> dict[str, tuple[int, int]]:
        """Layer -> shape [out, in] of its weight."""
        hidden = int(self.mlp_ratio * width)
        sizes = ((3 * width, width), (width, width), (hidden, width), (width, hidden))
        return dict(zip(LAYERS, sizes, strict=True))

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every array, for tokens of this width."""
        found: dict[str, tuple[int, ...]] = {}
        for layer, (out, into) in self.layer_shapes(width).items():
            if self.method == "lora":
                found |= {f"{layer}.a": (self.rank, into), f"{layer}.b": (out, self.rank)}
            else:
                found |= {f"{layer}.weight": (out, into), f"{layer}.bias": (out,)}
        if self.method == "blocks":
            found |= {f"{norm}.{kind}": (width,) for norm in NORMS for kind in ("weight", "bias")}
        numbers = range(1, self.blocks + 1)
        return {f"last{n}.{name}": shape for n in numbers for name, shape in found.items()}

    def is_trained(self, name: str) -> bool:
        """Whether training changes the array."""
        return not (self.freeze_a and self.method == "lora" and name.endswith(".a"))

    def initial(self, width: int, seed: int) -> Arrays:
        """The arrays that leave the backbone as it is.

        `A` is uniform with variance 1 / in, drawn by numpy so that every site and every version of
        torch draws the same; everything else is 0.
        """
        rng = np.random.default_rng([seed, width, self.rank])
        found: Arrays = {}
        for name, shape in self.shapes(width).items():
            values = np.zeros(shape, np.float32)
            if name.endswith(".a"):
                bound = np.sqrt(3.0 / shape[1])
                values = rng.uniform(-bound, bound, size=shape).astype(np.float32)
            found[name] = values
        return found

    def change(self, arrays: Mapping[str, npt.NDArray], part: str) -> npt.NDArray[np.float64]:
        """What is added to a weight, for example `last1.attn.qkv.weight`; float64.

        Raises
        ------
        KeyError
            If that weight is not tuned.
        """
        if self.method == "blocks":
            return arrays[part].astype(np.float64)
        layer, _, kind = part.rpartition(".")
        if kind != "weight":
            raise KeyError(part)
        up, down = arrays[f"{layer}.b"].astype(np.float64), arrays[f"{layer}.a"].astype(np.float64)
        return self.scale * (up @ down)

    def tuned_parts(self, width: int) -> list[str]:
        """The weights that are changed, named from the end."""
        if self.method == "blocks":
            return list(self.shapes(width))
        blocks = range(1, self.blocks + 1)
        return [f"last{number}.{layer}.weight" for number in blocks for layer in LAYERS]


def merged(
    adaptation: Adaptation,
    arrays: Mapping[str, npt.NDArray],
    weights: Mapping[str, torch.Tensor],
    width: int,
) -> dict[str, torch.Tensor]:
    """A ViT's weights with the arrays added, float32; what is not tuned is passed on as it is.

    The sum is taken in float64, so that it does not depend on a processor's matrix products.

    Parameters
    ----------
    weights
        As named in timm.

    Raises
    ------
    DerminoError
        CONFIG_INVALID if the arrays do not fit the weights.
    """
    import torch

    check_fits(adaptation, weights, width)
    depth = depth_of(weights)
    result = dict(weights)
    for part in adaptation.tuned_parts(width):
        name = in_timm(part, depth)
        sum_ = weights[name].detach().double().numpy() + adaptation.change(arrays, part)
        result[name] = torch.from_numpy(sum_.astype(np.float32))
    return result


def in_timm(part: str, depth: int) -> str:
    """`last1.attn.qkv.weight` -> `blocks.11.attn.qkv.weight` in a ViT of 12 blocks."""
    block, _, rest = part.partition(".")
    return f"blocks.{depth - int(block.removeprefix('last'))}.{rest}"


def depth_of(weights: Mapping[str, torch.Tensor]) -> int:
    """How many blocks a ViT has."""
    numbers = [int(k.split(".")[1]) for k in weights if k.startswith("blocks.")]
    return 1 + max(numbers, default=-1)


def check_fits(adaptation: Adaptation, weights: Mapping[str, torch.Tensor], width: int) -> None:
    """Whether these weights can be tuned so.

    Raises
    ------
    DerminoError
        CONFIG_INVALID saying what does not fit.
    """
    depth = depth_of(weights)
    if depth < adaptation.blocks:
        raise DerminoError(
            "CONFIG_INVALID",
            f"The backbone has {depth} blocks; {adaptation.blocks} of them cannot be tuned.",
            fix=f"--set blocks={max(1, depth)}" if depth else "Choose a plain ViT.",
        )
    shapes = Adaptation(method="blocks", blocks=1, mlp_ratio=adaptation.mlp_ratio).shapes(width)
    for number in range(1, adaptation.blocks + 1):
        for part, shape in shapes.items():
            name = in_timm(part.replace("last1", f"last{number}", 1), depth)
            found = tuple(weights[name].shape) if name in weights else None
            if found != shape:
                fix = "Choose a plain ViT, for example vit_small_patch14_dinov2."
                if ".mlp." in name and found is not None:
                    fix = "--set mlp_ratio= with the ratio of its hidden layers to its tokens."
                is_ = "missing" if found is None else f"{list(found)}, not {list(shape)}"
                raise DerminoError(
                    "CONFIG_INVALID",
                    f"The backbone cannot be tuned: its {name} is {is_}.",
                    fix=fix,
                )
