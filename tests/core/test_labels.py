"""Disease names: one spelling, a proposal, and a map that leaves nothing out silently."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermino_core.errors import DerminoError
from dermino_core.labels import TASKS, apply_label_map, normalise_label, propose_label_map

CLASSES = TASKS["malignancy"]


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("Basal-Cell_carcinoma (BCC)", "basal cell carcinoma"),
        ("  MELANOMA\t", "melanoma"),
        ("Ｍｅｌａｎｏｍａ", "melanoma"),
        ("Bowen's disease", "bowens disease"),
        ("Bowen’s  Disease [in situ]", "bowens disease"),
        (
            "actinic keratosis / intraepithelial carcinoma",
            "actinic keratosis intraepithelial carcinoma",
        ),
        ("basal\u2013cell carcinoma.", "basal cell carcinoma"),
        ("(BCC)", "bcc"),
        ("Nævus", "nævus"),
        ("Straße", "strasse"),
        ("a_b", "a b"),
        ("1", "1"),
        ("", ""),
        ("lentigo ((nested) inner)", "lentigo"),
    ],
)
def test_one_spelling(written: str, normal: str) -> None:
    assert normalise_label(written) == normal


@given(st.text(max_size=40))
def test_normal_names_stay_as_they_are(text: str) -> None:
    once = normalise_label(text)
    assert normalise_label(once) == once
    assert once == once.strip()


@pytest.mark.parametrize(
    ("label", "proposed"),
    [
        ("MEL", "malignant"),
        ("Basal cell carcinoma (nodular)", "malignant"),
        ("akiec", "malignant"),
        ("Actinic_Keratosis", "malignant"),
        ("Bowen's disease", "malignant"),
        ("SCC", "malignant"),
        ("common_nevus", "benign"),
        ("atypical_nevus", "benign"),
        ("Naevus", "benign"),
        ("bkl", "benign"),
        ("Seborrheic Keratosis", "benign"),
        ("df", "benign"),
        ("vasc", "benign"),
        ("Malignant", "malignant"),
        ("benign", "benign"),
        ("non_melanoma", None),
        ("non-melanoma skin cancer", None),
        ("psoriasis", None),
        ("1", None),
        ("", None),
    ],
)
def test_proposals(label: str, proposed: str | None) -> None:
    assert propose_label_map([label, label], CLASSES, "malignancy") == {label: proposed}


def test_proposals_name_only_classes_that_exist() -> None:
    assert propose_label_map(["melanoma"], ("no", "yes"), "malignancy") == {"melanoma": None}
    found = propose_label_map(["Type-III", "melanoma"], ("type iii",), "skin type")
    assert found == {"Type-III": "type iii", "melanoma": None}
    assert propose_label_map(["nv"], ("Benign", "Malignant"), "malignancy") == {"nv": "Benign"}


def test_proposals_agree_with_fitzpatrick17k(shared_data: Path) -> None:
    with (shared_data / "labels" / "fitzpatrick17k_114.csv").open(newline="") as file:
        partitions = {row["label"]: row["three"] for row in csv.DictReader(file)}
    proposal = propose_label_map(partitions, CLASSES, "malignancy")
    assert {label: name for label, name in proposal.items() if partitions[label] in CLASSES} == {
        label: name for label, name in partitions.items() if name in CLASSES
    }
    others = [name for label, name in proposal.items() if partitions[label] not in CLASSES]
    assert set(others) == {None}


def test_a_map_is_applied_leniently_and_exactly_first() -> None:
    mapping = {"Basal-cell carcinoma": "malignant", "nv": "benign", "NV": "malignant", "x": ""}
    labels = ["basal_cell carcinoma (BCC)", "nv", "NV", None, "x", "X"]
    assert apply_label_map(labels, mapping, CLASSES) == [1, 0, 1, None, None, None]


def test_unmapped_labels_are_all_listed_with_their_counts() -> None:
    labels = ["b", "a", "b", "nv", None, "c\n"]
    with pytest.raises(DerminoError) as caught:
        apply_label_map(labels, {"nv": "benign"}, CLASSES)
    assert caught.value.code == "LABEL_UNMAPPED"
    assert "3 labels" in caught.value.what
    assert "'b' (2), 'a' (1), 'c\\n' (1)" in caught.value.what
    assert "'benign', 'malignant'" in (caught.value.fix or "")


def test_maps_that_make_no_sense() -> None:
    with pytest.raises(DerminoError, match="mapped to 'bad', no class") as caught:
        apply_label_map([], {"nv": "bad"}, CLASSES)
    assert caught.value.code == "CONFIG_INVALID"
    with pytest.raises(DerminoError, match="'benign' and 'malignant'") as caught:
        apply_label_map(["n v"], {"n-v": "benign", "n_v": "malignant"}, CLASSES)
    assert caught.value.code == "CONFIG_INVALID"
