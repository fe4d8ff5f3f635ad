"""Sources: what is selected, what is labelled, and one clear sentence for what is wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pretraining_data import make_source

from dermino_core.errors import DerminoError
from dermino_core.image_limits import ImageError
from dermino_core.pretraining.config import DataSection, SourceSection
from dermino_core.pretraining.image_list import NameTable, fit_image
from dermino_core.pretraining.sources import collect_labels, open_sources
from dermino_core.pretraining.vocabulary import Vocabulary

EMPTY = Vocabulary.from_labels(())


def section(*sources: SourceSection, **options: object) -> DataSection:
    return DataSection.model_validate({"sources": sources, **options})


def test_selects_splits_and_tells_labelled_from_not(tmp_path: Path) -> None:
    labels = ["melanoma", None, "nevus|melanoma", "unknown", "!melanoma", "nevus"]
    splits = ["train", "train", None, None, None, "test"]
    first = make_source(tmp_path / "a", labels, splits=splits)
    second = make_source(tmp_path / "b", ["nevus", None])
    data = section(
        SourceSection(name="a", manifest=first),
        SourceSection(name="b", manifest=second, weight=3.0),
        image_side=16,
    )
    assert collect_labels(data) == [
        ("!melanoma", "a"),
        ("melanoma", "a"),
        ("nevus", "a"),
        ("nevus", "b"),
        ("unknown", "a"),
    ]
    vocabulary = Vocabulary.from_labels(label for label, _ in collect_labels(data))
    images = open_sources(data, vocabulary)
    assert images.n_images == len(images) == 7
    assert images.labelled.tolist() == [True, False, True, False, True, True, False]
    assert [images.source_of(position) for position in range(7)] == [0, 0, 0, 0, 0, 1, 1]
    assert images.labels(2) == ("nevus", "melanoma")
    assert images.counts() == {
        "a": {"images": 5, "labelled": 3, "weight": 1.0},
        "b": {"images": 2, "labelled": 1, "weight": 3.0},
    }
    assert images.name(5) == str(tmp_path / "b" / "000.png")
    assert images.read(0).size == (21, 16)


def test_negatives_are_those_of_the_image_s_own_source(tmp_path: Path) -> None:
    one = make_source(tmp_path / "a", ["melanoma", "nevus", None])
    two = make_source(tmp_path / "b", ["psoriasis"])
    data = section(SourceSection(name="a", manifest=one), SourceSection(name="b", manifest=two))
    vocabulary = Vocabulary.from_labels(label for label, _ in collect_labels(data))
    images = open_sources(data, vocabulary)
    place = {name: i for i, name in enumerate(vocabulary.names)}
    targets, available = (rows[images.codes] for rows in images.encode(vocabulary, "source"))
    assert available.sum(axis=1).tolist() == [2, 2, 0, 1]
    assert available[0, place["psoriasis"]] == 0
    assert targets[0, place["melanoma"]] == 1
    assert targets.sum(axis=1).tolist() == [1, 1, 0, 1]
    assert images.encode(vocabulary, "all")[1][images.codes].sum(axis=1).tolist() == [3, 3, 0, 3]


def test_without_a_vocabulary_any_label_counts(tmp_path: Path) -> None:
    manifest = make_source(tmp_path / "a", ["melanoma", None])
    images = open_sources(section(SourceSection(name="a", manifest=manifest)), EMPTY)
    assert images.labelled.tolist() == [True, False]
    assert images.encode(EMPTY, "source")[0].shape == (2, 0)


def test_labels_that_the_table_lacks_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = make_source(tmp_path / "a", ["melanoma", "psoriasis"])
    data = section(SourceSection(name="a", manifest=manifest))
    with caplog.at_level(logging.WARNING):
        images = open_sources(data, Vocabulary.from_labels(["melanoma"]))
    assert "'psoriasis'" in caplog.text
    assert images.labelled.tolist() == [True, False]


def test_wrong_input_is_one_clear_sentence(tmp_path: Path) -> None:
    manifest = make_source(tmp_path / "a", ["x"], splits=["test"])
    source = SourceSection(name="a", manifest=manifest)
    fine = source.model_copy(update={"splits": ("test",)})
    cases = [
        (section(), "CONFIG_INVALID", "no images"),
        (section(source), "DATA_TOO_FEW", "none has a split of 'train' or none"),
        (section(fine, fine), "CONFIG_INVALID", "Two sources are called 'a'"),
        (
            section(source.model_copy(update={"splits": ("training",)})),
            "CONFIG_INVALID",
            "'training', which does not exist",
        ),
        (
            section(fine.model_copy(update={"images": tmp_path / "elsewhere"})),
            "IMAGE_UNREADABLE",
            "No image of source 'a' can be read .1 of 1 tried.; the first: no such file",
        ),
        (
            section(SourceSection(name="a", shards=tmp_path / "a")),
            "DATA_CHANGED",
            "no finished shards",
        ),
    ]
    for data, code, words in cases:
        with pytest.raises(DerminoError, match=words) as caught:
            open_sources(data, EMPTY)
        assert caught.value.code == code
        assert "\n" not in caught.value.what


def test_an_image_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    manifest = make_source(tmp_path / "a", [None, None])
    Image.new("RGB", (20, 20)).save(tmp_path / "secret.png")
    manifest.write_text("image\n000.png\n../secret.png\n")
    images = open_sources(section(SourceSection(name="a", manifest=manifest)), EMPTY)
    images.read(0)
    with pytest.raises(ImageError, match="outside"):
        images.read(1)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((600, 450), 256, (341, 256)),
        ((450, 600), 256, (256, 341)),
        ((100, 80), 256, (100, 80)),
        ((1000, 100), 256, (200, 100)),
        ((1000, 100), 50, (100, 50)),
        ((9, 2000), 8, (8, 16)),
    ],
)
def test_fits_without_enlarging(
    size: tuple[int, int], side: int, expected: tuple[int, int]
) -> None:
    assert fit_image(Image.new("RGB", size), side).size == expected


def test_fitting_equals_shrinking_then_cropping() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 120, 3), dtype=np.uint8))
    apart = image.resize((60, 20), Image.Resampling.BICUBIC).crop((10, 0, 50, 20))
    ours, theirs = (np.asarray(picture, dtype=int) for picture in (fit_image(image, 20), apart))
    assert np.abs(ours - theirs).max() <= 1


@given(st.lists(st.text()))
def test_names_are_kept(names: list[str]) -> None:
    table = NameTable(names)
    assert [table[index] for index in range(len(table))] == names
