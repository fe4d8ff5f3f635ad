"""`dermino data sites`, and a simulation on what it writes: Fed-ISIC2019 in small."""

from __future__ import annotations

import json
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
from isic2019_download import LESIONS, WITHOUT_CENTRE, download, images_of
from sklearn.metrics import balanced_accuracy_score
from typer.testing import CliRunner

from dermino_client.prepare import PreparedSite, prepare_site
from dermino_client.site import read_sites
from dermino_core.datasets.fed_isic2019 import CENTRES, LABELS
from dermino_core.errors import DerminoError
from dermino_core.model_folder import load_model
from dermino_core.results import Results
from dermino_server.cli import app
from dermino_server.commands.show import finish
from dermino_server.simulate import SimulationRequest, simulate

FEWEST = 24


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return download(tmp_path_factory.mktemp("isic") / "ISIC2019")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every picture is embedded once."""
    return tmp_path_factory.mktemp("cache")


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["data", *(str(word) for word in words)])
    if isinstance(result.exception, DerminoError):
        raise result.exception
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def sites(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "sites"
    run("sites", "fed-isic2019", raw, "--out", out, "--seed", 1)
    return out


def test_six_site_files_and_what_is_said(raw, tmp_path):
    out = tmp_path / "sites"
    said = run("sites", "fed-isic2019", raw, "--out", out)
    read = {site.name: site for site in read_sites(out)}
    assert sorted(read) == sorted(CENTRES)
    for name, site in read.items():
        assert site.classes == list(LABELS.values())
        assert site.labels == dict(LABELS)
        assert site.images == raw.absolute()
        assert site.data.train_share == 0.8
        assert images_of(name) >= FEWEST
        expected = f"{out / name}.toml: {images_of(name)} images ("
        assert expected in said
        assert f"the publication has {CENTRES[name]:,}" in said
    assert f"{WITHOUT_CENTRE} images of the data set are left out" in said
    assert "split: dermino's own, by lesion and class, 80% for training, seed 0" in said
    assert f"dermino simulate --sites {out} --strategy ridge" in said


def test_nothing_is_overwritten(raw, sites):
    before = {file: file.read_bytes() for file in sites.rglob("*") if file.is_file()}
    with pytest.raises(DerminoError, match="not overwritten") as caught:
        run("sites", "fed-isic2019", raw, "--out", sites)
    assert caught.value.code == "OUTPUT_EXISTS"
    assert before == {file: file.read_bytes() for file in sites.rglob("*") if file.is_file()}


def test_a_path_of_weights_is_one_from_here(raw, tmp_path, monkeypatch):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for spec in ("weights.safetensors", "vit_small_patch14_dinov2@weights.safetensors", "clip"):
        out = tmp_path / spec.replace("@", "-")[:8] / "sites"
        run("sites", "fed-isic2019", raw, "--out", out, "--backbone", spec)
        content = tomllib.loads((out / "bcn.toml").read_text())
        at = spec.replace("weights", f"{tmp_path.resolve()}/weights")
        assert content["backbone"]["name"] == at


def test_only_of_data_sets_with_centres(raw, tmp_path):
    with pytest.raises(DerminoError, match="ham10000 is one site"):
        run("sites", "ham10000", raw, "--out", tmp_path / "sites")
    said = run("prepare", "fed-isic2019", raw, "--out", tmp_path / "data")
    assert "dermino data sites fed-isic2019" in said
    assert "dermino-client init" not in said


def prepared(sites: Path, cache: Path) -> dict[str, PreparedSite]:
    return {site.name: prepare_site(site, cache=cache) for site in read_sites(sites)}


def test_published_split_is_kept_and_said_to_flatter(raw, cache, tmp_path):
    out = tmp_path / "sites"
    said = run("sites", "fed-isic2019", raw, "--out", out, "--option", "split=published")
    assert "split: published, 121 for training, 31 for testing" in said
    assert "31 lesions are on both sides of the published split" in said
    found = prepared(out, cache)
    assert sum((site.split == "test").sum() for site in found.values()) == 31
    assert {site.images_used for site in found.values()} == {images_of(name) for name in LESIONS}


def test_no_lesion_is_on_both_sides(sites, cache):
    for site in prepared(sites, cache).values():
        _, _, train = site.half("train")
        _, _, test = site.half("test")
        assert not set(train) & set(test)
        assert len(set(site.groups)) == site.images_used / 2


@pytest.mark.parametrize("strategy", ["ridge", pytest.param("fedavg", marks=pytest.mark.slow)])
def test_simulation_reports_balanced_accuracy(sites, cache, tmp_path, strategy):
    """Eight classes, of which no centre but one has all: the numbers are scikit-learn's."""
    request = SimulationRequest(sites=sites, strategy=strategy, cache=cache)
    folder, results = simulate(request, tmp_path / "RUN")
    finish(folder, results, report=True)
    assert results.classes == list(LABELS.values())
    assert results.site_names == sorted(CENTRES)
    head, _ = load_model(folder / "model")
    values = []
    for name, site in prepared(sites, cache).items():
        features, labels, _ = site.half("test")
        (result,) = (s for s in results.sites if s.name == name)
        scored = result.evaluations["global"].balanced_accuracy
        assert scored is not None
        said = head.probabilities(features).argmax(axis=1)
        with warnings.catch_warnings():  # a class that is predicted, but not there
            warnings.simplefilter("ignore", UserWarning)
            expected = balanced_accuracy_score(labels, said)
        assert scored.value == pytest.approx(expected, abs=1e-9)
        absent = {label for label, count in result.train_class_counts.items() if count == 0}
        assert {LABELS[code] for code in LESIONS[name]} == set(LABELS.values()) - absent
        values.append(scored.value)
    mean = results.mean["global"].balanced_accuracy
    assert mean is not None
    assert mean.value is not None
    assert mean.value == pytest.approx(np.mean(values))
    if strategy == "ridge":
        # The drawn classes differ in colour; guessing, or classes in another order, gives less.
        assert mean.value > 0.5
    difference = results.mean_global_minus["local"].balanced_accuracy
    assert difference is not None
    assert difference.value is not None
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert report.count('<th scope="col">Balanced accuracy</th>') == 1 + len(CENTRES)
    assert f"{mean.value:.3f}" in report
    assert "Mean balanced accuracy" in (folder / "model" / "README.md").read_text()
    Results.model_validate(json.loads((folder / "results.json").read_text()))
