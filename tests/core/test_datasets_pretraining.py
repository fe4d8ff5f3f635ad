"""Readers of data sets for pretraining, on small folders laid out like the originals."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from dataset_folders import picture, records_of, rows_of, table

from dermino_core.datasets import dermnet, find_dataset, lesion130k, scin, sd198
from dermino_core.errors import DerminoError
from dermino_core.label_names import split_labels
from dermino_core.manifest import Record

# SCIN

SCIN_CASES = (
    ("case_id", "age_group", "sex_at_birth", "fitzpatrick_skin_type", *scin.PATHS),
    ("-51", "AGE_18_TO_29", "FEMALE", "FST5", *(f"dataset/images/-1{n}.png" for n in (1, 2, 3))),
    ("62", "AGE_80_OR_ABOVE", "MALE", "NONE_SELECTED", "dataset/images/21.png", "", ""),
    ("73", "AGE_UNKNOWN", "OTHER_OR_UNSPECIFIED", "", "dataset/images/31.png", "", ""),
    ("84", "", "", "FST1", "dataset/images/21.png", "dataset/images/gone.png", ""),
    ("95", "", "", "", "dataset/images/51.png", "", ""),
)
SCIN_LABELS = (
    ("case_id", "weighted_skin_condition_label"),
    ("-51", "{'Psoriasis': 0.2, 'Eczema': 0.69, 'Acute dermatitis; NOS': 0.11}"),
    ("62", "{}"),
    ("73", "{'Acne': 0.3333333333333333, 'Rosacea': 0.33333333333333337, 'Milia': 0.3333}"),
    ("84", "{'Tinea': 1.0}"),
)


@pytest.fixture
def scin_raw(tmp_path) -> Path:
    raw = tmp_path / "scin"
    table(raw / "dataset" / "scin_cases.csv", SCIN_CASES)
    table(raw / "dataset" / "scin_labels.csv", SCIN_LABELS)
    for name in ("-11", "-12", "-13", "21", "31", "51"):
        picture(raw / "dataset" / "images" / f"{name}.png")
    return raw


def test_scin(scin_raw, tmp_path):
    manifest = scin.prepare(scin_raw, tmp_path / "out")
    records = {Path(record.image).stem: record for record in records_of(manifest, scin_raw)}
    assert list(records) == ["-11", "-12", "-13", "21", "31", "51"]
    one = records["-12"]
    assert (one.image, one.label, one.group) == ("dataset/images/-12.png", "Eczema", "-51")
    assert (one.skin_type, one.sex, one.age) == ("5", "female", None)
    # An image of two cases: the labelled case's labels, the first case's group.
    shared = records["21"]
    assert (shared.label, shared.group, shared.skin_type) == ("Tinea", "62", "1")
    assert split_labels(records["31"].label) == ("Rosacea", "Acne")
    assert (records["31"].sex, records["31"].skin_type) == (None, None)
    assert records["51"].label is None
    rows = rows_of(manifest)
    assert [row["age_group"] for row in rows] == ["18-29"] * 3 + [""] * 3
    assert rows[0]["differential"] == "Eczema=0.69|Psoriasis=0.2|Acute dermatitis, NOS=0.11"
    assert rows_of(tmp_path / "out" / "missing.csv") == [
        {"image": "gone", "case_id": "84", "reason": "not in the image folder"}
    ]


def test_scin_cases_that_share_an_image_are_one_group(scin_raw, tmp_path):
    """A chain of three: 95 and 73 first, then a case that shows an image of each."""
    file = scin_raw / "dataset" / "scin_cases.csv"
    chain = ("99", "", "", "", "dataset/images/51.png", "dataset/images/31.png", "")
    table(file, (*SCIN_CASES, chain))
    records = records_of(scin.prepare(scin_raw, tmp_path / "out"), scin_raw)
    groups = {Path(record.image).stem: record.group for record in records}
    assert groups["31"] == groups["51"]
    assert len(set(groups.values())) == 3


@pytest.mark.parametrize(
    ("least", "labels"),
    [
        (0.0, ("Eczema", "Psoriasis", "Acute dermatitis, NOS")),
        (0.2, ("Eczema", "Psoriasis")),
        (0.7, ()),
    ],
)
def test_scin_labels_of_a_least_weight(scin_raw, tmp_path, least, labels):
    manifest = scin.prepare(scin_raw, tmp_path / "out", min_weight=least)
    assert split_labels(records_of(manifest, scin_raw)[0].label) == labels


def test_scin_tables_fetched_by_themselves(scin_raw, tmp_path):
    expected = rows_of(scin.prepare(scin_raw, tmp_path / "out"))
    inner = scin_raw / "dataset"
    for name in ("scin_cases.csv", "scin_labels.csv"):
        (inner / name).rename(inner / f"dataset_{name}")
    rows = rows_of(scin.prepare(inner, tmp_path / "out"))
    assert [row["image"] for row in rows] == [f"images/{Path(r['image']).name}" for r in expected]


@pytest.mark.parametrize("cell", ["Eczema", "['Eczema']", "{'Eczema': 'much'}", "{'Eczema'", "f()"])
def test_scin_conditions_that_are_none(scin_raw, tmp_path, cell):
    table(scin_raw / "dataset" / "scin_labels.csv", (SCIN_LABELS[0], ("62", "{}"), ("73", cell)))
    with pytest.raises(DerminoError, match=r"not like \{'Eczema': 0\.69") as caught:
        scin.prepare(scin_raw, tmp_path / "out")
    assert caught.value.code == "DATASET_LAYOUT"
    assert caught.value.where
    assert "line 3" in caught.value.where


def test_scin_says_what_is_amiss(scin_raw, tmp_path):
    with pytest.raises(DerminoError, match=r"weight of a label is 2,"):
        scin.prepare(scin_raw, tmp_path / "out", min_weight=2.0)
    shutil.rmtree(scin_raw / "dataset" / "images")
    with pytest.raises(DerminoError, match="None of the 7 images of the table is here"):
        scin.prepare(scin_raw, tmp_path / "out")
    (scin_raw / "dataset" / "scin_labels.csv").unlink()
    with pytest.raises(DerminoError, match=r"Expected scin_cases.csv.*found dataset/"):
        scin.prepare(scin_raw, tmp_path / "out")


# SD-198

SD198_IMAGES = {
    "Acne_Vulgaris/046542VB.jpg": "Acne Vulgaris",
    "Crowe's_Sign/041020HB.jpg": "Crowe's Sign",
    "Rosacea/020145PB.jpg": "Rosacea",
}


def sd198_lists(raw: Path, images: Sequence[str]) -> None:
    names = ("Acne_Vulgaris", "Crowe's_Sign", "Rosacea")
    lists = (names, images, ("1", "2", "3"))
    for file, lines in zip(sd198.LISTS, lists, strict=True):
        text = "\n".join(f"{number} {line}" for number, line in enumerate(lines, start=1))
        (raw / file).write_text(text + "\n", encoding="utf-8")


@pytest.fixture
def sd198_raw(tmp_path) -> Path:
    raw = tmp_path / "download" / "sd-198"
    for name in SD198_IMAGES:
        picture(raw / "images" / name)
    sd198_lists(raw, list(SD198_IMAGES))
    return raw


def labels_by_image(records: Sequence[Record]) -> dict[str, str | None]:
    return {record.image: record.label for record in records}


def test_sd198_with_and_without_its_lists(sd198_raw, tmp_path):
    listed = sd198.prepare(sd198_raw, tmp_path / "out")
    expected = {f"images/{name}": label for name, label in SD198_IMAGES.items()}
    assert labels_by_image(records_of(listed, sd198_raw)) == expected
    for name in sd198.LISTS:
        (sd198_raw / name).unlink()
    folders = sd198.prepare(sd198_raw, tmp_path / "out")
    assert labels_by_image(records_of(folders, sd198_raw)) == expected
    top = sd198.prepare(sd198_raw / "images", tmp_path / "out")
    assert labels_by_image(records_of(top, sd198_raw / "images")) == SD198_IMAGES


def test_sd198_images_in_one_folder(tmp_path):
    raw = tmp_path / "flat"
    names = [name.rpartition("/")[2] for name in SD198_IMAGES]
    for name in names:
        picture(raw / "images" / name)
    sd198_lists(raw, names)
    labels = labels_by_image(records_of(sd198.prepare(raw, tmp_path / "out"), raw))
    assert labels["images/041020HB.jpg"] == "Crowe's Sign"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("image_class_labels.txt", "1 1\n2 9\n3 3\n", r"Image 2 .* has the class 9, which classes"),
        ("image_class_labels.txt", "1 1\n2\n", "The line is '2', not a number and a name"),
        ("image_class_labels.txt", "1 1\n3 3\n", "has the class none"),
        ("images.txt", "1 Rosacea/gone.jpg\n", "1 of 1 images of images.txt are not there"),
    ],
)
def test_sd198_lists_that_do_not_fit(sd198_raw, tmp_path, file, text, message):
    (sd198_raw / file).write_text(text)
    with pytest.raises(DerminoError, match=message) as caught:
        sd198.prepare(sd198_raw, tmp_path / "out")
    assert caught.value.code == "DATASET_LAYOUT"


def test_sd198_wrong_layout(sd198_raw, tmp_path):
    with pytest.raises(DerminoError, match="found sd-198/") as caught:
        sd198.prepare(sd198_raw.parent, tmp_path / "out")
    assert caught.value.fix == f"You probably meant: {sd198_raw}"
    for name in ("Keloid", "Rosacea"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    with pytest.raises(DerminoError, match="hold no image"):
        sd198.prepare(tmp_path / "empty", tmp_path / "out")


# DermNet


@pytest.fixture
def dermnet_raw(tmp_path) -> Path:
    raw = tmp_path / "dermnet"
    for split in ("train", "test"):
        for number, category in enumerate(dermnet.CATEGORIES):
            picture(raw / split / category / f"{split}-{number}.jpg")
    return raw


def test_dermnet(dermnet_raw, tmp_path):
    manifest = dermnet.prepare(dermnet_raw, tmp_path / "out")
    records = records_of(manifest, dermnet_raw)
    assert [r.split for r in records] == ["train"] * 23 + ["test"] * 23
    assert {r.label for r in records} == set(find_dataset("dermnet").label_map)
    label = {r.image: r.label for r in records}
    category = "Psoriasis pictures Lichen Planus and related diseases"
    assert label[f"test/{category}/test-14.jpg"] == "Psoriasis Lichen Planus and related diseases"
    assert label["train/Eczema Photos/train-5.jpg"] == "Eczema"


def test_dermnet_says_what_is_amiss(dermnet_raw, tmp_path):
    train = dermnet_raw / "train"
    (train / "Monkeypox").mkdir()
    with pytest.raises(DerminoError, match="'Monkeypox' is none of DermNet's 23") as caught:
        dermnet.prepare(dermnet_raw, tmp_path / "out")
    assert caught.value.code == "DATASET_LAYOUT"
    (train / "Monkeypox").rmdir()
    (train / "Vascular Tumors" / "train-20.jpg").unlink()
    with pytest.raises(DerminoError, match="'Vascular Tumors' has no image"):
        dermnet.prepare(dermnet_raw, tmp_path / "out")
    (train / "Vascular Tumors").rmdir()
    with pytest.raises(DerminoError, match="1 of 23 categories are not there: Vascular Tumors"):
        dermnet.prepare(dermnet_raw, tmp_path / "out")
    with pytest.raises(DerminoError, match="You probably meant"):
        dermnet.prepare(train, tmp_path / "out")
    shutil.rmtree(dermnet_raw / "test")
    with pytest.raises(DerminoError, match="found train/"):
        dermnet.prepare(dermnet_raw, tmp_path / "out")


# LESION130k

LESION_LIST = """\
## Han Seung Seog
## no label x_center y_center width height url
00000 lesion 0.4 0.5 0.6 0.8 https://one.example/a b.jpg
00001 lesion 0.4 0.5 0.6 0.8 https://two.example/c.jpg
00002 lesion 0.1 0.2 0.1 0.1 https://one.example/a b.jpg

