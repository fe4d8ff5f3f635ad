"""Small folders laid out like the downloads of public data sets, and what readers make of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from dermino_core.manifest import Record, read_manifest
from dermino_core.manifest_checks import check_manifest


def picture(file: Path) -> None:
    """A small picture that no other name has."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (96, 12), (200, 160, 140))
    ImageDraw.Draw(image).text((1, 0), file.stem[-14:], fill=(90, 40, 30))
    image.save(file)


def table(file: Path, rows: Iterable[Sequence[object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def records_of(manifest: Path, raw: Path) -> list[Record]:
    """The manifest as every command reads it; its images are there and can be decoded."""
    read = read_manifest(manifest, root=raw)
    report = check_manifest(read, progress=False)
    assert report.ok, [str(problem) for problem in report.problems]
    assert not read.notes
    return read.records
