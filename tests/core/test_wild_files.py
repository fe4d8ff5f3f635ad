"""A folder of wild files: each bad one is in the report with its reason, nothing crashes."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermino_core.image_limits import ImageLimits
from dermino_core.images import decode_image
from dermino_core.manifest import Manifest, Record, read_manifest, write_manifest
from dermino_core.manifest_checks import KINDS, ManifestReport, check_manifest

LIMITS = ImageLimits(max_pixels=20_000_000)
SKIN = (200, 150, 120)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, rows: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _skin(*, seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(-9, 10, (size[1], size[0], 3))
    return Image.fromarray((np.array(SKIN) + noise).astype(np.uint8))


BAD = {
    "truncated.jpg": ("unreadable", "damaged or incomplete JPEG"),
    "bomb_declared.png": ("unreadable", "too many pixels: 60000 x 60000"),
    "bomb_real.png": ("unreadable", "too many pixels: 8000 x 8000"),
    "text.jpg": ("unreadable", "not an image in a known format"),
    "zero.jpg": ("unreadable", "empty"),
    "one_pixel.png": ("unreadable", "too small: 1 x 1"),
    "fifo.jpg": ("not_regular_file", "a pipe"),
    "folder.jpg": ("not_regular_file", "a folder"),
    "link_out.jpg": ("outside_folder", "outside the image folder"),
    "../secret.jpg": ("outside_folder", "outside the image folder"),
    "loop.jpg": ("unreadable", "cannot be read"),
    "dangling.jpg": ("missing_file", "no such file"),
    "gone.jpg": ("missing_file", "no such file"),
    "windows\\gone.jpg": ("missing_file", "backslashes"),
}
GOOD = {
    "wide.png": (20_000, 10),
    "cmyk.jpg": (40, 30),
    "gray16.png": (16, 16),
    "animated.gif": (40, 30),
    "ünïcode 皮膚.jpg": (40, 30),
    "new\nline.jpg": (40, 30),
    "rotated.jpg": (40, 30),
    "rgba.png": (40, 30),
    "la.png": (40, 30),
    "palette.png": (40, 30),
    "huge_exif.jpg": (40, 30),
    "link_in.jpg": (40, 30),
    "-rf.jpg": (40, 30),
}
SKIN_COLOURED = sorted(set(GOOD) - {"wide.png", "gray16.png", "la.png"})


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them, and `manifest.csv` beside it."""
    base = tmp_path_factory.mktemp("wild")
    root = base / "images"
    root.mkdir()
    _skin(seed=1, size=(300, 300)).save(root / "whole.jpg")
    data = (root / "whole.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (root / "bomb_declared.png").write_bytes(_png(60_000, 60_000, b"\0" * 100))
    (root / "bomb_real.png").write_bytes(_png(8_000, 8_000, bytes(8_001 * 8_000)))
    (root / "text.jpg").write_text("this is not an image\n" * 20)
    (root / "zero.jpg").touch()
    Image.new("RGB", (1, 1)).save(root / "one_pixel.png")
    os.mkfifo(root / "fifo.jpg")
    (root / "folder.jpg").mkdir()
    _skin(seed=2).save(base / "secret.jpg")
    (root / "link_out.jpg").symlink_to(base / "secret.jpg")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "dangling.jpg").symlink_to("nothing.jpg")

    Image.new("RGB", (20_000, 10), SKIN).save(root / "wide.png")
    _skin(seed=3).convert("CMYK").save(root / "cmyk.jpg")
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(root / "gray16.png")
    later = Image.new("RGB", (40, 30), (0, 0, 255))
    _skin(seed=4).quantize(8).save(
        root / "animated.gif", save_all=True, append_images=[later, later]
    )
    _skin(seed=5).save(root / "ünïcode 皮膚.jpg")
    _skin(seed=6).save(root / "new\nline.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    _skin(seed=7, size=(30, 40)).save(root / "rotated.jpg", exif=exif)
    _skin(seed=8).convert("RGBA").save(root / "rgba.png")
    Image.new("LA", (40, 30), (0, 0)).save(root / "la.png")
    _skin(seed=9).quantize(8).save(root / "palette.png", transparency=255)
    long = Image.Exif()
    long[0x010E] = "x" * 60_000
    _skin(seed=10).save(root / "huge_exif.jpg", exif=long)
    _skin(seed=12).save(root / "inside.jpg")
    (root / "link_in.jpg").symlink_to("inside.jpg")
    _skin(seed=13).save(root / "-rf.jpg")
    names = [*BAD, *GOOD]
    write_manifest(base / "manifest.csv", [Record(name, label="nevus") for name in names])
    return base


@pytest.fixture(scope="module")
def manifest(wild: Path) -> Manifest:
    return read_manifest(wild / "manifest.csv", root=wild / "images")


@pytest.fixture(scope="module")
def report(manifest: Manifest) -> ManifestReport:
    return check_manifest(manifest, limits=LIMITS, progress=False)


@pytest.mark.parametrize("name", BAD)
def test_each_bad_file_is_listed_with_its_reason(report: ManifestReport, name: str) -> None:
    (problem,) = [problem for problem in report.problems if problem.image == name]
    assert problem.kind == BAD[name][0]
    assert BAD[name][1] in problem.detail
    assert problem.row == list(BAD).index(name) + 2
    assert problem.severity == "error"


def test_nothing_else_is_listed(report: ManifestReport) -> None:
    assert {problem.image for problem in report.problems} == set(BAD)
    assert {problem.kind for problem in report.problems} <= set(KINDS)
    assert not report.ok
    assert report.counts.images == len(BAD) + len(GOOD)
    assert report.counts.readable == len(GOOD)


@pytest.mark.parametrize("name", GOOD)
def test_good_files_have_their_size(manifest: Manifest, name: str) -> None:
    (record,) = [record for record in manifest.records if record.image == name]
    image = decode_image(manifest.path_of(record), limits=LIMITS)
    assert image.size == GOOD[name]
    assert image.mode == "RGB"


@pytest.mark.parametrize("name", SKIN_COLOURED)
def test_good_files_have_their_colour(wild: Path, name: str) -> None:
    image = decode_image(wild / "images" / name, limits=LIMITS)
    mean = np.asarray(image, dtype=float).mean(axis=(0, 1))
    assert np.abs(mean - SKIN).max() < 4


def test_gray_and_transparent_colours(wild: Path) -> None:
    gray = np.asarray(decode_image(wild / "images" / "gray16.png"))[..., 0]
    assert (gray.min(), gray.max(), round(gray.mean())) == (0, 255, 128)
    assert np.asarray(decode_image(wild / "images" / "la.png")).min() == 255


def test_lines_for_the_terminal_are_single_and_printable(wild: Path) -> None:
    records = [Record("new\nline\x1b[31m\u202egpj.exe"), Record("ok\x07.jpg")]
    manifest = Manifest(wild / "m.csv", wild / "images", records)
    lines = [str(problem) for problem in check_manifest(manifest, progress=False).problems]
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert "new\\nline\\x1b[31m\\u202egpj.exe" in lines[1]


def test_reasons_hold_no_path(wild: Path, report: ManifestReport) -> None:
    assert not [problem for problem in report.problems if str(wild) in problem.detail]


def test_a_pipe_does_not_hold_up_the_check(wild: Path) -> None:
    records = [Record("fifo.jpg", label="a")] * 50
    report = check_manifest(Manifest(wild / "m.csv", wild / "images", records), progress=False)
    assert len([problem for problem in report.problems if problem.kind == "not_regular_file"]) == 50
