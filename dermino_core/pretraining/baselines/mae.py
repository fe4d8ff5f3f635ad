"""Masked autoencoder: pixels of hidden patches from the visible ones. He et al. 2022 (MAE)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dermino_core.errors import DerminoError
from dermino_core.losses.numerics import float32_island
from dermino_core.pretraining.baselines.baseline import Baseline, lightly
from dermino_core.pretraining.batch import Batch
from dermino_core.pretraining.colour import to_device
from dermino_core.pretraining.config import MAESection, PretrainConfig
from dermino_core.pretraining.method import Moment
from dermino_core.pretraining.packed_vit import PackedViT
from dermino_core.pretraining.randomness import torch_generator

EPSILON = 1e-6
"""Added to the variance of a patch's pixels."""


class MAE(Baseline):
    """MAE on the first global crop, with pixels normalised per patch.

    A loss of 1 is what predicting each patch's mean colour gives.
    """

    def build(self) -> nn.Module:
        """ViT and decoder."""
        side = self.config.crops.global_size // self.backbone.patch_size
        _check(self.config, side)
        return Autoencoder(self.backbone, self.config.mae, side * side)

    def losses(
        self, batch: Batch, moment: Moment, call: Callable[..., Tensor]
    ) -> dict[str, Tensor]:
        """Mean squared error of the hidden patches' normalised pixels."""
        crops = self.views(batch, moment, local=False).global_crops[0]
        generator = torch_generator(self.config.run.seed, "masks", moment)
        side = crops.shape[-1] // self.backbone.patch_size
        visible, hidden = sample_visible(len(crops), side * side, self.config.mae.masked, generator)
        visible, hidden = to_device(visible, crops), to_device(hidden, crops)
        predicted = call(crops, visible, hidden)
        loss = pixel_loss(predicted, crops, hidden, self.backbone.patch_size)
        return {"loss": loss, "loss/pixels": loss.detach()}


class Autoencoder(nn.Module):
    """The ViT on visible patches, and a small decoder on all of them.

    Parameters
    ----------
    n_patches
        Of a crop.
    """

    def __init__(self, backbone: PackedViT, section: MAESection, n_patches: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = PixelDecoder(
            backbone.width, backbone.patch_size, backbone.prefix, n_patches, section
        )

    def forward(self, crops: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Pixels [B, M, 3 p^2] of the patches `hidden` [B, M], from `visible` [B, V]."""
        return self.decoder(read_visible(self.backbone, crops, visible), visible, hidden)


class PixelDecoder(nn.Module):
    """A narrow ViT with sine-cosine positions (lightly), between two linear layers."""

    def __init__(
        self, width: int, patch_size: int, prefix: int, n_patches: int, section: MAESection
    ) -> None:
        super().__init__()
        self.prefix, self.n_patches = prefix, n_patches
        self.embed = nn.Linear(width, section.decoder_width)
        self.vit = lightly("models.modules").MaskedVisionTransformerDecoderTIMM(
            num_patches=n_patches,
            embed_dim=section.decoder_width,
            depth=section.decoder_depth,
            num_heads=section.decoder_heads,
            num_prefix_tokens=prefix,
        )
        self.predict = nn.Linear(section.decoder_width, 3 * patch_size**2)
        for layer in (self.embed, self.predict):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """[B, prefix + V, D] -> [B, M, 3 p^2]."""
        known = self.embed(tokens)
        ahead, patches = known[:, : self.prefix], known[:, self.prefix :]
        empty = self.vit.mask_token.to(known.dtype).expand(len(known), self.n_patches, -1)
        every = empty.scatter(1, _wide(visible, known), patches)
        decoded = self.vit(torch.cat([ahead, every], dim=1))[:, self.prefix :]
        return self.predict(decoded.gather(1, _wide(hidden, decoded)))


def read_visible(backbone: PackedViT, crops: Tensor, visible: Tensor) -> Tensor:
    """Tokens of the class token, registers and the patches `visible` [B, V] alone.

    Returns
    -------
    [B, prefix + V, D] after the last norm.
    """
    tokens = backbone.embed(crops, None, None)
    ahead, patches = tokens[:, : backbone.prefix], tokens[:, backbone.prefix :]
    xs = [torch.cat([ahead, patches.gather(1, _wide(visible, patches))], dim=1)]
    for block in backbone.vit.blocks:
        if backbone.checkpointing and backbone.training:
            xs = checkpoint(block, xs, use_reentrant=False)
        else:
            xs = block(xs)
    return backbone.vit.norm(xs[0])


def sample_visible(
    n_crops: int, n_patches: int, masked: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Patches drawn without replacement (section 3, masking).

    Returns
    -------
    Visible [n, V] and hidden [n, M], int64 in rising order; at least one of each.
    """
    n_visible = min(max(int(n_patches * (1 - masked)), 1), n_patches - 1)
    order = torch.rand(n_crops, n_patches, generator=generator).argsort(dim=1)
    visible, hidden = order.split([n_visible, n_patches - n_visible], dim=1)
    return visible.sort(dim=1).values, hidden.sort(dim=1).values


def pixel_loss(predicted: Tensor, crops: Tensor, hidden: Tensor, patch_size: int) -> Tensor:
    """Mean squared error to the hidden patches, each of mean 0 and variance 1 (section 3).

    Parameters
    ----------
    predicted
        [B, M, 3 p^2].
    crops
        float32 [B, 3, S, S].
    hidden
        int64 [B, M].
    """
    utils = lightly("models.utils")
    with float32_island(predicted):
        patches = utils.patchify(crops.float(), patch_size)
        pixels = patches.gather(1, _wide(hidden, patches))
        return nn.functional.mse_loss(
            predicted.float(), utils.normalize_mean_var(pixels, eps=EPSILON)
        )


def _wide(index: Tensor, tokens: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])


def _check(config: PretrainConfig, side: int) -> None:
    width, heads = config.mae.decoder_width, config.mae.decoder_heads
    if width % 4 or width % heads:
        raise DerminoError(
            "CONFIG_INVALID",
            f"A decoder of width {width} with {heads} heads cannot be built.",
            where="mae.decoder_width",
            fix="Use a multiple of 4 and of mae.decoder_heads.",
        )
    if side < 2:
        raise DerminoError(
            "CONFIG_INVALID",
            "A crop of one patch has nothing to hide and show.",
            where="crops.global_size",
            fix="Use crops of at least 2 x 2 patches.",
        )
