"""A region file is somebody else's: whatever is wrong with it is told, and nothing is made."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from regional_runs import forged, four_sites, refused, runs_of
from safetensors.numpy import save

from dermino_core.errors import DerminoError
from dermino_server.region_file import read_region
from dermino_server.regions import join_model, sum_run
from dermino_strategies.fedavg import FedAvgSettings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("made")
    run = runs_of(four_sites(folder / "hospitals"), folder)("alpha", "beta")
    return sum_run(run, "north", folder / "north.region").file.read_bytes()


@pytest.fixture
def north(made: bytes, tmp_path: Path) -> Path:
    (tmp_path / "north.region").write_bytes(made)
    return tmp_path / "north.region"


def spoil(name: str, value: float, place: int = 0) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name][place].flat[0] = value

    return change


def scaled(name: str, factor: float) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda arrays: arrays.update({name: arrays[name] * factor})


ARRAYS: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "nan": (spoil("total.sums", np.nan), "NaN"),
    "infinity": (spoil("total.sums", np.inf, 2), "NaN"),
    "huge": (spoil("total.products", 1e300), "no sum of 2 summands"),
    "off the grid": (spoil("total.sums", 0.1), "no sum of 2 summands"),
    "missing": (lambda a: a.pop("noise"), "not ['examples'"),
    "superfluous": (lambda a: a.update(more=np.zeros(3)), "more"),
    "other shape": (lambda a: a.update({"total.sums": np.zeros((3, 2, 9))}), "total.sums"),
    "other type": (lambda a: a.update({"total.sums": np.zeros((3, 2, 8), "f4")}), "float32"),
    "fewer images": (spoil("examples", 84.0), "said to have 85 images, and its sum has 84"),
    "other counts": (spoil("total.counts", 1.0), "images and trained on 85"),
    "negative counts": (scaled("total.counts", -1.0), "whole numbers"),
    "negative squares": (scaled("total.products", -1.0), "negative squares"),
    "folds": (scaled("fold.counts", 4.0), "folds do not add up"),
    "noise": (spoil("noise", 2.0**20), "noise of a private run"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_numbers_that_are_no_sum_are_refused(north: Path, tmp_path: Path, kind: str) -> None:
    change, words = ARRAYS[kind]
    file = forged(north, tmp_path / "forged.region", arrays=change)
    error = refused("CHECKPOINT_INVALID", words, lambda: join_model([file], tmp_path / "both"))
    assert str(file) in str(error)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["forged.region", "north.region"]


def setting(*path: str, to: object) -> Callable[[dict[str, Any]], None]:
    def change(info: dict[str, Any]) -> None:
        for key in path[:-1]:
            info = info[key]
        info[path[-1]] = to

    return change


FEDAVG = FedAvgSettings().model_dump(mode="json")
INFOS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "version": (setting("format", to=2), "format 2, and this version of dermino reads 1"),
    "unknown key": (setting("extra", to=1), "extra"),
    "no digests": (setting("digests", to={}), "other sites than"),
    "no sites": (setting("images", to={}), "images"),
    "counts": (setting("images", "alpha", to=31), "said to have 86 images"),
    "no images": (setting("images", "alpha", to=0), "alpha"),
    "one more site": (lambda i: i["images"].update(zeta=1), "other sites than"),
    "a path": (lambda i: i["digests"].update({"../x": "0" * 64}), "cannot name a site"),
    "no digest": (setting("digests", "alpha", to="0"), "digests.alpha"),
    "region": (setting("region", to="a\x1b[2J"), "cannot name a region"),
    "task": (setting("study", "task", to="a\x1b[2J"), "cannot be printed"),
    "backbone": (setting("backbone", "fingerprint", to="0" * 64), "two backbones"),
    "width": (setting("backbone", "width", to=9), "two backbones"),
    "name": (setting("backbone", "name", to="\x1b"), "printable"),
    "strategy": (setting("study", "strategy", to="fedx"), "no strategy 'fedx'"),
    "no sums kept": (
        lambda i: i["study"].update(strategy="fedavg", settings=FEDAVG),
        "sums of fedavg cannot be added up",
    ),
    "setting": (setting("study", "settings", "folds", to=0), "folds"),
    "not all settings": (lambda i: i["study"]["settings"].pop("folds"), "all settings"),
    "type of setting": (setting("study", "settings", "folds", to=5.0), "all settings"),
    "other folds": (setting("study", "settings", "folds", to=4), "fold"),
    "seed": (setting("study", "seed", to=-1), "seed"),
    "infinite": (setting("study", "rounds", to=float("inf")), "rounds"),
    "many classes": (setting("study", "classes", to=["a"] * 900), "shape"),
}


@pytest.mark.parametrize("kind", INFOS)
def test_a_header_that_lies_is_refused(north: Path, tmp_path: Path, kind: str) -> None:
    change, words = INFOS[kind]
    file = forged(north, tmp_path / "forged.region", change)
    refused("CHECKPOINT_INVALID", words, lambda: join_model([file], tmp_path / "both"))
    assert not (tmp_path / "both").exists()


def test_a_width_that_no_memory_holds_is_refused(north: Path, tmp_path: Path) -> None:
    def wide(info: dict[str, Any]) -> None:
        info["study"] |= {"width": 65536, "classes": ["a"] * 1000}
        info["study"]["settings"] |= {"class_weight": "balanced", "folds": 20}
        info["backbone"]["width"] = 65536

    file = forged(north, tmp_path / "forged.region", wide)
    refused("CHECKPOINT_INVALID", "", lambda: join_model([file], tmp_path / "both"))


def bad_contents(good: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "half", good[: len(good) // 2]
    yield "longer", good + b"\0"
    yield "text", b"hello, this is no safetensors file"
    yield "long header", struct.pack("<Q", 2**63) + good[8:]
    yield "no metadata", save({"x": np.zeros(3)})
    yield "foreign", save({"x": np.zeros(3)}, {"format": "pt"})
    yield "no JSON", save({"x": np.zeros(3)}, {"dermino.region": "{"})
    yield "a list", save({"x": np.zeros(3)}, {"dermino.region": "[1]"})
    yield "deep", save({"x": np.zeros(3)}, {"dermino.region": "[" * 100_000})
    yield "bytes", good.replace(b"malignancy", b"\xff\xfealignancy")


def test_damaged_and_foreign_files_are_refused(north: Path, tmp_path: Path) -> None:
    for kind, content in bad_contents(north.read_bytes()):
        file = tmp_path / f"{kind.replace(' ', '-')}.region"
        file.write_bytes(content)
        refused("CHECKPOINT_INVALID", "cannot be used", lambda f=file: read_region(f))
    for file in (tmp_path / "nothing", tmp_path):
        refused("CONFIG_NOT_FOUND", "no such region file", lambda f=file: read_region(f))


def test_every_flipped_byte_is_found_or_harmless(north: Path, tmp_path: Path) -> None:
    """Whatever is read is another believable file, and no other error gets out."""
    good = north.read_bytes()
    random = np.random.default_rng(0)
    header = 8 + int.from_bytes(good[:8], "little")
    file = tmp_path / "flipped.region"
    outcomes = set()
    for place in (*random.integers(0, header, 60), *random.integers(header, len(good), 20)):
        content = bytearray(good)
        content[place] ^= 1 << int(random.integers(8))
        file.write_bytes(bytes(content))
        try:
            read_region(file)
            outcomes.add("read")
        except DerminoError as error:
            outcomes.add(error.code)
    assert outcomes == {"CHECKPOINT_INVALID", "read"}
