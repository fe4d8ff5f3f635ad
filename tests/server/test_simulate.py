"""`dermino simulate`: a whole federation on one machine, repeatable to the bit."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from little_sites import write_little_sites
from safetensors.numpy import load_file

from dermino_core.errors import DerminoError
from dermino_core.model_folder import load_model
from dermino_core.results import Results, read_results
from dermino_server import simulate as module
from dermino_server.commands.simulate import simulate as simulate_command
from dermino_server.plan import read_plan
from dermino_server.simulate import SimulationRequest, resume, simulate
from dermino_strategies.fedavg import FedAvg

BIN = Path(sys.executable).parent
SITES = {"synthetic-mednode": 24, "synthetic-ph2": 24, "synthetic-fitzpatrick": 28}


@pytest.fixture(scope="session")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three site files; images and features are made once."""
    return write_little_sites(tmp_path_factory.mktemp("little"), SITES)


@pytest.fixture(scope="session")
def finished(little: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one finished run of two rounds; read only."""
    folder, _ = simulate(SimulationRequest(sites=little), tmp_path_factory.mktemp("run") / "RUN")
    return folder


@pytest.fixture
def own_sites(little: Path, tmp_path: Path) -> Path:
    """A copy of the site files that a test may change."""
    shutil.copytree(little, tmp_path / "sites")
    return tmp_path / "sites"


def change(folder: Path, name: str, /, **sections: Any) -> None:
    file = folder / f"{name}.toml"
    content = tomllib.loads(file.read_text())
    for section, values in sections.items():
        content[section] = content.get(section, {}) | values
    file.write_text(tomli_w.dumps(content))


def model_bytes(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def without_times(results: Results) -> dict[str, Any]:
    """Results less what a clock decides."""
    content = results.model_dump()
    for key in ("created", "seconds"):
        content.pop(key)
    for record in content["rounds"]:
        record.pop("seconds")
        for transfer in record["transfers"]:
            transfer.pop("seconds")
            # The reply holds the site's own seconds as text, of varying length.
            transfer.pop("bytes_from_site")
    return content


def test_the_run_folder_is_complete(finished: Path) -> None:
    names = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    kept = {name for name in names if name.startswith("sites/")}
    assert len({name.split("/")[1] for name in kept}) == 3
    assert {name.split("/")[2] for name in kept} == {"audit", "results"}
    assert names - kept == {
        *("run.json", "metrics.jsonl", "results.json"),
        *("checkpoints/round-0001.safetensors", "checkpoints/round-0002.safetensors"),
        *("model/model.safetensors", "model/model.json", "model/README.md"),
    }
    plan = read_plan(finished)
    assert plan.sites == sorted(SITES)
    assert (plan.rounds, plan.seed, plan.strategy, plan.engine) == (2, 0, "fedavg", "inprocess")
    assert plan.min_sites == 3
    assert set(plan.versions) >= {"python", "flwr", "numpy", "torch", "timm", "scikit-learn"}
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(r["round"], r["kind"]) for r in records] == [
        (1, "train"),
        (2, "train"),
        (3, "evaluate"),
    ]
    assert all(r["sites"] == sorted(SITES) for r in records)


def test_results_say_what_was_compared(finished: Path) -> None:
    results = read_results(finished)
    keys = ["global", "local", "local_converged", "pooled", "pooled_converged"]
    assert [m.key for m in results.models] == list(results.mean) == keys
    assert [s.name for s in results.sites] == sorted(SITES)
    for site in results.sites:
        assert list(site.evaluations) == keys
        assert site.images_total == site.images_used == SITES[site.name]
        assert site.n_train + site.n_test == SITES[site.name]
        assert sum(site.train_class_counts.values()) == site.n_train
        assert {e.n for e in site.evaluations.values()} == {site.n_test}
    for key in keys:
        values = [s.evaluations[key].auroc.value for s in results.sites]
        assert results.mean[key].auroc.value == pytest.approx(np.mean(values))
    assert results.cross_site is not None
    assert results.cross_site.rows == results.cross_site.columns == sorted(SITES)
    assert set(results.seconds) == {"prepare", "federate", "baselines"}
    assert results.missing_sites == []
    assert any("drawn lesions only" in warning for warning in results.warnings)
    assert any("smallest class" in warning for warning in results.warnings)


def test_the_model_is_that_of_the_results(finished: Path, little: Path) -> None:
    """The saved head, on features prepared again, scores what results.json says."""
    from sklearn.metrics import roc_auc_score

    from dermino_client.site import read_sites

    head, info = load_model(finished / "model")
    results = read_results(finished)
    prepared = module.prepare_sites(read_sites(little))
    assert {s.decoded for s in prepared.values()} == {0}
    for site in results.sites:
        features, labels, _ = prepared[site.name].half("test")
        score = roc_auc_score(labels, head.probabilities(features)[:, 1])
        assert site.evaluations["global"].auroc.value == pytest.approx(score)
    assert {s.site: s.images for s in info.trained_on} == {s.name: s.n_train for s in results.sites}


def test_the_pooled_baseline_saw_every_training_image(finished: Path, little: Path) -> None:
    """Fitted again here, on the sites' training halves in one place."""
    from sklearn.metrics import roc_auc_score

    from dermino_client.site import read_sites
    from dermino_client.work import CONVERGED_PENALTY
    from dermino_core.heads import fit_converged

    prepared = module.prepare_sites(read_sites(little))
    halves = [prepared[name].half("train") for name in sorted(SITES)]
    features = np.concatenate([half[0] for half in halves])
    labels = np.concatenate([half[1] for half in halves])
    head = fit_converged(features, labels, 2, penalty=CONVERGED_PENALTY)
    for site in read_results(finished).sites:
        test, truth, _ = prepared[site.name].half("test")
        score = roc_auc_score(truth, head.probabilities(test)[:, 1])
        assert site.evaluations["pooled_converged"].auroc.value == pytest.approx(score)


def test_same_seed_same_bytes(finished: Path, little: Path, tmp_path: Path) -> None:
    folder, results = simulate(SimulationRequest(sites=little), tmp_path / "RUN")
    assert model_bytes(folder) == model_bytes(finished)
    assert without_times(results) == without_times(read_results(finished))
    assert read_results(folder) == results


def test_another_seed_another_model(finished: Path, little: Path, tmp_path: Path) -> None:
    folder, _ = simulate(SimulationRequest(sites=little, seed=1), tmp_path / "RUN")
    assert model_bytes(folder) != model_bytes(finished)


def test_settings_reach_the_sites(finished: Path, little: Path, tmp_path: Path) -> None:
    request = SimulationRequest(sites=little, settings={"learning_rate": 5e-3, "batch_size": 8})
    folder, _ = simulate(request, tmp_path / "RUN")
    assert read_plan(folder).settings == request.settings
    start = FedAvg().initial_arrays(2, read_plan(folder).backbone.width, 0)["weight"]
    slow, fast = (
        np.linalg.norm(load_model(f / "model")[0].weight - start) for f in (finished, folder)
    )
    assert fast > 5 * slow > 0


@pytest.mark.parametrize("lost", [1, 4])
def test_resume_gives_the_same_bytes(little: Path, tmp_path: Path, lost: int) -> None:
    """As after a crash: the last checkpoints, the model and the results are not there."""
    request = SimulationRequest(sites=little, rounds=4, seed=3)
    folder, results = simulate(request, tmp_path / "RUN")
    whole = model_bytes(folder)
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "model")
    for number in range(4, 4 - lost, -1):
        (folder / "checkpoints" / f"round-{number:04d}.safetensors").unlink()
    again, resumed = resume(folder)
    assert again == folder
    assert model_bytes(folder) == whole
    assert without_times(resumed) == without_times(results)
    assert read_results(folder) == resumed


