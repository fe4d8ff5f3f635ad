"""What is known of a backbone without loading it: the card, its fingerprint, and its cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically

CARD_FORMAT = 1
"""Raise it when loading, naming or fingerprinting of weights changes."""


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to what the backbone reads.

    `image_size` is in pixels (square); the short side is resized to `image_size / crop_pct`;
    `mean` and `std` are per RGB channel of values in [0, 1].
    """

    image_size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class BackboneCard:
    """Identity of a backbone.

    `width` is the number of features per image, `patch_size` in pixels. Two sites with the same
    `fingerprint` compute the same features; `name` and `source` are for people.
    """

    name: str
    architecture: str
    width: int
    patch_size: int
    preprocessing: Preprocessing
    fingerprint: str
    pretrained: bool
    source: str


def card_to_dict(card: BackboneCard) -> dict[str, Any]:
    """A card as plain JSON values."""
    return asdict(card)


def card_from_dict(values: dict[str, Any]) -> BackboneCard:
    """The inverse of :func:`card_to_dict`.

    Raises
    ------
    KeyError, TypeError, ValueError
        If `values` is not a card.
    """
    return BackboneCard(
        **{**values, "preprocessing": preprocessing_from_dict(values["preprocessing"])}
    )


def preprocessing_from_dict(values: dict[str, Any]) -> Preprocessing:
    """The preprocessing part of a card from plain JSON values."""
    red, green, blue = (float(value) for value in values["mean"])
    spread = tuple(float(value) for value in values["std"])
    return Preprocessing(
        image_size=int(values["image_size"]),
        crop_pct=float(values["crop_pct"]),
        interpolation=str(values["interpolation"]),
        mean=(red, green, blue),
        std=(spread[0], spread[1], spread[2]),
    )


def fingerprint_of(
    architecture: str,
    weights: Iterable[tuple[str, np.ndarray]],
    preprocessing: Preprocessing,
) -> str:
    """Sha256 (hex) over architecture, preprocessing and weights.

    Weights are named as in timm, sorted by name, little-endian float32. The position embedding is
    taken before it is resized (the size is in `preprocessing`): resizing rounds differently on
    different processors, and sites must agree on the last bit.
    """
    digest = hashlib.sha256(b"dermino backbone 1\0")
    header = {"architecture": architecture, "preprocessing": asdict(preprocessing)}
    digest.update(json.dumps(header, sort_keys=True).encode())
    for name, array in sorted(weights, key=lambda item: item[0]):
        digest.update(f"\0{name}\0{list(array.shape)}\0".encode())
        digest.update(np.ascontiguousarray(array, dtype="<f4").data)
    return digest.hexdigest()


def file_sha256(file: Path) -> str:
    """Sha256 (hex) of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class CardCache:
    """Cards seen before, in one small JSON file, so that describing again costs no torch.

    Cards are keyed by the content of the weights (sha256); a file is hashed again only if its
    size, times or inode changed. A damaged or foreign file counts as empty: it only holds what can
    be computed again.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "backbones.json"
        self.state: dict[str, dict[str, Any]] = {"cards": {}, "files": {}, "hub": {}}
        try:
            state = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(state, dict) and state.get("format") == CARD_FORMAT:
            for part, entries in self.state.items():
                found = state.get(part)
                if isinstance(found, dict):
                    entries.update(found)

    def content(self, files: Iterable[Path]) -> str:
        """Sha256 (hex) over the contents of `files`, each read only if it changed."""
        digests: list[str] = []
        for file in files:
            path = file.resolve()
            stat = path.stat()
            seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            known = self.state["files"].get(str(path))
            if not (isinstance(known, list) and len(known) == 2 and known[0] == seen):
                known = [seen, file_sha256(path)]
                self.state["files"][str(path)] = known
            digests.append(str(known[1]))
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def key(self, content: str, architecture: str | None, image_size: int | None) -> str:
        """What a card depends on, as one string."""
        timm = importlib.metadata.version("timm")
        return f"{content} {architecture or '-'} {image_size or '-'} timm {timm}"

    def get(self, key: str) -> BackboneCard | None:
        """The card stored under `key`, if it is there and whole."""
        values = self.state["cards"].get(key)
        if not isinstance(values, dict):
            return None
        try:
            return card_from_dict(values)
        except (KeyError, TypeError, ValueError):
            return None

    def put(self, key: str, card: BackboneCard) -> None:
        """Store a card and write the file.

        Raises
        ------
        DerminoError
            CACHE_UNWRITABLE if the folder cannot be written.
        """
        self.state["cards"][key] = card_to_dict(card)
        text = json.dumps({"format": CARD_FORMAT, **self.state}, indent=1)
        try:
            write_atomically(self.file, text)
        except OSError as error:
            raise DerminoError(
                "CACHE_UNWRITABLE",
                f"The cache folder cannot be written: {error.strerror or error}.",
                where=self.file.parent,
                fix="Free space, correct its permissions, or choose another folder for the cache.",
            ) from error
