"""Features: computed once, resumable after a kill, never a crash for a bad file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermino_core import features as module
from dermino_core.backbone import describe_backbone
from dermino_core.errors import DerminoError
from dermino_core.feature_cache import FILE_NAME
from dermino_core.features import FeatureTable, extract_features
from dermino_core.image_limits import ImageError

CHILD = """
import sys, time
from pathlib import Path
from dermino_core import features
prepare = features.prepare_image
def slowly(*arguments, **options):
    time.sleep(float(sys.argv[3]))
    return prepare(*arguments, **options)
features.prepare_image = slowly
paths = sorted(Path(sys.argv[1]).iterdir())
table = features.extract_features(
    paths, "demo", cache=Path(sys.argv[2]), precision="fp32", device="cpu", title="child"
)
print(table.decoded, len(table.vectors), "torch" in sys.modules, "timm" in sys.modules)
"""


def make_images(folder: Path, count: int) -> list[Path]:
    """Distinct small photographs, older than the clock's tick."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        path = folder / f"{index:03d}.jpg"
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 60)).save(path, quality=90)
        age(path)
        paths.append(path)
    return paths


def age(path: Path) -> None:
    past = time.time() - 3600
    os.utime(path, (past, past))


@pytest.fixture(autouse=True)
def settled_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files made a moment ago count as settled: tests do not wait for the clock."""
    monkeypatch.setattr("dermino_core.feature_cache.RACY_NANOSECONDS", -(10**12))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return make_images(tmp_path / "images", 20)


def extract(paths: list[Path], cache: Path) -> FeatureTable:
    return extract_features(
        paths, "demo", cache=cache, precision="fp32", device="cpu", title="test"
    )


def child(images: Path, cache: Path, delay: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(images), str(cache), str(delay)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def stored(cache: Path) -> int:
    if not (cache / FILE_NAME).exists():
        return 0
    base = sqlite3.connect(f"file:{cache / FILE_NAME}?mode=ro", uri=True, timeout=10)
    try:
        return base.execute("SELECT count(*) FROM vectors").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
    finally:
        base.close()


def test_the_second_start_decodes_nothing(tmp_path: Path, photos: list[Path]) -> None:
    first = extract(photos, tmp_path / "cache")
    assert first.vectors.shape == (20, 192)
    assert first.vectors.dtype == np.float32
    assert first.rows.dtype == np.int64
    assert first.rows.tolist() == list(range(20))
    assert (first.decoded, first.unreadable, first.precision) == (20, [], "fp32")
    assert all(len(digest or "") == 64 for digest in first.digests)
    second = extract(photos[::-1], tmp_path / "cache")
    assert second.decoded == 0
    np.testing.assert_array_equal(second.vectors, first.vectors[::-1])
    assert second.digests == first.digests[::-1]


def test_the_second_start_reads_no_file_and_imports_no_torch(
    tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(photos, tmp_path / "cache")
    done = child(photos[0].parent, tmp_path / "cache")
    output, errors = done.communicate(timeout=60)
    assert output.split() == ["0", "20", "False", "False"], errors

    def forbidden(*_: object, **__: object) -> bytes:
        raise AssertionError("a file was read")

    monkeypatch.setattr(module, "read_image_bytes", forbidden)
    assert extract(photos, tmp_path / "cache").decoded == 0


def test_only_what_changed_is_computed(tmp_path: Path, photos: list[Path]) -> None:
    cache = tmp_path / "cache"
    first = extract(photos, cache)
    for path in photos[:5]:
        os.utime(path)
    assert extract(photos, cache).decoded == 0
    photos[7].write_bytes(photos[3].read_bytes() + b"one more byte")
    changed = extract(photos, cache)
    assert changed.decoded == 1
    np.testing.assert_array_equal(changed.vectors[7], first.vectors[3])
    np.testing.assert_array_equal(changed.vectors[8:], first.vectors[8:])


def test_a_file_swapped_under_the_same_time_and_size_is_noticed(
    tmp_path: Path, photos: list[Path]
) -> None:
    cache = tmp_path / "cache"
    first = extract(photos, cache)
    data = bytearray(photos[2].read_bytes())
    before = photos[2].stat()
    data[-20] ^= 1
    photos[2].write_bytes(data)
    os.utime(photos[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert extract(photos, cache).digests[2] != first.digests[2]


def test_copies_are_embedded_once(tmp_path: Path, photos: list[Path]) -> None:
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(photos[0].read_bytes())
    table = extract([*photos[:3], copy, photos[0]], tmp_path / "cache")
    assert table.decoded == 3
    np.testing.assert_array_equal(table.vectors[3], table.vectors[0])
    np.testing.assert_array_equal(table.vectors[4], table.vectors[0])


def test_bad_files_are_entries_with_reasons_and_remembered(
    tmp_path: Path, photos: list[Path]
) -> None:
    text, empty, cut = (tmp_path / name for name in ("text.jpg", "empty.jpg", "cut.jpg"))
    text.write_text("not an image")
    empty.touch()
    cut.write_bytes(photos[0].read_bytes()[:200])
    missing, folder, odd = tmp_path / "none.jpg", tmp_path / "images", Path("nul\0.jpg")
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    paths = [photos[0], text, photos[1], empty, missing, folder, cut, odd, pipe, text]
    first = extract(paths, tmp_path / "cache")
    assert first.rows.tolist() == [0, 2]
    reasons = {entry.row: entry.reason for entry in first.unreadable}
    assert sorted(reasons) == [1, 3, 4, 5, 6, 7, 8, 9]
    assert reasons[4] == "missing"
    assert "empty" in reasons[3]
    assert reasons[9] == reasons[1]
    assert not any(str(tmp_path) in reason for reason in reasons.values())
    assert first.digests[4] is None
    second = extract(paths, tmp_path / "cache")
    assert second.decoded == 0
    assert second.unreadable == first.unreadable


def test_an_image_that_vanished_is_missing_although_cached(
    tmp_path: Path, photos: list[Path]
) -> None:
    extract(photos, tmp_path / "cache")
    photos[4].unlink()
    table = extract(photos, tmp_path / "cache")
    assert [(entry.row, entry.reason) for entry in table.unreadable] == [(4, "missing")]
    assert len(table.vectors) == 19
    assert table.decoded == 0


def test_no_images_and_only_bad_images(tmp_path: Path) -> None:
    assert extract([], tmp_path / "cache").vectors.shape == (0, 192)
    table = extract([tmp_path / "none.jpg"], tmp_path / "cache")
    assert table.vectors.shape == (0, 192)
    assert len(table.unreadable) == 1


def test_another_size_or_precision_is_another_vector(tmp_path: Path, photos: list[Path]) -> None:
    cache = tmp_path / "cache"
    extract(photos[:2], cache)
    small = extract_features(
        photos[:2], "demo", cache=cache, precision="fp32", device="cpu", title="t", image_size=112
    )
    bf16 = extract_features(
        photos[:2], "demo", cache=cache, precision="bf16", device="cpu", title="t"
    )
    assert (small.decoded, bf16.decoded) == (2, 2)
    assert extract(photos[:2], cache).decoded == 0


@pytest.mark.slow
def test_killed_at_any_point_it_resumes_to_the_same_values(tmp_path: Path) -> None:
    photos = make_images(tmp_path / "images", 90)
    whole = extract(photos, tmp_path / "whole")
    cache = tmp_path / "killed"
    describe_backbone("demo", cache_dir=cache)
    running = child(tmp_path / "images", cache, delay=0.1)
    deadline = time.monotonic() + 60
    while stored(cache) == 0 and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=30)
    assert running.returncode == -signal.SIGKILL
    kept = stored(cache)
    assert 0 < kept < 90
    resumed = extract(photos, cache)
    assert resumed.decoded == 90 - kept
    np.testing.assert_array_equal(resumed.vectors, whole.vectors)
    assert resumed.digests == whole.digests


def test_interrupted_it_keeps_what_it_has(tmp_path: Path) -> None:
    photos = make_images(tmp_path / "images", 90)
    cache = tmp_path / "cache"
    describe_backbone("demo", cache_dir=cache)
    running = child(tmp_path / "images", cache, delay=0.1)
    deadline = time.monotonic() + 60
    while stored(cache) == 0 and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    kept = stored(cache)
    assert 0 < kept < 90
    assert extract(photos, cache).decoded == 90 - kept


@pytest.mark.slow
def test_two_processes_share_one_cache(tmp_path: Path) -> None:
    photos = make_images(tmp_path / "images", 60)
    cache = tmp_path / "cache"
    both = [child(tmp_path / "images", cache, delay=0.02) for _ in range(2)]
    for process in both:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert output.split()[1] == "60"
    table = extract(photos, cache)
    assert table.decoded == 0
    np.testing.assert_array_equal(table.vectors, extract(photos, tmp_path / "alone").vectors)


def test_an_error_in_the_forward_pass_is_raised_and_loses_nothing(
    tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DerminoError("DEVICE_UNAVAILABLE", "no")

    module._loaded.cache_clear()
    monkeypatch.setattr(module, "load_backbone", refuse)
    with pytest.raises(DerminoError, match="no"):
        extract(photos, tmp_path / "cache")
    monkeypatch.undo()
    assert extract(photos, tmp_path / "cache").decoded == 20


def test_a_copy_of_an_image_that_did_not_fit_into_memory_is_named(
    tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(photos[0].read_bytes())

    def too_large(*_: object, **__: object) -> None:
        raise ImageError("too large for the memory of this machine") from MemoryError()

    monkeypatch.setattr(module, "decode_image", too_large)
    table = extract([photos[0], copy], tmp_path / "cache")
    assert [entry.row for entry in table.unreadable] == [0, 1]
    monkeypatch.undo()
    assert len(extract([photos[0], copy], tmp_path / "cache").rows) == 2


def test_features_do_not_depend_on_the_company(tmp_path: Path, photos: list[Path]) -> None:
    together = extract(photos, tmp_path / "a")
    alone = extract(photos[11:12], tmp_path / "b")
    np.testing.assert_allclose(alone.vectors[0], together.vectors[11], atol=1e-5)
    assert np.ptp(together.vectors, axis=0).max() > 1e-3
