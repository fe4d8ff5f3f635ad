"""A site under a method that tunes the backbone: its images, and its test half seen anew."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from dermino_client.prepare import PreparedSite
from dermino_core.errors import DerminoError
from dermino_core.features import extract_features
from dermino_strategies.base import Arrays, SiteImages, Tuning

FOLDER = Path("tuning") / "backbones"
KEPT = 2
"""Tuned backbones that stay in a cache folder; they can be made again."""


def site_images(site: PreparedSite, split: str) -> SiteImages:
    """The images of the half `train` or `test`, in the order of `site.half`.

    Raises
    ------
    DerminoError
        `DATA_CHANGED` if the site was prepared by a version that did not note them.
    """
    if not site.paths or site.cache is None:
        raise DerminoError(
            "DATA_CHANGED",
            "The site was prepared without noting where its images are, which tuning a backbone "
            "needs.",
            fix=f"Run `dermino-client check --site {site.name}`, then start the client again.",
        )
    paths = tuple(p for p, of in zip(site.paths, site.split, strict=True) if of == split)
    return SiteImages(paths, site.backbone_spec, site.cache, site.precision, site.device)


def tuned_view(site: PreparedSite, strategy: Tuning, arrays: Arrays) -> PreparedSite:
    """The site with the test half embedded by the backbone that the arrays stand for.

    The training half keeps the features it had. The tuned backbone lies in the site's cache, and
    what it makes of an image is kept there as for any other backbone.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if the backbone cannot be tuned so, and what embedding raises.
    """
    images = site_images(site, "test")
    word = hashlib.sha256(f"{site.backbone_fingerprint} {strategy.name}".encode())
    for name in sorted(arrays):
        word.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    folder = images.cache / FOLDER / word.hexdigest()[:32]
    if not (folder / "model.json").is_file():
        _make_room(folder.parent)
        strategy.write_backbone(folder, images.backbone, arrays)
    return seen_by(site, str(folder))


def seen_by(site: PreparedSite, backbone: str) -> PreparedSite:
    """The site with the test half embedded by another backbone of the same width.

    Raises
    ------
    DerminoError
        `IMAGE_UNREADABLE` if an image that had features cannot be read any more, and what
        embedding raises.
    """
    images = site_images(site, "test")
    table = extract_features(
        images.paths,
        backbone,
        cache=images.cache,
        precision=images.precision,
        device=images.device,
        title=f"{site.name}, tuned",
    )
    if table.unreadable:
        first = table.unreadable[0]
        raise DerminoError(
            "IMAGE_UNREADABLE",
            f"{len(table.unreadable)} test images cannot be read any more: {first.reason}.",
            where=images.paths[first.row],
            fix=f"Restore them, or run `dermino-client check --site {site.name}`.",
        )
    features = np.array(site.features)
    features[site.split == "test"] = table.vectors
    return replace(site, features=features)


def _make_room(folder: Path) -> None:
    """Delete all but the newest tuned backbones."""
    found = [path for path in folder.glob("*") if path.is_dir()]
    for old in sorted(found, key=lambda path: path.stat().st_mtime)[: -(KEPT - 1) or None]:
        shutil.rmtree(old, ignore_errors=True)
