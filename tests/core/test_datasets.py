"""Readers of the original downloads, on folders laid out like the originals."""

from __future__ import annotations

import csv
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from dermino_core.datasets import DATASETS, find_dataset, fitzpatrick17k, mednode, ph2
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

FITZPATRICK_COLUMNS = (
    "md5hash,fitzpatrick_scale,fitzpatrick_centaur,label,nine_partition_label,"
    "three_partition_label,qc,url,url_alphanum"
)


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (180, 120, 90)).save(file)


# MED-NODE


@pytest.fixture
def mednode_raw(tmp_path) -> Path:
    raw = tmp_path / "complete_mednode_dataset"
    for name in ("melanoma/1.jpg", "melanoma/2.JPG", "naevus/7.jpg", "naevus/8.png"):
        picture(raw / name)
    (raw / "naevus" / "Thumbs.db").write_bytes(b"x")
    (raw / "naevus" / "._8.jpg").write_bytes(b"x")
    return raw


def test_mednode(mednode_raw, tmp_path):
    manifest = mednode.prepare(mednode_raw, tmp_path / "out")
    assert [(row["image"], row["label"]) for row in rows_of(manifest)] == [
        ("melanoma/1.jpg", "melanoma"),
        ("melanoma/2.JPG", "melanoma"),
        ("naevus/7.jpg", "naevus"),
        ("naevus/8.png", "naevus"),
    ]
    assert all((mednode_raw / row["image"]).is_file() for row in rows_of(manifest))


def test_mednode_folders_in_another_case(mednode_raw, tmp_path):
    (mednode_raw / "melanoma").rename(mednode_raw / "Melanoma")
    rows = rows_of(mednode.prepare(mednode_raw, tmp_path / "out"))
    assert {row["label"] for row in rows} == {"melanoma", "naevus"}
    assert all((mednode_raw / row["image"]).is_file() for row in rows)


@pytest.mark.parametrize("given", [".", "complete_mednode_dataset/naevus"])
def test_mednode_says_which_level_was_meant(mednode_raw, tmp_path, given):
    with pytest.raises(DerminoError) as caught:
        mednode.prepare(tmp_path / given, tmp_path / "out")
    assert caught.value.code == "DATASET_LAYOUT"
    assert "melanoma/ and naevus/" in caught.value.what
    assert "You probably meant" in caught.value.fix
    assert str(mednode_raw) in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_mednode_says_what_was_found(tmp_path):
    raw = tmp_path / "deep" / "er" / "raw"
    raw.mkdir(parents=True)
    (raw / "readme.txt").write_text("hello")
    with pytest.raises(DerminoError, match=r"found readme\.txt"):
        mednode.prepare(raw, tmp_path / "out")
    with pytest.raises(DerminoError, match="does not exist"):
        mednode.prepare(tmp_path / "nowhere", tmp_path / "out")


def test_mednode_with_an_empty_folder(mednode_raw, tmp_path):
    shutil.rmtree(mednode_raw / "naevus")
    (mednode_raw / "naevus").mkdir()
    with pytest.raises(DerminoError, match="naevus/ has no images"):
        mednode.prepare(mednode_raw, tmp_path / "out")


# PH2

PH2_TEXT = """\
||   Name   || Histological Diagnosis || Clinical Diagnosis || Asymmetry | Network || Colors ||

|| IMD003 ||                        ||                  0 ||         0 |               T ||  4 ||
|| IMD009 ||        Compound nevus  ||                  1 ||         1 |              AT ||  3  4 ||
|| IMD058 || Melanoma (in situ)     ||                  2 ||         2 |              AT ||  3  5 ||

Legends for the clinical diagnosis:
0 - Common Nevus
1 - Atypical Nevus
2 - Melanoma
"""
PH2_LABELS = {"IMD003": "common nevus", "IMD009": "atypical nevus", "IMD058": "melanoma"}


@pytest.fixture
def ph2_raw(tmp_path) -> Path:
    raw = tmp_path / "download" / "PH2Dataset"
    for name in PH2_LABELS:
        folder = raw / "PH2 Dataset images" / name
        picture(folder / f"{name}_Dermoscopic_Image" / f"{name}.bmp")
        if name != "IMD009":
            picture(folder / f"{name}_lesion" / f"{name}_lesion.bmp")
    (raw / "PH2_dataset.txt").write_text(PH2_TEXT, encoding="utf-8")
    return raw


def write_workbook(file: Path, marks: dict[str, tuple[str, ...]]) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    for line in range(12):
        sheet.append(["Legends:" if line == 1 else None])
    sheet.append(
        ["Image Name", "Histological Diagnosis", "Common Nevus", "Atypical Nevus", "Melanoma"]
    )
    for name, columns in marks.items():
        sheet.append([name, None, *columns])
    book.save(file)


