"""Every pixel format arrives as the colours a viewer would show, or as a reason."""

from __future__ import annotations

import os
import socket
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import GRAY, compressed_dicom, dicom_bytes, difference, encoded, ramp
from PIL import Image, ImageFile

from dermino_core.image_limits import ImageError, ImageLimits
from dermino_core.images import decode_image, prepare_image, read_image_bytes, to_eight_bits

SKIN = (201, 148, 120)


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95}, 3.0),
        ("JPEG", {"quality": 95, "progressive": True}, 3.0),
        ("PNG", {}, 0.0),
        ("BMP", {}, 0.0),
        ("TIFF", {}, 0.0),
        ("TIFF", {"compression": "tiff_lzw"}, 0.0),
        ("WEBP", {"lossless": True}, 0.0),
        ("GIF", {}, 12.0),
    ],
)
def test_every_format_keeps_its_colours(
    kind: str, options: dict[str, object], tolerance: float
) -> None:
    image = decode_image(encoded(ramp(), kind, **options))
    assert image.mode == "RGB"
    assert image.size == (64, 48)
    assert difference(image, ramp()) <= tolerance


@pytest.mark.parametrize("kind", ["PSD", "EPS", "PPM", "ICO", "PDF"])
def test_other_formats_never_reach_a_decoder(kind: str) -> None:
    data = b"8BPS\x00\x01" + bytes(64) if kind == "PSD" else encoded(ramp(), kind)
    with pytest.raises(ImageError, match="not an image in a known format"):
        decode_image(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = ramp() if undo is None else ramp().transpose(undo)
    image = decode_image(encoded(stored, kind, exif=exif))
    assert image.size == (64, 48)
    assert difference(image, ramp()) < 6.0
    assert not image.getexif()


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encoded(ramp(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + b"\x01" * 60)
    assert decode_image(data).size == (64, 48)


def _full(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (16, 16), colour)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("kind", "image", "options", "expected"),
    [
        ("PNG", _full("L", 90), {}, (90, 90, 90)),
        ("PNG", _full("1", 1), {}, (255, 255, 255)),
        ("TIFF", _full("1", 0), {}, (0, 0, 0)),
        ("PNG", _full("RGBA", (*SKIN, 255)), {}, SKIN),
        ("PNG", _full("RGBA", (*SKIN, 0)), {}, (255, 255, 255)),
        ("PNG", _full("RGBA", (0, 0, 0, 51)), {}, (204, 204, 204)),
        ("PNG", _full("LA", (0, 0)), {}, (255, 255, 255)),
        ("PNG", _full("LA", (90, 255)), {}, (90, 90, 90)),
        ("WEBP", _full("RGBA", (9, 9, 9, 0)), {"lossless": True}, (255, 255, 255)),
        ("TIFF", _full("RGBA", (9, 9, 9, 0)), {}, (255, 255, 255)),
        ("PNG", _full("RGB", SKIN), {"transparency": SKIN}, (255, 255, 255)),
        ("PNG", _full("L", 7), {"transparency": 7}, (255, 255, 255)),
        ("TIFF", _full("CMYK", (0, 255, 255, 0)), {}, (255, 0, 0)),
        ("JPEG", _full("CMYK", (0, 255, 255, 0)), {"quality": 95}, (255, 0, 0)),
        ("JPEG", _full("L", 90), {"quality": 95}, (90, 90, 90)),
        ("PNG", _full("I;16", 65535), {}, (255, 255, 255)),
        ("TIFF", _full("F", 0.5), {}, (128, 128, 128)),
        ("TIFF", _full("F", float("inf")), {}, None),
    ],
)
def test_pixel_modes(
    kind: str, image: Image.Image, options: dict[str, object], expected: tuple[int, ...] | None
) -> None:
    data = encoded(image, kind, **options)
    if expected is None:
        with pytest.raises(ImageError, match="finite"):
            decode_image(data)
        return
    found = np.asarray(decode_image(data), dtype=float).reshape(-1, 3)
    assert np.abs(found - expected).max() <= 2


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_palette_with_transparency(transparency: int | bytes) -> None:
    image = Image.new("P", (16, 16), 1)
    image.paste(0, (0, 0, 8, 16))
    image.putpalette([*SKIN, 10, 20, 30])
    pixels = np.asarray(decode_image(encoded(image, "PNG", transparency=transparency)))
    assert tuple(pixels[0, 0]) == SKIN
    assert tuple(pixels[0, 15]) == (255, 255, 255)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_uses_its_whole_range(kind: str, bits: int) -> None:
    values = np.linspace(0, 2**bits - 1, 256).astype(np.uint16).reshape(16, 16)
    gray = np.asarray(decode_image(encoded(Image.fromarray(values), kind)))[..., 0]
    assert np.abs(gray.reshape(-1).astype(int) - np.arange(256)).max() <= 1


def test_big_endian_sixteen_bit_tiff() -> None:
    values = np.linspace(0, 65535, 256).astype(">u2").reshape(16, 16)
    header = b"MM\x00*\x00\x00\x00\x08"
    tags = [(256, 3, 16), (257, 3, 16), (258, 3, 16), (259, 3, 1), (262, 3, 1), (277, 3, 1)]
    tags += [(273, 4, 8 + 2 + 8 * 12 + 4), (279, 4, 512)]
    entries = b""
    for tag, kind, value in sorted(tags):
        cell = value.to_bytes(2, "big") + b"\0\0" if kind == 3 else value.to_bytes(4, "big")
        entries += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + b"\0\0\0\x01" + cell
    data = header + len(tags).to_bytes(2, "big") + entries + bytes(4) + values.tobytes()
    gray = np.asarray(decode_image(data))[..., 0].reshape(-1)
    assert np.abs(gray.astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.0], [0, 255]),
        ([0.0, 255.0], [0, 255]),
        ([0.0, 127.0, 255.0], [0, 127, 255]),
        ([-1000.0, 0.0, 1000.0], [0, 128, 255]),
        ([0.0, 1e6], [0, 255]),
        ([np.nan, 1.0], [0, 255]),
        ([-1e308, 1e308], [0, 255]),
        ([-7.0, -7.0], [0, 0]),
        ([5.0, 5.0], [5, 5]),
    ],
)
def test_scales_of_float_pixels(values: list[float], expected: list[int]) -> None:
    assert to_eight_bits(np.array([values]))[0].tolist() == expected


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    row = b"\0" + struct.pack(">3H", 51657, 38036, 30840) * 16
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 16, 16, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(row * 16)) + chunk(b"IEND", b"")
    assert np.asarray(decode_image(data))[3, 3].tolist() == [201, 148, 120]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_truncated_files_are_errors(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageError, match="damaged or incomplete") as caught:
        decode_image(data[: int(len(data) * share)])
    assert "\n" not in caught.value.reason
    assert "BytesIO" not in caught.value.reason


