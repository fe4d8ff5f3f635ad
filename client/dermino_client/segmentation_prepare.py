"""From a site file with `[segmentation]` to patch features and masks, once; then from files.

The backbone sees every image at preparation, and training images in several views: as they are,
mirrored, turned. Features and masks are kept in files of the site's cache that a fresh process
maps into memory: it decodes nothing and imports neither torch nor timm. Which files they are
made from is kept beside them; what changed since is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from dermino_client.prepare import Selection, split_selection
from dermino_client.prepared_inputs import how_to_prepare, inputs_digest, sizes_and_times
from dermino_client.site import SegmentationSection, Site
from dermino_core.backbone import describe_backbone, load_backbone
from dermino_core.backbone_card import BackboneCard, card_from_dict, card_to_dict
from dermino_core.errors import DerminoError
from dermino_core.evaluation.segmentation_data import MaskedSet, masked_images, prepare_masked
from dermino_core.evaluation.segmentation_turns import turned
from dermino_core.files import open_atomically, write_atomically
from dermino_core.manifest import read_manifest
from dermino_core.progress import progress_bar
from dermino_strategies.segmentation import SitePatches

if TYPE_CHECKING:
    from dermino_core.backbone import Backbone

FORMAT = 1

_HALVES = ("train", "test")


@dataclass(frozen=True)
class PreparedMasks:
    """A site's part in segmentation.

    Attributes
    ----------
    train, test
        Patch features and masks of each half.
    units
        Patient or lesion of each test image, as a number.
    left_out
        Images whose mask or file could not be used.
    digest
        SHA-256 of features, masks and units.
    """

    name: str
    train: SitePatches
    test: SitePatches
    units: list[str]
    left_out: int
    notes: list[str]
    card: BackboneCard
    precision: str
    digest: str
    embedded: int = 0

    @property
    def image_size(self) -> int:
        """Side of images and masks in pixels."""
        return self.card.preprocessing.image_size

    @property
    def depths(self) -> int:
        """Depths of the backbone that are kept."""
        return int(self.train.features.shape[2])

    @property
    def views(self) -> int:
        """Ways in which each training image was embedded."""
        return int(self.train.features.shape[1])


def no_masks() -> PreparedMasks:
    """What a site without `[segmentation]` has.

    Raises
    ------
    DerminoError
        `REQUEST_MISMATCH`, always.
    """
    raise DerminoError(
        "REQUEST_MISMATCH",
        "The run learns to outline lesions; this site does not take part in that.",
        where="the site file",
        fix="To take part, add [segmentation] to it and name masks in the manifest's column mask.",
    )


def prepare_masks(
    site: Site,
    *,
    backbone: str | None = None,
    precision: str | None = None,
    cache: Path | None = None,
    section: SegmentationSection | None = None,
) -> PreparedMasks:
    """Read masks, embed images, keep both; nothing is embedded if all is as it was.

    Every image of the manifest that names a mask takes part, whatever its label. Halves share no
    patient, lesion or identical image, as in :func:`dermino_client.prepare.split_selection`.

    Parameters
    ----------
    backbone, precision, cache, section
        In place of what the site file says.

    Raises
    ------
    DerminoError
        `REQUEST_MISMATCH` without `[segmentation]`; `DATA_TOO_FEW` if fewer than
        `data.min_images` images name a mask or have a usable one, or a half is too small;
        `IMAGE_UNREADABLE` when a larger share than `data.max_unreadable` cannot be used; and what
        reading the manifest and the backbone may raise.
    """
    wanted = section or site.segmentation
    if wanted is None:
        return no_masks()
    place = _Place.of(site, wanted, backbone, precision, cache)
    card = describe_backbone(place.spec, image_size=wanted.image_size, cache_dir=place.cache)
    try:
        kept = place.read()
        if kept.card.fingerprint == card.fingerprint:
            return kept
    except DerminoError:
        pass
    return _prepare(site, wanted, place, precision or site.backbone.precision)


def load_masks(site: Site) -> PreparedMasks:
    """What :func:`prepare_masks` kept, if the files still are what they were.

    Raises
    ------
    DerminoError
        `REQUEST_MISMATCH` without `[segmentation]`; `DATA_CHANGED` if the site was never prepared,
        or the site file, the manifest, an image or a mask vanished or changed since.
    """
    if site.segmentation is None:
        return no_masks()
    return _Place.of(site, site.segmentation, None, None, None).read()


def _prepare(
    site: Site, wanted: SegmentationSection, place: _Place, precision: str
) -> PreparedMasks:
    inputs = inputs_digest(site)
    manifest = read_manifest(site.manifest, root=site.images, columns=site.data.columns)
    named = [i for i, r in enumerate(manifest.records) if r.mask is not None and r.split != "val"]
    records = [manifest.records[i] for i in named]
    _enough(site, len(records), "name a mask")
    examples = masked_images(manifest, named, [""] * len(manifest.records))
    paths = [path for e in examples for path in (e.image, e.mask) if path is not None]
    stats = sizes_and_times(paths)
    backbone = load_backbone(
        place.spec,
        precision=precision,
        device=site.backbone.device,
        image_size=wanted.image_size,
    )
    found = prepare_masked(
        examples,
        size=wanted.image_size,
        interpolation=backbone.card.preprocessing.interpolation,
        title=site.name,
        scratch=_made(place.folder),
    )
    _usable_enough(site, found, len(examples))
    _enough(site, len(found), "have a usable mask")
    row_of = {id(example): row for row, example in enumerate(examples)}
    rows = [row_of[id(example)] for example in found.examples]
    # Halves by patient and content alone: a mask has no class to balance them by.
    chosen = Selection(manifest, records, [0] * len(records), {})
    units, split = split_selection(site, chosen, [_digest_of(e.image) for e in examples])
    halves = {
        half: np.array([i for i, row in enumerate(rows) if split[row] == half], dtype=np.int64)
        for half in _HALVES
    }
    if len(halves["train"]) < 2 or not len(halves["test"]):
        raise DerminoError(
            "DATA_TOO_FEW",
            f"{len(halves['train'])} training and {len(halves['test'])} test images have a usable "
            "mask; two and one are needed.",
            where=site.manifest,
            fix="Name more masks, or check the manifest's column split.",
        )
    place.forget()
    depths = 4 if "upernet" in wanted.heads else 1
    digest = hashlib.sha256()
    embedded = 0
    for half, members in halves.items():
        views = wanted.views if half == "train" else 1
        digest.update(_write_masks(place.masks(half), found.masks[members]))
        digest.update(_embed(backbone, found.pixels, members, views, depths, place, half))
        embedded += len(members) * views
    of_test = [units[rows[i]] for i in halves["test"]]
    digest.update("|".join(of_test).encode())
    facts = {
        "format": FORMAT,
        "inputs": inputs,
        "name": site.name,
        "units": of_test,
        "left_out": len(examples) - len(found),
        "notes": list(found.notes),
        "card": card_to_dict(backbone.card),
        "precision": backbone.precision,
        "digest": digest.hexdigest(),
        "paths": [os.fspath(path) for path in paths],
        "stats": stats.tolist(),
    }
    write_atomically(place.facts, json.dumps(facts))
    return place.read(embedded=embedded)


def _embed(
    backbone: Backbone,
    pixels: npt.NDArray[np.uint8],
    members: npt.NDArray[np.int64],
    views: int,
    depths: int,
    place: _Place,
    half: str,
) -> bytes:
    """Write float16 [n, views, depths, h, w, D] as a `.npy` file; returns its SHA-256."""
    card = backbone.card
    grid = card.preprocessing.image_size // card.patch_size
    shape = (len(members), views, depths, grid, grid, card.width)
    digest = hashlib.sha256()
    at_once = max(1, backbone.batch_size // views)
    with (
        _writing(place.features(half)) as file,
        progress_bar(f"patches of {place.site.name}, {half}", total=len(members) * views) as bar,
    ):
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(members), at_once):
            part = pixels[members[start : start + at_once]]
            batch = np.stack([turned(image, view) for image in part for view in range(views)])
            found = backbone.patches(batch, depths)
            file.write(data := found.astype("<f2", copy=False).tobytes())
            digest.update(data)
            bar.advance(len(batch))
    return digest.digest()


def _write_masks(file: Path, masks: npt.NDArray[np.uint8]) -> bytes:
    with _writing(file) as opened:
        np.save(opened, np.ascontiguousarray(masks))
    return hashlib.sha256(np.ascontiguousarray(masks).tobytes()).digest()


@dataclass(frozen=True)
class _Place:
    """Where a site's patch features are kept."""

    site: Site
    spec: str
    cache: Path
    folder: Path

    @classmethod
    def of(
        cls,
        site: Site,
        section: SegmentationSection,
        backbone: str | None,
        precision: str | None,
        cache: Path | None,
    ) -> _Place:
        """Another place for every thing that is said in place of the site file."""
        said = [str(site.file), backbone, precision]
        if section != site.segmentation:
            said.append(section.model_dump_json())
        key = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
        where = cache or site.cache
        folder = where / "segmentation" / f"{site.name}-{key}"
        return cls(site, backbone or site.backbone_spec, where, folder)

    @property
    def facts(self) -> Path:
        """Written last: where it is, the others are whole."""
        return self.folder / "facts.json"

    def features(self, half: str) -> Path:
        """float16 [n, views, depths, h, w, D]."""
        return self.folder / f"{half}-patches.npy"

    def masks(self, half: str) -> Path:
        """uint8 [n, S, S]."""
        return self.folder / f"{half}-masks.npy"

    def forget(self) -> None:
        """From here on the files are being written."""
        self.facts.unlink(missing_ok=True)

    def read(self, *, embedded: int = 0) -> PreparedMasks:
        """What is kept, mapped from disk.

        Raises
        ------
        DerminoError
            `DATA_CHANGED`.
        """
        advice = how_to_prepare(self.site)
        try:
            facts = json.loads(self.facts.read_text(encoding="utf-8"))
            if facts["format"] != FORMAT:
                raise ValueError("made by another version")
            same = facts["inputs"] == inputs_digest(self.site)
            now = sizes_and_times([Path(path) for path in facts["paths"]])
            changed = [
                path
                for path, before, after in zip(facts["paths"], facts["stats"], now, strict=True)
                if before != after.tolist()
            ]
            halves = {
                half: SitePatches(_mapped(self.features(half)), _mapped(self.masks(half)))
                for half in _HALVES
            }
            prepared = PreparedMasks(
                name=facts["name"],
                train=halves["train"],
                test=halves["test"],
                units=facts["units"],
                left_out=facts["left_out"],
                notes=facts["notes"],
                card=card_from_dict(facts["card"]),
                precision=facts["precision"],
                digest=facts["digest"],
                embedded=embedded,
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            what = "The site's masks have not been prepared."
            if not isinstance(error, FileNotFoundError):
                what = f"What the site keeps for segmentation cannot be used: {error}."
            raise DerminoError("DATA_CHANGED", what, where=self.folder, fix=advice) from error
        if changed or not same:
            what = "The site file or the manifest changed since the site was prepared."
            if changed:
                what = (
                    f"{len(changed)} images or masks vanished or changed since the site was "
                    f"prepared, first {changed[0]!r}."
                )
            raise DerminoError("DATA_CHANGED", what, where=self.site.manifest, fix=advice)
        return prepared


def _mapped(file: Path) -> npt.NDArray:
    return np.load(file, mmap_mode="r", allow_pickle=False)


@contextmanager
def _writing(file: Path) -> Iterator[BinaryIO]:
    try:
        with open_atomically(file) as opened:
            yield opened
    except OSError as error:
        raise _unwritable(file, error) from error


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(where: Path, error: OSError) -> DerminoError:
    return DerminoError(
        "CACHE_UNWRITABLE",
        f"Patch features cannot be kept: {error.strerror or error}.",
        where=where,
        fix="Free disk space, or choose another folder with [node] cache; fewer `views` or one "
        "head in [segmentation] take less.",
    )


def _digest_of(image: Path) -> str | None:
    try:
        return hashlib.sha256(image.read_bytes()).hexdigest()
    except OSError:
        return None


def _enough(site: Site, images: int, which: str) -> None:
    if images < site.data.min_images:
        raise DerminoError(
            "DATA_TOO_FEW",
            f"Only {images} images {which}; the site asks for at least {site.data.min_images}.",
            where=f"{site.file}, data.min_images",
            fix="Name masks in the manifest's column mask, relative to the image folder, or lower "
            "min_images.",
        )


def _usable_enough(site: Site, found: MaskedSet, named: int) -> None:
    bad = named - len(found)
    if bad <= site.data.max_unreadable * named:
        return
    raise DerminoError(
        "IMAGE_UNREADABLE",
        f"{bad} of {named} images cannot be used with their masks; the site allows a share of "
        f"{site.data.max_unreadable:g}. {' '.join(found.notes)} The log above names each.",
        where=site.manifest,
        fix="Mend or remove them, or raise data.max_unreadable in the site file.",
    )
