"""`dermino data audit`, as a person at a terminal meets it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from dermino_core import leakage
from dermino_core.errors import DerminoError
from dermino_core.manifest import read_manifest
from dermino_server.commands.audit import LINES_SHOWN, audit

app = typer.Typer()
app.command()(audit)


def run(*words: object, code: int = 0) -> str:
    """The command's output; raises the DerminoError that it raised."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, DerminoError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DERMINO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def site(tmp_path) -> Path:
    """Six photographs, and copies of some of them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(6):
        photo(seed).save(folder / f"{seed}.jpg")
    (folder / "0_same.jpg").write_bytes((folder / "0.jpg").read_bytes())
    photo(1).resize((200, 150)).rotate(180).save(folder / "1_turned.jpg", quality=70)
    photo(2).crop((0, 0, 304, 228)).save(folder / "2_cut.png")
    return folder


def photo(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)


def write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def pairs_in(out: Path) -> list[dict[str, str]]:
    with (out / "pairs.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def left(file: Path) -> list[str]:
    return [record.image for record in read_manifest(file).records]


def test_a_leak_is_named_and_removed_and_the_test_half_stays(site, tmp_path):
    clinic = write(
        tmp_path / "clinic.csv",
        "image,label,split",
        "0.jpg,melanoma,train",
        "1.jpg,naevus,test",
        "0_same.jpg,naevus,test",
        "3.jpg,naevus,train",
    )
    web = write(tmp_path / "web.csv", "image", "1_turned.jpg", "2.jpg", "2_cut.png", "4.jpg")
    out = tmp_path / "out"
    output = run(clinic, web, "--images", site, "--out", out)
    assert "8 rows in 2 tables: 3 pairs show the same picture (exact 1, perceptual 2)" in output
    assert "2 of 2 test images have a twin" in output
    assert "clinic: 0_same.jpg is the same file as 0.jpg in clinic (train)" in output
    assert "clinic: 1.jpg shows the same as 1_turned.jpg in web (pretraining)" in output
    assert "1 pairs have different labels" in output
    assert left(out / "cleaned" / "clinic.csv") == ["1.jpg", "0_same.jpg", "3.jpg"]
    assert left(out / "cleaned" / "web.csv") == ["2.jpg", "4.jpg"]
    listed = pairs_in(out)
    assert [pair["danger"] for pair in listed] == ["leak", "leak", "within"]
    first = listed[0]
    assert (first["kind"], first["labels"], first["removed"]) == ("exact", "differ", "second")
    assert (first["first_image"], first["first_row"]) == ("0_same.jpg", "4")
    assert (first["second_image"], first["second_split"]) == ("0.jpg", "train")
    assert 0 < int(listed[1]["distance"]) <= 44
    again = run(clinic, web, "--images", site, "--out", out)
    told, told_again = (text[text.index("8 rows in") :] for text in (output, again))
    assert told_again == told


def test_cleaned_tables_have_no_pairs_left(site, tmp_path):
    rows = [f"{path.name},x,{'test' if path.name < '1' else 'train'}" for path in site.iterdir()]
    table = write(tmp_path / "all.csv", "image,label,split", *sorted(rows))
    run(table, "--images", site, "--out", tmp_path / "one")
    cleaned = tmp_path / "one" / "cleaned" / "all.csv"
    run(cleaned, "--images", site, "--out", tmp_path / "two")
    kept = {pair["second_split"] for pair in pairs_in(tmp_path / "two")}
    assert kept <= {"test"}
    assert left(tmp_path / "two" / "cleaned" / "all.csv") == left(cleaned)


def test_labelled_copies_stay_rather_than_unlabelled_ones(site, tmp_path):
    web = write(tmp_path / "web.csv", "image,label", "1.jpg,", "5.jpg,")
    clinic = write(tmp_path / "clinic.csv", "image,label", "1_turned.jpg,naevus")
    out = tmp_path / "out"
    output = run(web, clinic, "--images", site, "--out", out)
    assert "No row has the split test" in output
    assert left(out / "cleaned" / "web.csv") == ["5.jpg"]
    assert left(out / "cleaned" / "clinic.csv") == ["1_turned.jpg"]


def test_other_halves_can_be_protected(site, tmp_path):
    table = write(tmp_path / "t.csv", "image,split", "1.jpg,val", "1_turned.jpg,test")
    run(table, "--images", site, "--out", tmp_path / "a")
    assert left(tmp_path / "a" / "cleaned" / "t.csv") == ["1_turned.jpg"]
    run(
        *(table, "--images", site, "--out", tmp_path / "b"),
        *("--against", "Test", "--against", "validation"),
    )
    assert len(left(tmp_path / "b" / "cleaned" / "t.csv")) == 2
    assert pairs_in(tmp_path / "b")[0]["danger"] == "across"


def test_unreadable_and_plain_images_are_told_and_kept(site, tmp_path):
    (site / "bad.jpg").write_bytes(b"no image")
    for name in ("plain1.png", "plain2.png"):
        Image.new("RGB", (60, 40), (210, 160, 140 + len(name))).save(site / name)
    names = ["bad.jpg", "none.jpg", "../outside.jpg", "plain1.png", "plain2.png", "0.jpg"]
    table = write(tmp_path / "t.csv", "image", *names)
    out = tmp_path / "out"
    output = run(table, "--images", site, "--out", out)
    assert "3 images are unreadable" in output
    assert "2 images are too plain" in output
    with (out / "unreadable.csv").open(encoding="utf-8", newline="") as file:
        reasons = {row["image"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons["none.jpg"] == "no such file"
    assert reasons["../outside.jpg"] == "outside the image folder"
    assert "not an image" in reasons["bad.jpg"]
    # The two plain files are equal to the last byte.
    assert left(out / "cleaned" / "t.csv") == [name for name in names if name != "plain2.png"]


def test_tables_of_one_name_and_folders_of_their_own(site, tmp_path):
    one = write(tmp_path / "ph2" / "manifest.csv", "file,split", "images/1.jpg,test")
    other = write(site / "manifest.csv", "file", "1_turned.jpg")
    out = tmp_path / "out"
    words = (one, other, "--images", tmp_path, "--images", site, "--out", out)
    with pytest.raises(DerminoError, match="no column"):
        run(*words)
    assert "1 of 1 test images have a twin" in run(*words, "--column", "image=file")
    assert {file.name for file in (out / "cleaned").iterdir()} == {
        "ph2-manifest.csv",
        "images-manifest.csv",
    }
    assert left(out / "cleaned" / "images-manifest.csv") == []


def test_many_leaks_are_counted_after_the_first(site, tmp_path):
    rows = []
    for number in range(LINES_SHOWN + 2):
        photo(100 + number).save(site / f"a{number}.png")
        photo(100 + number).save(site / f"b{number}.jpg")
        rows += [f"a{number}.png,test", f"b{number}.jpg,train"]
    table = write(tmp_path / "t.csv", "image,split", *rows)
    output = run(table, "--images", site, "--out", tmp_path / "out")
    assert "12 of 12 test images" in output
    assert "and 2 more" in output


def test_features_find_what_hashes_do_not(site, tmp_path):
    for seed in range(2):
        photo(seed).crop((40, 0, 280, 240)).save(site / f"{seed}_square.png")
    table = write(
        tmp_path / "t.csv",
        "image,split",
        *(f"{seed}.jpg,test" for seed in range(6)),
        *(f"{seed}_square.png,train" for seed in range(2)),
    )
    words = (table, "--images", site, "--out", tmp_path / "out")
    run(*words)
    assert pairs_in(tmp_path / "out") == []
    backbone = ("--backbone", "demo", "--device", "cpu", "--precision", "fp32")
    run(*words, *backbone, "--similarity", "0.5")
    likest = [(pair["first_image"], pair["second_image"]) for pair in pairs_in(tmp_path / "out")]
    assert set(likest[:2]) == {("0.jpg", "0_square.png"), ("1.jpg", "1_square.png")}
    assert left(tmp_path / "out" / "cleaned" / "t.csv") == [f"{seed}.jpg" for seed in range(6)]


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("t.csv", "--against", "exam"),
        ("t.csv", "--images", "a", "--images", "b"),
        ("t.csv", "--column", "label"),
        ("t.csv", "--similarity", "0.9"),
    ],
    ids=" ".join,
)
def test_wrong_command_lines_end_with_2(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.csv", "image", "a.jpg")
    run(*words, code=2)
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


def test_expected_failures_are_sentences(site, tmp_path, monkeypatch):
    table = write(tmp_path / "t.csv", "image", "1.jpg", "1_turned.jpg", "nowhere.jpg")
    out = ("--out", tmp_path / "out")
    with pytest.raises(DerminoError, match="None of the 3 images can be read"):
        run(table, *out)
    with pytest.raises(DerminoError, match="given twice"):
        run(table, table, *out)
    with pytest.raises(DerminoError, match="tells no copies apart"):
        run(table, "--images", site, "--distance", "200", *out)
    mine = write(tmp_path / "out" / "cleaned" / "t.csv", "image", "1.jpg")
    with pytest.raises(DerminoError, match="would overwrite"):
        run(mine, "--images", site, *out)
    monkeypatch.setattr(leakage, "MAX_PAIRS", 0)
    with pytest.raises(DerminoError, match="pairs of rows show the same picture"):
        run(table, "--images", site, *out)
