"""The cache file: transactions, damage, and folders that cannot be written."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest

from dermino_core.errors import DerminoError
from dermino_core.feature_cache import FILE_NAME, FeatureCache

MODEL, DIGEST = b"m" * 32, b"d" * 32
VECTOR = np.arange(8, dtype=np.float32)


def filled(folder: Path) -> Path:
    with FeatureCache(folder) as cache:
        cache.put_vector(MODEL, DIGEST, VECTOR)
        cache.put_unreadable("1", b"x" * 32, "cut short")
        cache.remember_file(b"/a.jpg", (3, 1, 1, 9), DIGEST, time.time_ns())
    return folder / FILE_NAME


def test_what_was_put_is_there_before_and_after_the_commit(tmp_path: Path) -> None:
    with FeatureCache(tmp_path) as cache:
        cache.put_vector(MODEL, DIGEST, VECTOR)
        assert cache.has_vector(MODEL, DIGEST)
        np.testing.assert_array_equal(cache.vector(MODEL, DIGEST, 8), VECTOR)
    filled(tmp_path)
    with FeatureCache(tmp_path) as cache:
        np.testing.assert_array_equal(cache.vector(MODEL, DIGEST, 8), VECTOR)
        assert not cache.has_vector(b"n" * 32, DIGEST)
        assert cache.unreadable("1", b"x" * 32) == "cut short"
        assert cache.unreadable("2", b"x" * 32) is None
        assert cache.digest_of(b"/a.jpg", (3, 1, 1, 9)) == DIGEST
        assert cache.digest_of(b"/a.jpg", (3, 2, 1, 9)) is None
        with pytest.raises(KeyError):
            cache.vector(MODEL, b"e" * 32, 8)


def test_a_file_changed_a_moment_ago_is_not_trusted(tmp_path: Path) -> None:
    now = time.time_ns()
    stamp = (3, now - 10**8, now - 10**8, 9)
    with FeatureCache(tmp_path) as cache:
        cache.remember_file(b"/a.jpg", stamp, DIGEST, now)
        cache.commit()
        assert cache.digest_of(b"/a.jpg", stamp) is None


def damage_header(file: Path) -> None:
    file.write_bytes(b"this is no database at all" * 100)


def damage_tail(file: Path) -> None:
    data = bytearray(file.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 64] = b"\xff" * 64
    file.write_bytes(data)


def damage_vector(file: Path) -> None:
    data = file.read_bytes()
    place = data.index(VECTOR.tobytes())
    file.write_bytes(data[: place + 5] + b"\x7f" + data[place + 6 :])


def damage_format(file: Path) -> None:
    base = sqlite3.connect(file)
    base.execute("PRAGMA user_version = 99")
    base.commit()
    base.close()


def damage_schema(file: Path) -> None:
    base = sqlite3.connect(file)
    base.execute("DROP TABLE vectors")
    base.execute("CREATE TABLE vectors (other TEXT)")
    base.commit()
    base.close()


@pytest.mark.parametrize(
    "damage", [damage_header, damage_tail, damage_vector, damage_format, damage_schema]
)
def test_damage_is_noticed_and_says_what_to_delete(tmp_path: Path, damage) -> None:
    file = filled(tmp_path)
    damage(file)
    with pytest.raises(DerminoError) as caught, FeatureCache(tmp_path) as cache:
        cache.vector(MODEL, DIGEST, 8)
    assert caught.value.code == "CACHE_CORRUPT"
    assert f"Delete {file}" in str(caught.value)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(DerminoError) as caught:
        FeatureCache(blocked)
    assert caught.value.code == "CACHE_UNWRITABLE"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o500)
    with pytest.raises(DerminoError) as caught:
        FeatureCache(folder)
    assert caught.value.code == "CACHE_UNWRITABLE"


def test_a_full_disk_is_an_error_and_keeps_what_was_committed(tmp_path: Path) -> None:
    filled(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # A limit on the size of files fails a write as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
        with FeatureCache(tmp_path) as cache:
            for index in range(200):
                cache.put_vector(MODEL, index.to_bytes(32, "big"), np.ones(768, np.float32))
            with pytest.raises(DerminoError) as caught:
                cache.commit()
            cache.discard()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.code == "CACHE_UNWRITABLE"
    with FeatureCache(tmp_path) as cache:
        np.testing.assert_array_equal(cache.vector(MODEL, DIGEST, 8), VECTOR)