def test_resume_of_a_finished_run_changes_no_weight(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    _, results = resume(folder)
    assert model_bytes(folder) == model_bytes(finished)
    assert without_times(results) == without_times(read_results(finished))


def site_vanished(folder: Path) -> None:
    (folder / "synthetic-ph2.toml").unlink()


def site_joined(folder: Path) -> None:
    shutil.copy(folder / "synthetic-ph2.toml", folder / "synthetic-new.toml")
    change(folder, "synthetic-new", site={"name": "synthetic-new"})


def labels_changed(folder: Path) -> None:
    change(folder, "synthetic-ph2", labels={"atypical nevus": "malignant"})


def split_changed(folder: Path) -> None:
    change(folder, "synthetic-ph2", data={"split_seed": 5})


def images_left_out(folder: Path) -> None:
    change(folder, "synthetic-ph2", labels={"atypical nevus": ""})


@pytest.mark.parametrize(
    "changed",
    [site_vanished, site_joined, labels_changed, split_changed, images_left_out],
)
def test_resume_with_other_sites_is_refused(
    finished: Path, own_sites: Path, tmp_path: Path, changed: Callable[[Path], None]
) -> None:
    """Half a run on one data set and half on another would be nobody's result."""
    folder = tmp_path / "RUN"
    shutil.copytree(finished, folder)
    plan = json.loads((folder / "run.json").read_text()) | {"sites_folder": str(own_sites)}
    (folder / "run.json").write_text(json.dumps(plan))
    (folder / "results.json").unlink()
    (folder / "checkpoints" / "round-0002.safetensors").unlink()
    changed(own_sites)
    with pytest.raises(DerminoError) as caught:
        resume(folder)
    assert (caught.value.code, caught.value.exit_code) == ("CHECKPOINT_INVALID", 8)
    assert not (folder / "results.json").exists()


def test_resume_where_the_sites_now_lie_elsewhere(
    finished: Path, own_sites: Path, tmp_path: Path
) -> None:
    """The counterpart: the same files in another folder are the same sites."""
    folder = tmp_path / "RUN"
    shutil.copytree(finished, folder)
    plan = json.loads((folder / "run.json").read_text()) | {"sites_folder": str(own_sites)}
    (folder / "run.json").write_text(json.dumps(plan))
    (folder / "checkpoints" / "round-0002.safetensors").unlink()
    resume(folder)
    assert model_bytes(folder) == model_bytes(finished)


def test_resume_of_something_else_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(DerminoError, match="not a run folder") as caught:
        resume(tmp_path)
    assert caught.value.code == "CHECKPOINT_INVALID"
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    plan = (folder / "run.json").read_text()
    (folder / "run.json").write_text(plan[: len(plan) // 2])
    with pytest.raises(DerminoError, match="damaged"):
        resume(folder)
    content = json.loads(plan)
    (folder / "run.json").write_text(json.dumps(content | {"seed": 7}))
    with pytest.raises(DerminoError, match="another configuration"):
        resume(folder)
    (folder / "run.json").write_text(json.dumps(content | {"sites_folder": None}))
    with pytest.raises(DerminoError, match="dermino federate --resume"):
        resume(folder)


def test_a_folder_in_use_is_refused(little: Path, finished: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    with pytest.raises(DerminoError, match="not empty") as caught:
        simulate(SimulationRequest(sites=little), finished)
    assert caught.value.code == "OUTPUT_EXISTS"
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DerminoError, match="not empty"):
        simulate(SimulationRequest(sites=little), file)


class Reading(AssertionError):
    """An image would have been read."""


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise Reading

    monkeypatch.setattr(module, "prepare_site", read)
    monkeypatch.setattr(module, "write_demo_sites", read)


@pytest.mark.usefixtures("no_reading")
@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"strategy": "fedavgg"}, "no strategy 'fedavgg'.*fedavg"),
        ({"settings": {"learning_rat": 1}}, "learning_rat.*learning_rate"),
        ({"settings": {"batch_size": 0}}, "batch_size"),
    ],
)
def test_typos_are_found_before_any_image_is_read(
    little: Path, tmp_path: Path, request_: dict[str, Any], words: str
) -> None:
    with pytest.raises(DerminoError, match=f"(?s){words}") as caught:
        simulate(SimulationRequest(sites=little, **request_), tmp_path / "RUN")
    assert caught.value.code == "CONFIG_INVALID"
    assert not (tmp_path / "RUN").exists()
    with pytest.raises(Reading):
        simulate(SimulationRequest(sites=little), tmp_path / "RUN")


