"""A hospital on a small scale: two dozen synthetic pictures, their table and a site file."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from dermino_client.site import Site, read_site
from dermino_core.datasets.synthetic import write_site

IMAGES = 24


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn once; tests work on copies."""
    folder = tmp_path_factory.mktemp("pictures")
    write_site(folder, site="synthetic-mednode", images=IMAGES)
    return folder


@pytest.fixture(scope="session")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature cache that all tests share; features go by content, so copies hit it too."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def clinic(tmp_path: Path, pictures: Path) -> Path:
    """A folder with `images/` and `manifest.csv`, older than the clock's tick."""
    folder = tmp_path / "clinic"
    shutil.copytree(pictures, folder)
    past = time.time() - 3600
    for file in folder.rglob("*.*"):
        os.utime(file, (past, past))
    return folder


def site_content(clinic: Path, cache: Path) -> dict[str, Any]:
    return {
        "site": {"name": "clinic", "task": "malignancy"},
        "data": {"manifest": str(clinic / "manifest.csv"), "min_images": 4},
        "labels": {"melanoma": "malignant", "naevus": "benign"},
        "backbone": {"name": "demo", "precision": "fp32", "device": "cpu"},
        "node": {"cache": str(cache)},
    }


@pytest.fixture
def make_site(clinic: Path, warm_cache: Path) -> Callable[..., Site]:
    """`make_site(data={"min_images": 30})` writes `clinic.toml` and reads it."""

    def make(**changes: Any) -> Site:
        content = site_content(clinic, warm_cache)
        for section, values in changes.items():
            content[section] = content.get(section, {}) | values
        file = clinic.parent / "sites" / "clinic.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(tomli_w.dumps(content))
        return read_site(file)

    return make
