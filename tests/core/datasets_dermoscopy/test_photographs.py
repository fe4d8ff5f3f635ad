"""Readers of DDI, ACNE04 and Skincancer, on folders laid out like the downloads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dataset_folders import picture, records_of, rows_of, table

from dermino_core.datasets import acne04, ddi, find_dataset, skincancer
from dermino_core.errors import DerminoError

# DDI

DDI_HEADER = ("", "DDI_ID", "DDI_file", "skin_tone", "malignant", "disease")
DDI_ROWS = (
    ("0", "1", "000001.png", "56", "True", "melanoma-in-situ"),
    ("4", "5", "000005.png", "12", "True", "basal-cell-carcinoma"),
    ("35", "36", "000036.png", "34", "False", "melanocytic-nevi"),
)


@pytest.fixture
def ddi_raw(tmp_path) -> Path:
    raw = tmp_path / "download" / "ddidiversedermatologyimages"
    table(raw / "ddi_metadata.csv", [DDI_HEADER, *DDI_ROWS])
    for row in DDI_ROWS:
        picture(raw / row[2])
    return raw


def test_ddi(ddi_raw, tmp_path):
    manifest = ddi.prepare(ddi_raw, tmp_path / "out")
    records = records_of(manifest, ddi_raw)
    assert [(r.image, r.label, r.skin_type) for r in records] == [
        ("000001.png", "malignant", "V-VI"),
        ("000005.png", "malignant", "I-II"),
        ("000036.png", "benign", "III-IV"),
    ]
    assert [row["disease"] for row in rows_of(manifest)] == [row[5] for row in DDI_ROWS]


def test_ddi_images_in_a_folder_and_a_table_from_a_spreadsheet(ddi_raw, tmp_path):
    expected = rows_of(ddi.prepare(ddi_raw, tmp_path / "one"))
    for row in DDI_ROWS:
        picture(ddi_raw / "images" / row[2])
        (ddi_raw / row[2]).unlink()
    table(
        ddi_raw / "ddi_metadata.csv",
        [DDI_HEADER, *([*r[:4], r[4].upper(), r[5]] for r in DDI_ROWS)],
    )
    rows = rows_of(ddi.prepare(ddi_raw, tmp_path / "two"))
    assert rows == [row | {"image": f"images/{row['image']}"} for row in expected]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (3, "78", "skin tone of 000005.png is '78', not one of: 12, 34, 56"),
        (4, "perhaps", "malignant of 000005.png is 'perhaps', not one of: True, False"),
    ],
)
def test_ddi_cells_that_are_not_as_published(ddi_raw, tmp_path, column, value, said):
    odd = list(DDI_ROWS[1])
    odd[column] = value
    table(ddi_raw / "ddi_metadata.csv", [DDI_HEADER, DDI_ROWS[0], odd])
    with pytest.raises(DerminoError, match=said) as caught:
        ddi.prepare(ddi_raw, tmp_path / "out")
    assert caught.value.where.endswith("line 3")


def test_ddi_missing_images_and_wrong_levels(ddi_raw, tmp_path):
    (ddi_raw / "000036.png").unlink()
    with pytest.raises(DerminoError, match=r"1 of 3 images of the table .*: 000036\.png"):
        ddi.prepare(ddi_raw, tmp_path / "out")
    with pytest.raises(DerminoError, match=r"Expected ddi_metadata\.csv") as caught:
        ddi.prepare(ddi_raw.parent, tmp_path / "out")
    assert str(ddi_raw) in caught.value.fix
    table(ddi_raw / "ddi_metadata.csv", [DDI_HEADER])
    with pytest.raises(DerminoError, match="names no image"):
        ddi.prepare(ddi_raw, tmp_path / "out")


# ACNE04

ACNE_LISTS = {
    "NNEW_trainval_0.txt": ("levle0_1.jpg  0  3", "levle2_7.jpg  2  24", "levle3_1.jpg 3 60"),
    "NNEW_test_0.txt": ("levle1_12.jpg 1 15", ""),
    "NNEW_trainval_4.txt": ("levle1_12.jpg 1 15", "levle2_7.jpg 2 24"),
    "NNEW_test_4.txt": ("levle0_1.jpg 0 3", "levle3_1.jpg 3 60"),
}
ACNE_ROWS = [
    ("JPEGImages/levle0_1.jpg", "mild", "3"),
    ("JPEGImages/levle1_12.jpg", "moderate", "15"),
    ("JPEGImages/levle2_7.jpg", "severe", "24"),
    ("JPEGImages/levle3_1.jpg", "very severe", "60"),
]


@pytest.fixture
def acne_raw(tmp_path) -> Path:
    raw = tmp_path / "ACNE04" / "Classification"
    for image, *_ in ACNE_ROWS:
        picture(raw / image)
    for name, lines in ACNE_LISTS.items():
        (raw / name).write_text("\r\n".join(lines) + "\n")
    return raw


def test_acne04(acne_raw, tmp_path):
    manifest = acne04.prepare(acne_raw, tmp_path / "out")
    assert [tuple(row.values()) for row in rows_of(manifest)] == ACNE_ROWS
    assert find_dataset("acne04").classes == tuple(label for _, label, _ in ACNE_ROWS)
    assert {r.split for r in records_of(manifest, acne_raw)} == {None}


@pytest.mark.parametrize(
    ("fold", "splits"),
    [("0", ["train", "test", "train", "train"]), ("4", ["test", "train", "train", "test"])],
)
def test_acne04_published_folds(acne_raw, tmp_path, fold, splits):
    manifest = acne04.prepare(acne_raw, tmp_path / "out", split="published", fold=fold)
    assert [r.split for r in records_of(manifest, acne_raw)] == splits


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("levle2_7.jpg 3 24", "grade of levle2_7.jpg is 3, its name says 2"),
        ("levle2_7.jpg 4 24", "is not a file name, a grade 0 to 3 and a number"),
        ("levle2_7.jpg 2", "is not a file name, a grade"),
        ("levle0_1.jpg 0 3", "levle0_1.jpg is in both lists"),
    ],
)
def test_acne04_lines_that_are_not_as_published(acne_raw, tmp_path, line, said):
    (acne_raw / "NNEW_test_0.txt").write_text(f"levle1_12.jpg 1 15\n{line}\n")
    with pytest.raises(DerminoError, match=said) as caught:
        acne04.prepare(acne_raw, tmp_path / "out")
    assert caught.value.code == "DATASET_LAYOUT"


def test_acne04_missing_images_lists_and_wrong_levels(acne_raw, tmp_path):
    (acne_raw / "JPEGImages" / "levle3_1.jpg").unlink()
    with pytest.raises(DerminoError, match=r"1 of 4 images of the lists .*: levle3_1\.jpg"):
        acne04.prepare(acne_raw, tmp_path / "out")
    with pytest.raises(
        DerminoError, match=r"NNEW_trainval_2\.txt and NNEW_test_2\.txt; found JPEG"
    ):
        acne04.prepare(acne_raw, tmp_path / "out", fold="2")
    with pytest.raises(DerminoError) as caught:
        acne04.prepare(acne_raw.parent, tmp_path / "out")
    assert str(acne_raw) in caught.value.fix
    with pytest.raises(DerminoError, match="option fold is '5'") as caught:
        acne04.prepare(acne_raw, tmp_path / "out", fold="5")
    assert caught.value.code == "CONFIG_INVALID"


# Skincancer

SKIN_FOLDERS = {
    "Skin Image Data Set-1/skin_data/melanoma": {"dermIS": ("D1", "SSM2"), "dermquest": ("NM1",)},
    "Skin Image Data Set-2/skin_data/notmelanoma": {"dermis": ("D1",), "dermquest": ("D1",)},
}


def lay_out_skincancer(raw: Path, outer: str = "") -> Path:
    for place, (folder, sources) in enumerate(SKIN_FOLDERS.items(), start=1):
        for source, names in sources.items():
            at = raw / outer.format(place) / folder / source
            for name in names:
                picture(at / f"{name}_orig.jpg")
                picture(at / f"{name}_contour.png")
            (at / "Thumbs.db").write_bytes(b"x")
    return raw


@pytest.mark.parametrize("outer", ["", "skin_image_data_set-{}"])
def test_skincancer(tmp_path, outer):
    raw = lay_out_skincancer(tmp_path / "raw", outer)
    manifest = skincancer.prepare(raw, tmp_path / "out")
    records = records_of(manifest, raw)
    assert len(records) == 5
    for record, row in zip(records, rows_of(manifest), strict=True):
        image, mask = Path(record.image), Path(record.mask or "")
        assert image.name.removesuffix("_orig.jpg") == mask.name.removesuffix("_contour.png")
        assert image.parent == mask.parent
        assert row["source"] == image.parent.name.lower()
        assert (
            record.label
            == {"melanoma": "melanoma", "notmelanoma": "not melanoma"}[image.parent.parent.name]
        )
    assert {r.label for r in records} == set(find_dataset("skincancer").classes)


def test_skincancer_with_both_classes_in_one_folder(tmp_path):
    raw = lay_out_skincancer(tmp_path / "raw")
    merged = tmp_path / "merged" / "skin_data"
    merged.mkdir(parents=True)
    for folder in SKIN_FOLDERS:
        (raw / folder).rename(merged / Path(folder).name)
    assert len(rows_of(skincancer.prepare(merged.parent, tmp_path / "out"))) == 5


def test_skincancer_missing_masks_images_and_archives(tmp_path):
    raw = lay_out_skincancer(tmp_path / "raw")
    melanoma, other = (raw / folder for folder in SKIN_FOLDERS)
    (melanoma / "dermIS" / "D1_contour.png").unlink()
    with pytest.raises(DerminoError, match=r"1 of 3 masks .*: that of D1_orig\.jpg"):
        skincancer.prepare(raw, tmp_path / "out")
    picture(melanoma / "dermIS" / "D1_contour.png")
    for file in other.rglob("*_orig.jpg"):
        file.unlink()
    with pytest.raises(DerminoError, match=r"notmelanoma/ has no images \.\.\._orig\.jpg"):
        skincancer.prepare(raw, tmp_path / "out")
    shutil.rmtree(raw / "Skin Image Data Set-2")
    with pytest.raises(DerminoError, match=r"Expected both archives.*found Skin Image Data Set-1/"):
        skincancer.prepare(raw, tmp_path / "out")


def test_skincancer_says_which_level_was_meant(tmp_path):
    raw = lay_out_skincancer(tmp_path / "one" / "raw")
    with pytest.raises(DerminoError) as caught:
        skincancer.prepare(raw / "Skin Image Data Set-1", tmp_path / "out")
    assert str(raw.resolve()) in caught.value.fix