@pytest.mark.usefixtures("no_reading")
def test_sites_with_other_classes_are_refused(own_sites: Path, tmp_path: Path) -> None:
    change(own_sites, "synthetic-ph2", site={"classes": ["malignant", "benign"]})
    with pytest.raises(DerminoError, match="same order of classes") as caught:
        simulate(SimulationRequest(sites=own_sites), tmp_path / "RUN")
    assert caught.value.code == "CONFIG_INVALID"
    assert "synthetic-ph2" in str(caught.value)


def test_sites_with_other_backbones_are_refused(own_sites: Path, tmp_path: Path) -> None:
    change(own_sites, "synthetic-ph2", backbone={"name": "random:vit_tiny_patch16_224"})
    with pytest.raises(DerminoError, match="use different backbones") as caught:
        simulate(SimulationRequest(sites=own_sites), tmp_path / "RUN")
    assert (caught.value.code, caught.value.exit_code) == ("BACKBONE_MISMATCH", 5)
    assert "synthetic-ph2" in str(caught.value)
    _, results = simulate(SimulationRequest(sites=own_sites, backbone="demo"), tmp_path / "ONE")
    assert results.backbone.name == "demo"


def test_a_folder_without_sites_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DerminoError, match="no site files"):
        simulate(SimulationRequest(sites=empty), tmp_path / "OTHER")


