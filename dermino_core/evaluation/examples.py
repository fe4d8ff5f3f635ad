"""What a task is given: features, labels, and which images belong together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Examples:
    """Some images.

    Attributes
    ----------
    features
        float32 [n, D].
    labels
        Class index, [n].
    units
        Patient or lesion of each image: what the bootstrap draws and a split keeps together.
    """

    features: npt.NDArray[np.float32]
    labels: Integers
    units: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.labels) == len(self.units):
            raise ValueError(
                f"{len(self.features)} features, {len(self.labels)} labels, {len(self.units)} units"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Integers) -> Examples:
        """Those of `rows` (indices), in that order."""
        units = tuple(self.units[row] for row in rows)
        return Examples(self.features[rows], self.labels[rows], units)


@dataclass(frozen=True)
class Halves:
    """A data set's training and test half, with the names of its C classes.

    The last class is the positive one of a binary task.
    """

    train: Examples
    test: Examples
    classes: tuple[str, ...]
