"""HAM10000's reader, on a folder laid out like the download."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dataset_folders import picture, records_of, rows_of, table

from dermino_core.datasets import find_dataset, ham10000
from dermino_core.errors import DerminoError
from dermino_core.labels import propose_label_map

HEADER = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset")
ROWS = (
    ("HAM_0000118", "ISIC_0027419", "bkl", "histo", "80.0", "male", "scalp", "vidir_modern"),
    ("HAM_0000118", "ISIC_0025030", "bkl", "histo", "80.0", "male", "scalp", "vidir_modern"),
    ("HAM_0002730", "ISIC_0026769", "mel", "histo", "", "unknown", "unknown", "rosendahl"),
    ("HAM_0001466", "ISIC_0031633", "akiec", "consensus", "0.0", "female", "ear", "vidir_molemax"),
)


@pytest.fixture
def raw(tmp_path) -> Path:
    raw = tmp_path / "dataverse_files"
    table(raw / "HAM10000_metadata.csv", [HEADER, *ROWS])
    for place, row in enumerate(ROWS):
        picture(raw / f"HAM10000_images_part_{1 + place % 2}" / f"{row[1]}.jpg")
    for row in ROWS[:3]:
        folder = raw / "HAM10000_segmentations_lesion_tschandl"
        picture(folder / f"{row[1]}_segmentation.png")
    picture(raw / "ISIC2018_Task3_Test_Images" / "ISIC_0034524.jpg")
    return raw


def test_rows(raw, tmp_path):
    manifest = ham10000.prepare(raw, tmp_path / "out")
    records = records_of(manifest, raw)
    part = "HAM10000_images_part_"
    assert [(r.image, r.label, r.group, r.sex, r.age) for r in records] == [
        (f"{part}2/ISIC_0025030.jpg", "bkl", "HAM_0000118", "male", 80.0),
        (f"{part}1/ISIC_0026769.jpg", "mel", "HAM_0002730", None, None),
        (f"{part}1/ISIC_0027419.jpg", "bkl", "HAM_0000118", "male", 80.0),
        (f"{part}2/ISIC_0031633.jpg", "akiec", "HAM_0001466", "female", 0.0),
    ]
    masks = [r.mask for r in records]
    assert masks[0] == "HAM10000_segmentations_lesion_tschandl/ISIC_0025030_segmentation.png"
    assert masks[3] is None
    rows = rows_of(manifest)
    assert [row["binary"] for row in rows] == ["benign", "malignant", "benign", "malignant"]
    assert [row["localization"] for row in rows] == ["scalp", "", "scalp", "ear"]
    assert [row["dx_type"] for row in rows] == ["histo", "histo", "histo", "consensus"]


def test_binary_is_what_every_site_would_map_the_codes_to():
    proposed = propose_label_map(ham10000.DIAGNOSES, ("benign", "malignant"), "malignancy")
    malignant = {code for code, answer in proposed.items() if answer == "malignant"}
    assert malignant == ham10000.MALIGNANT
    assert set(proposed.values()) == {"benign", "malignant"}
    assert dict(find_dataset("HAM10000").label_map) == dict(ham10000.DIAGNOSES)


def test_codes_names_and_meanings_are_those_of_the_real_table(shared_data):
    named = {row["code"]: row["name"] for row in rows_of(shared_data / "labels" / "isic_ham.csv")}
    assert named == dict(ham10000.DIAGNOSES)
    rows = rows_of(shared_data / "ham10000" / "labels.csv")
    assert {row["label"] for row in rows} == set(ham10000.DIAGNOSES)
    malignant = {row["label"] for row in rows if row["binary"] == "malignant"}
    assert malignant == ham10000.MALIGNANT


@pytest.mark.parametrize(
    ("name", "separator"),
    [("HAM10000_metadata", ","), ("HAM10000_metadata.tab", "\t"), ("HAM10000_metadata.tab", ",")],
)
def test_other_shapes_of_the_table(raw, tmp_path, name, separator):
    expected = ham10000.prepare(raw, tmp_path / "one").read_bytes()
    text = "\n".join(separator.join(f'"{cell}"' for cell in row) for row in (HEADER, *ROWS))
    (raw / "HAM10000_metadata.csv").unlink()
    (raw / name).write_text(text, encoding="utf-8-sig")
    assert ham10000.prepare(raw, tmp_path / "two").read_bytes() == expected


def test_all_images_in_one_folder_without_masks(raw, tmp_path):
    for file in sorted(raw.glob("HAM10000_images_part_*/*.jpg")):
        file.rename(raw / file.name)
    shutil.rmtree(raw / "HAM10000_segmentations_lesion_tschandl")
    records = records_of(ham10000.prepare(raw, tmp_path / "out"), raw)
    assert [r.image for r in records] == sorted(f"{row[1]}.jpg" for row in ROWS)
    assert {r.mask for r in records} == {None}


def test_hidden_doubles_of_a_mac_are_no_images(raw, tmp_path):
    folder = raw / "HAM10000_images_part_1"
    for double in (raw / "__MACOSX" / "ISIC_0027419.jpg", folder / "._ISIC_0027419.jpg"):
        double.parent.mkdir(exist_ok=True)
        double.write_bytes(b"no picture")
    records = records_of(ham10000.prepare(raw, tmp_path / "out"), raw)
    assert "HAM10000_images_part_1/ISIC_0027419.jpg" in {r.image for r in records}


def test_missing_images(raw, tmp_path):
    shutil.rmtree(raw / "HAM10000_images_part_2")
    with pytest.raises(DerminoError, match="2 of 4 images of the table are not there: ISIC_"):
        ham10000.prepare(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_diagnosis(raw, tmp_path):
    table(raw / "HAM10000_metadata.csv", [HEADER, *ROWS[:3], (*ROWS[3][:2], "scc", *ROWS[3][3:])])
    with pytest.raises(DerminoError, match="ISIC_0031633 is 'scc', not one of: akiec, ") as caught:
        ham10000.prepare(raw, tmp_path / "out")
    assert caught.value.code == "DATASET_LAYOUT"
    assert "line 5" in caught.value.where


@pytest.mark.parametrize("given", [".", "dataverse_files/HAM10000_images_part_1"])
def test_says_which_level_was_meant(raw, tmp_path, given):
    with pytest.raises(DerminoError, match="Expected HAM10000_metadata") as caught:
        ham10000.prepare(tmp_path / given, tmp_path / "out")
    assert str(raw) in caught.value.fix


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"image_id,dx\nISIC_1,nv\n", "no column lesion_id"),
        (b"lesion_id,image_id,dx\n", "names no image"),
        (b"", "no column lesion_id, image_id, dx"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b'lesion_id,image_id,dx\n"HAM,ISIC', "not a CSV file"),
    ],
)
def test_tables_that_are_none(raw, tmp_path, content, said):
    (raw / "HAM10000_metadata.csv").write_bytes(content)
    with pytest.raises(DerminoError, match=said) as caught:
        ham10000.prepare(raw, tmp_path / "out")
    assert caught.value.code == "DATASET_LAYOUT"
