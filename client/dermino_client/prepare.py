"""From a site file to features and labels, once; afterwards from a snapshot.

`prepare_site` reads the manifest, maps labels, splits, and embeds what the cache lacks. It keeps a
snapshot, because a fresh process answers every Flower message: `load_prepared` opens the snapshot
and compares sizes and times of the images with the disk, so that it decodes nothing, imports
neither torch nor timm, and still refuses to train on data that is no longer there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dermino_client.prepared_inputs import how_to_prepare, inputs_digest, sizes_and_times
from dermino_client.site import Site
from dermino_core.backbone_card import BackboneCard, card_from_dict, card_to_dict
from dermino_core.errors import DerminoError
from dermino_core.features import Unreadable, extract_features
from dermino_core.files import write_atomically
from dermino_core.labels import apply_label_map
from dermino_core.manifest import Manifest, Record, read_manifest
from dermino_core.splits import independent_units, split_records, torn_units

SNAPSHOT_VERSION = 2


@dataclass(frozen=True)
class PreparedSite:
    """A site's features [n, D], class indices [n] and split, in the order of the manifest.

    `paths` are the images behind the features, `backbone_spec`, `cache` and `device` how they were
    embedded; without `paths` the site can do no more than what needs features.
    """

    name: str
    task: str
    classes: list[str]
    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    split: npt.NDArray[np.str_]
    groups: list[str]
    images_total: int
    left_out: dict[str, int]
    unreadable: int
    card: BackboneCard
    precision: str
    decoded: int = 0
    paths: tuple[Path, ...] = ()
    backbone_spec: str = ""
    cache: Path | None = None
    device: str = "auto"

    @property
    def backbone_fingerprint(self) -> str:
        """Identity of the backbone that made the features."""
        return self.card.fingerprint

    @property
    def width(self) -> int:
        """D, the width of a feature vector."""
        return int(self.features.shape[1])

    @property
    def images_used(self) -> int:
        """Images with features and a class."""
        return len(self.labels)

    def digest(self) -> str:
        """SHA-256 of what decides this site's part in a run: features, classes and halves."""
        result = hashlib.sha256(np.ascontiguousarray(self.features).tobytes())
        result.update(self.labels.tobytes())
        result.update("|".join([*self.split, *self.classes, *self.groups]).encode())
        return result.hexdigest()

    def half(self, split: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], list[str]]:
        """Features, labels and groups of one half: `train` or `test`."""
        chosen = self.split == split
        groups = [g for g, keep in zip(self.groups, chosen, strict=True) if keep]
        return self.features[chosen], self.labels[chosen], groups


@dataclass(frozen=True)
class Selection:
    """The records that take part with the class of each, and why the others do not."""

    manifest: Manifest
    records: list[Record]
    labels: list[int]
    left_out: dict[str, int]


def select_records(site: Site) -> Selection:
    """Read the manifest, map labels, and leave out what takes no part.

    Images without a label, images whose label the map leaves out, and images of a validation
    split (the paper's heads have nothing to validate) take no part.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID`, `LABEL_UNMAPPED`, or `DATA_TOO_FEW` when too few are left.
    """
    manifest = read_manifest(site.manifest, root=site.images, columns=site.data.columns)
    labelled = [record for record in manifest.records if record.label is not None]
    classes = apply_label_map([str(r.label) for r in labelled], site.labels, site.classes)
    mapped = [(r, c) for r, c in zip(labelled, classes, strict=True) if c is not None]
    kept = [(r, c) for r, c in mapped if r.split != "val"]
    _enough(site, len(kept))
    left_out = {
        "without a label": len(manifest.records) - len(labelled),
        "left out by the label map": len(labelled) - len(mapped),
        "in the validation split": len(mapped) - len(kept),
    }
    return Selection(manifest, [r for r, _ in kept], [c for _, c in kept], left_out)


