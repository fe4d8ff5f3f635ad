"""The hospitals that the benchmarks run on: real ones where there are any, else drawn ones."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from dermino_client.prepare import select_records, split_selection
from dermino_client.site import Site, read_sites
from dermino_core.datasets.synthetic import SITES, write_site
from dermino_core.manifest import Record, read_manifest, write_manifest
from tests.benchmarks.machine import REPOSITORY

REAL_SITES: dict[str, dict[str, str]] = {
    "ph2": {"label": "binary"},
    "isic2017": {"label": "binary"},
    "ham10000": {"label": "binary", "group": "lesion_id"},
}
"""Folder under `data/` -> our field -> the column of its labels.csv."""


@dataclass(frozen=True)
class Workload:
    """A folder of site files, the backbone, and how many images there are in each half."""

    name: str
    sites: Path
    backbone: str
    train: int
    test: int

    @property
    def images(self) -> int:
        """Images of all sites together."""
        return self.train + self.test


def shared_folder() -> Path | None:
    """Where real images and weights are (`$DERMINO_SHARED`, default `../shared`), if they are."""
    folder = Path(os.environ.get("DERMINO_SHARED", REPOSITORY.parent / "shared")).resolve()
    weights = folder / "weights" / "dinov2_vits14.safetensors"
    have_sites = all((folder / "data" / name / "labels.csv").is_file() for name in REAL_SITES)
    return folder if have_sites and weights.is_file() else None


def real_workload(shared: Path, work: Path, *, per_site: int | None = None) -> Workload:
    """PH2, ISIC 2017 and HAM10000 with DINOv2 ViT-S/14.

    `per_site` keeps only so many images of each site, spread evenly over its table.
    """
    folder = work / f"real-{per_site or 'all'}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in REAL_SITES.items():
        root = shared / "data" / name
        manifest = folder / f"{name}.csv"
        records = read_manifest(root / "labels.csv", root=root, columns=columns).records
        write_manifest(manifest, _thinned(records, per_site))
        _write_site_file(
            folder, name, manifest, root, {"benign": "benign", "malignant": "malignant"}
        )
    backbone = shared / "weights" / "dinov2_vits14.safetensors"
    return _counted("ViT-S/14 DINOv2, real sites", folder, str(backbone))


def drawn_workload(work: Path, backbone: str, *, per_site: int | None = None) -> Workload:
    """The three synthetic hospitals, with `per_site` images each or their own numbers."""
    folder = work / f"drawn-{per_site or 'all'}"
    folder.mkdir(parents=True, exist_ok=True)
    for site in SITES:
        manifest = write_site(folder / "data" / site.name, site=site.name, images=per_site)
        _write_site_file(folder, site.name, manifest, manifest.parent, dict(site.label_map))
    return _counted(f"{backbone}, synthetic sites", folder, backbone)


def _thinned(records: list[Record], keep: int | None) -> list[Record]:
    if keep is None or keep >= len(records):
        return records
    return [records[i * len(records) // keep] for i in range(keep)]


def _write_site_file(
    folder: Path, name: str, manifest: Path, images: Path, labels: dict[str, str]
) -> None:
    content = {
        "site": {"name": name},
        "data": {"manifest": str(manifest), "images": str(images)},
        "labels": labels,
    }
    (folder / f"{name}.toml").write_text(tomli_w.dumps(content), encoding="utf-8")


def _counted(name: str, folder: Path, backbone: str) -> Workload:
    halves = [half for site in read_sites(folder) for half in read_images(site).halves]
    train = halves.count("train")
    return Workload(name, folder, backbone, train, len(halves) - train)


@dataclass(frozen=True)
class Images:
    """A site's images as dermino selects and splits them: one path, class and half each."""

    paths: list[Path]
    labels: list[int]
    halves: list[str]


def read_images(site: Site) -> Images:
    """The selection and the split of :func:`dermino_client.prepare.prepare_site`, unembedded."""
    chosen = select_records(site)
    paths = [chosen.manifest.path_of(record) for record in chosen.records]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    _, halves = split_selection(site, chosen, digests)
    return Images(paths, chosen.labels, halves)
