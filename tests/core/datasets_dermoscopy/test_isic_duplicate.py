"""ISIC-Duplicate's reader: five challenges and the published lists, in small."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dataset_folders import picture, records_of, rows_of, table

from dermino_core.datasets import isic_duplicate
from dermino_core.datasets.isic_diagnoses import CODES, MEANINGS
from dermino_core.errors import DerminoError
from dermino_core.labels import propose_label_map

FOLDERS = {
    "2016": "ISBI2016_ISIC_Part3_Training_Data",
    "2017": "ISIC-2017_Training_Data",
    "2018": "ISIC2018_Task3_Training_Input",
    "2019": "ISIC_2019_Training_Input",
    "2020": "ISIC_2020_Training_JPEG/train",
}
IMAGES = {
    "2016": ("ISIC_0000001", "ISIC_0000002", "ISIC_0000003"),
    "2017": ("ISIC_0000002", "ISIC_0010001", "ISIC_0010002"),
    "2018": ("ISIC_0024306", "ISIC_0024307"),
    "2019": ("ISIC_0024306", "ISIC_0012345_downsampled", "ISIC_0053480"),
    "2020": ("ISIC_2637011", "ISIC_0149568", "ISIC_0052212"),
}
COLUMNS_2018 = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
COLUMNS_2019 = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
HEADER_2020 = (
    *("image_name", "patient_id", "lesion_id", "sex", "age_approx"),
    *("anatom_site_general_challenge", "diagnosis", "benign_malignant", "target"),
)
TABLE_2020 = f"""\
{",".join(HEADER_2020)}
ISIC_2637011,IP_7279968,IL_7972535,male,45,head/neck,unknown,benign,0
ISIC_0149568,IP_0962375,IL_6540984,female,55,,melanoma,malignant,1
ISIC_0052212,IP_2842074,IL_9087444,,,torso,nevus,benign,0
"""
HOME = "/disk/Datasets/ISIC"
DELETED = {
    # The image of 2016 that came again in 2017, and HAM10000's in 2018 that came again in 2019.
    "06 - all_train_duplicates_deleted_(all but newest)": (
        f"{HOME} (B)/2016/train/{FOLDERS['2016']}/ISIC_0000002.jpg",
        f"{HOME} (B)/2018/train/{FOLDERS['2018']}/ISIC_0024306.jpg",
        f"{HOME} (B)/2020/train/{FOLDERS['2020']}/ISIC_0052212.jpg",
    ),
    "2 - downsampled_vs_2017_test_duplicate_filename_deleted": (
        f"{HOME} (A)/2019/train/downsampled/ISIC_0012345.jpg",
    ),
    "07 - 2016_train_vs_2016_test_duplicates_deleted": (
        f"{HOME} (B)/2016/train/{FOLDERS['2016']}/ISIC_0000003.jpg",
        "",
    ),
    "12 - all_test_duplicates_deleted_(all but newest)": (
        f"{HOME} (B)/2017/test/ISIC-2017_Test_v2_Data/ISIC_0010001.jpg",
    ),
}
KEPT = [
    ("2016", "ISIC_0000001", "malignant", "malignant"),
    ("2017", "ISIC_0000002", "melanocytic nevus", "benign"),
    ("2017", "ISIC_0010001", "melanoma", "malignant"),
    ("2017", "ISIC_0010002", "seborrheic keratosis", "benign"),
    ("2018", "ISIC_0024307", "actinic keratosis / intraepithelial carcinoma", "malignant"),
    ("2019", "ISIC_0024306", "melanocytic nevus", "benign"),
    ("2019", "ISIC_0053480", "squamous cell carcinoma", "malignant"),
    ("2020", "ISIC_0149568", "melanoma", "malignant"),
    ("2020", "ISIC_2637011", "benign", "benign"),
]


def marked(image: str, code: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    return (image, *("1.0" if column == code else "0.0" for column in columns))


@pytest.fixture
def raw(tmp_path) -> Path:
    raw = tmp_path / "ISIC"
    for year, names in IMAGES.items():
        for name in names:
            picture(raw / year / "train" / FOLDERS[year] / f"{name}.jpg")
    picture(raw / "2017" / "train" / FOLDERS["2017"] / "ISIC_0010001_superpixels.png")
    kinds = ("malignant", "benign", "benign")
    table(
        raw / "2016" / "ISBI2016_ISIC_Part3_Training_GroundTruth.csv",
        zip(IMAGES["2016"], kinds, strict=True),
    )
    table(
        raw / "2017" / "ISIC-2017_Training_Part3_GroundTruth.csv",
        [
            ("image_id", "melanoma", "seborrheic_keratosis"),
            ("ISIC_0000002", "0.0", "0.0"),
            ("ISIC_0010001", "1.0", "0.0"),
            ("ISIC_0010002", "0.0", "1.0"),
        ],
    )
    table(
        raw / "2017" / "train" / FOLDERS["2017"] / "ISIC-2017_Training_Data_metadata.csv",
        [
            ("image_id", "age_approximate", "sex"),
            ("ISIC_0010001", "55", "female"),
            ("ISIC_0010002", "unknown", "unknown"),
        ],
    )
    truth = "ISIC2018_Task3_Training_GroundTruth"
    table(
        raw / "2018" / truth / f"{truth}.csv",
        [
            ("image", *COLUMNS_2018),
            marked("ISIC_0024306", "NV", COLUMNS_2018),
            marked("ISIC_0024307", "AKIEC", COLUMNS_2018),
        ],
    )
    table(
        raw / "2018" / "ISIC2018_Task3_Training_LesionGroupings.csv",
        [
            ("image", "lesion_id", "diagnosis_confirm_type"),
            ("ISIC_0024307", "HAM_0000007", "histopathology"),
        ],
    )
    table(
        raw / "2019" / "ISIC_2019_Training_GroundTruth.csv",
        [
            ("image", *COLUMNS_2019),
            marked("ISIC_0024306", "NV", COLUMNS_2019),
            marked("ISIC_0012345_downsampled", "MEL", COLUMNS_2019),
            marked("ISIC_0053480", "SCC", COLUMNS_2019),
        ],
    )
    table(
        raw / "2019" / "ISIC_2019_Training_Metadata.csv",
        [
            ("image", "age_approx", "anatom_site_general", "lesion_id", "sex"),
            ("ISIC_0024306", "45.0", "anterior torso", "HAM_0000550", "male"),
            ("ISIC_0053480", "", "", "", ""),
        ],
    )
    (raw / "2020" / "ISIC_2020_Training_GroundTruth_v2.csv").write_text(TABLE_2020)
    write_lists(raw / "isic_duplicate_removal_strategy-main" / "file_lists")
    return raw


def write_lists(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(isic_duplicate.LISTS, start=1):
        if not any(given.endswith(name) for given in DELETED):
            (folder / f"{number} - {name}.txt").write_text("")
    for name, lines in DELETED.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def found(manifest: Path) -> list[tuple[str, str, str, str]]:
    return [
        (row["year"], Path(row["image"]).stem, row["label"], row["binary"])
        for row in rows_of(manifest)
    ]


def test_what_is_kept(raw, tmp_path):
    manifest = isic_duplicate.prepare(raw, tmp_path / "out")
    assert found(manifest) == KEPT
    records = records_of(manifest, raw)
    assert records[0].image == f"2016/train/{FOLDERS['2016']}/ISIC_0000001.jpg"
    about = {(Path(r.image).stem, r.group, r.sex, r.age) for r in records if r.group or r.sex}
    assert about == {
        ("ISIC_0010001", None, "female", 55.0),
        ("ISIC_0024307", "HAM_0000007", None, None),
        ("ISIC_0024306", "HAM_0000550", "male", 45.0),
        ("ISIC_0149568", "IP_0962375", "female", 55.0),
        ("ISIC_2637011", "IP_7279968", "male", 45.0),
    }


def test_it_does_not_matter_whether_the_duplicates_are_deleted(raw, tmp_path):
    expected = isic_duplicate.prepare(raw, tmp_path / "one").read_bytes()
    (raw / "2016" / "train" / FOLDERS["2016"] / "ISIC_0000002.jpg").unlink()
    (raw / "2019" / "train" / FOLDERS["2019"] / "ISIC_0012345_downsampled.jpg").unlink()
    assert isic_duplicate.prepare(raw, tmp_path / "two").read_bytes() == expected


def test_a_name_is_deleted_from_its_own_year_only(raw, tmp_path):
    kept = {(year, name) for year, name, *_ in found(isic_duplicate.prepare(raw, tmp_path / "o"))}
    assert ("2017", "ISIC_0000002") in kept
    assert ("2016", "ISIC_0000002") not in kept
    assert ("2017", "ISIC_0010001") in kept  # deleted from the test images


def test_lists_of_other_shape(raw, tmp_path):
    lists = raw / "isic_duplicate_removal_strategy-main" / "file_lists"
    lists.rename(raw / "file_lists")
    assert found(isic_duplicate.prepare(raw, tmp_path / "out")) == KEPT
    file = raw / "file_lists" / "07 - 2016_train_vs_2016_test_duplicates_deleted.txt"
    file.write_text("\nISIC_0000003.jpg\n")
    with pytest.raises(DerminoError, match="is not the path of a training image") as caught:
        isic_duplicate.prepare(raw, tmp_path / "out")
    assert caught.value.where.endswith("line 2")
    file.unlink()
    with pytest.raises(DerminoError, match="1 of 11 lists are not there: 2016_train_vs_2016_test"):
        isic_duplicate.prepare(raw, tmp_path / "out")


def test_read_deleted_on_lines_of_the_published_lists(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text(
        "/disk/Datasets/ISIC (A)/2019/train/downsampled/ISIC_0012970.jpg\n\n"
        "/disk/Datasets/ISIC (B)/2020/train/ISIC_2020_Training_JPEG/train/ISIC_0409276.jpg\n"
        "/disk/Datasets/ISIC (B)/2019/train/ISIC_2019_Training_Input/ISIC_0000494.jpg\n"
    )
    assert isic_duplicate.read_deleted([file]) == {
        (2019, "isic_0012970_downsampled"),
        (2020, "isic_0409276"),
        (2019, "isic_0000494"),
    }


def test_missing_images(raw, tmp_path):
    (raw / "2019" / "train" / FOLDERS["2019"] / "ISIC_0053480.jpg").unlink()
    with pytest.raises(DerminoError, match="1 of 3 images of the table are not there: ISIC_00534"):
        isic_duplicate.prepare(raw, tmp_path / "out")


def test_images_without_a_diagnosis(raw, tmp_path):
    picture(raw / "2018" / "train" / "ISIC2018_Task3_Test_Input" / "ISIC_0034524.jpg")
    with pytest.raises(DerminoError, match="1 of 3 training images of 2018 have no diagnosis"):
        isic_duplicate.prepare(raw, tmp_path / "out")


def test_missing_table(raw, tmp_path):
    (raw / "2019" / "ISIC_2019_Training_GroundTruth.csv").unlink()
    with pytest.raises(DerminoError, match="The diagnoses of 2019 are not there: ISIC_2019_Train"):
        isic_duplicate.prepare(raw, tmp_path / "out")


@pytest.mark.parametrize("gone", ["2018/train", "isic_duplicate_removal_strategy-main"])
def test_says_what_was_expected(raw, tmp_path, gone):
    shutil.rmtree(raw / gone)
    with pytest.raises(DerminoError, match=r"2018/train/, .* and file_lists/ of isic_dup"):
        isic_duplicate.prepare(raw, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("2016/ISBI2016_ISIC_Part3_Training_GroundTruth.csv", "1,malignant", "1,bad", "is 'bad'"),
        ("2017/ISIC-2017_Training_Part3_GroundTruth.csv", "1,1.0,0.0", "1,1.0,1.0", "has melanoma"),
        ("2019/ISIC_2019_Training_GroundTruth.csv", "1.0,0.0\r\n", "0.0,0.0\r\n", "has no d"),
        ("2019/ISIC_2019_Training_GroundTruth.csv", "1.0,0.0\r\n", "0.0,1.0\r\n", "has UNK"),
        ("2020/ISIC_2020_Training_GroundTruth_v2.csv", "nevus", "psoriasis", "is 'psoriasis'"),
        ("2020/ISIC_2020_Training_GroundTruth_v2.csv", "nevus,benign", "nevus,odd", "is 'odd'"),
    ],
)
def test_unknown_labels(raw, tmp_path, file, old, new, said):
    text = (raw / file).read_bytes().decode()
    assert old in text
    (raw / file).write_bytes(text.replace(old, new).encode())
    with pytest.raises(DerminoError, match=said) as caught:
        isic_duplicate.prepare(raw, tmp_path / "out")
    assert caught.value.code == "DATASET_LAYOUT"
    assert ", line " in caught.value.where


def test_older_tables(raw, tmp_path):
    """2016 with a header or with 0 and 1, 2020 before lesions were named."""
    rows = [("image", "label"), *zip(IMAGES["2016"], ("1.0", "0.0", "0.0"), strict=True)]
    table(raw / "2016" / "ISBI2016_ISIC_Part3_Training_GroundTruth.csv", rows)
    file = raw / "2020" / "ISIC_2020_Training_GroundTruth_v2.csv"
    lines = [list(row.values()) for row in rows_of(file)]
    columns = [HEADER_2020, *lines]
    table(
        raw / "2020" / "ISIC_2020_Training_GroundTruth.csv",
        [(*row[:2], *row[3:]) for row in columns],
    )
    file.unlink()
    manifest = isic_duplicate.prepare(raw, tmp_path / "out")
    assert found(manifest) == KEPT
    assert rows_of(manifest)[-1]["group"] == "IP_7279968"


def test_meanings_agree_with_what_sites_map_their_labels_to():
    proposed = propose_label_map(MEANINGS, ("benign", "malignant"), "malignancy")
    differ = {label for label, answer in proposed.items() if answer not in {None, MEANINGS[label]}}
    assert not differ
    assert set(CODES.values()) < {label for label, answer in proposed.items() if answer}
