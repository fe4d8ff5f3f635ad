"""What the tests of withdrawal and late joining share: runs of real apps in one process."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CARD, cloud_site, hospital
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load_file

from dermino_client.app import make_client_app
from dermino_client.hospital import Hospital
from dermino_core.results import BackboneInfo, Results
from dermino_server.extend import begin_extension, plan_extension
from dermino_server.inprocess import InProcessGrid
from dermino_server.kept_run import read_kept_run
from dermino_server.plan import RunPlan
from dermino_server.receipt_key import Signer
from dermino_server.rounds import run_rounds
from dermino_strategies.base import SiteData
from dermino_strategies.ridge import Ridge

SIGNER = Signer(Ed25519PrivateKey.generate(), None, Path("receipt.key"))
BACKBONE = BackboneInfo.of(CARD, "fp32")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hospital]:
    """As for the other tests of rounds, but the same for all tests of a file."""
    folder, sizes = tmp_path_factory.mktemp("hospitals"), {"alpha": 60, "beta": 110, "gamma": 41}
    return {n: hospital(cloud_site(n, s, i), folder) for i, (n, s) in enumerate(sizes.items())}


@pytest.fixture(scope="module")
def finished(sites: dict[str, Hospital], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of them, for all tests of a file; read only."""
    folder = tmp_path_factory.mktemp("finished") / "first"
    run(sites, ridge(), folder)
    return folder


@pytest.fixture
def first(finished: Path, tmp_path: Path) -> Path:
    """A finished run of alpha, beta and gamma."""
    return shutil.copytree(finished, tmp_path / "first")


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def run(sites: Mapping[str, Hospital], plan: RunPlan, folder: Path, **options: Any) -> Results:
    clients = {name: make_client_app(lambda _, s=site: s) for name, site in sites.items()}
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run.json").exists():
        plan.write(folder)
    return run_rounds(InProcessGrid(clients), plan, folder, **options)


def join(
    base: Path, sites: Mapping[str, Hospital], new: set[str], folder: Path, **changes: Any
) -> Results:
    kept = read_kept_run(base)
    plan = plan_extension(kept, new, BACKBONE, min_sites=1, engine="inprocess", **changes)
    begin_extension(kept, plan, folder)
    return run(sites, plan, folder)


def ridge_of(sites: Mapping[str, Hospital]) -> dict[str, np.ndarray]:
    """The method by hand, on exactly these sites."""
    strategy = Ridge()
    start = strategy.initial_arrays(2, 8, 0)
    updates = {}
    for name, site in sites.items():
        x, y, groups = site.prepared.half("train")
        data = SiteData(name, x, y, 2, groups=tuple(groups))
        updates[name] = strategy.site_update(data, start, 1, 0)
    return strategy.head(strategy.aggregate(start, updates)).arrays()


def assert_same_model(folder: Path, expected: Mapping[str, np.ndarray]) -> None:
    found = load_file(folder / "model" / "model.safetensors")
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def model_bytes(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def without(sites: Mapping[str, Hospital], *names: str) -> dict[str, Hospital]:
    return {name: site for name, site in sites.items() if name not in names}


def ridge(**changes: Any) -> RunPlan:
    values: dict[str, Any] = {
        "title": "malignancy: alpha, beta, gamma",
        "task": "malignancy",
        "classes": ["benign", "malignant"],
        "strategy": "ridge",
        "rounds": 1,
        "replicates": 2,
        "sites": ["alpha", "beta", "gamma"],
        "min_sites": 3,
        "wait_seconds": 0.5,
        "deadline_seconds": 2.0,
        "engine": "inprocess",
        "backbone": BACKBONE,
        "backbone_spec": "clouds",
        "created": "2026-01-01T00:00:00+00:00",
        "dermino_version": "0",
    }
    return RunPlan(**(values | changes))