def test_ph2_from_its_text_table(ph2_raw, tmp_path):
    rows = rows_of(ph2.prepare(ph2_raw, tmp_path / "out"))
    assert {Path(row["image"]).stem: row["label"] for row in rows} == PH2_LABELS
    assert [row["binary"] for row in rows] == ["benign", "benign", "malignant"]
    assert all((ph2_raw / row["image"]).is_file() for row in rows)
    assert [bool(row["mask"]) for row in rows] == [True, False, True]
    assert (ph2_raw / rows[0]["mask"]).is_file()


def test_ph2_from_its_workbook_is_the_same(ph2_raw, tmp_path):
    text = ph2.prepare(ph2_raw, tmp_path / "text").read_bytes()
    (ph2_raw / "PH2_dataset.txt").unlink()
    marks = {"IMD003": ("X", None, None), "IMD009": (None, "X", None), "IMD058": (None, None, "X")}
    write_workbook(ph2_raw / "PH2_dataset.xlsx", marks)
    assert ph2.prepare(ph2_raw, tmp_path / "book").read_bytes() == text


def test_ph2_workbook_with_two_diagnoses(ph2_raw, tmp_path):
    (ph2_raw / "PH2_dataset.txt").unlink()
    write_workbook(ph2_raw / "PH2_dataset.xlsx", {"IMD003": ("X", "X", None)})
    with pytest.raises(DerminoError, match=r"IMD003 has 2 diagnoses.*row 14"):
        ph2.prepare(ph2_raw, tmp_path / "out")


def test_ph2_workbook_that_is_none(ph2_raw, tmp_path):
    (ph2_raw / "PH2_dataset.txt").unlink()
    (ph2_raw / "PH2_dataset.xlsx").write_bytes(b"not a zip file")
    with pytest.raises(DerminoError) as caught:
        ph2.prepare(ph2_raw, tmp_path / "out")
    assert caught.value.code == "DATASET_LAYOUT"


def test_ph2_workbook_without_openpyxl(ph2_raw, tmp_path, monkeypatch):
    (ph2_raw / "PH2_dataset.txt").unlink()
    (ph2_raw / "PH2_dataset.xlsx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DerminoError, match=r"dermino\[xlsx\]") as caught:
        ph2.prepare(ph2_raw, tmp_path / "out")
    assert caught.value.code == "DEPENDENCY_MISSING"


def test_ph2_says_which_level_was_meant(ph2_raw, tmp_path):
    for given in (ph2_raw.parent, ph2_raw / "PH2 Dataset images", tmp_path):
        with pytest.raises(DerminoError) as caught:
            ph2.prepare(given, tmp_path / "out")
        assert str(ph2_raw) in caught.value.fix


def test_ph2_names_images_that_are_missing(ph2_raw, tmp_path):
    shutil.rmtree(ph2_raw / "PH2 Dataset images" / "IMD009")
    with pytest.raises(DerminoError, match="1 of 3 images of the table are not there: IMD009"):
        ph2.prepare(ph2_raw, tmp_path / "out")


@pytest.mark.parametrize("table", ["", "Name\tDiagnosis\nIMD003\t0\n"])
def test_ph2_table_without_rows(ph2_raw, tmp_path, table):
    (ph2_raw / "PH2_dataset.txt").write_text(table)
    with pytest.raises(DerminoError, match="names no image"):
        ph2.prepare(ph2_raw, tmp_path / "out")


def test_ph2_diagnosis_out_of_range(ph2_raw, tmp_path):
    text = PH2_TEXT.replace("                  2 ||", "                  3 ||")
    (ph2_raw / "PH2_dataset.txt").write_text(text)
    with pytest.raises(DerminoError, match=r"IMD058 is '3'.*line 5"):
        ph2.prepare(ph2_raw, tmp_path / "out")


# Fitzpatrick17k


@pytest.fixture
def fitzpatrick_raw(tmp_path) -> Path:
    raw = tmp_path / "fitz"
    raw.mkdir()
    kinds = [
        ("1", "malignant melanoma", "malignant"),
        ("-1", "benign dermal", "benign"),
        ("6", "inflammatory", "non-neoplastic"),
        ("3", "benign epidermal", "benign"),
    ]
    lines = [FITZPATRICK_COLUMNS]
    for number, (scale, nine, three) in enumerate(kinds):
        lines.append(f"{number:032x},{scale},2,some disease,{nine},{three},,http://x/{number},y")
    (raw / "fitzpatrick17k.csv").write_text("\n".join(lines) + "\n")
    return raw


def put_images(folder: Path, numbers: range) -> None:
    for number in numbers:
        picture(folder / f"{number:032x}.jpg")


def test_fitzpatrick_partitions(fitzpatrick_raw, tmp_path):
    put_images(fitzpatrick_raw / "images", range(4))
    out = tmp_path / "out"
    two = rows_of(fitzpatrick17k.prepare(fitzpatrick_raw, out))
    assert [row["label"] for row in two] == ["malignant", "benign", "benign"]
    assert [row["skin_type"] for row in two] == ["1", "", "3"]
    assert all((fitzpatrick_raw / row["image"]).is_file() for row in two)
    assert not (out / "missing.csv").exists()
    three = rows_of(fitzpatrick17k.prepare(fitzpatrick_raw, out, partition="3"))
    assert [row["label"] for row in three][2] == "non-neoplastic"
    nine = rows_of(fitzpatrick17k.prepare(fitzpatrick_raw, out, partition="9"))
    assert [row["label"] for row in nine][:2] == ["malignant melanoma", "benign dermal"]


@pytest.mark.parametrize("folder", ["", "images", "data/finalfitz17k"])
def test_fitzpatrick_lists_what_is_missing(fitzpatrick_raw, tmp_path, folder):
    put_images(fitzpatrick_raw / folder, range(1))
    rows = rows_of(fitzpatrick17k.prepare(fitzpatrick_raw, tmp_path / "out"))
    assert len(rows) == 1
    missing = rows_of(tmp_path / "out" / "missing.csv")
    assert [row["url"] for row in missing] == ["http://x/1", "http://x/3"]


def test_fitzpatrick_without_images(fitzpatrick_raw, tmp_path):
    with pytest.raises(DerminoError, match="--download"):
        fitzpatrick17k.prepare(fitzpatrick_raw, tmp_path / "out")


def test_fitzpatrick_unknown_partition(fitzpatrick_raw, tmp_path):
    with pytest.raises(DerminoError, match="no partition '4'"):
        fitzpatrick17k.prepare(fitzpatrick_raw, tmp_path / "out", partition="4")


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "a" * 31, "/" * 32])
def test_fitzpatrick_hash_that_is_none(fitzpatrick_raw, tmp_path, name):
    line = f"{name},1,1,x,benign dermal,benign,,http://x/9,y\n"
    with (fitzpatrick_raw / "fitzpatrick17k.csv").open("a") as file:
        file.write(line)
    with pytest.raises(DerminoError, match="is not an MD5 hash") as caught:
        fitzpatrick17k.prepare(fitzpatrick_raw, tmp_path / "out")
    assert "line 6" in caught.value.where


