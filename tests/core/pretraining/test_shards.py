"""Shards: the same bytes however often the work is interrupted, and damage is named."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pretraining_data import make_source
from typer.testing import CliRunner

from dermino_core.errors import DerminoError
from dermino_core.image_limits import ImageError
from dermino_core.pretraining.config import DataSection, SourceSection
from dermino_core.pretraining.shard_folder import open_shards
from dermino_core.pretraining.shards import ShardReport, write_shards
from dermino_core.pretraining.sources import collect_labels, open_sources
from dermino_core.pretraining.vocabulary import Vocabulary

CHILD = """
import sys, time
from pathlib import Path
from dermino_core.pretraining import shards
encode = shards._encode
def slowly(*arguments):
    time.sleep(0.05)
    return encode(*arguments)
shards._encode = slowly
shards.write_shards([Path(sys.argv[1])], Path(sys.argv[2]), side=600, shard_mb=1, threads=2)
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    labels = ["melanoma", None, "nevus|melanoma", "nevus"] * 2
    splits = ["train", None, "test", "train"] * 2
    return make_source(tmp_path / "a", labels, splits=splits, size=(90, 60))


def noisy(folder: Path, count: int = 24) -> Path:
    """Images that take a good tenth of a megabyte each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png", compress_level=0)
    names = "".join(f"{index:03d}.png,nevus\n" for index in range(count))
    (folder / "manifest.csv").write_text("image,label\n" + names)
    return folder / "manifest.csv"


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file but the lock."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name != ".lock"
    }


def read_dropped(report: ShardReport) -> list[dict[str, str]]:
    with report.dropped_file.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_shard_is_a_plain_tar_in_webdataset_s_layout(tmp_path: Path, manifest: Path) -> None:
    report = write_shards([manifest], tmp_path / "out", side=32)
    assert (report.images, report.shards, report.dropped, report.made) == (8, 1, 0, 1)
    with tarfile.open(tmp_path / "out" / "000000.tar", "r:") as tar:
        files = {entry.name: tar.extractfile(entry).read() for entry in tar}  # pyright: ignore
    assert list(files)[:4] == ["000000000.jpg", "000000000.json", "000000001.jpg", "000000001.json"]
    assert json.loads(files["000000002.json"]) == {
        "image": "002.png",
        "dataset": "a/manifest",
        "label": "nevus|melanoma",
        "split": "test",
        "group": None,
        "width": 48,
        "height": 32,
    }
    with Image.open(io.BytesIO(files["000000002.jpg"])) as image:
        assert image.size == (48, 32)
        assert image.layer[0][1:3] == (1, 1)  # pyright: ignore[reportAttributeAccessIssue]
        with Image.open(manifest.parent / "002.png") as original:
            expected = original.convert("RGB").resize((48, 32), Image.Resampling.BICUBIC)
        error = np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int))
    assert error.mean() < 2


def test_training_reads_what_was_written(tmp_path: Path, manifest: Path) -> None:
    write_shards([manifest], tmp_path / "out", side=32)
    plain = SourceSection(name="s", manifest=manifest)
    packed = SourceSection(name="s", shards=tmp_path / "out")
    data, shards = (DataSection(sources=(s,), image_side=32) for s in (plain, packed))
    assert collect_labels(shards) == collect_labels(data)
    vocabulary = Vocabulary.from_labels(label for label, _ in collect_labels(data))
    ours, theirs = open_sources(shards, vocabulary), open_sources(data, vocabulary)
    assert ours.counts() == theirs.counts()
    assert ours.n_images == 6
    for position in range(6):
        assert ours.labels(position) == theirs.labels(position)
        one, other = (np.asarray(images.read(position), dtype=int) for images in (ours, theirs))
        assert np.abs(one - other).mean() < 2
    assert ours.name(0) == f"{tmp_path / 'out' / '000000.tar'}: 000.png"


def test_what_is_dropped_is_listed_and_metadata_stays_behind(tmp_path: Path) -> None:
    manifest = make_source(tmp_path / "a", [None] * 3)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "patient 17"
    Image.new("RGB", (80, 40)).save(tmp_path / "a" / "turned.jpg", exif=exif)
    manifest.write_text("image\n000.png\nturned.jpg\nmissing.png\n../a.png\n")
    report = write_shards([manifest], tmp_path / "out", side=32)
    assert (report.images, report.dropped) == (2, 2)
    rows = read_dropped(report)
    assert [(row["row"], row["image"]) for row in rows] == [("4", "missing.png"), ("5", "../a.png")]
    assert rows[0]["reason"] == "no such file"
    assert b"patient" not in (tmp_path / "out" / "000000.tar").read_bytes()
    places = open_shards(tmp_path / "out")
    with Image.open(io.BytesIO(places.select([1]).read_bytes(0))) as image:
        assert image.size == (32, 64)


def test_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    manifest = noisy(tmp_path / "a")
    first = write_shards([manifest], tmp_path / "out", shard_mb=1)
    before = contents(tmp_path / "out")
    second = write_shards([manifest], tmp_path / "out", shard_mb=1)
    assert first.made == first.shards > 2
    assert (second.made, second.shards, second.images, second.size) == (
        0,
        first.shards,
        24,
        first.size,
    )
    assert contents(tmp_path / "out") == before


def test_killed_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    manifest = noisy(tmp_path / "a")
    write_shards([manifest], tmp_path / "whole", side=600, shard_mb=1)
    out = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(manifest), str(out)])
    deadline = time.monotonic() + 60
    while not (out / "000000.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    assert child.returncode == -signal.SIGKILL
    with pytest.raises(DerminoError, match="no finished shards"):
        open_shards(out)
    (out / ".000009.tar.x1y2").write_bytes(b"left behind")
    kept = os.stat(out / "000000.tar").st_mtime_ns
    report = write_shards([manifest], out, side=600, shard_mb=1)
    assert 0 < report.made < report.shards
    assert os.stat(out / "000000.tar").st_mtime_ns == kept
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["flip", "cut", "gone", "table"])
def test_a_damaged_shard_is_named_and_made_anew(tmp_path: Path, kind: str) -> None:
    manifest, out = noisy(tmp_path / "a"), tmp_path / "out"
    report = write_shards([manifest], out, shard_mb=1)
    before = contents(out)
    file = out / ("000001.csv" if kind == "table" else "000001.tar")
    data = bytearray(file.read_bytes())
    if kind == "gone":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(data[:-2000])
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    if kind == "flip":
        assert len(open_shards(out).images) == report.images
        assert write_shards([manifest], out, shard_mb=1).made == 0
    else:
        with pytest.raises(DerminoError, match=rf"shard file {file.name}") as caught:
            open_shards(out)
        assert caught.value.code == "DATA_CHANGED"
    repaired = write_shards([manifest], out, shard_mb=1, verify=True)
    assert repaired.repaired == ("000001.tar",)
    assert repaired.made == 1
    assert contents(out) == before


def test_changed_bytes_of_an_image_are_found_when_it_is_read(
    tmp_path: Path, manifest: Path
) -> None:
    write_shards([manifest], tmp_path / "out")
    table = open_shards(tmp_path / "out")
    file = tmp_path / "out" / "000000.tar"
    data = bytearray(file.read_bytes())
    data[int(table.places[3, 1]) + 300] ^= 255
    file.write_bytes(data)
    images = table.select([2, 3])
    images.read_bytes(0)
    with pytest.raises(ImageError, match=r"000000.tar is damaged at byte"):
        images.read_bytes(1)


def test_other_tables_or_settings_need_another_folder(tmp_path: Path, manifest: Path) -> None:
    write_shards([manifest], tmp_path / "out")
    with pytest.raises(DerminoError, match="other settings") as caught:
        write_shards([manifest], tmp_path / "out", side=64)
    assert caught.value.code == "OUTPUT_EXISTS"


def test_two_writers_at_once_are_refused(tmp_path: Path, manifest: Path) -> None:
    import fcntl

    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DerminoError, match="Another process"):
            write_shards([manifest], tmp_path / "out")


def test_without_a_readable_image_it_says_so_and_can_be_tried_again(
    tmp_path: Path, manifest: Path
) -> None:
    with pytest.raises(DerminoError, match="None of 8 images can be read") as caught:
        write_shards([manifest], tmp_path / "out", images=tmp_path)
    assert caught.value.code == "IMAGE_UNREADABLE"
    assert write_shards([manifest], tmp_path / "out").images == 8


def test_the_command(tmp_path: Path, manifest: Path) -> None:
    import typer

    from dermino_server.commands.shards import shards

    app = typer.Typer()
    app.command()(shards)
    arguments = [str(manifest), "--out", str(tmp_path / "out"), "--side", "32"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert "8 images in 1 shards, 0 MB (1 new)" in first.output
    assert "nothing to do" in CliRunner().invoke(app, arguments).output
