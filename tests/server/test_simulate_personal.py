"""`dermino simulate --personal`: every site's own model, beside all the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tomli_w

from dermino_client.own_results import personal_folder
from dermino_client.site import read_sites
from dermino_core.datasets.synthetic import find_site, write_site
from dermino_core.errors import DerminoError
from dermino_core.model_folder import load_model
from dermino_core.privacy.plan import PrivacyRequest
from dermino_core.results import read_results
from dermino_server import simulate as module
from dermino_server.plan import read_plan
from dermino_server.simulate import SimulationRequest, simulate

SITES = {"synthetic-mednode": 24, "synthetic-ph2": 24, "synthetic-fitzpatrick": 28}


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three site files; images and features are made once."""
    folder = tmp_path_factory.mktemp("little")
    (folder / "sites").mkdir()
    for name, images in SITES.items():
        manifest = write_site(folder / "data" / name, site=name, images=images)
        content = {
            "site": {"name": name},
            "data": {"manifest": str(manifest), "min_images": 4},
            "labels": dict(find_site(name).label_map),
            "backbone": {"name": "demo", "precision": "fp32", "device": "cpu"},
            "node": {"cache": str(folder / "cache")},
        }
        (folder / "sites" / f"{name}.toml").write_text(tomli_w.dumps(content))
    return folder / "sites"


@pytest.fixture(scope="module")
def personal(little: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ridge run with personal models; read only."""
    request = SimulationRequest(sites=little, strategy="ridge", personal=True)
    return simulate(request, tmp_path_factory.mktemp("personal") / "RUN")[0]


def test_personal_models_and_curves(personal: Path, little: Path) -> None:
    """What each site keeps is what the results say of it, on features prepared again."""
    from sklearn.metrics import roc_auc_score

    plan, results = read_plan(personal), read_results(personal)
    assert [m.key for m in results.models] == [
        *("global", "local", "local_converged", "personal", "pooled", "pooled_converged")
    ]
    prepared = module.prepare_sites(read_sites(little))
    for site in results.sites:
        head, info = load_model(personal_folder(personal / "sites" / site.name, plan.run_id))
        features, labels, _ = prepared[site.name].half("test")
        score = roc_auc_score(labels, head.probabilities(features)[:, 1])
        assert site.evaluations["personal"].auroc.value == pytest.approx(score)
        assert site.joining is not None
        assert site.joining.all_labels.labels == site.n_train
        assert info.backbone.fingerprint == results.backbone.fingerprint


def test_of_a_private_simulation_the_personal_models_are_compared_too(
    little: Path, tmp_path: Path
) -> None:
    """From what each site keeps: all is on this machine. The curves stay where they are."""
    request = SimulationRequest(
        sites=little, strategy="ridge", personal=True, privacy=PrivacyRequest(epsilon=8)
    )
    _, results = simulate(request, tmp_path / "RUN")
    assert "personal" in results.mean
    assert {"personal", "local"} <= {m.key for m in results.models}
    for site in results.sites:
        assert site.evaluations["personal"] != site.evaluations["global"]
        assert site.joining is None


def test_personal_models_that_cannot_be_are_refused_before_any_image_is_read(
    little: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "prepare_site", None)
    two = tmp_path / "sites"
    shutil.copytree(little, two)
    (two / "synthetic-ph2.toml").unlink()
    with pytest.raises(DerminoError, match="fedavg makes no personal models") as caught:
        simulate(SimulationRequest(sites=little, personal=True), tmp_path / "RUN")
    assert caught.value.code == "CONFIG_INVALID"
    with pytest.raises(DerminoError, match="There are 2 sites") as caught:
        simulate(SimulationRequest(sites=two, strategy="ridge", personal=True), tmp_path / "RUN")
    assert caught.value.code == "CONFIG_INVALID"
