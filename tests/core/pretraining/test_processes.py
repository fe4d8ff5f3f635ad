"""Two real processes under torchrun: replicated and sharded, and a change of their number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from dermino_core.datasets.synthetic import write_site
from dermino_core.pretraining.tracking import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("images"), site="synthetic-ph2", images=32)


def write_config(folder: Path, images: Path, batch: int, **run: Any) -> Path:
    """Nothing in it depends on which process an image lands in, but for crops and masks."""
    content: dict[str, Any] = {
        "model": {
            "architecture": "test_vit",
            "start": "random",
            "export_size": 64,
            "drop_path": 0.0,
        },
        "heads": {"prototypes": 32, "hidden": 32, "bottleneck": 16},
        "crops": {"global_size": 64, "local_size": 32, "local_count": 1},
        "data": {
            "image_side": 64,
            "workers": 0,
            "sources": [{"name": "ph2", "manifest": str(images)}],
        },
        "run": {
            "steps": 6,
            "batch_size": batch,
            "precision": "fp32",
            "device": "cpu",
            "checkpoint_every": 0.5,
            "keep_checkpoints": 2,
            **run,
        },
        "monitor": {"log_every": 1, "trackers": []},
    }
    file = folder / f"pretrain-{batch}-{run.get('sharding', 'ddp')}.toml"
    file.write_text(tomli_w.dumps(content), encoding="utf-8")
    return file


def torchrun(processes: int, config: Path, out: Path, *more: str) -> str:
    module = ["-m", "dermino_core.pretraining", str(config), "--out", str(out), *more]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        module = [*launcher, "--nproc-per-node", str(processes), *module]
    done = subprocess.run(
        [sys.executable, *module],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == kind]


def test_sharded_and_replicated_training_are_the_same(images: Path, tmp_path: Path) -> None:
    for sharding in ("ddp", "fsdp"):
        config = write_config(tmp_path, images, 4, sharding=sharding)
        torchrun(2, config, tmp_path / sharding)
    losses = [[r["loss"] for r in records(tmp_path / s, "step")] for s in ("ddp", "fsdp")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    one, other = weights(tmp_path / "ddp"), weights(tmp_path / "fsdp")
    for name in one:
        if name.endswith("qkv.bias"):
            continue  # a key's bias has a gradient of zero, and Adam makes steps of its rounding
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_resume_bit_for_bit(images: Path, tmp_path: Path, sharding: str) -> None:
    config = write_config(tmp_path, images, 4, sharding=sharding)
    torchrun(2, config, tmp_path / "run")
    whole = weights(tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("images-*.pt"))
    assert [file.name for file in checkpoints] == [
        "images-000000000024.pt",
        "images-000000000048.pt",
    ]
    checkpoints[-1].unlink()
    torchrun(2, config, tmp_path / "run", "--resume")
    again = weights(tmp_path / "run")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(
    ("before", "after", "sharding"),
    [(2, 1, "fsdp"), pytest.param(1, 2, "fsdp", marks=pytest.mark.long)],
)
def test_another_number_of_processes_goes_on_from_the_same_images(
    images: Path, tmp_path: Path, before: int, after: int, sharding: str
) -> None:
    config = write_config(tmp_path, images, 8 // before, sharding=sharding, steps=12)
    torchrun(before, config, tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("images-*.pt"))
    assert [file.stem for file in checkpoints] == ["images-000000000048", "images-000000000096"]
    checkpoints[-1].unlink()
    said = torchrun(after, config, tmp_path / "run", "--resume")
    assert f"{before} processes before, {after} now" in said
    steps = records(tmp_path / "run", "step")
    per_step = after * 8 // before
    assert steps[-1]["images"] == 96
    assert [step["step"] for step in steps[-6 * 8 // per_step :]] == [
        *range(1 + 48 // per_step, 1 + 96 // per_step)
    ]
    assert all(step["images"] == step["step"] * per_step for step in steps[-3:])
    assert np.isfinite([step["loss"] for step in steps]).all()
    left = sorted((tmp_path / "run" / "checkpoints").glob("images-*.pt"))
    assert left[-1].stem == "images-000000000096"
