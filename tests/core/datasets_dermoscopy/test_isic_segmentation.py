"""The reader of three ISIC segmentation challenges, on folders laid out like the downloads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dataset_folders import picture, records_of

from dermino_core.datasets import find_dataset, isic_segmentation
from dermino_core.errors import DerminoError

NUMBERS = {"train": (1, 2, 3), "val": (11,), "test": (21, 22)}


def lay_out(raw: Path, year: str, *, deeper: bool = False) -> Path:
    """Archives of one year, each in a folder of its name; `deeper`: that folder in itself."""
    ending = "_Segmentation.png" if year == "2016" else "_segmentation.png"
    for part, folders in isic_segmentation.YEARS[year].items():
        images, masks = (raw / name / (name if deeper else "") for name in folders)
        for number in NUMBERS[part]:
            picture(images / f"ISIC_{number:07d}.jpg")
            picture(masks / f"ISIC_{number:07d}{ending}")
            if year == "2017":
                picture(images / f"ISIC_{number:07d}_superpixels.png")
        (images / "LICENSE.txt").write_text("CC0")
    return raw


@pytest.mark.parametrize(
    ("year", "images", "masks"),
    [
        ("2016", "ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
        ("2017", "ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
        ("2018", "ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
    ],
)
def test_as_the_paper_takes_them(tmp_path, year, images, masks):
    raw = lay_out(tmp_path / "raw", year)
    info = find_dataset(f"isic{year}")
    records = records_of(info.prepare(raw, tmp_path / "out"), raw)
    numbers = [*([] if year == "2016" else NUMBERS["val"]), *NUMBERS["test"]]
    assert [Path(r.image).stem for r in records] == [f"ISIC_{n:07d}" for n in numbers]
    last = records[-1]
    assert Path(last.image).parts[0] == images
    assert Path(last.mask or "").parts[0] == masks
    for record in records:
        assert (raw / (record.mask or "")).stem.lower() == (
            Path(record.image).stem.lower() + "_segmentation"
        )
    assert {(r.split, r.label) for r in records} == {(None, None)}


def test_all_parts_with_their_split(tmp_path):
    raw = lay_out(tmp_path / "raw", "2018")
    info = find_dataset("isic2018")
    records = records_of(info.prepare(raw, tmp_path / "out", parts="all", split="published"), raw)
    expected = [(f"ISIC_{n:07d}", part) for part, numbers in NUMBERS.items() for n in numbers]
    assert [(Path(r.image).stem, r.split) for r in records] == expected


def test_archives_unpacked_one_level_deeper(tmp_path):
    raw = lay_out(tmp_path / "raw", "2017", deeper=True)
    records = records_of(find_dataset("isic2017").prepare(raw, tmp_path / "out"), raw)
    name = "ISIC-2017_Validation_Data"
    assert records[0].image == f"{name}/{name}/ISIC_0000011.jpg"
    assert len(records) == 3


def test_years_side_by_side_do_not_mix(tmp_path):
    for year in isic_segmentation.YEARS:
        lay_out(tmp_path / "raw", year)
    for year in isic_segmentation.YEARS:
        manifest = find_dataset(f"isic{year}").prepare(tmp_path / "raw", tmp_path / year)
        assert all(year in Path(r.image).parts[0] for r in records_of(manifest, tmp_path / "raw"))


def test_another_year_s_folders(tmp_path):
    raw = lay_out(tmp_path / "raw", "2016")
    with pytest.raises(DerminoError, match="Expected the folders ISIC-2017_Val") as caught:
        find_dataset("isic2017").prepare(raw, tmp_path / "out")
    assert "found ISBI2016_ISIC_Part1_Test_Data/" in caught.value.what


def test_training_is_only_needed_if_asked_for(tmp_path):
    raw = lay_out(tmp_path / "raw", "2017")
    shutil.rmtree(raw / "ISIC-2017_Training_Data")
    prepare = find_dataset("isic2017").prepare
    assert len(records_of(prepare(raw, tmp_path / "out"), raw)) == 3
    with pytest.raises(DerminoError, match="ISIC-2017_Training_Data/"):
        prepare(raw, tmp_path / "out", parts="all")


def test_missing_masks_and_images(tmp_path):
    raw = lay_out(tmp_path / "raw", "2017")
    prepare = find_dataset("isic2017").prepare
    mask = raw / "ISIC-2017_Test_v2_Part1_GroundTruth" / "ISIC_0000022_segmentation.png"
    mask.rename(tmp_path / "aside.png")
    with pytest.raises(DerminoError, match="1 of 2 masks are not there: ISIC_0000022_segm"):
        prepare(raw, tmp_path / "out")
    (tmp_path / "aside.png").rename(mask)
    image = raw / "ISIC-2017_Test_v2_Data" / "ISIC_0000021.jpg"
    image.unlink()
    with pytest.raises(DerminoError, match=r"1 of 2 images that have a mask .*: ISIC_0000021\.jpg"):
        prepare(raw, tmp_path / "out")
    (image.parent / "ISIC_0000022.jpg").unlink()
    with pytest.raises(DerminoError, match="ISIC-2017_Test_v2_Data/ has no images"):
        prepare(raw, tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ({"parts": "test"}, "paper, all"),
        ({"split": "own"}, "halves, published"),
        ({"year": "2019"}, "2016, 2017, 2018"),
    ],
)
def test_unknown_options(tmp_path, option, values):
    with pytest.raises(DerminoError) as caught:
        isic_segmentation.prepare(tmp_path, tmp_path / "out", **{"year": "2016", **option})
    assert caught.value.code == "CONFIG_INVALID"
    assert values in caught.value.fix