00007 lesion 0.1 0.2 0.1 0.1 https://gone.example/d.jpg
"""


@pytest.fixture
def lesion_raw(tmp_path) -> Path:
    raw = tmp_path / "lesions"
    for number in (0, 1, 2):
        picture(raw / "dataset" / "lesion" / f"{number:05d}_lesion.png")
    picture(raw / "more" / "other.webp")
    return raw


def test_lesion130k_without_its_list(lesion_raw, tmp_path):
    manifest = lesion130k.prepare(lesion_raw, tmp_path / "out")
    records = records_of(manifest, lesion_raw)
    assert [r.image for r in records] == [
        *(f"dataset/lesion/{number:05d}_lesion.png" for number in (0, 1, 2)),
        "more/other.webp",
    ]
    assert {(r.label, r.group, r.split) for r in records} == {(None, None, None)}
    assert not (tmp_path / "out" / "missing.csv").exists()


@pytest.mark.parametrize("name", ["LESION130k.csv", "DATASET/LESION130k.csv", "all.csv"])
def test_lesion130k_with_its_list(lesion_raw, tmp_path, name):
    (lesion_raw / name).parent.mkdir(exist_ok=True)
    (lesion_raw / name).write_text(LESION_LIST, encoding="utf-8")
    records = records_of(lesion130k.prepare(lesion_raw, tmp_path / "out"), lesion_raw)
    one, two = "https://one.example/a b.jpg", "https://two.example/c.jpg"
    assert [r.group for r in records] == [one, two, one, None]
    assert {r.label for r in records} == {None}
    assert [(r["number"], r["url"]) for r in rows_of(tmp_path / "out" / "missing.csv")] == [
        ("00007", "https://gone.example/d.jpg")
    ]


def test_lesion130k_says_what_is_amiss(lesion_raw, tmp_path):
    (lesion_raw / "LESION130k.csv").write_text("number,url\n")
    with pytest.raises(DerminoError, match="begins with 'number,url'") as caught:
        lesion130k.prepare(lesion_raw, tmp_path / "out")
    assert caught.value.where
    assert "line 1" in caught.value.where
    shutil.rmtree(lesion_raw / "dataset")
    shutil.rmtree(lesion_raw / "more")
    with pytest.raises(DerminoError, match=r"Expected images.*found LESION130k.csv"):
        lesion130k.prepare(lesion_raw, tmp_path / "out")
    with pytest.raises(DerminoError, match="does not exist"):
        lesion130k.prepare(tmp_path / "nowhere", tmp_path / "out")


# the registry


def test_registry_has_the_numbers_of_the_paper():
    """Extended Data Table 4."""
    table_4 = {"scin": 10379, "sd198": 6584, "padufes20": 1149, "dermnet": 18856}
    table_4 |= {"lesion130k": 95999, "skincap": 4000}
    assert {name: find_dataset(name).images for name in table_4} == table_4
