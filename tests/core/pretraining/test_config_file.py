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


@pytest.mark.parametrize("text", ["", "[run]\nbatch_size = 64\n"])
def test_a_file_without_a_length_has_the_default_one(tmp_path: Path, text: str) -> None:
    config = read_config(write(tmp_path, text))
    assert (config.run.steps, config.run.epochs) == (None, 100)
    paper = read_config(write(tmp_path, f'preset = "paper"\n{text}'), ["run.seed=3"])
    assert (paper.run.steps, paper.run.epochs) == (None, 100)


@pytest.mark.parametrize("preset", ["recommended", "paper"])
@pytest.mark.parametrize(
    ("inside", "settings", "steps", "epochs"),
    [
        ("epochs = 3", ["run.steps=200"], 200, None),
        ("steps = 3", ["run.epochs=2"], None, 2),
        ("steps = 3", ["run.steps=5"], 5, None),
        ("seed = 1", ["run.steps=5"], 5, None),
        ("seed = 1", ["run.epochs=2", "run.steps=5"], 5, None),
        ("epochs = 3", ["run.steps=5", "run.epochs=2"], None, 2),
    ],
)
def test_a_set_length_takes_the_place_of_the_other(
    tmp_path: Path,
    preset: str,
    inside: str,
    settings: list[str],
    steps: int | None,
    epochs: float | None,
) -> None:
    file = write(tmp_path, f'preset = "{preset}"\n[run]\n{inside}\n')
    run = read_config(file, settings).run
    assert (run.steps, run.epochs) == (steps, epochs)


def test_presets_are_not_changed_by_what_is_laid_over_them() -> None:
    before = resolve_config({"preset": "paper"})
    values = {"preset": "paper", "run": {"steps": 3}}
    assert resolve_config(values).run.epochs is None
    assert values["run"] == {"steps": 3}
    assert resolve_config({"preset": "paper"}) == before


def test_a_resolved_configuration_resolves_to_itself() -> None:
    for run in ({}, {"steps": 7}, {"epochs": 2}):
        config = resolve_config({"run": run})
        assert resolve_config(config.model_dump()) == config


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
        ("run = 3", [], "run: "),
        ("[optimiser]\nbetas = [1, 0.999]", [], r"optimiser\.betas\.0: .* less than 1"),
        ("[optimiser]\nbetas = [0.9, 1.0]", [], r"optimiser\.betas\.1: .* less than 1"),
        ("", ["loss.centre_momentum=1"], r"loss\.centre_momentum: .* less than 1"),
        ("", ["masking.ratio=[0.5, 0.1]"], r"masking\.ratio: .* must ascend, not 0\.5 to 0\.1"),
        ("", ["crops.global_scale=[1.0, 0.3]"], r"crops\.global_scale: .* must ascend"),
        ("", ["crops.local_scale=[0.3, 0.1]"], r"crops\.local_scale: .* must ascend"),
        ("", ["crops.aspect=[2, 1]"], r"crops\.aspect: .* must ascend"),
        ("", ["augmentation.blur_sigma=[2, 1]"], r"augmentation\.blur_sigma: .* must ascend"),
        ("", ["teacher.temperature=[0.07, 0.04]"], r"teacher\.temperature: .* must ascend"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, settings: list[str], named: str) -> None:
    with pytest.raises(DerminoError, match=named) as caught:
        read_config(write(tmp_path, text), settings)
    assert caught.value.code == "CONFIG_INVALID"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DerminoError, match="no such configuration"):
        read_config(tmp_path / "absent.toml")
