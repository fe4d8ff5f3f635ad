"""Prepared sites without images: features drawn from two overlapping clouds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dermino_client.hospital import Hospital
from dermino_client.policy import PolicySection
from dermino_client.prepare import PreparedSite
from dermino_core import __version__
from dermino_core.backbone_card import BackboneCard, Preprocessing
from dermino_core.results import BackboneInfo
from dermino_server.plan import RunPlan

CARD = BackboneCard(
    name="clouds",
    architecture="none",
    width=8,
    patch_size=1,
    preprocessing=Preprocessing(8, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    fingerprint="f" * 64,
    pretrained=True,
    source="test",
)


def hospital(site: PreparedSite, folder: Path, **policy: Any) -> Hospital:
    """A site with a folder of its own, ready to answer."""
    return Hospital(site.name, PolicySection(**policy), folder / site.name, lambda: site)


def cloud_site(name: str, n: int, seed: int) -> PreparedSite:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    features = (rng.normal(size=(n, 8)) + 0.8 * labels[:, None]).astype(np.float32)
    return PreparedSite(
        name=name,
        task="malignancy",
        classes=["benign", "malignant"],
        features=features,
        labels=labels.astype(np.int64),
        split=np.array(["train", "test"])[np.arange(n) % 2],
        groups=[str(i) for i in range(n)],
        images_total=n + 1,
        left_out={},
        unreadable=1,
        card=CARD,
        precision="fp32",
    )


@pytest.fixture
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hospital]:
    sizes = {"alpha": 60, "beta": 110, "gamma": 41}
    folder = tmp_path_factory.mktemp("hospitals")
    return {
        name: hospital(cloud_site(name, n, i), folder) for i, (name, n) in enumerate(sizes.items())
    }


@pytest.fixture
def make_plan() -> Callable[..., RunPlan]:
    def make(**changes: Any) -> RunPlan:
        values: dict[str, Any] = {
            "title": "test",
            "task": "malignancy",
            "classes": ["benign", "malignant"],
            "sites": ["alpha", "beta", "gamma"],
            "min_sites": 3,
            "engine": "inprocess",
            "replicates": 50,
            "wait_seconds": 0.5,
            "deadline_seconds": 2.0,
            "backbone": BackboneInfo.of(CARD, "fp32"),
            "backbone_spec": "clouds",
            "created": "2026-01-01T00:00:00+00:00",
            "dermino_version": __version__,
        }
        return RunPlan(**(values | changes))

    return make
