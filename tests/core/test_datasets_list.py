"""`dermino data list`, and the options that readers take from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_folders import picture, rows_of
from typer.testing import CliRunner

from dermino_core.datasets import DATASETS, find_dataset
from dermino_core.datasets.synthetic_sites import SITES
from dermino_core.errors import DerminoError
from dermino_server.commands.data import data_app
from dermino_server.commands.dataset_facts import reader_options


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(data_app, [str(word) for word in words])
    if isinstance(result.exception, DerminoError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def isic2018(tmp_path) -> Path:
    raw = tmp_path / "raw"
    for part, number in (("Training", 1), ("Validation", 2), ("Test", 3)):
        name = f"ISIC_{number:07d}"
        picture(raw / f"ISIC2018_Task1-2_{part}_Input" / f"{name}.jpg")
        picture(raw / f"ISIC2018_Task1_{part}_GroundTruth" / f"{name}_segmentation.png")
    return raw


def test_table_has_one_line_for_each_data_set_that_fits_a_terminal():
    lines = run("list").splitlines()
    assert lines[0].split() == ["name", "task", "images", "modality"]
    names = [line.split()[0] for line in lines[1 : 1 + len(DATASETS) + len(SITES)]]
    assert names == [*sorted(DATASETS), *(site.name for site in SITES)]
    assert all(len(line.rstrip()) <= 80 for line in lines)
    (line,) = (line for line in lines if line.startswith("isic-duplicate"))
    assert line.split() == ["isic-duplicate", "pretraining", "57,062", "dermoscopy"]
    assert "dermino data list NAME" in lines[-1]


def test_details_of_the_named_ones_only():
    output = run("list", "HAM10000", "synthetic-ph2", "ham10000")
    info = find_dataset("ham10000")
    for fact in (info.title, "10,015", info.licence, info.where, info.paper_use, "melanoma (mel)"):
        assert fact in output
    assert "dermino data prepare synthetic-ph2 --out FOLDER" in output
    assert "acne04" not in output
    assert "derm7pt" not in output


def test_details_of_all():
    words = run("list", "--all").split()
    for info in DATASETS.values():
        assert f"{info.name}:" in words
        for text in (info.licence, info.where, info.paper_use):
            assert set(text.split()) <= set(words)
    assert all(f"{site.name}:" in words for site in SITES)


def test_details_show_the_options():
    output = run("list", "isic2018")
    assert "--option parts=paper (default) or all" in output
    assert "--option split=halves (default) or published" in output
    assert "--option min_weight=NUMBER" in run("list", "scin")


def test_details_of_an_unknown_one():
    with pytest.raises(DerminoError, match="no data set called 'isic'"):
        run("list", "isic")


@pytest.mark.parametrize("info", DATASETS.values(), ids=lambda info: info.name)
def test_every_option_is_an_argument_of_its_reader(info):
    options = reader_options(info)
    assert set(options) == info.options
    for option in options.values():
        assert option.default is None or not option.values or option.default in option.values


def test_prepare_passes_options_on_and_counts_masks(isic2018, tmp_path):
    out = tmp_path / "out"
    words = ("--option", "parts=all", "--option", "split=published")
    output = run("prepare", "isic2018", isic2018, "--out", out, *words)
    assert f"{out / 'manifest.csv'}: 3 images (3 with a mask)" in output
    assert [row["split"] for row in rows_of(out / "manifest.csv")] == ["train", "val", "test"]
    assert "dermino data check" in output
    assert "dermino-client init" not in output, "a site file needs labels"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--option", "parts"), "is not NAME=VALUE"),
        (("--option", "year=2017"), "has no option year"),
        (("--partition", "9"), "has no option partition"),
    ],
)
def test_options_that_it_does_not_have(isic2018, tmp_path, words, said):
    out = tmp_path / "out"
    output = run("prepare", "isic2018", isic2018, "--out", out, *words, code=2)
    assert said in " ".join(output.replace("│", " ").split())
    assert not out.exists()


def test_option_values_that_there_are_not(isic2018, tmp_path):
    with pytest.raises(DerminoError, match="option parts is 'test'"):
        run("prepare", "isic2018", isic2018, "--out", tmp_path, "--option", "parts=test")
    run("prepare", "scin", tmp_path, "--out", tmp_path, "--option", "min_weight=half", code=2)
    with pytest.raises(DerminoError, match="least weight of a label is 2"):
        run("prepare", "scin", tmp_path, "--out", tmp_path, "--option", "min_weight=2")


def test_prepare_says_what_is_left_out(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = ["md5hash,fitzpatrick_scale,label,nine_partition_label,three_partition_label,url"]
    lines += [f"{n:032x},3,naevus,benign melanocyte,benign,http://x/{n}" for n in range(3)]
    (raw / "fitzpatrick17k.csv").write_text("\n".join(lines) + "\n")
    picture(raw / "images" / f"{1:032x}.jpg")
    output = run("prepare", "fitzpatrick17k", raw, "--out", tmp_path, "--partition", "2")
    assert "1 images (benign 1)" in output
    assert "2 images of the data set are left out" in output
