"""A folder of prepared images: what lies in it, and how to read it at any place.

- `000000.tar`, `000001.tar`, ...: uncompressed tar files in WebDataset's layout, `KEY.jpg` and
  `KEY.json` side by side (label, split, group, data set, name in the manifest, size in pixels).
- `000000.csv`, ...: for each shard one row per image: where its JPEG begins, its bytes, its SHA-256
  and what its JSON says.
- `000000.json`, ...: for each shard its rows of the plan, size and SHA-256 of both files, and what
  was dropped; written once both are there.
- `shards.json`: all of these in one list, written last.
- `dropped.csv`: the images that are not here, and why.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.image_limits import ImageError
from dermino_core.pretraining.image_list import NameTable

LIST = "shards.json"
FORMAT = 1
COLUMNS = (
    "offset",
    "bytes",
    "sha256",
    "image",
    "dataset",
    "label",
    "split",
    "group",
    "width",
    "height",
)
"""Columns of a shard's table; from `image` on they are the keys of an image's JSON, in order."""


@dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes
    ----------
    name
        `000000`: of the .tar and the .csv.
    first, end
        Its rows of the plan, dropped ones included.
    images
        How many are in it.
    size, sha256
        Of the tar file.
    table_sha256
        Of its table.
    dropped
        Row of the plan and reason of each image left out.
    """

    name: str
    first: int
    end: int
    images: int
    size: int
    sha256: str
    table_sha256: str
    dropped: tuple[tuple[int, str], ...] = ()


class ShardImages:
    """Images of a folder of shards, each read by one `pread`."""

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        places: NDArray[np.int64],
        digests: NDArray[np.uint8],
        names: NameTable,
    ) -> None:
        self._folder, self._files, self._places = folder, tuple(files), places
        self._digests, self._names = digests, names

    def __len__(self) -> int:
        """How many there are."""
        return len(self._places)

    def name(self, index: int) -> str:
        """The shard's file and the name in the manifest it was made from."""
        return f"{self._folder / self._files[self._places[index, 0]]}: {self._names[index]}"

    def read_bytes(self, index: int) -> bytes:
        """The JPEG; ImageError if the shard cannot be read or its bytes have changed."""
        shard, offset, size = self._places[index].tolist()
        file = self._files[shard]
        try:
            handle = os.open(self._folder / file, os.O_RDONLY)
            try:
                data = os.pread(handle, size, offset)
            finally:
                os.close(handle)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ImageError(f"shard {file} cannot be read ({reason})") from error
        if hashlib.sha256(data).digest() != self._digests[index].tobytes():
            raise ImageError(f"shard {file} is damaged at byte {offset}: wrong checksum")
        return data


@dataclass(frozen=True)
class ShardTable:
    """Every image of a folder: columns of equal length.

    `places`: int64 [n, 3], number of the shard, offset and bytes. `digests`: uint8 [n, 32].
    """

    folder: Path
    files: tuple[str, ...]
    places: NDArray[np.int64]
    digests: NDArray[np.uint8]
    images: list[str]
    datasets: list[str]
    labels: list[str | None]
    splits: list[str]

    def select(self, rows: Sequence[int]) -> ShardImages:
        """Some of the images, to be read."""
        return ShardImages(
            self.folder,
            self.files,
            self.places[rows],
            self.digests[rows],
            NameTable(self.images[row] for row in rows),
        )


def open_shards(folder: Path) -> ShardTable:
    """Read the tables of a folder, and see that every shard has its size.

    Raises
    ------
    DerminoError
        DATA_CHANGED naming the file that is missing, incomplete or damaged.
    """
    shards = read_list(folder)
    places: list[tuple[int, int, int]] = []
    digests: list[bytes] = []
    images: list[str] = []
    datasets: list[str] = []
    labels: list[str | None] = []
    splits: list[str] = []
    for number, shard in enumerate(shards):
        check_shard(folder, shard)
        text = (folder / f"{shard.name}.csv").read_text(encoding="utf-8")
        for row in csv.DictReader(io.StringIO(text, newline="")):
            places.append((number, int(row["offset"]), int(row["bytes"])))
            digests.append(bytes.fromhex(row["sha256"]))
            images.append(row["image"])
            datasets.append(row["dataset"])
            labels.append(row["label"] or None)
            splits.append(row["split"])
    return ShardTable(
        folder=folder,
        files=tuple(f"{shard.name}.tar" for shard in shards),
        places=np.array(places, dtype=np.int64).reshape(-1, 3),
        digests=np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32),
        images=images,
        datasets=datasets,
        labels=labels,
        splits=splits,
    )


def read_list(folder: Path) -> list[Shard]:
    """The shards of a finished folder.

    Raises
    ------
    DerminoError
        DATA_CHANGED if it is missing or not readable.
    """
    file = folder / LIST
    try:
        content = json.loads(file.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, this version reads {FORMAT}")
        return [_shard(entry) for entry in content["shards"]]
    except FileNotFoundError as error:
        raise DerminoError(
            "DATA_CHANGED",
            "There are no finished shards in this folder.",
            where=folder,
            fix="Run `dermino data shards` to its end; it goes on where it stopped.",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DerminoError(
            "DATA_CHANGED",
            f"The list of shards cannot be read: {error}.",
            where=file,
            fix="Delete it and run `dermino data shards` again; finished shards are kept.",
        ) from error


def write_list(folder: Path, plan: str, shards: Sequence[Shard]) -> None:
    """Say that a folder is finished.

    Parameters
    ----------
    plan
        Fingerprint of what was asked for.
    """
    content = {"format": FORMAT, "plan": plan, "shards": [asdict(shard) for shard in shards]}
    write_atomically(folder / LIST, json.dumps(content) + "\n")


def read_shard(file: Path) -> Shard:
    """What is noted of one shard; OSError, ValueError, KeyError or TypeError if that is damaged."""
    return _shard(json.loads(file.read_bytes()))


def _shard(entry: dict[str, Any]) -> Shard:
    return Shard(**{**entry, "dropped": tuple((row, text) for row, text in entry["dropped"])})


def check_shard(folder: Path, shard: Shard, *, whole: bool = False) -> None:
    """See that a shard and its table are there.

    Parameters
    ----------
    whole
        Read the tar file and compare its SHA-256; otherwise only its size is compared.

    Raises
    ------
    DerminoError
        DATA_CHANGED naming the file.
    """
    tar, table = folder / f"{shard.name}.tar", folder / f"{shard.name}.csv"
    try:
        size = tar.stat().st_size
        problem, file = "", tar
        if size != shard.size:
            problem = f"has {size:,} bytes instead of {shard.size:,}"
        elif whole and _sha256(tar) != shard.sha256:
            problem = "is damaged: its checksum is wrong"
        elif _sha256(table) != shard.table_sha256:
            problem, file = "is damaged: its checksum is wrong", table
    except OSError as error:
        problem, file = f"cannot be read ({(error.strerror or str(error)).lower()})", tar
        if error.filename is not None:
            file = Path(error.filename)
    if problem:
        raise DerminoError(
            "DATA_CHANGED",
            f"The shard file {file.name} {problem}.",
            where=file,
            fix="Run the same `dermino data shards` again with --verify: it makes this shard anew.",
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
