"""All images of a run as one numbered list: how to read each, and what its labels say.

Held compactly (a few dozen bytes and its name for each image), because every decoding process has
a copy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermino_core.errors import DerminoError
from dermino_core.image_limits import ImageError
from dermino_core.images import decode_image, read_image_bytes
from dermino_core.manifest import Manifest
from dermino_core.pretraining.vocabulary import Vocabulary

LONGEST = 2
"""A longer side of more than this many shorter sides is cropped at its centre."""


class Reader(Protocol):
    """The files of one source, numbered from 0."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def name(self, index: int) -> str:
        """What a person calls the image."""
        ...

    def read_bytes(self, index: int) -> bytes:
        """The encoded image; ImageError if it cannot be read."""
        ...


class NameTable:
    """Many names in one block of bytes."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        """The name at `index`, which is not negative."""
        start = int(self._ends[index - 1]) if index else 0
        return self._bytes[start : int(self._ends[index])].decode("utf-8", "surrogatepass")


class FolderImages:
    """Images as a manifest names them, in its image folder."""

    def __init__(self, manifest: Manifest, names: Iterable[str]) -> None:
        self._place = Manifest(manifest.file, manifest.root, [])
        self._names = NameTable(names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)

    def name(self, index: int) -> str:
        """The path, as the manifest's image folder and entry give it."""
        return str(self._place.root / self._names[index])

    def read_bytes(self, index: int) -> bytes:
        """The file's bytes; ImageError if it is outside the image folder or not readable."""
        try:
            path = self._place.inside(self._names[index])
        except DerminoError as error:
            raise ImageError("outside the image folder, or not a valid path") from error
        return read_image_bytes(path)


@dataclass(frozen=True)
class LabelSet:
    """What some images have in common: labels as written, of one data set of one source."""

    source: int
    dataset: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """One source of images: `weight` times its images is how often it is drawn."""

    name: str
    weight: float
    reader: Reader


class ImageList:
    """Every image of every source, numbered 0..n-1 source by source.

    Parameters
    ----------
    sources
        Where images come from.
    label_sets
        The distinct ones.
    codes
        int32 [n]: the label set of each image.
    vocabulary
        Says which images count as labelled. Without names (no supervised loss) every image with
        any label does, so that such a run draws as the one beside it.
    side
        Shorter side that images are decoded to, in pixels.

    Attributes
    ----------
    starts
        int64 [sources + 1]: the first image of each source, and n.
    labelled
        bool [n].
    """

    def __init__(
        self,
        sources: Sequence[Source],
        label_sets: Sequence[LabelSet],
        codes: NDArray[np.int32],
        vocabulary: Vocabulary,
        side: int,
    ) -> None:
        self.sources = tuple(sources)
        self.label_sets = tuple(label_sets)
        self.codes = codes
        self.side = side
        self.starts = np.cumsum([0, *(len(source.reader) for source in sources)], dtype=np.int64)
        tells = [_tells(vocabulary, entry.labels) for entry in label_sets]
        self.labelled = np.array(tells, dtype=bool)[codes]

    @property
    def n_images(self) -> int:
        """Of all sources."""
        return len(self.codes)

    def __len__(self) -> int:
        """As `n_images`."""
        return len(self.codes)

    def source_of(self, position: int) -> int:
        """The number of the source that the image belongs to."""
        return int(np.searchsorted(self.starts, position, side="right")) - 1

    def labels(self, position: int) -> tuple[str, ...]:
        """The image's labels as its data set writes them."""
        return self.label_sets[self.codes[position]].labels

    def name(self, position: int) -> str:
        """What a person calls the image."""
        source = self.source_of(position)
        return self.sources[source].reader.name(position - int(self.starts[source]))

    def read(self, position: int) -> Image.Image:
        """Decode an image: RGB, upright, as :func:`fit_image` makes it.

        Raises
        ------
        ImageError
            If it cannot be read.
        """
        source = self.source_of(position)
        data = self.sources[source].reader.read_bytes(position - int(self.starts[source]))
        return fit_image(decode_image(data, short_side=self.side), self.side)

    def encode(
        self, vocabulary: Vocabulary, negatives: Literal["source", "all"]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What every label set says: row `codes[i]` is of image i.

        Parameters
        ----------
        negatives
            What an image with a label is known not to have: the other names that labels of its
            own data set are about (`source`), or all other names.

        Returns
        -------
        targets, available
            float32 [label sets, C] each; see :meth:`Vocabulary.encode`.
        """
        used: dict[tuple[int, str], set[str]] = {}
        for entry in self.label_sets:
            used.setdefault((entry.source, entry.dataset), set()).update(entry.labels)
        known = {key: vocabulary.names_of(labels) for key, labels in used.items()}
        rows = [
            vocabulary.encode(
                entry.labels, known[entry.source, entry.dataset] if negatives == "source" else None
            )
            for entry in self.label_sets
        ]
        return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])

    def identity(self) -> dict[str, str | int]:
        """What a run's images and labels are, wherever they lie: their number and a digest."""
        digest = hashlib.sha256(self.codes.tobytes() + self.starts.tobytes())
        for entry in self.label_sets:
            digest.update(repr((entry.source, entry.dataset, entry.labels)).encode())
        for position in range(len(self)):
            digest.update(
                os.path.basename(self.name(position)).encode("utf-8", "surrogatepass") + b"\0"
            )
        return {"images": len(self), "digest": digest.hexdigest()}

    def counts(self) -> dict[str, dict[str, int | float]]:
        """For each source: its images, those with a label that says something, and its weight."""
        return {
            source.name: {
                "images": int(end - start),
                "labelled": int(self.labelled[start:end].sum()),
                "weight": source.weight,
            }
            for source, start, end in zip(
                self.sources, self.starts[:-1], self.starts[1:], strict=True
            )
        }


def fit_image(image: Image.Image, side: int) -> Image.Image:
    """Shrink the shorter side to `side` pixels, crop the longer one to twice the shorter.

    Never enlarges. Bicubic with antialiasing; cropped at the centre.

    Parameters
    ----------
    image
        Any size.
    side
        In pixels.
    """
    width, height = image.size
    short = min(width, height)
    kept_width, kept_height = min(width, LONGEST * short), min(height, LONGEST * short)
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    box = (left, top, left + kept_width, top + kept_height)
    if short <= side:
        return image if (kept_width, kept_height) == image.size else image.crop(box)
    new = (round(kept_width * side / short), round(kept_height * side / short))
    return image.resize(new, Image.Resampling.BICUBIC, box=box)


def _tells(vocabulary: Vocabulary, labels: Sequence[str]) -> bool:
    if not len(vocabulary):
        return bool(labels)
    return bool(vocabulary.encode(labels, frozenset())[1].any())
