"""Segmentation of lesions with a frozen backbone (paper, section 4.2.3).

Two heads on patch features: a linear one, and UperNet on four depths. Scored by Dice and Jaccard
per image, averaged over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dermino_core.backbone import Backbone, load_backbone
from dermino_core.errors import DerminoError
from dermino_core.evaluation.measure import Measure, Outcome, measured
from dermino_core.evaluation.segmentation_data import (
    MaskedImage,
    MaskedSet,
    masked_images,
    prepare_masked,
    read_mask,
)
from dermino_core.evaluation.segmentation_patches import Patches, patches_of
from dermino_core.evaluation.segmentation_scores import METRICS, overlap_scores
from dermino_core.evaluation.segmentation_settings import SegmentationSettings
from dermino_core.image_limits import ImageError
from dermino_core.metrics import REPLICATES, bootstrap_weights
from dermino_core.progress import progress_bar
from dermino_core.results import BackboneInfo, Estimate

if TYPE_CHECKING:
    from dermino_core.evaluation.segmentation_heads import Head, HeadName
    from dermino_core.evaluation.segmentation_training import Batch

__all__ = ["MaskedImage", "SegmentationSettings", "masked_images", "segmentation"]


@dataclass(frozen=True)
class _Work:
    """Both halves, read, and where their features come from."""

    backbone: Backbone
    settings: SegmentationSettings
    train: MaskedSet
    test: MaskedSet
    train_patches: Patches
    test_patches: Patches
    seed: int


def segmentation(
    backbone: str | Backbone,
    train: Sequence[MaskedImage],
    test: Sequence[MaskedImage],
    *,
    settings: SegmentationSettings | None = None,
    heads: Sequence[HeadName] = ("linear", "upernet"),
    seed: int = 0,
    replicates: int = REPLICATES,
    precision: str = "auto",
    device: str = "auto",
    scratch: Path | None = None,
    save_to: Path | None = None,
    title: str = "lesion segmentation",
) -> Outcome:
    """Train heads on one half and score them on the other.

    Parameters
    ----------
    backbone
        A specification (see :data:`dermino_core.backbone_spec.SPEC_GRAMMAR`), loaded for
        `settings.image_size` with `precision` and on `device`; or a loaded backbone, which then
        decides all three.
    train, test
        Image and mask files. Those that cannot be used are left out, with a note.
    heads
        `linear`, `upernet` or both.
    seed
        Of heads, batches and bootstrap.
    scratch
        Folder for nameless files of up to `settings.cache_bytes` and 200 KB per image; by default
        the system's.
    save_to
        Receives one model folder per head, named as the head; `dermino segment` uses it.
    title
        Of the progress bars and the model cards, for example the data set's.

    Returns
    -------
    Outcome
        Measures `dice` and `jaccard` of each head: the mean over test images, its replicates drawn
        by unit. `setting` is `original size` where that was asked for.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` without two usable training images and a test image, `RUN_FAILED` if
        training diverges, `CACHE_UNWRITABLE` without disk space, `BACKBONE_UNAVAILABLE` and its
        like.

    Example
    -------
    >>> halves = [masked_images(manifest, rows, units) for rows in (train_rows, test_rows)]
    >>> segmentation("vit.safetensors", *halves).measures[0].metric
    'dice'
    """
    chosen = settings or SegmentationSettings()
    if isinstance(backbone, str):
        backbone = load_backbone(
            backbone, precision=precision, device=device, image_size=chosen.image_size
        )
    chosen = replace(chosen, image_size=backbone.card.preprocessing.image_size)
    work = _prepare(backbone, train, test, chosen, max(map(_depths, heads)), seed, scratch, title)
    weights = bootstrap_weights(
        len(work.test), groups=work.test.units, replicates=replicates, seed=seed
    )
    measures: list[Measure] = []
    for name in heads:
        head = _train(work, name, title)
        scores = _score(work, head, name, title)
        found = [
            measured(
                name,
                metric,
                float(values.mean()),
                (weights @ values) / weights.sum(axis=1),
                n=len(values),
                setting="original size" if chosen.score_at == "original" else "",
            )
            for metric, values in zip(METRICS, scores.T, strict=True)
        ]
        if save_to is not None:
            _save(work, save_to / name, head, name, found, title)
        measures += found
    return Outcome(measures, notes=(*work.train.notes, *work.test.notes))


def _depths(name: HeadName) -> int:
    return 1 if name == "linear" else 4


def _prepare(
    backbone: Backbone,
    train: Sequence[MaskedImage],
    test: Sequence[MaskedImage],
    settings: SegmentationSettings,
    depths: int,
    seed: int,
    scratch: Path | None,
    title: str,
) -> _Work:
    sets: list[MaskedSet] = []
    for half, examples in (("training", train), ("test", test)):
        sets.append(
            prepare_masked(
                examples,
                size=settings.image_size,
                interpolation=backbone.card.preprocessing.interpolation,
                title=half,
                scratch=scratch,
            )
        )
        if len(sets[-1]) < (least := 2 if half == "training" else 1):
            raise DerminoError(
                "DATA_TOO_FEW",
                f"{len(sets[-1])} {half} images have a usable mask, at least {least} are needed. "
                + " ".join(sets[-1].notes),
                fix="Name a mask of the same size for each image in the column mask.",
            )
    patches: list[Patches] = []
    left = settings.cache_bytes
    for half, part in zip(("training", "test"), sets, strict=True):
        budget = 0 if half == "training" and settings.flips else left
        source = patches_of(
            backbone,
            part.pixels,
            depths,
            budget=budget,
            title=f"{title}, {half}",
            scratch=scratch,
        )
        left -= source.nbytes
        patches.append(source)
    return _Work(backbone, settings, sets[0], sets[1], patches[0], patches[1], seed)


def _train(work: _Work, name: HeadName, title: str) -> Head:
    from dermino_core.evaluation.segmentation_heads import build_head
    from dermino_core.evaluation.segmentation_training import train_head

    settings, masks = work.settings, work.train.masks
    rng = np.random.default_rng([work.seed, 1])

    def batch_of(rows: npt.NDArray[np.integer]) -> Batch:
        if not settings.flips:
            return work.train_patches.take(rows, _depths(name)), masks[rows]
        mirrors = rng.random((len(rows), 2)) < 0.5
        pixels = mirrored(work.train.pixels[rows], mirrors)
        return work.backbone.patches(pixels, _depths(name)), mirrored(masks[rows], mirrors)

    return train_head(
        lambda: build_head(
            name, work.backbone.card.width, channels=settings.channels, dropout=settings.dropout
        ),
        batch_of,
        len(work.train),
        settings,
        seed=work.seed,
        device=work.backbone.device,
        title=f"training {name}, {title}",
    )


def mirrored(arrays: np.ndarray, mirrors: npt.NDArray[np.bool_]) -> np.ndarray:
    """Arrays [B, H, W, ...], turned top to bottom and left to right where `mirrors` [B, 2] says."""
    turned = arrays.copy()
    for place, (upside_down, sideways) in enumerate(mirrors):
        if upside_down:
            turned[place] = turned[place][::-1].copy()
        if sideways:
            turned[place] = turned[place][:, ::-1].copy()
    return turned


def _score(work: _Work, head: Head, name: HeadName, title: str) -> npt.NDArray[np.float64]:
    """Dice and Jaccard of each test image, [n, 2]."""
    from dermino_core.evaluation.segmentation_training import head_logits, masks_of

    n, step = len(work.test), work.backbone.batch_size
    scores = np.empty((n, len(METRICS)))
    with progress_bar(f"scoring {name}, {title}", total=n) as bar:
        for start in range(0, n, step):
            rows = np.arange(start, min(start + step, n))
            logits = head_logits(head, work.test_patches.take(rows, _depths(name)))
            for row, logit in zip(rows, logits.split(1), strict=True):
                truth = _truth(work, int(row))
                scores[row] = overlap_scores(masks_of(logit, truth.shape)[0], truth)
            bar.advance(len(rows))
    return scores


def _truth(work: _Work, row: int) -> npt.NDArray[np.bool_]:
    mask = work.test.examples[row].mask
    if work.settings.score_at == "input" or mask is None:
        return work.test.masks[row] > 0
    try:
        return read_mask(mask)
    except ImageError as error:
        raise DerminoError(
            "DATA_CHANGED",
            f"A mask changed while the task ran: {error.reason}.",
            where=mask,
            fix="Run again when nothing writes to the masks.",
        ) from error


def _save(
    work: _Work,
    folder: Path,
    head: Head,
    name: HeadName,
    found: Sequence[Measure],
    title: str,
) -> None:
    from dermino_core.evaluation.segmentation_model import SegmentationInfo, save_segmentation_model

    info = SegmentationInfo(
        title=title,
        head=name,
        backbone=BackboneInfo.of(work.backbone.card, work.backbone.precision),
        backbone_spec=work.backbone.card.name,
        settings=work.settings,
        seed=work.seed,
        n_train=len(work.train),
        n_test=len(work.test),
        scores={
            measure.metric: Estimate(
                value=measure.value,
                low=measure.low,
                high=measure.high,
                standard_error=measure.standard_error,
            )
            for measure in found
        },
        notes=[*work.train.notes, *work.test.notes],
    )
    save_segmentation_model(folder, head, info)
