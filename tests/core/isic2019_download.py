"""A small folder laid out like the downloads that Fed-ISIC2019 is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dataset_folders import table
from PIL import Image

CODES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
LESIONS = {
    "bcn": dict.fromkeys(CODES, 2),
    "vidir-molemax": {"NV": 8, "MEL": 4},
    "vidir-modern": {"NV": 4, "MEL": 4, "BKL": 4},
    "rosendahl": {"NV": 3, "BCC": 3, "AK": 3, "SCC": 3},
    "msk4": {"MEL": 6, "NV": 6},
    "vienna-dias": {"NV": 8, "MEL": 2, "BKL": 2},
}
"""Centre -> lesions of each class; every lesion has two photographs."""

WITHOUT_CENTRE = 5
TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"
HAM = "HAM10000_metadata"
SPLIT = "train_test_split"

_PREFIX = {"bcn": "BCN_", "msk4": "MSK4_"}


def images_of(centre: str) -> int:
    return 2 * sum(LESIONS[centre].values())


def download(raw: Path) -> Path:
    """Write tables, images and FLamby's split, which tears the lesions of every tenth image."""
    truth: list[tuple[object, ...]] = [("image", *CODES, "UNK")]
    metadata: list[tuple[object, ...]] = [
        ("image", "age_approx", "anatom_site_general", "lesion_id", "sex")
    ]
    ham: list[tuple[object, ...]] = [
        ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset")
    ]
    split: list[tuple[object, ...]] = [
        ("image", *CODES, "UNK", "target", "center", "fold", "fold2")
    ]
    number = 0
    for place, (centre, lesions) in enumerate(LESIONS.items()):
        for code in (code for code, count in lesions.items() for _ in range(2 * count)):
            name = f"ISIC_{24306 + number:07d}" + ("_downsampled" if centre == "msk4" else "")
            lesion = f"{_PREFIX.get(centre, 'HAM_')}{number // 2:07d}"
            one_hot = [float(code == other) for other in (*CODES, "UNK")]
            truth.append((name, *one_hot))
            metadata.append((name, 55.0, "anterior torso", lesion, "female"))
            if centre not in _PREFIX:
                source = centre.replace("-", "_")
                ham.append((lesion, name, code.lower(), "histo", 55.0, "female", "back", source))
            side = "test" if number % 5 == 0 else "train"
            split.append((name, *one_hot, CODES.index(code), place, side, f"{side}_{place}"))
            _picture(raw / "ISIC_2019_Training_Input" / f"{name}.jpg", number, CODES.index(code))
            number += 1
    for _ in range(WITHOUT_CENTRE):
        name = f"ISIC_{24306 + number:07d}"
        truth.append((name, 0.0, 1.0, *[0.0] * 7))
        metadata.append((name, "", "", "", ""))
        number += 1
    table(raw / TRUTH, truth)
    table(raw / METADATA, metadata)
    table(raw / HAM, ham)
    table(raw / SPLIT, split)
    return raw


def _picture(file: Path, number: int, target: int) -> None:
    """Noise in a colour that is near its class's, so that there is something to learn."""
    rng = np.random.default_rng(number)
    colour = np.array([60 + 20 * target, 200 - 18 * target, 60 + 90 * (target % 2)])
    pixels = colour + rng.normal(0, 30, 3) + rng.normal(0, 25, (64, 64, 3))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)
