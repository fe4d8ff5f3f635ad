"""`dermino data list`, `prepare` and `check`, as a person at a terminal meets them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from dermino_core.errors import DerminoError
from dermino_server.commands.data import ROWS_SHOWN, data_app


def run(*words: object, code: int = 0) -> str:
    """The command's output; raises the DerminoError that it raised."""
    result = CliRunner().invoke(data_app, [str(word) for word in words])
    if isinstance(result.exception, DerminoError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def mednode(tmp_path) -> Path:
    raw = tmp_path / "raw folder"
    for number, name in enumerate(("melanoma/1.jpg", "naevus/2.jpg", "naevus/3.jpg")):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (180, 120, 40 * number)).save(raw / name)
    return raw


def test_list_names_every_data_set():
    output = run("list")
    for name in ("mednode", "ph2", "fitzpatrick17k", "4,497", "synthetic-fitzpatrick"):
        assert name in output


def test_prepare_says_what_to_do_next_and_check_follows(mednode, tmp_path):
    out = tmp_path / "out"
    output = run("prepare", "mednode", mednode, "--out", out)
    assert "3 images (naevus 2, melanoma 1)" in output
    check, init = (line.strip() for line in output.splitlines()[-2:])
    assert shlex.split(init) == [
        *("dermino-client", "init", "--site", "mednode"),
        *("--images", str(mednode), "--labels", str(out / "manifest.csv")),
    ]
    assert "3 rows, no errors" in run(*shlex.split(check)[2:])


def test_prepare_draws_a_synthetic_site_into_out(tmp_path):
    output = run("prepare", "synthetic-mednode", "--out", tmp_path)
    assert "170 images" in output
    assert (tmp_path / "images" / "0170.jpg").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("prepare", "mednode", "--out", "x"),
        ("prepare", "mednode", "raw"),
        ("prepare", "mednode", "raw", "--out", "x", "--partition", "3"),
        ("prepare", "mednode", "raw", "--out", "x", "--download"),
        ("prepare", "synthetic-ph2", "raw", "--out", "x"),
        ("check", "m.csv", "--column", "label"),
    ],
    ids=" ".join,
)
def test_wrong_command_lines_end_with_2(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(*words, code=2)
    assert list(tmp_path.iterdir()) == []


def test_unknown_data_set(tmp_path):
    with pytest.raises(DerminoError, match="Use one of"):
        run("prepare", "isic", "raw", "--out", tmp_path)


def test_check_groups_problems_and_ends_with_4(mednode, tmp_path):
    table = tmp_path / "bad.csv"
    lines = [f"gone/{number}.jpg,naevus" for number in range(ROWS_SHOWN + 3)]
    table.write_text("\n".join(["image,label", "melanoma/1.jpg,melanoma", *lines]) + "\n")
    result = CliRunner().invoke(data_app, ["check", str(table), "--images", str(mednode)])
    assert isinstance(result.exception, DerminoError)
    assert (result.exception.code, result.exception.exit_code) == ("MANIFEST_INVALID", 4)
    assert "gone/0.jpg" in result.output
    assert "and 3 more" in result.output
    assert f"gone/{ROWS_SHOWN}.jpg" not in result.output


def test_check_decodes_images_unless_told_not_to(mednode, tmp_path):
    (mednode / "naevus" / "3.jpg").write_bytes(b"no image")
    run("prepare", "mednode", mednode, "--out", tmp_path / "out")
    words = ("check", tmp_path / "out" / "manifest.csv", "--images", mednode)
    with pytest.raises(DerminoError, match="Errors found in 3 rows: 1"):
        run(*words)
    assert "no errors" in run(*words, "--no-decode")


def test_check_takes_other_column_names(mednode, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("file,binary\nmelanoma/1.jpg,malignant\nnaevus/2.jpg,benign\n")
    words = ("check", table, "--images", mednode, "--column", "image=file")
    assert "2 rows, no errors" in run(*words, "--column", "label=binary")
