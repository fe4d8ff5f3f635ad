"""Synthetic hospitals: seeded pictures of pigmented lesions, for trying dermino without data.

The pictures look like dermoscopy or like photographs, and the classes can be learnt, but no
number measured on them says anything about real skin.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dermino_core.datasets.synthetic_camera import photograph
from dermino_core.datasets.synthetic_lesion import draw_lesion, draw_signs
from dermino_core.datasets.synthetic_sites import SITES, CaseKind, SyntheticSite, find_site
from dermino_core.datasets.synthetic_textures import textures
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.progress import progress_bar

__all__ = ["SITES", "SyntheticSite", "find_site", "write_site"]

DRAWING_VERSION = 1
"""Changes when the same seed would draw other pictures."""

RECORD_FILE = "synthetic.json"
COLUMNS = ("image", "label", "group", "skin_type", "sex", "age")

_GROUP_SIZES, _GROUP_SHARES = (1, 2, 3), (0.84, 0.11, 0.05)


@dataclass(frozen=True)
class _Patient:
    """One lesion of one patient, and the numbers of the pictures taken of it."""

    number: int
    case: CaseKind
    skin_type: int
    sex: str
    age: int
    pictures: tuple[int, ...]


def write_site(
    out: Path, *, site: str, images: int | None = None, seed: int = 0, masks: bool = False
) -> Path:
    """Draw a synthetic site into `out`; do nothing if exactly this site is there already.

    The same arguments give the same bytes on one machine, whatever its number of cores.

    Parameters
    ----------
    out
        Folder for `images/`, `masks/` (white lesion on black, PNG) and `manifest.csv`, whose
        entries are relative to `out`.
    site
        Name of one of :data:`SITES`.
    images
        How many pictures; the site's own size by default. At least one for each of its labels.

    Returns
    -------
    Path
        The manifest. It is written last: where it exists, every picture does.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for an unknown site or too few images; `OUTPUT_EXISTS` if `out` has a
        manifest that this function did not write.

    Example
    -------
    >>> write_site(Path("demo/ph2"), site="synthetic-ph2", images=20)  # doctest: +SKIP
    PosixPath('demo/ph2/manifest.csv')
    """
    chosen = find_site(site)
    count = chosen.images if images is None else images
    if count < len(chosen.cases):
        raise DerminoError(
            "CONFIG_INVALID",
            f"{site} needs at least {len(chosen.cases)} images, one for each label; got {count}.",
        )
    manifest, record_file = out / "manifest.csv", out / RECORD_FILE
    record = json.dumps(
        {"version": DRAWING_VERSION, "site": site, "images": count, "seed": seed, "masks": masks},
        indent=2,
    )
    if manifest.exists() and not record_file.exists():
        raise DerminoError(
            "OUTPUT_EXISTS",
            "This folder has a manifest that is not of a synthetic site.",
            where=out,
            fix="Choose another folder.",
        )
    names = [f"{i:04d}" for i in range(1, count + 1)]
    files = [out / "images" / f"{name}.jpg" for name in names]
    files += [out / "masks" / f"{name}.png" for name in names] if masks else []
    if (
        manifest.exists()
        and record_file.read_text(encoding="utf-8") == record
        and all(file.is_file() and file.stat().st_size for file in files)
    ):
        return manifest

    manifest.unlink(missing_ok=True)
    _remove_older_pictures(out)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    patients = _patients(chosen, count, seed)
    _draw_all(out, chosen, patients, seed, masks)
    write_atomically(record_file, record)
    write_table(manifest, (*COLUMNS, "mask") if masks else COLUMNS, _rows(patients, masks))
    return manifest


def _remove_older_pictures(out: Path) -> None:
    """Remove what an earlier call drew here: only files with the names that it gives."""
    for folder, ending in (("images", ".jpg"), ("masks", ".png")):
        for file in (out / folder).glob("[0-9]*" + ending):
            if file.stem.isdecimal():
                file.unlink()


def _rng(site: SyntheticSite, seed: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(site.name.encode()), *numbers])


def _case_counts(site: SyntheticSite, images: int) -> list[int]:
    """Images per case, at least one each, by largest remainder."""
    spare = images - len(site.cases)
    exact = [1 + spare * case.share for case in site.cases]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: images - sum(counts)]:
        counts[i] += 1
    return counts


def _patients(site: SyntheticSite, images: int, seed: int) -> list[_Patient]:
    rng = _rng(site, seed, 0)
    cases: list[tuple[CaseKind, int]] = []
    for case, count in zip(site.cases, _case_counts(site, images), strict=True):
        left = count
        while left:
            size = min(left, int(rng.choice(_GROUP_SIZES, p=_GROUP_SHARES)))
            cases.append((case, size))
            left -= size
    patients: list[_Patient] = []
    first = 1
    for number, place in enumerate(rng.permutation(len(cases)), start=1):
        case, size = cases[place]
        age = rng.normal(55.0 if case.malignant else 46.0, 15.0)
        patients.append(
            _Patient(
                number=number,
                case=case,
                skin_type=1 + int(rng.choice(6, p=np.array(site.skin_types))),
                sex=str(rng.choice(("female", "male"))),
                age=int(np.clip(age, 16, 92)),
                pictures=tuple(range(first, first + size)),
            )
        )
        first += size
    return patients


def _draw_patient(
    out: Path, site: SyntheticSite, patient: _Patient, seed: int, masks: bool
) -> None:
    bank = textures()
    rng = _rng(site, seed, 1, patient.number)
    signs = draw_signs(rng, patient.case)
    colour, cover = draw_lesion(rng, bank, site, signs, patient.skin_type)
    for picture in patient.pictures:
        view = _rng(site, seed, 2, picture)
        jpeg, mask = photograph(view, bank, site, colour, cover if masks else None)
        (out / "images" / f"{picture:04d}.jpg").write_bytes(jpeg)
        if mask is not None:
            file = io.BytesIO()
            Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
            (out / "masks" / f"{picture:04d}.png").write_bytes(file.getvalue())


def _draw_all(
    out: Path, site: SyntheticSite, patients: list[_Patient], seed: int, masks: bool
) -> None:
    textures()
    workers = max(1, min(4, len(os.sched_getaffinity(0))))
    total = sum(len(patient.pictures) for patient in patients)
    with ThreadPoolExecutor(workers) as pool, progress_bar(f"drawing {site.name}", total) as bar:

        def draw(patient: _Patient) -> int:
            _draw_patient(out, site, patient, seed, masks)
            return len(patient.pictures)

        for done in pool.map(draw, patients):
            bar.advance(done)


def _rows(patients: list[_Patient], masks: bool) -> Iterator[tuple[str, ...]]:
    for patient in patients:
        for picture in patient.pictures:
            row = (
                f"images/{picture:04d}.jpg",
                patient.case.label,
                f"patient-{patient.number:04d}",
                str(patient.skin_type),
                patient.sex,
                str(patient.age),
            )
            yield (*row, f"masks/{picture:04d}.png") if masks else row
