"""DICOM objects as images."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from pictures import GRAY, compressed_dicom, dicom_bytes, difference, encoded, ramp
from PIL import Image

from dermino_core.image_limits import ImageError, ImageLimits
from dermino_core.images import decode_image

SKIN = (201, 148, 120)


_RAMP16 = np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (lambda: dicom_bytes(GRAY, "MONOCHROME2"), np.arange(256)),
        (lambda: dicom_bytes(GRAY, "MONOCHROME1"), 255 - np.arange(256)),
        (lambda: dicom_bytes(_RAMP16, "MONOCHROME2", BitsStored=12, HighBit=11), np.arange(256)),
        (
            lambda: dicom_bytes(_RAMP16, "MONOCHROME2", RescaleSlope=2, RescaleIntercept=-1024),
            np.arange(256),
        ),
        (
            lambda: dicom_bytes(
                _RAMP16,
                "MONOCHROME2",
                BitsStored=12,
                HighBit=11,
                WindowCenter=2048,
                WindowWidth=4096,
            ),
            np.arange(256),
        ),
        (
            lambda: dicom_bytes(
                _RAMP16.astype(np.int16),
                "MONOCHROME2",
                RescaleSlope=1,
                RescaleIntercept=-1000,
                WindowCenter=1047.5,
                WindowWidth=4096,
            ),
            np.arange(256),
        ),
        (
            lambda: dicom_bytes(np.stack([GRAY, GRAY[::-1]]), "MONOCHROME2", NumberOfFrames=2),
            np.arange(256),
        ),
    ],
)
def test_dicom_gray(data: Callable[[], bytes], expected: np.ndarray) -> None:
    image = decode_image(data())
    assert image.mode == "RGB"
    gray = np.asarray(image)[..., 0].reshape(-1).astype(int)
    assert np.abs(gray - expected).max() <= 1


def test_dicom_colour() -> None:
    rgb = np.full((16, 16, 3), SKIN, np.uint8)
    assert np.asarray(decode_image(dicom_bytes(rgb, "RGB")))[5, 5].tolist() == list(SKIN)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    found = np.asarray(decode_image(dicom_bytes(ybr, "YBR_FULL")))[5, 5].astype(int)
    assert np.abs(found - SKIN).max() <= 3
    lut = [(np.arange(256) * factor).astype(np.uint16).tobytes() for factor in (257, 128, 0)]
    palette = dicom_bytes(
        GRAY,
        "PALETTE COLOR",
        RedPaletteColorLookupTableDescriptor=[256, 0, 16],
        GreenPaletteColorLookupTableDescriptor=[256, 0, 16],
        BluePaletteColorLookupTableDescriptor=[256, 0, 16],
        RedPaletteColorLookupTableData=lut[0],
        GreenPaletteColorLookupTableData=lut[1],
        BluePaletteColorLookupTableData=lut[2],
    )
    assert np.asarray(decode_image(palette))[12, 8].tolist() == [200, 100, 0]


def test_dicom_with_a_jpeg_inside() -> None:
    image = decode_image(compressed_dicom(encoded(ramp(), "JPEG", quality=95)))
    assert difference(image, ramp()) < 4.0
    bomb = compressed_dicom(encoded(Image.new("RGB", (3000, 3000)), "JPEG"))
    with pytest.raises(ImageError, match="too many pixels: 3000 x 3000"):
        decode_image(bomb, limits=ImageLimits(max_pixels=1_000_000))


def test_dicom_limits_and_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom_bytes(GRAY, "MONOCHROME2")
    with pytest.raises(ImageError, match="too many pixels"):
        decode_image(data, limits=ImageLimits(max_pixels=10))
    with pytest.raises(ImageError, match="DICOM"):
        decode_image(data[:-40])
    with pytest.raises(ImageError, match="deflated"):
        decode_image(data + b"1.2.840.10008.1.2.1.99")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"dermino\[dicom\]"):
        decode_image(data)
