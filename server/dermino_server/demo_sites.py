"""The embedded default: three synthetic hospitals with their site files."""

from __future__ import annotations

from pathlib import Path

import tomli_w

from dermino_core.datasets.synthetic import SITES, write_site
from dermino_core.files import write_atomically

MASKED_IMAGES = {"synthetic-mednode": 60, "synthetic-ph2": 80, "synthetic-fitzpatrick": 140}
"""Images of each hospital where masks are drawn, too: enough to learn an outline from."""


def write_masked_sites(folder: Path) -> Path:
    """As :func:`write_demo_sites`: fewer images, each with its lesion's mask."""
    for site in SITES:
        manifest = write_site(
            folder / site.name, site=site.name, images=MASKED_IMAGES[site.name], masks=True
        )
        content = {
            "site": {"name": site.name, "task": site.task},
            "data": {"manifest": str(manifest), "images": str(manifest.parent)},
            "labels": dict(site.label_map),
            "backbone": {"name": "demo"},
            "segmentation": {"image_size": 128, "heads": ["linear", "upernet"]},
        }
        write_atomically(folder / "sites" / f"{site.name}.toml", tomli_w.dumps(content))
    return folder / "sites"


def write_demo_sites(folder: Path) -> Path:
    """Draw the synthetic hospitals below `folder`, once, and return the folder of site files."""
    for site in SITES:
        manifest = write_site(folder / site.name, site=site.name)
        content = {
            "site": {"name": site.name, "task": site.task},
            "data": {"manifest": str(manifest), "images": str(manifest.parent)},
            "labels": dict(site.label_map),
            "backbone": {"name": "demo"},
        }
        write_atomically(folder / "sites" / f"{site.name}.toml", tomli_w.dumps(content))
    return folder / "sites"
