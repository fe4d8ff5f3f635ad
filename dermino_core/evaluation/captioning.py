"""Image captions: a language model reads the features of a frozen backbone (paper, section 4.2.2).

The paper does not say which features of the image encoder are read. Here it is what is given: the
class token, [n, D], or several vectors of an image, [n, k, D], such as its patch tokens
(:func:`dermino_core.evaluation.captioning_images.patch_tokens`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dermino_core.errors import DerminoError
from dermino_core.evaluation.caption_scores import (
    PACKAGES,
    Meteor,
    Words,
    require_packages,
    score_captions,
)
from dermino_core.evaluation.captioning_language import (
    BIOMISTRAL,
    LanguageModel,
    Weights,
    load_language_model,
)
from dermino_core.evaluation.captioning_model import Captioner, CaptionerShape, Float32
from dermino_core.evaluation.captioning_train import CaptioningRecipe, train_captioner
from dermino_core.evaluation.examples import Integers
from dermino_core.evaluation.measure import Outcome
from dermino_core.metrics import REPLICATES

_MOST_ROWS = 10


@dataclass(frozen=True)
class CaptionedImages:
    """Images with their captions.

    Attributes
    ----------
    features
        float32 [n, D] or [n, k, D].
    captions
        [n]; None or blank where there is none.
    units
        Patient or lesion of each image.
    rows
        What people know each image by, such as its row in the table; by default 0, 1, ...
    """

    features: Float32
    captions: Sequence[str | None]
    units: Sequence[str]
    rows: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            object.__setattr__(self, "rows", range(len(self.captions)))
        counts = [len(part) for part in (self.features, self.captions, self.units, self.rows)]
        if len(set(counts)) > 1:
            raise ValueError("{} features, {} captions, {} units, {} rows".format(*counts))


@dataclass(frozen=True)
class CaptioningResult:
    """What captioning gave.

    Attributes
    ----------
    outcome
        Eight measures and notes.
    captioner
        Trained.
    generated, references
        One of each for every test image that has a caption.
    test_rows
        The places of these images in the test half, [n].
    trained_on
        Training images.
    """

    outcome: Outcome
    captioner: Captioner
    generated: tuple[str, ...]
    references: tuple[str, ...]
    test_rows: Integers = field(repr=False)
    trained_on: int = 0


def captioning(
    train: CaptionedImages,
    test: CaptionedImages,
    *,
    language_model: str | LanguageModel = BIOMISTRAL,
    shape: dict[str, Any] | None = None,
    recipe: CaptioningRecipe | None = None,
    beams: int = 1,
    words: Words = "13a",
    meteor: Meteor = "1.5",
    weights: Weights = "auto",
    device: str = "auto",
    replicates: int = REPLICATES,
    seed: int = 0,
) -> CaptioningResult:
    """Train a captioner on one half and score its captions of the other.

    Parameters
    ----------
    language_model
        A hub name, a folder, or a loaded model, which is then used up.
    shape
        Fields of :class:`~dermino_core.evaluation.captioning_model.CaptionerShape` (`prompt`,
        `longest`, `rank`, ...); width and number of image tokens follow from the features.
    beams
        1: greedy.
    words, meteor
        See :mod:`dermino_core.evaluation.caption_scores`.
    weights, device
        As :func:`~dermino_core.evaluation.captioning_language.load_language_model`.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` if a half has no caption; what loading and training raise. All packages
        that scoring needs are looked for before training.
    """
    require_packages(PACKAGES)
    if train.features.shape[1:] != test.features.shape[1:]:
        raise ValueError("features of the halves differ in shape")
    kept_train, train_note = _with_caption(train, "training")
    kept_test, test_note = _with_caption(test, "test")
    language = language_model
    if isinstance(language, str):
        language = load_language_model(language, weights=weights, device=device)
    tokens = 1 if train.features.ndim == 2 else train.features.shape[1]
    form = CaptionerShape(width=train.features.shape[-1], image_tokens=tokens)
    captioner = Captioner(language, replace(form, **(shape or {})), seed=seed)
    done = train_captioner(
        captioner,
        train.features[kept_train],
        [str(train.captions[row]) for row in kept_train],
        recipe,
        seed=seed,
    )
    generated = captioner.generate(test.features[kept_test], beams=beams)
    references = [str(test.captions[row]) for row in kept_test]
    decoding = "greedy" if beams == 1 else f"{beams} beams"
    measures, notes = score_captions(
        generated,
        references,
        method=f"{language.name.rstrip('/').rpartition('/')[2]}, {decoding}",
        units=[str(test.units[row]) for row in kept_test],
        words=words,
        meteor=meteor,
        replicates=replicates,
        seed=seed,
    )
    cut = _count(done.cut, "training caption was", "training captions were")
    empty = _count(generated.count(""), "generated caption is", "generated captions are")
    notes = [
        train_note,
        test_note,
        f"{cut} cut to {captioner.shape.longest} tokens." if done.cut else "",
        f"{empty} empty." if "" in generated else "",
        *notes,
    ]
    return CaptioningResult(
        outcome=Outcome(measures, notes=[note for note in notes if note]),
        captioner=captioner,
        generated=tuple(generated),
        references=tuple(references),
        test_rows=kept_test,
        trained_on=len(kept_train),
    )


def _with_caption(images: CaptionedImages, half: str) -> tuple[Integers, str]:
    """Places of images with a caption, and a sentence about the others if there are any."""
    there = np.array([bool((caption or "").strip()) for caption in images.captions], dtype=bool)
    if not there.any():
        raise DerminoError(
            "DATA_TOO_FEW",
            f"None of the {len(there)} {half} images has a caption.",
            fix="Give the table a column caption, or map it: --column caption=COLUMN.",
        )
    missing = np.flatnonzero(~there)
    if not len(missing):
        return np.flatnonzero(there), ""
    rows = ", ".join(str(images.rows[row]) for row in missing[:_MOST_ROWS])
    more = f" and {len(missing) - _MOST_ROWS} more" if len(missing) > _MOST_ROWS else ""
    verb = "has no caption and was" if len(missing) == 1 else "have no caption and were"
    place = "row" if len(missing) == 1 else "rows"
    return (
        np.flatnonzero(there),
        f"{len(missing)} of {len(there)} {half} images {verb} left out ({place} {rows}{more}).",
    )


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
