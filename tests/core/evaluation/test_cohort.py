"""From a table to two halves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dermino_core.backbone_card import BackboneCard, Preprocessing
from dermino_core.errors import DerminoError
from dermino_core.evaluation.cohort import (
    divide_cohort,
    labelled_halves,
    open_cohort,
    summary,
)
from dermino_core.features import FeatureTable, Unreadable
from dermino_core.manifest import Manifest, Record

CARD = BackboneCard(
    name="none",
    architecture="none",
    width=2,
    patch_size=14,
    preprocessing=Preprocessing(14, 1.0, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    fingerprint="0",
    pretrained=True,
    source="a test",
)


def manifest(records: Sequence[Record]) -> Manifest:
    return Manifest(Path("labels.csv"), Path(), list(records))


def features(n: int, unreadable: Sequence[int] = (), digests: Sequence[str] = ()) -> FeatureTable:
    """Row i has the features (i, -i)."""
    rows = np.array([row for row in range(n) if row not in unreadable])
    vectors = np.stack([rows, -rows], axis=1).astype(np.float32)
    bad = [Unreadable(row, "broken") for row in unreadable]
    own = list(digests) or [str(row) for row in range(n)]
    return FeatureTable(vectors, rows, bad, CARD, "fp32", 0, list(own))


def records(labels: Sequence[str | None], **columns: Sequence[str]) -> list[Record]:
    return [
        Record(f"{row}.jpg", label, **{name: values[row] for name, values in columns.items()})
        for row, label in enumerate(labels)
    ]


def test_a_malignant_class_comes_last():
    for labels in (["melanoma", "naevus"], ["naevus", "melanoma"], ["benign", "malignant"]):
        cohort = open_cohort("x", manifest(records(labels)))
        assert cohort.classes[-1] in ("melanoma", "malignant")


def test_classes_can_be_chosen_and_must_exist():
    table = manifest(records(["a", "b", "c"]))
    assert open_cohort("x", table, classes=("c", "a")).classes == ("c", "a")
    with pytest.raises(DerminoError, match="No image has the label 'z'"):
        open_cohort("x", table, classes=("a", "z"))
    with pytest.raises(DerminoError, match="names no image"):
        open_cohort("x", manifest([]))


def test_halves_share_no_unit_and_no_identical_image():
    groups = [str(row // 3) for row in range(60)]
    digests = [str(row) for row in range(60)]
    digests[0] = digests[59] = "same"
    cohort = open_cohort("x", manifest(records(["a", "b"] * 30, group=groups)))
    division = divide_cohort(cohort, features(60, digests=digests), seed=3)
    units = np.array(division.units)
    assert not set(units[division.train]) & set(units[division.test])
    assert units[0] == units[59]
    assert sorted([*division.train, *division.test]) == list(range(60))


def test_a_split_of_the_data_set_is_kept_and_its_leak_named():
    split = ["train", "val", "test", "test"]
    cohort = open_cohort("x", manifest(records(["a", "b", "a", "b"], split=split)))
    division = divide_cohort(cohort, features(4, digests=["1", "2", "1", "4"]))
    assert division.train.tolist() == [0, 1]
    assert division.test.tolist() == [2, 3]
    assert "1 patients, lesions or identical images" in division.notes[0]


def test_training_and_validation_of_one_patient_leak_nothing():
    split, groups = ["train", "val", "test"], ["p", "p", "q"]
    cohort = open_cohort("x", manifest(records(["a", "b", "a"], split=split, group=groups)))
    assert divide_cohort(cohort, features(3)).notes == ()


def test_features_and_labels_belong_to_their_rows():
    labels = ["a", "b", None, "a", "b", "c"] * 10
    cohort = open_cohort("x", manifest(records(labels)))
    table = features(60, unreadable=[0, 7])
    division = divide_cohort(cohort, table)
    halves, test_rows, notes = labelled_halves(cohort, division, table)
    assert not notes
    for row, vector, label in zip(test_rows, halves.test.features, halves.test.labels, strict=True):
        assert vector[0] == row
        assert halves.classes[label] == labels[row]
    used = {int(v[0]) for v in halves.train.features} | set(test_rows.tolist())
    assert used == {row for row in range(60) if labels[row] is not None} - {0, 7}


def test_a_class_of_one_half_is_left_out_and_named():
    split = ["train", "train", "test", "test", "test"]
    cohort = open_cohort("x", manifest(records(["a", "b", "a", "b", "rare"], split=split)))
    table = features(5)
    halves, test_rows, notes = labelled_halves(cohort, divide_cohort(cohort, table), table)
    assert halves.classes == ("a", "b")
    assert test_rows.tolist() == [2, 3]
    assert notes == ["'rare' is in the test half only (1 images): left out."]


def test_too_little_is_said_in_one_sentence():
    one_class = open_cohort("x", manifest(records(["a", "a", "a"])))
    table = features(3)
    with pytest.raises(DerminoError, match="1 classes have images in both halves"):
        labelled_halves(one_class, divide_cohort(one_class, table), table)
    split = open_cohort("x", manifest(records(["a", "b"], split=["train", "train"])))
    with pytest.raises(DerminoError, match="No readable image is in the test half"):
        divide_cohort(split, features(2))


def test_the_summary_counts_what_is_there():
    split = ["train", "train", "test", "test", "test"]
    groups = ["p", "p", "q", "q", "r"]
    labels = ["a", "b", "a", None, "b"]
    cohort = open_cohort("x", manifest(records(labels, split=split, group=groups)), title="X")
    table = features(5, unreadable=[1])
    found = summary(cohort, divide_cohort(cohort, table), table, ["a note"])
    assert (found.images, found.unreadable, found.n_train, found.n_test) == (5, 1, 1, 3)
    assert found.units_test == 2
    assert found.grouped
    assert found.test_counts == {"a": 1, "(no label)": 1, "b": 1}
    assert found.notes == ["a note"]
