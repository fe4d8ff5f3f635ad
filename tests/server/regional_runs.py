"""What the tests of regions share: kept runs of some of four sites, and forged region files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import cloud_site, hospital
from safetensors.numpy import load_file, save_file
from withdrawing import ridge, run

from dermino_client.hospital import Hospital
from dermino_core.errors import DerminoError
from dermino_server.region_file import read_region

SIZES = {"alpha": 60, "beta": 110, "gamma": 41, "delta": 52}
ALL = sorted(SIZES)
Runs = Callable[..., Path]


def four_sites(folder: Path) -> dict[str, Hospital]:
    return {n: hospital(cloud_site(n, s, i), folder) for i, (n, s) in enumerate(SIZES.items())}


def runs_of(sites: dict[str, Hospital], place: Path) -> Runs:
    """Makes a finished run of some sites, once, and gives its folder: it is not to be changed."""

    def make(*names: str, **changes: Any) -> Path:
        folder = place / "-".join([*names, *(f"{k}={v}" for k, v in changes.items())])
        if not folder.exists():
            plan = ridge(sites=list(names), min_sites=len(names), cross_site=False, **changes)
            run({name: sites[name] for name in names}, plan, folder)
        return folder

    return make


def refused(code: str, words: str, action: Callable[[], object]) -> DerminoError:
    with pytest.raises(DerminoError) as caught:
        action()
    assert caught.value.code == code, caught.value
    assert words in str(caught.value)
    assert caught.value.fix
    assert caught.value.where
    return caught.value


def forged(
    file: Path,
    target: Path,
    change: Callable[[dict[str, Any]], object] = lambda _: None,
    arrays: Callable[[dict[str, np.ndarray]], object] = lambda _: None,
) -> Path:
    """A whole safetensors file with another JSON or other parts."""
    found = load_file(file)
    info = read_region(file).info.model_dump(mode="json")
    change(info)
    arrays(found)
    save_file(found, target, {"dermino.region": json.dumps(info)})
    return target
