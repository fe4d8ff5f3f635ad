"""Configuration files: presets, settings, and clear refusals."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from dermino_core.errors import DerminoError
from dermino_core.pretraining.config_file import read_config, resolve_config
from dermino_core.pretraining.example import example_toml


def write(folder: Path, text: str) -> Path:
    file = folder / "pretrain.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_example_is_the_default() -> None:
    sources = [{"name": "isic", "manifest": "isic/manifest.csv"}]
    assert resolve_config(tomllib.loads(example_toml())) == resolve_config(
        {"data": {"sources": sources}}
    )


def test_a_file_goes_over_its_preset_and_settings_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'preset = "dinov2"\n[loss]\nkoleo = 0.2\n[run]\nsteps = 7\n')
    config = read_config(file, ["loss.supervised=0.5", "model.start=random", "run.batch_size=8"])
    assert (config.loss.koleo, config.loss.supervised) == (0.2, 0.5)
    assert config.loss.patch_mean_over == "all_crops"
    assert (config.run.steps, config.run.epochs, config.run.batch_size) == (7, None, 8)
    assert config.model.start == "random"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '[prototypes]\nlabels = "labels.csv"\n[run]\nsteps = 1\n[model]\nstart = "w.safetensors"\n'
        '[[data.sources]]\nname = "a"\nmanifest = "a/m.csv"\nimages = "/elsewhere"\n',
    )
    config = read_config(file)
    assert config.prototypes.labels == tmp_path / "labels.csv"
    assert config.data.sources[0].manifest == tmp_path / "a" / "m.csv"
    assert config.data.sources[0].images == Path("/elsewhere")
    assert config.model.start == str(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("text", "settings", "named"),
    [
        ('preset = "best"', [], "preset"),
        ("[loss]\nkoelo = 1", [], "loss.koelo"),
        ("[run]\nsteps = 0", [], "run.steps"),
        ("[run]\nsteps = 1\nepochs = 2", [], "either run.steps or run.epochs"),
        ("[loss]\nimage = nan", [], "loss.image"),
        ("[model", [], "cannot be read"),
        ("", ["run.steps"], "no setting"),
        ("", ["preset.steps=1"], "preset"),
        ('[[data.sources]]\nname = "a"', [], "either manifest or shards"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, settings: list[str], named: str) -> None:
    with pytest.raises(DerminoError, match=named) as caught:
        read_config(write(tmp_path, text), settings)
    assert caught.value.code == "CONFIG_INVALID"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DerminoError, match="no such configuration"):
        read_config(tmp_path / "absent.toml")
