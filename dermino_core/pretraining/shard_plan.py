"""Which images go into shards, in which order, and what goes along with each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dermino_core.errors import DerminoError
from dermino_core.manifest import Manifest, Record, read_manifest, row_number


@dataclass(frozen=True)
class Row:
    """One image of the plan.

    Attributes
    ----------
    number
        Its place in the plan, and its key in the shard.
    dataset
        FOLDER/STEM of the manifest.
    line
        Row of the manifest, as a spreadsheet counts.
    """

    number: int
    manifest: Manifest
    dataset: str
    record: Record
    line: int


def plan_rows(
    manifests: Sequence[Path], images: Path | None, columns: Mapping[str, str] | None
) -> list[Row]:
    """Every row of some manifests, in order.

    Parameters
    ----------
    manifests, images, columns
        Tables, and for all of them what :func:`~dermino_core.manifest.read_manifest` takes.

    Raises
    ------
    DerminoError
        DATA_TOO_FEW if there is no row; as `read_manifest`.
    """
    short = [f"{file.resolve().parent.name}/{file.stem}" for file in manifests]
    rows: list[Row] = []
    for file, name in zip(manifests, short, strict=True):
        manifest = read_manifest(file, root=images, columns=columns)
        dataset = name if short.count(name) == 1 else str(file)
        for index, record in enumerate(manifest.records):
            rows.append(Row(len(rows), manifest, dataset, record, row_number(index)))
    if not rows:
        raise DerminoError(
            "DATA_TOO_FEW",
            "The tables name no image.",
            where=", ".join(map(str, manifests)) or None,
            fix="Give tables with a row for each image.",
        )
    return rows


def fingerprint(rows: Sequence[Row], *settings: int) -> str:
    """Of everything that decides the shards, except the images' own bytes."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for row in rows:
        digest.update(json.dumps(about(row)).encode())
    return digest.hexdigest()


def about(row: Row) -> dict[str, str | None]:
    """What goes along with an image."""
    record = row.record
    return {
        "image": record.image,
        "dataset": row.dataset,
        "label": record.label,
        "split": record.split,
        "group": record.group,
    }
