"""Decode the first frame of a DICOM file to RGB (optional extra `dicom`).

Dermoscopes and hospital archives store photographs as DICOM Visible Light objects. Grayscale
goes through the modality and value-of-interest transformations of DICOM PS3.3, C.11.1 and
C.11.2, as a viewer would show it.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dermino_core.image_limits import DECODER_FAILURES, ImageError, ImageLimits, check_pixel_count
from dermino_core.images import short_reason

if TYPE_CHECKING:
    from pydicom import Dataset

_DEFLATED = b"1.2.840.10008.1.2.1.99"


def decode_dicom(data: bytes, *, limits: ImageLimits) -> Image.Image:
    """Decode a DICOM file's first frame.

    MONOCHROME1 and MONOCHROME2 are rescaled and windowed (without a window: stretched from
    smallest to largest value, 8-bit values kept as they are); RGB, YBR and PALETTE COLOR become
    RGB.

    Parameters
    ----------
    data
        The whole file, with its 128-byte preamble.
    limits
        Checked against the header, and against the header of a compressed frame, before decoding.

    Returns
    -------
    PIL.Image.Image
        Mode "RGB".

    Raises
    ------
    ImageError
        If pydicom is not installed, or the file is damaged, too large or of an unsupported kind.
    """
    try:
        import pydicom
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ImportError as error:
        raise ImageError(
            'a DICOM file, and reading these needs: pip install "dermino[dicom]"'
        ) from error
    if _DEFLATED in data:
        # pydicom would inflate the whole file at once, without a limit.
        raise ImageError("a DICOM file with deflated transfer syntax, which is not supported")
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        check_pixel_count(int(dataset.Columns), int(dataset.Rows), limits)
        _check_compressed_frame(dataset, limits)
        return Image.fromarray(_first_frame(dataset)).convert("RGB")
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("not enough memory to decode it") from error
    except (*DECODER_FAILURES, BytesLengthException, InvalidDicomError) as error:
        raise ImageError(f"damaged or unsupported DICOM ({short_reason(error)})") from error


def _check_compressed_frame(dataset: Dataset, limits: ImageLimits) -> None:
    """A compressed frame has a header of its own, which need not agree with the file's."""
    from pydicom.encaps import get_frame

    if not dataset.file_meta.TransferSyntaxUID.is_compressed:
        return
    frames = int(dataset.get("NumberOfFrames") or 1)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=frames)
    try:
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as inner:
            check_pixel_count(*inner.size, limits)
    except Image.UnidentifiedImageError:
        # Run-length and JPEG-LS frames: their decoders write into a buffer of the declared size.
        return


def _first_frame(dataset: Dataset) -> np.ndarray:
    """uint8 [height, width] or [height, width, 3]."""
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    values = pixel_array(dataset, index=0)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric.startswith("MONOCHROME"):
        gray = _shown_gray(values, dataset)
        return 255 - gray if photometric == "MONOCHROME1" else gray
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(values, dataset)[..., :3]
        return _scale(colours, 0.0, float(np.iinfo(colours.dtype).max))
    if values.ndim != 3 or values.shape[-1] != 3:
        raise ImageError(f"a DICOM file with photometric interpretation {photometric[:32]!r}")
    return _scale(values, 0.0, float(2 ** int(dataset.BitsStored) - 1))


def _shown_gray(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    rescaled = np.asarray(apply_modality_lut(values, dataset))
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    if dataset.get("VOILUTSequence"):
        depth = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return _scale(np.asarray(apply_voi_lut(rescaled, dataset)), 0.0, float(2**depth - 1))
    if dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        shown = np.asarray(apply_voi_lut(rescaled, dataset))
        return _scale(shown, *_window_output(dataset, bits, signed=signed))
    if bits == 8 and not signed and rescaled is values:
        return _scale(values, 0.0, 255.0)
    return _scale(rescaled, float(rescaled.min()), float(rescaled.max()))


def _window_output(dataset: Dataset, bits: int, *, signed: bool) -> tuple[float, float]:
    """The range onto which a window maps: that of the stored values, rescaled."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if dataset.get("ModalityLUTSequence"):
        return 0.0, float(2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    slope = float(dataset.get("RescaleSlope") or 1.0)
    intercept = float(dataset.get("RescaleIntercept") or 0.0)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return ends[0], ends[1]


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    unit = (values.astype(np.float64) - low) / ((high - low) or 1.0)
    return np.rint(np.clip(np.nan_to_num(unit), 0.0, 1.0) * 255.0).astype(np.uint8)