def dermino(*arguments: object, cwd: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "dermino"), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "DERMINO_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_command(little: Path, finished: Path, tmp_path: Path) -> None:
    done = dermino("simulate", "--sites", little, "--out", "RUN", cwd=tmp_path, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "RUN"
    assert model_bytes(run) == model_bytes(finished)
    assert "<!doctype html>" in (run / "report.html").read_text().lower()
    for text in ("Federated", "All data pooled", f"run folder: {run}"):
        assert text in done.stdout
    assert "says nothing about skin" in " ".join(done.stderr.split())
    table = re.search(r"Federated .*?(\d\.\d{3})", done.stdout)
    assert table
    first = read_results(run).sites[0].evaluations["global"].auroc.value
    assert table[1] == f"{first:.3f}"
    (run / "report.html").unlink()
    simulate_command(resume=run, report=False)
    assert not (run / "report.html").exists()
    assert model_bytes(run) == model_bytes(finished)


@pytest.mark.slow
def test_killed_and_resumed_to_the_same_bytes(little: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of a real `dermino simulate`."""
    rounds = 150
    whole, _ = simulate(SimulationRequest(sites=little, rounds=rounds), tmp_path / "whole")
    cut = tmp_path / "cut"
    command = [
        *(str(BIN / "dermino"), "simulate", "--sites", str(little), "--rounds", str(rounds)),
        *("--no-report", "--out", str(cut)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not list(cut.glob("checkpoints/round-*.safetensors")):
            assert process.poll() is None, "it ended without a checkpoint"
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(list(cut.glob("checkpoints/round-*.safetensors")))
    assert 0 < done < rounds
    assert not (cut / "results.json").exists()
    _, results = resume(cut)
    assert model_bytes(cut) == model_bytes(whole)
    assert [r.round for r in results.rounds] == list(range(rounds + 2))


@pytest.mark.slow
def test_ray_gives_the_same_weights(little: Path, finished: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'dermino[simulation]'")
    folder, results = simulate(SimulationRequest(sites=little, engine="ray"), tmp_path / "RUN")
    for name, array in load_file(finished / "model" / "model.safetensors").items():
        ours = load_file(folder / "model" / "model.safetensors")[name]
        np.testing.assert_allclose(ours, array, atol=1e-6, rtol=0)
    assert results.engine == "ray"
    assert [s.name for s in results.sites] == sorted(SITES)


REAL = {
    "ph2": {"label": "binary"},
    "isic2017": {"label": "binary"},
    "ham10000": {"label": "binary", "group": "lesion_id"},
}


@pytest.fixture(scope="session")
def real_sites(
    shared_data: Path, dinov2_small: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Site files of the real images; 1,400 images are embedded once."""
    folder = tmp_path_factory.mktemp("real")
    for name, columns in REAL.items():
        content = {
            "site": {"name": name},
            "data": {
                "manifest": str(shared_data / name / "labels.csv"),
                "images": str(shared_data / name),
                "columns": columns,
            },
            "labels": {"benign": "benign", "malignant": "malignant"},
            "backbone": {"name": str(dinov2_small)},
            "node": {"cache": str(folder / "cache")},
        }
        (folder / "sites").mkdir(exist_ok=True)
        (folder / "sites" / f"{name}.toml").write_text(tomli_w.dumps(content))
    return folder / "sites"


@pytest.mark.slow
def test_the_papers_schedule_on_real_images(real_sites: Path, tmp_path: Path) -> None:
    """FedAvg as in the paper stops early: 0.52 to 0.68; what the features hold lies above."""
    runs = [
        simulate(SimulationRequest(sites=real_sites, seed=seed), tmp_path / f"RUN{seed}")
        for seed in range(3)
    ]
    values = {
        key: np.array([results.mean[key].auroc.value for _, results in runs])
        for key in ("global", "local", "local_converged", "pooled", "pooled_converged")
    }
    assert 0.52 < values["global"].mean() < 0.68, values
    assert values["pooled_converged"].mean() > values["global"].mean() + 0.05, values
    assert values["local_converged"].mean() > values["global"].mean() + 0.05, values
    results = runs[0][1]
    assert results.backbone.pretrained
    assert {s.name: s.images_total for s in results.sites} == {
        "ph2": 200,
        "isic2017": 400,
        "ham10000": 800,
    }
    from dermino_client.site import read_sites

    prepared = module.prepare_sites(read_sites(real_sites))
    assert {site.decoded for site in prepared.values()} == {0}
    folder, again = simulate(SimulationRequest(sites=real_sites), tmp_path / "again")
    assert model_bytes(folder) == model_bytes(runs[0][0])
    assert without_times(again) == without_times(results)
