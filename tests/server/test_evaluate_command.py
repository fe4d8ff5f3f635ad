"""`dermino evaluate` as a person calls it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dermino_core.datasets.synthetic import write_site
from dermino_core.errors import DerminoError
from dermino_core.evaluation.results import read_evaluation
from dermino_core.evaluation.suite import paper_suite
from dermino_core.manifest import read_manifest
from dermino_server.cli import app


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "mole"
    return write_site(out, site="synthetic-mednode", images=40)


def run(*words: object):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)], catch_exceptions=False)


def test_several_values_follow_one_option(drawn, tmp_path):
    out = tmp_path / "run"
    done = run(
        *("--backbone", "demo", "random:dermino_demo"),
        *("--manifest", drawn, f"again={drawn}"),
        *("--tasks", "retrieval", "--replicates", 50, "--out", out),
        *("--cache", tmp_path / "cache", "--precision", "fp32"),
    )
    assert done.exit_code == 0, done.output
    results = read_evaluation(out)
    assert {s.backbone for s in results.scores} == {"demo", "random:dermino_demo"}
    assert {s.dataset for s in results.scores} == {"mole", "again"}
    for name in ("report.html", "results.csv", "tables.md", "tables.tex", "run.json"):
        assert (out / name).stat().st_size
    assert "retrieval, softmax" in done.output
    assert CliRunner().invoke(app, ["report", str(out)]).exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--backbone", "demo"), "--manifest"),
        (("--backbone", "demo", "--suite", "paper"), "needs --data"),
        (("--backbone", "demo", "--manifest", "{}", "--column", "b:label=x"), "called 'b'"),
        (("--backbone", "demo", "--manifest", "{}", "--images", "a", "b"), "2 folders for 1"),
        (("--manifest", "{}"), "--backbone"),
    ],
)
def test_a_wrong_command_line_is_explained(drawn, words, said):
    done = run(*(str(drawn) if word == "{}" else word for word in words))
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())


def test_a_wrong_task_is_found_before_anything_is_read(tmp_path):
    missing = tmp_path / "none.csv"
    with pytest.raises(DerminoError, match="no task called 'dance'"):
        run("--backbone", "demo", "--manifest", missing, "--tasks", "dance")


def test_the_paper_suite_takes_what_is_there(drawn, tmp_path):
    raw = tmp_path / "data" / "mednode" / "complete_mednode_dataset"
    pictures = sorted((drawn.parent / "images").iterdir())
    for label, part in (("melanoma", pictures[:4]), ("naevus", pictures[4:8])):
        folder = raw.parent / label
        folder.mkdir(parents=True)
        for picture in part:
            shutil.copy(picture, folder)
    cohorts, missing = paper_suite(tmp_path / "data", tmp_path / "work")
    (cohort,) = cohorts
    assert cohort.name == "mednode"
    assert cohort.classes == ("benign", "malignant")
    assert len(cohort.records) == 8
    names = {one.dataset for one in missing}
    assert {"ph2", "skincap", "isic2018"} <= names
    assert not names & {"mednode", "lesion130k"}
    assert read_manifest(tmp_path / "work" / "mednode" / "manifest.csv").records[0].label
    with pytest.raises(DerminoError, match="None of the"):
        paper_suite(tmp_path, tmp_path / "work")
