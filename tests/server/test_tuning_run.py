"""A run that tunes the backbone, end to end: real images, real apps, in one process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from little_sites import write_little_sites

from dermino_client.commands.preview import lines_of
from dermino_client.prepare import load_prepared, prepare_site
from dermino_client.preview import Wish, preview
from dermino_client.site import read_sites
from dermino_client.tuned import seen_by, site_images
from dermino_core.backbone import describe_backbone, load_backbone
from dermino_core.errors import DerminoError
from dermino_core.images import decode_image, prepare_image
from dermino_core.metrics import macro_auroc
from dermino_core.model_folder import load_model
from dermino_core.prediction import predict_images
from dermino_core.privacy.plan import PrivacyRequest
from dermino_core.results import read_results
from dermino_server.checkpoint import latest_checkpoint
from dermino_server.plan import make_plan, read_plan
from dermino_server.simulate import SimulationRequest, resume, simulate
from dermino_strategies.registry import get_strategy

SITES = {"synthetic-mednode": 24, "synthetic-ph2": 20, "synthetic-fitzpatrick": 24}
SETTINGS = {
    "blocks": 2,
    "rank": 2,
    "views": 2,
    "view_share": 0.5,
    "local_epochs": 1,
    "learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_little_sites(tmp_path_factory.mktemp("tuned"), SITES)


def an_image(sites: Path) -> Path:
    files = sorted((sites.parent / "data").rglob("*"))
    return next(path for path in files if path.suffix in (".jpg", ".png"))


def run(sites: Path, out: Path, **changes: Any) -> Path:
    values = {"sites": sites, "strategy": "lora", "settings": SETTINGS, "rounds": 2} | changes
    return simulate(SimulationRequest(**values), out)[0]


@pytest.fixture(scope="module")
def finished(sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(sites, tmp_path_factory.mktemp("run") / "RUN")


def test_the_backbone_of_a_run_is_one_like_any_other(finished: Path, sites: Path) -> None:
    """Its features are those of the adapters in the last checkpoint, and nobody else's."""
    folder = finished / "backbone"
    card = describe_backbone(str(folder), cache_dir=None)
    assert card.fingerprint != describe_backbone("demo", cache_dir=None).fingerprint
    state = latest_checkpoint(finished, read_plan(finished).digest())
    assert state is not None
    from dermino_core.tuning.network import split_network

    strategy: Any = get_strategy("lora", SETTINGS)
    frozen, trained = split_network("demo", strategy.adaptation, 2)
    trained.read(state.arrays)
    pixels = prepare_image(decode_image(an_image(sites)), 128)[None].copy()
    import torch

    with torch.no_grad():
        views = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        expected = trained(frozen(views)).numpy()
    backbone = load_backbone(str(folder), precision="fp32", device="cpu")
    np.testing.assert_allclose(backbone.embed(pixels), expected, atol=2e-5)


def test_what_is_reported_is_the_head_on_the_tuned_backbone(finished: Path, sites: Path) -> None:
    results = read_results(finished)
    assert [model.key for model in results.models] == [
        "global",
        "local_converged",
        "pooled_converged",
    ]
    assert results.cross_site is None
    head, info = load_model(finished / "model")
    assert info.backbone_spec == str(finished / "backbone")
    assert info.backbone.name == "demo, tuned"
    assert str(finished) not in (finished / "backbone" / "model.json").read_text()
    assert info.backbone.fingerprint != results.backbone.fingerprint
    for site in read_sites(sites):
        prepared = prepare_site(site, backbone=info.backbone_spec)
        features, labels, _ = prepared.half("test")
        value = float(macro_auroc(labels, head.probabilities(features))[0])
        found = next(one for one in results.sites if one.name == site.name)
        assert found.evaluations["global"].auroc.value == pytest.approx(value, abs=1e-9)
        for key in ("local_converged", "pooled_converged"):
            difference = found.global_minus[key].auroc.value
            other = found.evaluations[key].auroc.value
            assert difference is not None
            assert other is not None
            assert difference == pytest.approx(value - other, abs=1e-6)


