"""The loader: the same batches however they are loaded, and bad images never stop a run."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pretraining_data import make_source

from dermino_core.errors import DerminoError
from dermino_core.pretraining.batch import Batch
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.config_file import resolve_config
from dermino_core.pretraining.loader import BatchLoader
from dermino_core.pretraining.sources import open_sources
from dermino_core.pretraining.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_labels(["melanoma", "nevus"])
LABELS = ["melanoma", "nevus", None, "melanoma|nevus", None, None, "!melanoma", None]


@pytest.fixture
def manifests(tmp_path: Path) -> list[Path]:
    wide = make_source(tmp_path / "wide", LABELS, size=(90, 30))
    return [wide, make_source(tmp_path / "high", LABELS, size=(24, 40))]


def configure(manifests: list[Path], *, workers: int = 0, accumulate: int = 1) -> PretrainConfig:
    sources = [{"name": file.parent.name, "manifest": file} for file in manifests]
    return resolve_config(
        {
            "run": {"steps": 9, "batch_size": 4, "accumulate": accumulate, "device": "cpu"},
            "data": {"sources": sources, "workers": workers, "image_side": 20, "prefetch": 2},
        }
    )


def load(config: PretrainConfig, **ranks: int) -> BatchLoader:
    return BatchLoader(config, open_sources(config.data, VOCABULARY), VOCABULARY, **ranks)


def take(loader: BatchLoader, first: int, count: int) -> list[Batch]:
    return list(itertools.islice(loader.batches(first), count))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        for name in ("images", "sizes", "targets", "available", "positions"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_a_batch_holds_images_and_what_is_known_of_them(manifests: list[Path]) -> None:
    config = configure(manifests)
    images = open_sources(config.data, VOCABULARY)
    loader = BatchLoader(config, images, VOCABULARY)
    for batch in take(loader, 0, 8):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (4, 3, *batch.sizes.amax(dim=0).tolist())
        assert batch.targets.dtype == batch.available.dtype == torch.float32
        for place, position in enumerate(batch.positions.tolist()):
            height, width = batch.sizes[place].tolist()
            expected = np.asarray(images.read(position)).transpose(2, 0, 1)
            found = batch.images[place, :, :height, :width].numpy()
            np.testing.assert_array_equal(found, expected)
            assert batch.images[place].sum() == found.sum()
            assert (height, width) in {(20, 40), (33, 20)}
            labels = images.labels(position)
            targets, available = VOCABULARY.encode(labels, {"melanoma", "melanocytic nevus"})
            assert batch.targets[place].tolist() == targets.tolist()
            assert batch.available[place].tolist() == available.tolist()
    assert loader.wait_seconds > 0
    assert loader.wait_seconds == 0


def test_begins_at_any_step(manifests: list[Path]) -> None:
    config = configure(manifests, accumulate=2)
    whole = take(load(config), 0, 12)
    assert_same(take(load(config), 4, 4), whole[8:])


def test_processes_and_passes_share_the_same_samples(manifests: list[Path]) -> None:
    alone = take(load(configure(manifests, accumulate=2)), 0, 6)
    ranks = [take(load(configure(manifests), rank=r, world_size=2), 0, 3) for r in (0, 1)]
    assert_same([batch for pair in zip(*ranks, strict=True) for batch in pair], alone)


def test_draws_nothing_from_the_run_s_random_numbers(manifests: list[Path]) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    take(load(configure(manifests)), 0, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unreadable_image_is_replaced_and_told_once(
    manifests: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    bad = manifests[0].parent
    (bad / "001.png").write_bytes((bad / "001.png").read_bytes()[:60])
    (bad / "003.png").unlink()
    config = configure(manifests)
    loader = load(config)
    with caplog.at_level(logging.WARNING):
        batches = take(loader, 0, 8)
    positions = torch.cat([batch.positions for batch in batches])
    assert not {1, 3} & set(positions.tolist())
    source = loader._images.source_of
    planned = loader._sampler.positions(0, 32).tolist()
    assert [source(p) for p in planned] == [source(p) for p in positions.tolist()]
    assert len(loader.unreadable) == 2
    assert loader.unreadable[str(bad / "003.png")] == "no such file"
    assert len([line for line in caplog.messages if "stands in" in line]) == 1
    assert_same(take(load(config), 3, 5), batches[3:])


def test_a_stand_in_is_of_the_same_kind(tmp_path: Path) -> None:
    manifest = make_source(tmp_path / "a", ["nevus", None, None, "nevus", "nevus", None])
    config = configure([manifest])
    loader = load(config)
    (tmp_path / "a" / "000.png").unlink()
    (tmp_path / "a" / "005.png").unlink()
    for batch in take(loader, 0, 6):
        has = batch.available.sum(dim=1) > 0
        assert has.tolist() == [position in (3, 4) for position in batch.positions.tolist()]
    planned = loader._sampler.positions(0, 24).tolist()
    found = [p for batch in take(loader, 0, 6) for p in batch.positions.tolist()]
    assert [{0: 3, 5: 1}.get(p, p) for p in planned] == found


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_without_any_readable_image_left_the_run_stops(manifests: list[Path], workers: int) -> None:
    loader = load(configure(manifests, workers=workers))
    for file in manifests[0].parent.glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DerminoError, match="the file is empty") as caught:
        take(loader, 0, 4)
    assert caught.value.code == "IMAGE_UNREADABLE"


@pytest.mark.slow
def test_workers_change_nothing_and_outlive_signals(manifests: list[Path]) -> None:
    alone = take(load(configure(manifests)), 1, 12)
    batches = load(configure(manifests, workers=2)).batches(1)
    found = [next(batches), next(batches)]  # one of each worker: both are ready for signals
    for worker in children():
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
    found += itertools.islice(batches, 10)
    assert_same(found, alone)
    batches.close()
    gc.collect()
    assert not children()


def children() -> list[int]:
    """Workers that this process started and that still run."""
    from multiprocessing import active_children

    return [child.pid for child in active_children() if child.pid]


def test_large_pictures_are_decoded_small(tmp_path: Path) -> None:
    manifest = make_source(tmp_path / "a", [None])
    Image.new("RGB", (2000, 1500), (200, 10, 30)).save(tmp_path / "a" / "large.jpg")
    manifest.write_text("image\nlarge.jpg\n")
    batch = take(load(configure([manifest])), 0, 1)[0]
    assert batch.images.shape == (4, 3, 20, 27)
