"""`dermino segmentation`: from drawn hospitals to a mask, in one process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from dermino_core.datasets.synthetic import find_site, write_site
from dermino_core.errors import DerminoError
from dermino_core.evaluation.segmentation_data import read_mask
from dermino_core.evaluation.segmentation_model import segment_image
from dermino_core.evaluation.segmentation_scores import overlap_scores
from dermino_core.reporting.segmentation_page import render_segmentation_page
from dermino_core.segmentation_results import read_segmentation_results
from dermino_server.cli import app
from dermino_server.segmentation_plan import is_segmentation, make_method
from dermino_server.segmentation_simulate import (
    SegmentationRequest,
    resume_segmentation,
    simulate_segmentation,
)

SITES = {"synthetic-mednode": 16, "synthetic-ph2": 20, "synthetic-fitzpatrick": 26}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three site files; one says nothing of segmentation."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, images in SITES.items():
        manifest = write_site(folder / "data" / name, site=name, images=images, masks=True)
        content = {
            "site": {"name": name},
            "data": {"manifest": str(manifest), "min_images": 4},
            "labels": dict(find_site(name).label_map),
            "backbone": {"name": "demo", "precision": "fp32", "device": "cpu"},
            "node": {"cache": str(folder / "cache")},
            "policy": {"min_images": 4},
        }
        if name != "synthetic-ph2":
            content["segmentation"] = {"image_size": 128, "views": 2}
        (folder / "sites").mkdir(exist_ok=True)
        (folder / "sites" / f"{name}.toml").write_text(tomli_w.dumps(content))
    return folder


@pytest.fixture(scope="module")
def finished(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the command itself."""
    out = tmp_path_factory.mktemp("run") / "RUN"
    done = CliRunner().invoke(
        app,
        [
            *("segmentation", "--sites", str(drawn / "sites"), "--rounds", "4"),
            *("--set", "learning_rate=0.02", "--set", "local_epochs=3", "--out", str(out)),
        ],
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert "Dice (95 % interval)" in done.output
    return out


def test_drawn_lesions_are_outlined_together(finished: Path, drawn: Path) -> None:
    results = read_segmentation_results(finished)
    assert [site.name for site in results.sites] == sorted(SITES)
    assert [model.key for model in results.models] == ["global", "local", "pooled"]
    assert {site.name: site.views for site in results.sites}["synthetic-ph2"] == 4
    assert (results.mean["global"].dice.value or 0) > 0.5
    assert set(results.mean_global_minus) == {"local", "pooled"}
    assert results.seconds.keys() == {"prepare", "federate", "pooled"}
    assert any("drawn lesions" in warning for warning in results.warnings)
    image = drawn / "data" / "synthetic-mednode" / "images" / "0001.jpg"
    mask, info = segment_image(image, finished / "model", device="cpu")
    truth = read_mask(image.parent.parent / "masks" / "0001.png")
    assert overlap_scores(mask, truth)[0] > 0.4
    assert info.settings.epochs == 12


def test_the_page_says_what_the_results_say(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    results = read_segmentation_results(finished)
    assert page == render_segmentation_page(results)
    assert f"{results.mean['global'].dice.value:.3f}" in page
    assert "No image, no mask, no feature" in page
    results.sites[0].name = "<script>alert(1)</script>"
    assert "<script" not in render_segmentation_page(results)
    results.mean_global_minus["local"].dice.low = 0.1
    results.mean_global_minus["local"].dice.value = 0.2
    results.mean_global_minus["local"].dice.high = 0.3
    assert "is better than “Each hospital alone”" in render_segmentation_page(results)
    again = CliRunner().invoke(app, ["report", str(finished)])
    assert again.exit_code == 0
    assert (finished / "report.html").read_text() == page


def test_resuming_finds_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "RUN")
    (tmp_path / "RUN" / "checkpoints" / "round-0004.safetensors").unlink()
    _, again = resume_segmentation(tmp_path / "RUN")
    assert again.sites == read_segmentation_results(finished).sites
    model = "model/model.safetensors"
    assert (tmp_path / "RUN" / model).read_bytes() == (finished / model).read_bytes()


def test_resuming_on_other_masks_is_refused(drawn: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "RUN")
    shutil.copytree(drawn / "sites", tmp_path / "sites")
    run = tmp_path / "RUN" / "run.json"
    run.write_text(run.read_text().replace(str(drawn / "sites"), str(tmp_path / "sites")))
    file = tmp_path / "sites" / "synthetic-ph2.toml"
    file.write_text(file.read_text().replace("min_images = 4", "min_images = 4\nsplit_seed = 7", 1))
    with pytest.raises(DerminoError) as refused:
        resume_segmentation(tmp_path / "RUN")
    assert refused.value.code == "CHECKPOINT_INVALID"
    assert "synthetic-ph2" in refused.value.what


def test_wrong_options_are_found_before_any_work(tmp_path: Path) -> None:
    for settings in ({"head": "unet"}, {"local_epochs": 0}, {"epochs": 3}):
        with pytest.raises(DerminoError) as refused:
            simulate_segmentation(SegmentationRequest(settings=settings), tmp_path / "RUN")
        assert refused.value.code == "CONFIG_INVALID"
    assert not (tmp_path / "RUN").exists()
    assert make_method({"head": "upernet"}).depths == 4
    assert not is_segmentation(tmp_path)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--site", "a"], "--superlink"),
        (["--superlink", "x", "--site", "a"], "--backbone"),
        (["--superlink", "x", "--backbone", "demo"], "--site"),
    ],
)
def test_what_a_real_run_needs(options: list[str], what: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["segmentation", *options, "--out", str(tmp_path / "RUN")])
    assert isinstance(done.exception, DerminoError)
    assert what in str(done.exception)
