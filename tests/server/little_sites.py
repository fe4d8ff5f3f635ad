"""Small synthetic hospitals on disk: images, manifests and site files that a simulation reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tomli_w

from dermino_core.datasets.synthetic import find_site, write_site


def write_little_sites(folder: Path, sizes: Mapping[str, int]) -> Path:
    """Draw so many images of each synthetic site; the folder of their site files."""
    sites = folder / "sites"
    sites.mkdir()
    for name, images in sizes.items():
        manifest = write_site(folder / "data" / name, site=name, images=images)
        content = {
            "site": {"name": name},
            "data": {"manifest": str(manifest), "min_images": 4},
            "labels": dict(find_site(name).label_map),
            "backbone": {"name": "demo", "precision": "fp32", "device": "cpu"},
            "node": {"cache": str(folder / "cache")},
        }
        (sites / f"{name}.toml").write_text(tomli_w.dumps(content))
    return sites
