"""A public data set of several hospitals, ready for `dermino simulate --sites`: a file for each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from dermino_core.datasets import DatasetInfo
from dermino_core.datasets.originals import read_lines
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.splits import torn_units

TABLES = "tables"
"""Folder of the manifests, beside the site files."""


@dataclass(frozen=True)
class CentreSite:
    """One site file that was written.

    `labels` counts the images of each label; `split` those of each side of the published split,
    empty without one; `torn` is how many lesions that split has on both sides.
    """

    name: str
    file: Path
    images: int
    labels: dict[str, int]
    split: dict[str, int]
    torn: int


def write_dataset_sites(
    info: DatasetInfo,
    raw: Path,
    out: Path,
    *,
    options: Mapping[str, object] | None = None,
    backbone: str = "demo",
    train_share: float | None = None,
    seed: int = 0,
) -> list[CentreSite]:
    """Write `out/CENTRE.toml` for each centre of a data set, and its table in `out/tables/`.

    Parameters
    ----------
    info
        A data set with centres.
    raw
        Folder of its unpacked download. Images stay there; the site files name it.
    options
        Of the data set's reader.
    backbone
        As a site file names it; a path is made absolute.
    train_share, seed
        Of each site's own split, stratified and by lesion, where the tables have none; the
        protocol's share by default.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if the data set is not divided into centres; `OUTPUT_EXISTS` if a site file
        is there already; and what the reader raises.
    """
    if not info.centres:
        raise DerminoError(
            "CONFIG_INVALID",
            f"{info.name} is one site: it is not divided into centres.",
            fix=f"Use: dermino data prepare {info.name} RAW --out FOLDER",
        )
    files = {centre: out / f"{centre}.toml" for centre in info.centres}
    for file in files.values():
        if file.exists():
            raise DerminoError(
                "OUTPUT_EXISTS",
                "There is a site file of this name already; it is not overwritten.",
                where=file,
                fix="Choose another --out, or move the file away.",
            )
    info.prepare(raw, out / TABLES, **dict(options or {}))
    written: list[CentreSite] = []
    for centre, file in files.items():
        found = _describe(centre, file, out / TABLES / f"{centre}.csv")
        own = {"train_share": train_share or info.train_share, "split_seed": seed}
        content = {
            "site": {"name": centre, "task": info.name, "classes": list(info.classes)},
            "data": {
                "manifest": f"{TABLES}/{centre}.csv",
                "images": str(raw.absolute()),
                **({} if found.split else own),
            },
            "labels": dict(info.label_map),
            "backbone": {"name": _absolute(backbone)},
        }
        write_atomically(file, f"# The centre {centre} of {info.title}.\n{tomli_w.dumps(content)}")
        written.append(found)
    return written


def _describe(centre: str, file: Path, table: Path) -> CentreSite:
    lines = read_lines(table, ("image", "label"))
    split = [line["split"] for line in lines if line["split"]]
    lesions = [line["lesion"] or line["image"] for line in lines]
    return CentreSite(
        name=centre,
        file=file,
        images=len(lines),
        labels=dict(Counter(line["label"] for line in lines).most_common()),
        split=dict(Counter(split)),
        torn=len(torn_units(lesions, split)) if split else 0,
    )


def _absolute(backbone: str) -> str:
    """A file, or a backbone folder, is one from here and not from the site file."""
    architecture, at, file = backbone.rpartition("@")
    path = os.path.abspath(os.path.expanduser(file))
    there = os.path.isfile(path) or os.path.isfile(os.path.join(path, "model.json"))
    return f"{architecture}{at}{path}" if there else backbone