def test_fitzpatrick_without_a_column(fitzpatrick_raw, tmp_path):
    file = fitzpatrick_raw / "fitzpatrick17k.csv"
    file.write_text(file.read_text().replace("three_partition_label", "three"))
    with pytest.raises(DerminoError, match="no column three_partition_label"):
        fitzpatrick17k.prepare(fitzpatrick_raw, tmp_path / "out")


def test_fitzpatrick_table_has_the_sizes_of_the_paper(shared_data):
    table = shared_data / "labels" / "fitzpatrick17k.csv"
    two = fitzpatrick17k.read_cases(table)
    assert len(two) == find_dataset("fitzpatrick17k").images == 4497
    assert Counter(case.three for case in two) == {"malignant": 2263, "benign": 2234}
    nine = fitzpatrick17k.read_cases(table, "9")
    assert len(nine) == len(fitzpatrick17k.read_cases(table, "3")) == 16577
    assert len({case.nine for case in nine}) == 9
    neoplastic = {case.nine for case in nine if case.three != "non-neoplastic"}
    labels = find_dataset("fitzpatrick17k").label_map
    assert neoplastic < set(labels)
    assert all(labels[case.nine] == case.three for case in two)


# the registry


@pytest.mark.parametrize("info", DATASETS.values(), ids=lambda info: info.name)
def test_registry_is_whole(info):
    assert callable(info.prepare)
    assert set(info.label_map.values()) == set(info.classes)
    assert info.licence
    assert info.where


def test_registry_covers_the_labels_readers_write():
    assert set(DATASETS["mednode"].label_map) == set(mednode.LABELS)
    assert dict(DATASETS["ph2"].label_map) == ph2.BINARY


def test_registry_lists_names_for_an_unknown_one():
    with pytest.raises(DerminoError, match="no data set called 'isic'") as caught:
        find_dataset("isic")
    names, _, drawn = (caught.value.fix or "").partition("; drawn here: ")
    assert names.removeprefix("Use one of: ").split(", ") == sorted(DATASETS)
    assert drawn.startswith("synthetic-")


def test_table_refuses_ragged_rows(tmp_path):
    with pytest.raises(ValueError, match="row of 1 cells"):
        write_table(tmp_path / "t.csv", ("a", "b"), [("1",)])
    assert not (tmp_path / "t.csv").exists()