def test_nothing_but_adapters_and_a_head_leaves(finished: Path) -> None:
    records = [record for record in read_results(finished).rounds if record.kind == "train"]
    assert len(records) == 2
    strategy: Any = get_strategy("lora", SETTINGS)
    arrays = strategy.initial_arrays(2, 192, 0)
    sent = sum(array.nbytes for array in strategy.update_like(arrays).values())
    for record in records:
        assert all(value is None for value in record.auroc.values()) == (record is records[0])
        for transfer in record.transfers:
            assert sent < transfer.bytes_from_site < sent + 10_000
    assert all(loss > 0 for record in records for loss in record.train_loss.values())


def test_a_prediction_uses_the_tuned_backbone(finished: Path, sites: Path) -> None:
    image = an_image(sites)
    head, info = load_model(finished / "model")
    found = predict_images([image], finished / "model", device="cpu")[1][0]
    pixels = prepare_image(decode_image(image), 128)[None]
    tuned = load_backbone(info.backbone_spec, precision="fp32", device="cpu").embed(pixels)
    np.testing.assert_allclose(found.probabilities, head.probabilities(tuned)[0], atol=1e-4)


def test_a_run_that_was_interrupted_ends_as_it_would_have(
    finished: Path, sites: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "RUN"
    shutil.copytree(finished, folder)
    (folder / "results.json").unlink()
    (folder / "checkpoints" / "round-0002.safetensors").unlink()
    shutil.rmtree(folder / "backbone")
    resume(folder)
    for name in ("backbone/model.safetensors", "model/model.safetensors"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
def test_a_secure_run_gives_the_same_model(finished: Path, sites: Path, tmp_path: Path) -> None:
    folder = run(sites, tmp_path / "RUN", secure_aggregation=True)
    one, other = load_model(folder / "model")[0], load_model(finished / "model")[0]
    np.testing.assert_allclose(one.weight, other.weight, atol=1e-5)
    plain, secure = read_results(finished), read_results(folder)
    assert secure.mean["global"].auroc.value == pytest.approx(
        plain.mean["global"].auroc.value, abs=0.02
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": PrivacyRequest(epsilon=3)}, "cannot hold to a privacy budget"),
        ({"settings": SETTINGS | {"blocks": 9}}, "has 6 blocks"),
        ({"settings": SETTINGS | {"mlp_ratio": 2}}, "mlp_ratio"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_starts(
    sites: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DerminoError) as caught:
        run(sites, tmp_path / "RUN", **changes)
    assert caught.value.code == "CONFIG_INVALID"
    assert words in f"{caught.value.what} {caught.value.fix}"
    assert not (tmp_path / "RUN").exists()


def test_no_plan_collects_heads_of_single_sites(finished: Path) -> None:
    values = read_plan(finished).model_dump()
    with pytest.raises(DerminoError, match="no heads of single sites"):
        make_plan(**values | {"cross_site": True})


def test_a_snapshot_knows_its_images(sites: Path) -> None:
    site = read_sites(sites)[0]
    prepared = prepare_site(site)
    loaded = load_prepared(site)
    for half in ("train", "test"):
        images = site_images(loaded, half)
        assert images == site_images(prepared, half)
        assert len(images.paths) == len(loaded.half(half)[1])
        assert all(path.is_file() for path in images.paths)
    again = seen_by(loaded, "demo")
    np.testing.assert_array_equal(again.features, loaded.features)


def test_a_snapshot_of_before_asks_for_a_new_one(sites: Path) -> None:
    from dataclasses import replace

    prepared = replace(prepare_site(read_sites(sites)[0]), paths=())
    with pytest.raises(DerminoError, match="dermino-client check") as caught:
        site_images(prepared, "train")
    assert caught.value.code == "DATA_CHANGED"


def test_a_site_can_see_beforehand_what_would_leave(sites: Path) -> None:
    site = read_sites(sites)[0]
    prepare_site(site)
    seen = preview(site, Wish(strategy="lora", settings=SETTINGS, rounds=1))
    text = "\n".join(lines_of(seen))
    assert "last1.mlp.fc1.b" in text
    assert "last1.mlp.fc1.a" not in text
    strategy: Any = get_strategy("lora", SETTINGS)
    like = strategy.update_like(strategy.initial_arrays(2, 192, 0))
    assert sum(array.nbytes for array in like.values()) < seen.bytes < 300_000
