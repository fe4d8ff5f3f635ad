"""The embedded default: three synthetic hospitals with their site files."""

from __future__ import annotations

from pathlib import Path

import tomli_w

from dermino_core.datasets.synthetic import SITES, write_site
from dermino_core.files import write_atomically


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
