"""Fed-ISIC2019's reader, on a folder laid out like the downloads."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from dataset_folders import records_of, rows_of, table
from isic2019_download import (
    CODES,
    HAM,
    LESIONS,
    METADATA,
    SPLIT,
    TRUTH,
    WITHOUT_CENTRE,
    download,
    images_of,
)

from dermino_core.datasets import fed_isic2019, find_dataset
from dermino_core.errors import DerminoError
from dermino_core.splits import split_records, torn_units


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return download(tmp_path_factory.mktemp("isic") / "ISIC2019")


@pytest.fixture
def raw(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage; the images are links."""
    shutil.copytree(original, tmp_path / "raw", copy_function=lambda a, b: Path(b).hardlink_to(a))
    for name in (TRUTH, METADATA, HAM, SPLIT):
        (tmp_path / "raw" / name).unlink()
        shutil.copy(original / name, tmp_path / "raw" / name)
    return tmp_path / "raw"


def change(file: Path, edit: Callable[[list[list[str]]], object]) -> None:
    """Rewrite a table; `edit` changes its rows, the header first, in place."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    edit(rows)
    table(file, rows)


def test_sizes_are_those_of_the_publication():
    """23,247 images with a centre, of 25,331: the data sheet of FLamby."""
    sizes = fed_isic2019.CENTRES
    trained = (9930, 3163, 2691, 1807, 655, 351)
    tested = (2483, 791, 672, 452, 164, 88)
    assert [a + b for a, b in zip(trained, tested, strict=True)] == list(sizes.values())
    assert sum(sizes.values()) == 23_247
    assert sum(tested) / 23_247 == pytest.approx(1 - fed_isic2019.TRAIN_SHARE, abs=1e-3)
    info = find_dataset("fed-isic2019")
    assert tuple(info.label_map) == CODES
    assert info.classes[:3] == ("melanoma", "melanocytic nevus", "basal cell carcinoma")


def test_a_manifest_for_each_centre(original, tmp_path):
    manifest = fed_isic2019.prepare(original, tmp_path / "out")
    everyone = records_of(manifest, original)
    assert len(everyone) == sum(images_of(centre) for centre in LESIONS)
    for centre, lesions in LESIONS.items():
        records = records_of(tmp_path / "out" / f"{centre}.csv", original)
        assert Counter(r.label for r in records) == {c: 2 * n for c, n in lesions.items()}
        assert {r.split for r in records} == {None}
        assert len({r.group for r in records}) == len(records) / 2
        assert {(r.sex, r.age) for r in records} == {("female", 55.0)}
    assert Counter(row["centre"] for row in rows_of(manifest)) == {c: images_of(c) for c in LESIONS}
    first = records_of(tmp_path / "out" / "msk4.csv", original)[0]
    assert first.image.startswith("ISIC_2019_Training_Input/ISIC_")
    assert first.image.endswith("_downsampled.jpg")
    assert str(first.group).startswith("MSK4_")


def test_images_without_a_centre_are_left_out_and_counted(original, tmp_path):
    fed_isic2019.prepare(original, tmp_path)
    missing = rows_of(tmp_path / "missing.csv")
    assert len(missing) == WITHOUT_CENTRE
    assert all("no lesion_id" in row["reason"] for row in missing)
    used = {Path(row["image"]).stem for row in rows_of(tmp_path / "manifest.csv")}
    assert not used & {row["image"] for row in missing}


def test_lesions_stay_together_in_our_own_split(original, tmp_path):
    fed_isic2019.prepare(original, tmp_path)
    for centre in LESIONS:
        records = records_of(tmp_path / f"{centre}.csv", original)
        split = split_records(records, [str(r.label) for r in records], seed=3, train_share=0.8)
        assert torn_units([str(r.group) for r in records], split) == []
        assert set(split) == {"train", "test"}


def test_published_split(original, tmp_path):
    fed_isic2019.prepare(original, tmp_path, split="published")
    published = {row["image"]: row["fold2"].split("_")[0] for row in rows_of(original / SPLIT)}
    torn = 0
    for centre in LESIONS:
        records = records_of(tmp_path / f"{centre}.csv", original)
        assert [r.split for r in records] == [published[Path(r.image).stem] for r in records]
        assert {r.group for r in records} == {None}
        rows = rows_of(tmp_path / f"{centre}.csv")
        torn += len(torn_units([r["lesion"] for r in rows], [r["split"] for r in rows]))
    assert torn == sum(row["fold"] == "test" for row in rows_of(original / SPLIT))


def test_other_forms_of_the_download(raw, tmp_path):
    expected = fed_isic2019.prepare(raw, tmp_path / "one").read_bytes()
    lines = [line.split(",") for line in (raw / HAM).read_text().splitlines()]
    (raw / f"{HAM}.tab").write_text("\n".join("\t".join(f'"{c}"' for c in ln) for ln in lines))
    (raw / HAM).unlink()
    # FLamby's own folder holds the images twice, and HAM10000's archives hold some of them again.
    shrunk = raw / "ISIC_2019_Training_Input_preprocessed"
    shutil.copytree(raw / "ISIC_2019_Training_Input", shrunk)
    shutil.copytree(shrunk, raw / "HAM10000_images_part_1")
    assert fed_isic2019.prepare(raw, tmp_path / "two").read_bytes() == expected
    shutil.move(raw / "ISIC_2019_Training_Input", raw / "images")
    shutil.rmtree(shrunk)
    shutil.rmtree(raw / "HAM10000_images_part_1")
    moved = fed_isic2019.prepare(raw, tmp_path / "three").read_text()
    assert moved == expected.decode().replace("ISIC_2019_Training_Input/", "images/")


@pytest.mark.parametrize(
    ("name", "column"),
    [(TRUTH, "SCC"), (METADATA, "lesion_id"), (HAM, "dataset"), (SPLIT, "fold2")],
)
def test_a_table_that_lacks_a_column(raw, tmp_path, name, column):
    def drop(rows):
        place = rows[0].index(column)
        for row in rows:
            del row[place]

    change(raw / name, drop)
    with pytest.raises(DerminoError, match=f"no column {column}") as caught:
        fed_isic2019.prepare(raw, tmp_path / "out", split="published")
    assert caught.value.code == "DATASET_LAYOUT"
    assert name in str(caught.value.where)


def edit_cell(name, column, value, row=1):
    def edit(raw: Path) -> None:
        change(raw / name, lambda rows: rows[row].__setitem__(rows[0].index(column), value))

    return edit


def drop_row(name):
    return lambda raw: change(raw / name, lambda rows: rows.pop(1))


def repeat_row(name):
    return lambda raw: change(raw / name, lambda rows: rows.append(rows[1]))


def without(*parts):
    return lambda raw: (raw.joinpath(*parts)).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without(HAM), "HAM10000_metadata is not there: it tells the centre of 96 images"),
        (without(SPLIT), "published split is not there"),
        (without("ISIC_2019_Training_Input", "ISIC_0024306.jpg"), "1 of 152 images of the table"),
        (drop_row(TRUTH), "GroundTruth.csv lacks 1 images that the other table has: ISIC_0024306"),
        (drop_row(METADATA), "Metadata.csv lacks 1 images that the other table has"),
        (drop_row(HAM), "1 of 96 images of HAM10000 in its table are not there"),
        (drop_row(SPLIT), "1 of 152 images in the published split are not there"),
        (repeat_row(TRUTH), "names ISIC_0024306 twice"),
        (repeat_row(METADATA), "names ISIC_0024306 twice"),
        (edit_cell(TRUTH, "MEL", "0.0"), "ISIC_0024306 has no diagnosis marked"),
        (edit_cell(TRUTH, "NV", "1.0"), "ISIC_0024306 has MEL and NV marked"),
        (edit_cell(METADATA, "lesion_id", "XYZ_1"), "collection of ISIC_0024306 is 'XYZ_'"),
        (edit_cell(HAM, "dataset", "graz"), "is 'graz', not one of: vidir_molemax"),
        (edit_cell(SPLIT, "fold2", "val_0"), "fold2 'val_0'"),
        (edit_cell(SPLIT, "fold2", "test_1"), "fold2 'test_1'"),
        (edit_cell(SPLIT, "target", "4"), "as target '4'.* say target 0, center 0"),
        (edit_cell(SPLIT, "center", "2"), "center '2'.* say target 0, center 0"),
        (lambda raw: (raw / TRUTH).write_bytes(b"\xff\xfe\x00image"), "not UTF-8"),
    ],
)
def test_damaged_downloads(raw, tmp_path, damage, said):
    damage(raw)
    with pytest.raises(DerminoError, match=said) as caught:
        fed_isic2019.prepare(raw, tmp_path / "out", split="published")
    assert caught.value.code == "DATASET_LAYOUT"
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_a_diagnosis_that_is_not_among_the_eight(raw, tmp_path):
    edit_cell(TRUTH, "MEL", "0.0")(raw)
    edit_cell(TRUTH, "UNK", "1.0")(raw)
    with pytest.raises(DerminoError, match="has UNK marked, not one of MEL, NV"):
        fed_isic2019.prepare(raw, tmp_path / "out")


def test_a_centre_without_images(raw, tmp_path):
    msk4 = {row["image"] for row in rows_of(raw / METADATA) if row["lesion_id"][:4] == "MSK4"}
    for name in (TRUTH, METADATA):
        change(
            raw / name,
            lambda rows: rows.__setitem__(slice(None), [row for row in rows if row[0] not in msk4]),
        )
    with pytest.raises(DerminoError, match="no image of the centre msk4"):
        fed_isic2019.prepare(raw, tmp_path / "out")


def test_the_folder_around_it_and_an_unknown_split(original, tmp_path):
    with pytest.raises(DerminoError, match="Expected ISIC_2019") as caught:
        fed_isic2019.prepare(original.parent, tmp_path)
    assert str(original) in str(caught.value.fix)
    with pytest.raises(DerminoError, match="option split is 'random'"):
        fed_isic2019.prepare(original, tmp_path, split="random")  # pyright: ignore[reportArgumentType]
