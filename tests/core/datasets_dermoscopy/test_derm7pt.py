"""Derm7pt's reader, on a folder laid out like the download."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_folders import picture, records_of, rows_of, table

from dermino_core.datasets import derm7pt, find_dataset
from dermino_core.errors import DerminoError

HEADER = (
    *("case_num", "diagnosis", "seven_point_score", "pigment_network", "sex", "management"),
    *("clinic", "derm", "case_id", "notes"),
)
CASES = (
    ("1", "basal cell carcinoma", "0", "NEL/NEL025.JPG", "NEL/Nel026.jpg", "female"),
    ("2", "blue nevus", "1", "Gzl/gzl23.jpg", "Gzl/gzl24.jpg", "male"),
    ("3", "melanoma (in situ)", "4", "NLL/NLL033.jpg", "NLL/NLL034.JPG", "female"),
    ("4", "vascular lesion", "0", "FAL/Fal011.jpg", "FAL/Fal012.jpg", "male"),
    ("5", "seborrheic keratosis", "2", "Adl/Adl1.jpg", "Adl/Adl2.jpg", "male"),
)
FIVE = (
    "basal cell carcinoma",
    "melanocytic nevus",
    "melanoma",
    "miscellaneous",
    "seborrheic keratosis",
)


def write_meta(raw: Path, cases: tuple[tuple[str, ...], ...]) -> None:
    rows = [
        (number, diagnosis, score, "absent", sex, "excision", clinic, derm, "", "")
        for number, diagnosis, score, clinic, derm, sex in cases
    ]
    table(raw / "meta" / "meta.csv", [HEADER, *rows])


@pytest.fixture
def raw(tmp_path) -> Path:
    raw = tmp_path / "release_v0"
    write_meta(raw, CASES)
    for case in CASES:
        picture(raw / "images" / case[3])
        picture(raw / "images" / case[4])
    for part, numbers in {"train": (0, 2), "valid": (4,), "test": (1, 3)}.items():
        table(raw / "meta" / f"{part}_indexes.csv", [("indexes",), *((n,) for n in numbers)])
    return raw


def test_both_images_of_each_case(raw, tmp_path):
    manifest = derm7pt.prepare(raw, tmp_path / "out")
    records = records_of(manifest, raw)
    assert {r.image for r in records} == {f"images/{name}" for case in CASES for name in case[3:5]}
    rows = {row["image"]: row for row in rows_of(manifest)}
    for place, case in enumerate(CASES):
        for name, modality in ((case[3], "clinical"), (case[4], "dermoscopic")):
            row = rows[f"images/{name}"]
            assert row["label"] == FIVE[place]
            assert (row["group"], row["sex"]) == (f"case {case[0]}", case[5])
            assert (row["diagnosis"], row["seven_point_score"]) == (case[1], case[2])
            assert row["modality"] == modality
            assert row["binary"] == ("melanoma" if place == 2 else "not melanoma")
    assert {r.split for r in records} == {None}
    assert not (tmp_path / "out" / "missing.csv").exists()


@pytest.mark.parametrize(("images", "column"), [("derm", 4), ("clinic", 3)])
def test_one_image_of_each_case_with_the_published_split(raw, tmp_path, images, column):
    manifest = derm7pt.prepare(raw, tmp_path / "out", images=images, split="published")
    records = records_of(manifest, raw)
    assert [r.image for r in records] == [f"images/{case[column]}" for case in CASES]
    assert [r.split for r in records] == ["train", "test", "train", "test", "val"]


def test_names_that_differ_in_capitals_from_the_disk(raw, tmp_path):
    file = raw / "images" / "NEL" / "Nel026.jpg"
    file.rename(file.with_name("NEL026.JPG"))
    images = [r.image for r in records_of(derm7pt.prepare(raw, tmp_path / "out"), raw)]
    assert "images/NEL/NEL026.JPG" in images


def test_a_picture_named_twice_is_one_row(raw, tmp_path):
    """Case 1 has one file for both columns; 2 and 6, both nevi, share a photograph."""
    shared = ("6", "clark nevus", "1", "Gzl/gzl23.jpg", "NLL/NLL035.jpg", "male")
    picture(raw / "images" / shared[4])
    write_meta(raw, ((*CASES[0][:3], *(CASES[0][4],) * 2, "female"), *CASES[1:], shared))
    rows = {row["image"]: row for row in rows_of(derm7pt.prepare(raw, tmp_path / "out"))}
    assert len(rows) == 1 + 4 * 2 + 1
    assert rows["images/NEL/Nel026.jpg"]["modality"] == "dermoscopic"
    groups = {rows[f"images/{name}"]["group"] for name in (*CASES[1][3:5], shared[4])}
    assert groups == {"case 2"}
    assert rows["images/NLL/NLL034.JPG"]["group"] == "case 3"


def test_a_picture_of_lesions_of_two_classes_is_left_out(raw, tmp_path):
    shared = ("6", "melanoma", "7", "Gzl/gzl23.jpg", "NLL/NLL035.jpg", "male")
    picture(raw / "images" / shared[4])
    write_meta(raw, (*CASES, shared))
    out = tmp_path / "out"
    rows = {row["image"]: row for row in rows_of(derm7pt.prepare(raw, out))}
    assert "images/Gzl/gzl23.jpg" not in rows
    assert {rows[f"images/{name}"]["group"] for name in (CASES[1][4], shared[4])} == {"case 2"}
    assert rows_of(out / "missing.csv") == [
        {
            "image": "images/Gzl/gzl23.jpg",
            "reason": "shows lesions of melanocytic nevus and melanoma",
        }
    ]
    write_meta(raw, CASES)
    derm7pt.prepare(raw, out)
    assert not (out / "missing.csv").exists()


def test_twenty_diagnoses_in_five_classes():
    assert len(derm7pt.GROUPS) == 20
    info = find_dataset("derm7pt")
    assert set(derm7pt.GROUPS.values()) == set(derm7pt.CLASSES) == set(info.classes)
    for name, classes in {"reed or spitz nevus": FIVE[1], "lentigo": FIVE[3]}.items():
        assert derm7pt.GROUPS[name] == classes


def test_unknown_diagnosis(raw, tmp_path):
    write_meta(raw, (*CASES, ("6", "psoriasis", "1", "a.jpg", "b.jpg", "male")))
    with pytest.raises(DerminoError, match="case 6 is 'psoriasis', not one of: basal") as caught:
        derm7pt.prepare(raw, tmp_path / "out")
    assert caught.value.where.endswith("meta.csv, line 7")


def test_missing_images(raw, tmp_path):
    (raw / "images" / "Adl" / "Adl1.jpg").unlink()
    with pytest.raises(DerminoError, match=r"1 of 10 images of the table .*: Adl/Adl1\.jpg"):
        derm7pt.prepare(raw, tmp_path / "out")
    assert len(rows_of(derm7pt.prepare(raw, tmp_path / "out", images="derm"))) == 5
    write_meta(raw, ())
    with pytest.raises(DerminoError, match="names no image"):
        derm7pt.prepare(raw, tmp_path / "out")


@pytest.mark.parametrize("given", [".", "release_v0/meta"])
def test_says_which_level_was_meant(raw, tmp_path, given):
    with pytest.raises(DerminoError, match=r"Expected meta/meta\.csv") as caught:
        derm7pt.prepare(tmp_path / given, tmp_path / "out")
    assert str(raw) in caught.value.fix


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0,), "1 of 5 rows of the table are in no part"),
        ((0, 2, 1), "'1' is given twice"),
        ((0, 2, 5), "'5' is given but the table has 0 to 4"),
        ((0, 2, "two"), "'two' is given but"),
    ],
)
def test_row_numbers_that_do_not_fit(raw, tmp_path, numbers, said):
    table(raw / "meta" / "train_indexes.csv", [("indexes",), *((n,) for n in numbers)])
    with pytest.raises(DerminoError, match=said):
        derm7pt.prepare(raw, tmp_path / "out", split="published")
    assert derm7pt.prepare(raw, tmp_path / "out").is_file()


@pytest.mark.parametrize("option", [{"images": "dermoscopy"}, {"split": "train"}])
def test_unknown_options(raw, tmp_path, option):
    with pytest.raises(DerminoError, match="The option") as caught:
        derm7pt.prepare(raw, tmp_path / "out", **option)
    assert caught.value.code == "CONFIG_INVALID"