def test_truncated_progressive_jpeg_at_reduced_scale_is_an_error() -> None:
    data = encoded(ramp(1600, 1200), "JPEG", progressive=True)
    with pytest.raises(ImageError):
        decode_image(data[: len(data) * 8 // 10], short_side=64)


def _png_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">2I", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def test_limits_stop_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    with pytest.raises(ImageError, match="too many pixels: 60000 x 60000"):
        decode_image(_png_claiming(60_000, 60_000))
    with pytest.raises(ImageError, match="larger than the limit"):
        decode_image(encoded(ramp(), "PNG"), limits=ImageLimits(max_bytes=100))
    with pytest.raises(ImageError, match="too small: 7 x 40"):
        decode_image(encoded(ramp(7, 40), "PNG"))


@pytest.mark.parametrize("side", [10_000, 14_000])
def test_pillows_own_limit_neither_warns_nor_refuses(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=r"damaged or incomplete PNG \(image file is trunc"):
            decode_image(_png_claiming(side, side))


def test_a_grown_file_is_not_read_past_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(bytes(1000))
    real = os.fstat

    def smaller(handle: int) -> os.stat_result:
        status = list(real(handle))
        status[6] = 1
        return os.stat_result(status)

    monkeypatch.setattr(os, "fstat", smaller)
    with pytest.raises(ImageError, match="larger than the limit"):
        read_image_bytes(file, limits=ImageLimits(max_bytes=100))


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "empty.jpg").touch()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # a socket's path may be at most 108 bytes long
        try:
            server.bind("socket.jpg")
        finally:
            os.chdir(here)
        reasons = {
            "pipe.jpg": "a pipe",
            "folder.jpg": "a folder",
            "loop.jpg": "cannot be read",
            "empty.jpg": "empty",
            "socket.jpg": "not a regular file",
            "absent.jpg": "no such file",
            "nul\0.jpg": "not a valid file name",
            "x" * 300: "cannot be read",
        }
        for name, reason in reasons.items():
            with pytest.raises(ImageError, match=reason) as caught:
                decode_image(tmp_path / name)
            assert str(tmp_path) not in caught.value.reason
    with pytest.raises(ImageError, match="a device"):
        decode_image(Path("/dev/zero"))


def test_many_threads_decode_alike() -> None:
    files = [encoded(ramp(200 + i, 150), kind) for i in range(4) for kind in ("JPEG", "WEBP")]
    alone = [np.asarray(decode_image(data)) for data in files]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = list(pool.map(decode_image, files))
            assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("side", [224, 333])
def test_reduced_scale_keeps_twice_the_side(side: int) -> None:
    data = encoded(ramp(2001, 1500), "JPEG")
    reduced = decode_image(data, short_side=side)
    assert 2 * side <= min(reduced.size) < min(4 * side, 1500)
    assert decode_image(data).size == (2001, 1500)
    assert decode_image(encoded(ramp(400, 300), "JPEG"), short_side=224).size == (400, 300)


@pytest.mark.parametrize(("large", "most"), [((2992, 2240), 0.5), ((3000, 2250), 2.0)])
def test_reduced_scale_changes_little_on_real_images(
    shared_data: Path, large: tuple[int, int], most: float
) -> None:
    for file in sorted((shared_data / "ph2" / "images").glob("*.jpg"))[:2]:
        enlarged = decode_image(file).resize(large, Image.Resampling.BICUBIC)
        data = encoded(enlarged, "JPEG", quality=92)
        full = prepare_image(decode_image(data), 224).astype(float)
        reduced = decode_image(data, short_side=224)
        assert reduced.width == large[0] // 4
        assert np.abs(full - prepare_image(reduced, 224)).mean() < most


@pytest.mark.parametrize(("size", "crop_pct"), [(224, 1.0), (224, 0.875), (98, 0.9)])
@pytest.mark.parametrize("shape", [(767, 575), (575, 767), (231, 230), (100, 40)])
def test_prepare_image_is_resize_then_crop(
    shape: tuple[int, int], size: int, crop_pct: float
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (shape[1], shape[0], 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    scale = int(size / crop_pct) / min(shape)
    width, height = (int(side * scale + 1e-9) for side in shape)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    expected = np.asarray(resized.crop((left, top, left + size, top + size)), dtype=float)
    assert np.abs(prepare_image(image, size, crop_pct=crop_pct) - expected).max() <= 2


@pytest.mark.slow  # importing timm takes seconds
@pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation"),
    [(224, 1.0, "bicubic"), (224, 0.875, "bicubic"), (98, 0.9, "bilinear"), (224, 0.95, "lanczos")],
)
@pytest.mark.parametrize("shape", [(767, 575), (575, 767), (600, 450), (231, 230), (100, 40)])
def test_prepare_image_is_timms_evaluation_transform(
    shared_data: Path, shape: tuple[int, int], size: int, crop_pct: float, interpolation: str
) -> None:
    from timm.data.transforms_factory import create_transform

    file = sorted((shared_data / "ham10000" / "images").glob("*.jpg"))[0]
    image = decode_image(file).resize(shape)
    transform = create_transform(
        (3, size, size),
        is_training=False,
        interpolation=interpolation,
        crop_pct=crop_pct,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    theirs = np.asarray(transform(image)).transpose(1, 2, 0) * 255.0  # pyright: ignore
    ours = prepare_image(image, size, interpolation=interpolation, crop_pct=crop_pct)
    assert ours.dtype == np.uint8
    assert ours.shape == (size, size, 3)
    difference = np.abs(ours - theirs)
    assert difference.mean() < 0.1
    assert difference.max() <= 2.5


@pytest.mark.parametrize("shape", [(20_000, 8), (8, 20_000), (8, 8), (225, 224)])
def test_prepare_image_of_extreme_shapes(shape: tuple[int, int]) -> None:
    assert prepare_image(Image.new("RGB", shape, SKIN), 224)[100, 100].tolist() == list(SKIN)


@pytest.mark.parametrize(
    "call",
    [
        lambda image: prepare_image(image, 224, crop_pct=0.0),
        lambda image: prepare_image(image, 224, crop_pct=1.5),
        lambda image: prepare_image(image, 0),
        lambda image: prepare_image(image, 224, interpolation="magic"),
    ],
)
def test_prepare_image_names_what_is_allowed(call: Callable[[Image.Image], object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        call(ramp())


@pytest.fixture(scope="module")
def seeds() -> list[bytes]:
    """Small whole files of every kind, to be damaged."""
    exif = Image.Exif()
    exif[0x0112] = 6
    small = ramp(24, 16)
    files = [encoded(small, kind) for kind in ("PNG", "BMP", "TIFF", "WEBP", "GIF")]
    files += [encoded(small, "JPEG", exif=exif), encoded(small, "JPEG", progressive=True)]
    files += [encoded(small, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg")]
    files += [encoded(small.convert(mode), "PNG") for mode in ("P", "LA", "RGBA", "1", "I;16")]
    files += [encoded(small.convert("CMYK"), "JPEG"), dicom_bytes(GRAY, "MONOCHROME2")]
    files += [compressed_dicom(encoded(ramp(), "JPEG"))]
    return files


LIMITS = ImageLimits(max_pixels=1_000_000)


def _decode_or_reason(data: bytes) -> None:
    reason = "none"
    try:
        image = decode_image(data, limits=LIMITS, short_side=8)
        assert image.mode == "RGB"
        assert image.width * image.height <= LIMITS.max_pixels
    except ImageError as error:
        reason = error.reason
    assert reason
    assert reason.isprintable()


@given(data=st.binary(max_size=400), prefix=st.integers(0, 16))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_bytes_are_an_image_or_a_reason(
    seeds: list[bytes], data: bytes, prefix: int
) -> None:
    start = b"" if prefix >= len(seeds) else seeds[prefix][: 12 if prefix < 15 else 200]
    _decode_or_reason(start + data)


@given(data=st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_images_are_an_image_or_a_reason(seeds: list[bytes], data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(seeds)))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(1, len(damaged))) :]
    _decode_or_reason(bytes(damaged))
