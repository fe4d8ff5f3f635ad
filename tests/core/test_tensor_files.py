"""Checkpoints of others: what is read, and what is refused without running it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dermino_core.errors import DerminoError
from dermino_core.tensor_files import read_tensors

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[k], WEIGHTS[k]) for k in found)


@pytest.mark.parametrize(
    "stored",
    [
        WEIGHTS,
        {"model": WEIGHTS, "epoch": 499, "args": argparse.Namespace(lr=1e-3, betas=[0.9, 0.98])},
        {"state_dict": {"model": WEIGHTS}, "optimizer": {"state": {0: torch.ones(3)}}},
        {"teacher": WEIGHTS},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_beside_settings_and_optimiser(
    tmp_path: Path, stored: dict[str, object], zipped: bool
) -> None:
    file = tmp_path / "checkpoint.pth"
    torch.save(stored, file, _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(file))


def test_the_content_decides_the_format(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "weights.pt")
    assert same(read_tensors(tmp_path / "weights.pt"))


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, zipped: bool) -> None:
    file, sprung = tmp_path / "trap.pth", tmp_path / "sprung"
    torch.save({"model": WEIGHTS, "x": Trap(sprung)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DerminoError, match=r"besides tensors \(posix.mkdir\)") as caught:
        read_tensors(file)
    assert caught.value.code == "BACKBONE_UNAVAILABLE"
    assert not sprung.exists()
    torch.load(file, weights_only=False)
    assert sprung.exists()  # the trap works


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 cut off",
        b"\x80\x02}q\x00",
        b"no checkpoint at all, only words",
        b"\x05\x00\x00\x00\x00\x00\x00\x00{bad}",
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "damaged.pth"
    file.write_bytes(content)
    with pytest.raises(DerminoError, match="cannot be read") as caught:
        read_tensors(file)
    assert caught.value.code == "BACKBONE_UNAVAILABLE"
    assert len(caught.value.what) < 150


def test_a_file_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(DerminoError, match="holds no tensors"):
        read_tensors(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DerminoError, match="holds no tensors"):
        read_tensors(tmp_path / "list.pth")
