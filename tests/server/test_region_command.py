"""`dermino region`, as people call it: simulate in two places, join, predict."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import tomli_w
from regional_runs import ALL, Runs, four_sites, runs_of
from typer.testing import CliRunner

from dermino_core.datasets.synthetic import find_site, write_site
from dermino_core.errors import DerminoError
from dermino_server.cli import app


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("place")
    return runs_of(four_sites(folder / "hospitals"), folder)


def good(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def bad(code: str, *arguments: str | Path) -> str:
    error = CliRunner().invoke(app, [str(argument) for argument in arguments]).exception
    assert isinstance(error, DerminoError), repr(error)
    assert error.code == code
    assert error.fix
    return str(error)


def make(run: Path, name: str, folder: Path, *options: str) -> Path:
    out = folder / f"{name}.region"
    good("region", "sum", "--run", run, "--name", name, "--out", out, *options)
    return out


def test_from_two_runs_to_one_model(runs: Runs, tmp_path: Path) -> None:
    north, out = tmp_path / "north.region", tmp_path / "both"
    text = good(
        *("region", "sum", "--run", runs("alpha", "beta"), "--name", "north", "--out", north)
    )
    digest = hashlib.sha256(north.read_bytes()).hexdigest()
    for words in ("region north: 2 sites", "alpha 30, beta 55", str(north), digest, "not signed"):
        assert words in text
    south = make(runs("gamma", "delta"), "south", tmp_path)
    text = good("region", "join", north, south, "--out", out)
    for words in (
        *("north: alpha, beta", "south: delta, gamma", "4 sites, 132 images"),
        *("not signed", "evaluated: nothing", f"dermino predict --json --model {out / 'model'}"),
        "backbone:  clouds",
    ):
        assert words in text
    assert sorted(json.loads((out / "join.json").read_text())["images"]) == ALL
    bad("OUTPUT_EXISTS", "region", "join", north, south, "--out", out)


def test_a_region_of_regions_and_a_run_of_ones_own(runs: Runs, tmp_path: Path) -> None:
    north = make(runs("alpha", "beta"), "north", tmp_path)
    own, larger = ("--run", runs("gamma", "delta")), tmp_path / "all.region"
    text = good("region", "join", north, *own, "--as", "all", "--out", larger)
    assert "region all: 4 sites" in text
    assert "not signed" in text
    assert "own run: delta, gamma" in good(
        "region", "join", north, *own, "--out", tmp_path / "with-run"
    )
    good("region", "join", larger, "--out", tmp_path / "from-file")
    models = [tmp_path / name / "model" / "model.safetensors" for name in ("with-run", "from-file")]
    assert models[0].read_bytes() == models[1].read_bytes()
    words = bad("CONFIG_INVALID", "region", "join", north, *own, "--as", "north", "--out", "x")
    assert "--as" in words


def test_one_site_only_if_that_is_said(runs: Runs, tmp_path: Path) -> None:
    arguments = ("region", "sum", "--run", runs("delta"), "--name", "one", "--out", tmp_path / "r")
    assert "--min-sites" in bad("CONFIG_INVALID", *arguments)
    assert "reads all it sent" in good(*arguments, "--min-sites", "1")


@pytest.mark.parametrize("arguments", [("sum",), ("join",), ("join", "a"), ("sum", "--run", "a")])
def test_what_is_missing_on_the_command_line(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, ["region", *arguments]).exit_code == 2


@pytest.mark.slow
def test_the_model_of_drawn_lesions_predicts(tmp_path: Path) -> None:
    """The whole way with images: two simulations, one file, one model, one prediction."""
    names = {"north": ("synthetic-mednode", "synthetic-ph2"), "south": ("synthetic-fitzpatrick",)}
    for region, members in names.items():
        (tmp_path / region).mkdir()
        for name in members:
            manifest = write_site(tmp_path / "data" / name, site=name, images=24)
            content = {
                "site": {"name": name},
                "data": {"manifest": str(manifest), "min_images": 4},
                "labels": dict(find_site(name).label_map),
                "backbone": {"name": "demo", "precision": "fp32", "device": "cpu"},
                "node": {"cache": str(tmp_path / "cache"), "folder": str(tmp_path / "n" / name)},
            }
            (tmp_path / region / f"{name}.toml").write_text(tomli_w.dumps(content))
        good(
            *("simulate", "--sites", tmp_path / region, "--strategy", "ridge", "--no-report"),
            *("--out", tmp_path / "runs" / region),
        )
    north = make(tmp_path / "runs" / "north", "north", tmp_path)
    good("region", "join", north, "--run", tmp_path / "runs" / "south", "--out", tmp_path / "both")
    image = next(path for path in (tmp_path / "data").rglob("*") if path.suffix in {".jpg", ".png"})
    text = good(
        "predict", "--model", tmp_path / "both" / "model", image, "--device", "cpu", "--json"
    )
    row = json.loads(text.splitlines()[0])
    assert sum(row["probabilities"].values()) == pytest.approx(1)
