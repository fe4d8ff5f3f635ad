"""What the loader hands to a training step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Decoded images, not yet cropped, and what is known of them.

    Attributes
    ----------
    images
        uint8 [B, 3, H, W]: each image stands in the upper left corner of the canvas.
    sizes
        int64 [B, 2]: height and width of each image, in pixels.
    targets
        float32 [B, C]: 1 where the image has the label.
    available
        float32 [B, C]: 1 where `targets` is known.
    positions
        int64 [B]: which image of the list.
    """

    images: Tensor
    sizes: Tensor
    targets: Tensor
    available: Tensor
    positions: Tensor

    def to(self, device: str) -> Batch:
        """The same on another device, without waiting where memory is pinned."""
        return Batch(
            images=self.images.to(device, non_blocking=True),
            sizes=self.sizes.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            available=self.available.to(device, non_blocking=True),
            positions=self.positions,
        )
