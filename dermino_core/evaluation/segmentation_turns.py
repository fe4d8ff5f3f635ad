"""The eight ways to lay a square image down: mirrored, upside down, turned by quarters.

A mask and a grid of patch features are both squares over the same picture, so one turn applied to
both leaves every patch on its pixels, exactly and without computing a feature anew. What a ViT
would say of the turned picture is not the same: its position embedding stays. And a head that
looks at each patch by itself, as the linear one, learns nothing from turning the grid: its loss
is the same for all eight. For it the pixels have to be turned before the backbone sees them.
"""

from __future__ import annotations

import numpy.typing as npt

TURNS = 8
"""Turn 0 is the picture as it is, 1 to 3 its mirrors and both at once, 4 to 7 those transposed."""


def turned(array: npt.NDArray, turn: int) -> npt.NDArray:
    """A view of `array` [H, W, ...] laid down another way; H = W for turns from 4.

    Raises
    ------
    ValueError
        For a turn that is not in 0..7.
    """
    if not 0 <= turn < TURNS:
        raise ValueError(f"a turn is 0 to {TURNS - 1}, not {turn}")
    result = array.swapaxes(0, 1) if turn & 4 else array
    result = result[::-1] if turn & 2 else result
    return result[:, ::-1] if turn & 1 else result


def turned_levels(features: npt.NDArray, turn: int) -> npt.NDArray:
    """As :func:`turned`, for the features of one image: [L, h, w, D]."""
    return turned(features.transpose(1, 2, 0, 3), turn).transpose(2, 0, 1, 3)