def _enough(site: Site, images: int) -> None:
    if images < site.data.min_images:
        raise DerminoError(
            "DATA_TOO_FEW",
            f"Only {images} images can be used; the site asks for at least {site.data.min_images}.",
            where=f"{site.file}, data.min_images",
            fix="Add images, map more labels in [labels], or lower min_images.",
        )


def prepare_site(
    site: Site,
    *,
    backbone: str | None = None,
    precision: str | None = None,
    cache: Path | None = None,
) -> PreparedSite:
    """Everything up to training. Embeds only images that the cache does not hold.

    The snapshot that :func:`load_prepared` opens is written only if nothing is said in place of
    the site file: a simulation beside a running client leaves what that client uses alone.

    Parameters
    ----------
    backbone, precision, cache
        In place of what the site file says.

    Raises
    ------
    DerminoError
        `IMAGE_UNREADABLE` when more images fail than `max_unreadable` allows, `DATA_TOO_FEW`
        when fewer than `min_images` remain or a half is empty, and what reading the manifest,
        the images and the backbone may raise.
    """
    selection = select_records(site)
    inputs = inputs_digest(site)  # before the hours of embedding, as are the images' times
    paths = [selection.manifest.path_of(record) for record in selection.records]
    stats = sizes_and_times(paths)
    table = extract_features(
        paths,
        backbone or site.backbone_spec,
        cache=cache or site.cache,
        precision=precision or site.backbone.precision,
        device=site.backbone.device,
        title=site.name,
    )
    _readable_enough(site, selection.records, table.unreadable)
    _enough(site, len(table.rows))
    units, split = split_selection(site, selection, table.digests)
    prepared = PreparedSite(
        name=site.name,
        task=site.site.task,
        classes=site.classes,
        features=np.asarray(table.vectors, dtype=np.float32),
        labels=np.array(selection.labels, dtype=np.int64)[table.rows],
        split=np.array(split)[table.rows],
        groups=[units[row] for row in table.rows],
        images_total=len(selection.manifest.records),
        left_out=selection.left_out,
        unreadable=len(table.unreadable),
        card=table.card,
        precision=table.precision,
        decoded=table.decoded,
        paths=tuple(paths[row] for row in table.rows),
        backbone_spec=backbone or site.backbone_spec,
        cache=cache or site.cache,
        device=site.backbone.device,
    )
    _both_halves(site, prepared)
    if backbone is None and precision is None and cache is None:
        _write_snapshot(site, inputs, prepared, paths, stats)
    return prepared


def split_selection(
    site: Site, selection: Selection, digests: Sequence[str | None]
) -> tuple[list[str], list[str]]:
    """Unit and half of each record; no patient, lesion or identical image is in both halves.

    It covers unreadable images too, so that one more of them does not move the others. The units'
    names are numbers: the manifest's own group names stay in the manifest.

    Parameters
    ----------
    digests
        SHA-256 of each record's image, None where it could not be read.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` if the manifest's own split tears a unit apart.
    """
    units = independent_units(selection.records, digests)
    split = split_records(
        [replace(r, group=unit) for r, unit in zip(selection.records, units, strict=True)],
        [site.classes[c] for c in selection.labels],
        seed=site.data.split_seed,
        train_share=site.data.train_share,
        where=site.manifest,
    )
    if torn := torn_units(units, split):
        raise DerminoError(
            "MANIFEST_INVALID",
            f"The manifest's own split puts {len(torn)} patients, lesions or identical images into "
            f"both halves, first: {torn[0]!r}. Results on such a test half flatter.",
            where=site.manifest,
            fix="Run `dermino data check` on it, mend the split, or remove the column.",
        )
    numbers = {unit: str(i) for i, unit in enumerate(dict.fromkeys(units))}
    return [numbers[unit] for unit in units], split


def _readable_enough(site: Site, records: Sequence[Record], bad: Sequence[Unreadable]) -> None:
    share = len(bad) / max(1, len(records))
    if share <= site.data.max_unreadable:
        return
    shown = "\n  ".join(f"{records[b.row].image!r}: {b.reason}" for b in bad[:10])
    more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
    raise DerminoError(
        "IMAGE_UNREADABLE",
        f"{len(bad)} of {len(records)} images cannot be read; the site allows a share of "
        f"{site.data.max_unreadable:g}:\n  {shown}{more}",
        where=site.manifest,
        fix="Mend or remove them, or raise data.max_unreadable in the site file.",
    )


