"""Readers of clinical photographs, on small folders laid out like the original downloads."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from dataset_folders import picture, records_of, rows_of, table

from dermino_core.datasets import DATASETS, find_dataset, padufes20, skincap
from dermino_core.errors import DerminoError
from dermino_core.label_names import split_labels

# SkinCAP

SKINCAP_HEADER = (
    *("id", "skincap_file_path", "ori_file_path", "source", "disease", "caption_zh"),
    *("caption_zh_polish_en", "fitzpatrick_scale", "Do not consider this image"),
)
SKINCAP_ROWS = (
    (
        1,
        "1.png",
        "ab12.jpg",
        "fitzpatrick17k",
        "lichen | planus",
        "红斑",
        "A plaque,\nred.",
        3.0,
        0,
    ),
    (2, "2.png", "000042.png", "ddi", "melanoma-in-situ", "色素", "A dark patch.", None, 1),
    (3, "3.png", "cd34.jpg", "fitzpatrick17k", "psoriasis", "鳞屑", None, -1, 0),
)


@pytest.fixture
def skincap_raw(tmp_path) -> Path:
    raw = tmp_path / "SkinCAP"
    table(raw / "skincap_v240623.csv", (SKINCAP_HEADER, *SKINCAP_ROWS))
    for name in ("1.png", "not_include/2.png", "3.png"):
        picture(raw / "skincap" / name)
    return raw


def test_skincap(skincap_raw, tmp_path):
    manifest = skincap.prepare(skincap_raw, tmp_path / "out")
    first, second, third = records_of(manifest, skincap_raw)
    assert first.image == "skincap/1.png"
    assert split_labels(first.label) == ("lichen , planus",)
    assert first.caption == "A plaque, red."
    assert [r.skin_type for r in (first, second, third)] == ["3", None, None]
    assert (second.image, second.label) == ("skincap/not_include/2.png", "melanoma-in-situ")
    assert third.caption is None
    assert third.split is None
    extra = [(row["source"], row["original"], row["excluded"]) for row in rows_of(manifest)]
    assert extra[:2] == [("fitzpatrick17k", "ab12.jpg", ""), ("ddi", "000042.png", "yes")]


def test_skincap_workbook_gives_the_same(skincap_raw, tmp_path):
    expected = skincap.prepare(skincap_raw, tmp_path / "csv").read_bytes()
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (SKINCAP_HEADER, *SKINCAP_ROWS):
        book.active.append(row)
    book.save(skincap_raw / "skincap_v240715.xlsx")
    (skincap_raw / "skincap_v240623.csv").unlink()
    assert skincap.prepare(skincap_raw, tmp_path / "xlsx").read_bytes() == expected


def test_skincap_reads_the_latest_version_and_the_plain_translation(skincap_raw, tmp_path):
    row = ("1.png", "acne", "Papules.")
    table(
        skincap_raw / "skincap_v250101.csv", (("skincap_file_path", "disease", "caption_en"), row)
    )
    (only,) = records_of(skincap.prepare(skincap_raw, tmp_path / "out"), skincap_raw)
    assert (only.label, only.caption) == ("acne", "Papules.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("caption_zh_polish_en", "words"), "no English caption"),
        (("skincap_file_path", "path"), "no column skincap_file_path"),
        (("3.png", "gone.png"), "1 of 3 images of the table are not there: gone"),
    ],
    ids=["caption", "column", "image"],
)
def test_skincap_says_what_is_amiss(skincap_raw, tmp_path, change, message):
    file = skincap_raw / "skincap_v240623.csv"
    file.write_text(file.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    with pytest.raises(DerminoError, match=message) as caught:
        skincap.prepare(skincap_raw, tmp_path / "out")
    assert caught.value.code == "DATASET_LAYOUT"
    assert not (tmp_path / "out").exists()


def test_skincap_without_openpyxl(skincap_raw, tmp_path, monkeypatch):
    (skincap_raw / "skincap_v240623.csv").rename(skincap_raw / "skincap_v240623.xlsx")
    with pytest.raises(DerminoError, match="not a readable workbook"):
        skincap.prepare(skincap_raw, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DerminoError, match=r"dermino\[xlsx\]") as caught:
        skincap.prepare(skincap_raw, tmp_path / "out")
    assert caught.value.code == "DEPENDENCY_MISSING"


# PAD-UFES-20

PAD_HEADER = ("patient_id", "lesion_id", "age", "gender", "fitspatrick", "diagnostic")
PAD_ROWS = (
    (*PAD_HEADER, "img_id", "biopsed"),
    ("PAT_1516", "1765", "8", "", "", "NEV", "PAT_1516_1765_530.png", "False"),
    ("PAT_46", "881", "55", "FEMALE", "3.0", "BCC", "PAT_46_881_939.png", "True"),
    ("PAT_46", "882", "55", "FEMALE", "3.0", "ACK", "PAT_46_882_100.png", "False"),
    ("PAT_7", "4", "", "MALE", "0.0", "MEL", "PAT_7_4_1.png", ""),
)


@pytest.fixture
def pad_raw(tmp_path) -> Path:
    raw = tmp_path / "pad"
    table(raw / "metadata.csv", PAD_ROWS)
    for part, row in zip((1, 2, 3, 3), PAD_ROWS[1:], strict=True):
        picture(raw / "images" / f"imgs_part_{part}" / f"imgs_part_{part}" / str(row[6]))
    return raw


def test_padufes20(pad_raw, tmp_path):
    manifest = padufes20.prepare(pad_raw, tmp_path / "out")
    records = records_of(manifest, pad_raw)
    assert [r.label for r in records] == [
        *("nevus", "basal cell carcinoma", "actinic keratosis", "melanoma"),
    ]
    assert records[1].image == "images/imgs_part_2/imgs_part_2/PAT_46_881_939.png"
    assert [r.group for r in records] == ["PAT_1516", "PAT_46", "PAT_46", "PAT_7"]
    assert [r.skin_type for r in records] == [None, "3", "3", None]
    assert [r.sex for r in records] == [None, "female", "female", "male"]
    assert [r.age for r in records] == [8.0, 55.0, 55.0, None]
    assert [row["biopsied"] for row in rows_of(manifest)] == ["no", "yes", "no", ""]
    assert [row["lesion"] for row in rows_of(manifest)] == ["1765", "881", "882", "4"]


def test_padufes20_says_what_is_amiss(pad_raw, tmp_path):
    file = pad_raw / "metadata.csv"
    original = file.read_text()
    file.write_text(original.replace("ACK", "BOD"))
    with pytest.raises(DerminoError, match=r"PAT_46_882_100.png is 'BOD', not one of: ACK") as bod:
        padufes20.prepare(pad_raw, tmp_path / "out")
    assert bod.value.where
    assert "line 4" in bod.value.where
    file.write_text(original.replace("diagnostic", "diagnosis"))
    with pytest.raises(DerminoError, match="no column diagnostic"):
        padufes20.prepare(pad_raw, tmp_path / "out")
    file.write_text(original)
    shutil.rmtree(pad_raw / "images" / "imgs_part_3")
    with pytest.raises(DerminoError, match="2 of 4 images of the table are not there"):
        padufes20.prepare(pad_raw, tmp_path / "out")
    with pytest.raises(DerminoError, match="You probably meant"):
        padufes20.prepare(pad_raw / "images", tmp_path / "out")
    table(file, PAD_ROWS[:1])
    with pytest.raises(DerminoError, match="names no image"):
        padufes20.prepare(pad_raw, tmp_path / "out")


def test_registry_covers_the_labels_of_padufes20():
    assert set(find_dataset("padufes20").label_map) == set(padufes20.LABELS.values())


# Fitzpatrick17k-3 and -9


@pytest.mark.parametrize(("partition", "classes"), [("3", 3), ("9", 9)])
def test_fitzpatrick_partitions_have_entries(tmp_path, partition, classes):
    info = DATASETS[f"fitzpatrick17k-{partition}"]
    assert (info.images, len(info.classes)) == (16577, classes)
    header = "md5hash,fitzpatrick_scale,label,nine_partition_label,three_partition_label,url"
    kinds = ("inflammatory,non-neoplastic", "malignant dermal,malignant", "benign dermal,benign")
    lines = [f"{n:032x},2,disease,{kind},http://x/{n}" for n, kind in enumerate(kinds)]
    raw = tmp_path / "fitz"
    raw.mkdir()
    (raw / "fitzpatrick17k.csv").write_text("\n".join((header, *lines)))
    for number in range(3):
        picture(raw / "images" / f"{number:032x}.jpg")
    records = records_of(info.prepare(raw, tmp_path / "out"), raw)
    assert len(records) == 3
    assert {r.label for r in records} <= set(info.label_map)