def _both_halves(site: Site, prepared: PreparedSite) -> None:
    for half in ("train", "test"):
        if not (prepared.split == half).any():
            raise DerminoError(
                "DATA_TOO_FEW",
                f"No image is in the {half} half.",
                where=site.manifest,
                fix="Check the manifest's split column, or leave it out for an even split.",
            )


def _snapshot_file(site: Site) -> Path:
    key = hashlib.sha256(str(site.file).encode()).hexdigest()[:16]
    return site.cache / "prepared" / f"{site.name}-{key}.npz"


def _write_snapshot(
    site: Site,
    inputs: str,
    prepared: PreparedSite,
    paths: Sequence[Path],
    stats: npt.NDArray[np.int64],
) -> None:
    facts = {
        "version": SNAPSHOT_VERSION,
        "inputs": inputs,
        "name": prepared.name,
        "task": prepared.task,
        "classes": prepared.classes,
        "groups": prepared.groups,
        "images_total": prepared.images_total,
        "left_out": prepared.left_out,
        "unreadable": prepared.unreadable,
        "card": card_to_dict(prepared.card),
        "precision": prepared.precision,
        "paths": [os.fspath(path) for path in paths],
        "embedded": [os.fspath(path) for path in prepared.paths],
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        features=prepared.features,
        labels=prepared.labels,
        split=prepared.split,
        stats=stats,
        facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
    )
    write_atomically(_snapshot_file(site), buffer.getvalue())


def load_prepared(site: Site) -> PreparedSite:
    """The site as it was prepared, if its files still are what they were.

    Raises
    ------
    DerminoError
        `DATA_CHANGED` if the site was never prepared, or the site file, the manifest or an image
        vanished or changed since.
    """
    file = _snapshot_file(site)
    advice = how_to_prepare(site)
    try:
        with np.load(file, allow_pickle=False) as snapshot:
            arrays = {name: snapshot[name] for name in snapshot.files}
        facts = json.loads(arrays["facts"].tobytes())
        if facts["version"] != SNAPSHOT_VERSION:
            raise ValueError("made by another version")
    except FileNotFoundError:
        raise DerminoError(
            "DATA_CHANGED", "The site has not been prepared.", where=file, fix=advice
        ) from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DerminoError(
            "DATA_CHANGED", f"The site's snapshot cannot be used: {error}.", where=file, fix=advice
        ) from error
    try:
        same_inputs = facts["inputs"] == inputs_digest(site)
    except OSError:
        same_inputs = False
    if not same_inputs:
        raise DerminoError(
            "DATA_CHANGED",
            "The site file or the manifest changed since the site was prepared.",
            where=f"{site.file}, {site.manifest}",
            fix=advice,
        )
    now = sizes_and_times([Path(path) for path in facts["paths"]])
    changed = np.flatnonzero((now != arrays["stats"]).any(axis=1))
    if len(changed):
        first = facts["paths"][int(changed[0])]
        raise DerminoError(
            "DATA_CHANGED",
            f"{len(changed)} images vanished or changed since the site was prepared, "
            f"first {first!r}.",
            where=site.manifest,
            fix=advice,
        )
    return PreparedSite(
        name=facts["name"],
        task=facts["task"],
        classes=facts["classes"],
        features=arrays["features"],
        labels=arrays["labels"],
        split=arrays["split"],
        groups=facts["groups"],
        images_total=facts["images_total"],
        left_out=facts["left_out"],
        unreadable=facts["unreadable"],
        card=card_from_dict(facts["card"]),
        precision=facts["precision"],
        paths=tuple(Path(path) for path in facts.get("embedded", ())),
        backbone_spec=site.backbone_spec,
        cache=site.cache,
        device=site.backbone.device,
    )
