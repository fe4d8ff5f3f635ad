"""Rounds of a segmentation federation over the real apps, with sites made of arrays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file

from dermino_client.app import make_client_app
from dermino_client.audit import AuditLog
from dermino_client.hospital import Hospital
from dermino_client.policy import PolicySection
from dermino_client.prepare import PreparedSite
from dermino_client.segmentation_prepare import PreparedMasks, no_masks
from dermino_core import __version__
from dermino_core.backbone_card import BackboneCard, Preprocessing
from dermino_core.errors import DerminoError
from dermino_core.evaluation.segmentation_model import load_segmentation_model
from dermino_core.evaluation.segmentation_turns import turned
from dermino_core.results import BackboneInfo
from dermino_core.segmentation_results import read_segmentation_results
from dermino_server.app import RESUME_KEY, RUN_FOLDER_KEY
from dermino_server.app import app as server_app
from dermino_server.inprocess import InProcessGrid
from dermino_server.segmentation_plan import SegmentationPlan, read_segmentation_plan
from dermino_server.segmentation_rounds import run_segmentation
from dermino_strategies.protocol import pack, refuse, unpack
from dermino_strategies.segmentation import (
    SegmentationMethod,
    SitePatches,
    aggregate,
    initial_arrays,
    overlap,
    scores_of,
    site_update,
    train_alone,
)
from dermino_strategies.segmentation_messages import (
    SegmentationTrainReply,
    SegmentationTrainRequest,
)

WIDTH, GRID, SIDE, ROUNDS = 5, 4, 16, 3
SIZES = {"alpha": (8, 6), "beta": (14, 9), "gamma": (5, 5)}
METHOD = SegmentationMethod(local_epochs=1, learning_rate=0.02, image_size=SIDE)
CARD = BackboneCard(
    name="squares",
    architecture="none",
    width=WIDTH,
    patch_size=SIDE // GRID,
    preprocessing=Preprocessing(SIDE, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    fingerprint="e" * 64,
    pretrained=True,
    source="test",
)


def half(n: int, views: int, seed: int) -> SitePatches:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 2, (n, GRID, GRID)).astype(np.uint8)
    features = rng.normal(size=(n, views, 1, GRID, GRID, WIDTH))
    for view in range(views):
        features[:, view, 0, ..., 0] += 2 * np.stack([turned(mask, view) for mask in coarse])
    masks = coarse.repeat(SIDE // GRID, axis=1).repeat(SIDE // GRID, axis=2)
    return SitePatches(features.astype(np.float16), masks)


def site(name: str, seed: int) -> PreparedMasks:
    train, test = SIZES[name]
    return PreparedMasks(
        name=name,
        train=half(train, 2, seed),
        test=half(test, 1, seed + 100),
        units=[str(i // 2) for i in range(test)],
        left_out=0,
        notes=[],
        card=CARD,
        precision="fp32",
        digest=name,
    )


def no_labels() -> PreparedSite:
    raise AssertionError("segmentation looks at no label")


@pytest.fixture(scope="module")
def prepared() -> dict[str, PreparedMasks]:
    return {name: site(name, place) for place, name in enumerate(SIZES)}


def hospitals(prepared: Mapping[str, PreparedMasks], folder: Path, **policy: Any) -> dict:
    allowed = PolicySection(**{"min_images": 2, **policy})
    return {
        name: Hospital(name, allowed, folder / name, no_labels, lambda one=one: one)
        for name, one in prepared.items()
    }


def apps(found: Mapping[str, Hospital]) -> dict[str, ClientApp]:
    return {name: make_client_app(lambda _, h=h: h) for name, h in found.items()}


def plan(**changes: Any) -> SegmentationPlan:
    given: dict[str, Any] = {
        "title": "test",
        "method": METHOD,
        "rounds": ROUNDS,
        "seed": 4,
        "replicates": 60,
        "sites": sorted(SIZES),
        "min_sites": 3,
        "wait_seconds": 0.5,
        "deadline_seconds": 60,
        "engine": "inprocess",
        "backbone": BackboneInfo.of(CARD, "fp32"),
        "backbone_spec": "squares",
        "created": "2026-01-01",
        "dermino_version": __version__,
    }
    return SegmentationPlan(**given | changes)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def finished(prepared: dict[str, PreparedMasks], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    asked = plan()
    asked.write(folder)
    run_segmentation(InProcessGrid(apps(hospitals(prepared, folder / "sites"))), asked, folder)
    return folder


def test_a_run_is_averaging_written_out(finished: Path, prepared: dict[str, PreparedMasks]) -> None:
    """Through both apps and the wire, to the last bit."""
    arrays = initial_arrays(METHOD, WIDTH, 4)
    for round_ in range(1, ROUNDS + 1):
        given: dict[str, Any] = {"width": WIDTH, "round_": round_, "rounds": ROUNDS, "seed": 4}
        arrays = aggregate(
            {n: site_update(p.train, METHOD, arrays, **given) for n, p in prepared.items()}
        )
    found = weights(finished)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    results = read_segmentation_results(finished)
    for one in results.sites:
        own = prepared[one.name]
        alone = train_alone(own.train, METHOD, width=WIDTH, rounds=ROUNDS, seed=4)
        first, second = (scores_of(own.test, METHOD, a, width=WIDTH) for a in (arrays, alone))
        given = {"replicates": 60, "seed": 4}
        assert one.scores["global"] == overlap(first, own.units, **given)
        assert one.scores["local"] == overlap(second, own.units, **given)
        assert one.global_minus["local"] == overlap(first - second, own.units, **given)
    means = [one.scores["global"].dice.value or 0 for one in results.sites]
    assert results.mean["global"].dice.value == pytest.approx(np.mean(means))


def test_what_a_run_leaves_behind(finished: Path) -> None:
    results = read_segmentation_results(finished)
    head, info = load_segmentation_model(finished / "model")
    assert (info.head, info.n_train, info.n_test) == ("linear", 27, 20)
    assert "federated averaging" in (finished / "model" / "README.md").read_text()
    assert not head.training
    assert [record.kind for record in results.rounds] == ["train"] * ROUNDS + ["evaluate"]
    assert results.rounds[0].examples == {"alpha": 8, "beta": 14, "gamma": 5}
    assert all(set(record.dice) == set(SIZES) for record in results.rounds[:-1])
    last = {one.name: one.scores["global"].dice.value for one in results.sites}
    assert results.rounds[ROUNDS - 1].dice == last
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3, 4]
    assert read_segmentation_plan(finished).kind == results.kind
    kept = json.loads(next((finished / "sites/alpha/results").glob("*.json")).read_text())
    assert kept["n_test"] == 6
    kinds = [found.kind for _, found in AuditLog(finished / "sites/alpha/audit").records()]
    assert kinds.count("SegmentationTrainReply") == ROUNDS
    assert kinds.count("SegmentationEvaluateReply") == 1


def test_a_run_that_was_interrupted_ends_with_the_same_bits(
    finished: Path, prepared: dict[str, PreparedMasks], tmp_path: Path
) -> None:
    folder = tmp_path / "RUN"
    shutil.copytree(finished, folder)
    for round_ in (2, 3):
        (folder / "checkpoints" / f"round-{round_:04d}.safetensors").unlink()
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "model")
    asked = read_segmentation_plan(folder)
    grid = InProcessGrid(apps(hospitals(prepared, folder / "sites")))
    again = run_segmentation(grid, asked, folder, resume=True)
    before = read_segmentation_results(finished)
    assert all(np.array_equal(a, weights(folder)[n]) for n, a in weights(finished).items())
    assert again.sites == before.sites
    with pytest.raises(DerminoError) as refused:
        run_segmentation(grid, plan(seed=5), folder, resume=True)
    assert refused.value.code == "CHECKPOINT_INVALID"


def test_the_deployed_app_knows_which_kind_of_run_a_folder_holds(
    finished: Path, prepared: dict[str, PreparedMasks], tmp_path: Path
) -> None:
    """What Flower starts, on the run folder that `dermino segmentation --superlink` prepares."""
    read_segmentation_plan(finished).write(tmp_path)
    context = Context(
        run_id=1,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config={RUN_FOLDER_KEY: str(tmp_path), RESUME_KEY: False},
    )
    server_app(InProcessGrid(apps(hospitals(prepared, tmp_path / "sites"))), context)
    assert all(np.array_equal(a, weights(tmp_path)[n]) for n, a in weights(finished).items())
    assert read_segmentation_results(tmp_path).engine == "inprocess"


def test_one_site_together_is_that_site_alone(
    prepared: dict[str, PreparedMasks], tmp_path: Path
) -> None:
    one = {"beta": prepared["beta"]}
    grid = InProcessGrid(apps(hospitals(one, tmp_path / "sites")))
    results = run_segmentation(grid, plan(sites=["beta"], min_sites=1), tmp_path)
    assert results.sites[0].scores["global"] == results.sites[0].scores["local"]
    assert results.mean_global_minus["local"].dice.value == 0


def hostile(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> ClientApp:
    """A site that sends a head of its own making."""
    bad = ClientApp()

    @bad.train("segmentation")
    def _train(message: Message, context: Context) -> Message:
        unpack(message.content, SegmentationTrainRequest)
        reply = SegmentationTrainReply(
            precision="fp32", n_train=5, train_loss=1.0, dice_before=0.5, seconds=0.0
        )
        arrays = change(initial_arrays(METHOD, WIDTH, 4))
        return Message(pack(reply, {"arrays": arrays}), reply_to=message)

    @bad.evaluate("segmentation")
    def _evaluate(message: Message, context: Context) -> Message:
        return refuse(message, "INTERNAL")

    return bad


def test_a_head_of_nan_is_left_out_by_name(
    prepared: dict[str, PreparedMasks], tmp_path: Path
) -> None:
    clients = apps(hospitals(prepared, tmp_path / "sites"))
    clients["gamma"] = hostile(lambda a: {n: np.full_like(v, np.nan) for n, v in a.items()})
    results = run_segmentation(InProcessGrid(clients), plan(min_sites=2), tmp_path)
    rejection = results.rounds[0].rejected[0]
    assert (rejection.site, rejection.code) == ("gamma", "REPLY_INVALID")
    assert "NaN" in rejection.sentence
    assert results.missing_sites == ["gamma"]
    assert all(np.isfinite(array).all() for array in weights(tmp_path).values())


def lost(prepared: Mapping[str, PreparedMasks], folder: Path, **policy: Any) -> str:
    """What a run says whose sites all refuse."""
    clients = apps(hospitals(prepared, folder / "sites", **policy))
    with pytest.raises(DerminoError) as refused:
        run_segmentation(InProcessGrid(clients), plan(), folder)
    assert refused.value.code == "QUORUM_LOST"
    return str(refused.value)


@pytest.mark.parametrize(
    "policy",
    [
        {"min_images": 100},
        {"tasks": ["malignancy"]},
        {"strategies": ["ridge"]},
        {"max_rounds": 2},
        {"require_privacy": True},
        {"require_secure_aggregation": True},
        {"max_model_bytes": 10},
    ],
)
def test_the_sites_policy_holds(
    policy: dict[str, Any], prepared: dict[str, PreparedMasks], tmp_path: Path
) -> None:
    assert "POLICY_REFUSED" in lost(prepared, tmp_path, **policy)


def test_a_site_that_is_asked_for_something_else_says_so(
    prepared: dict[str, PreparedMasks], tmp_path: Path
) -> None:
    for change, code in (
        ({"method": METHOD.model_copy(update={"image_size": 32})}, "REQUEST_MISMATCH"),
        ({"method": METHOD.model_copy(update={"head": "upernet"})}, "REQUEST_MISMATCH"),
        (
            {"backbone": BackboneInfo.of(CARD, "fp32").model_copy(update={"fingerprint": "d"})},
            "BACKBONE_MISMATCH",
        ),
    ):
        clients = apps(hospitals(prepared, tmp_path / "sites"))
        with pytest.raises(DerminoError, match=code):
            run_segmentation(InProcessGrid(clients), plan(**change), tmp_path / code)


def test_a_site_without_masks_says_so(tmp_path: Path) -> None:
    clients = {
        name: make_client_app(
            lambda _, name=name: Hospital(
                name, PolicySection(), tmp_path / name, no_labels, no_masks
            )
        )
        for name in SIZES
    }
    with pytest.raises(DerminoError, match="REQUEST_MISMATCH"):
        run_segmentation(InProcessGrid(clients), plan(), tmp_path)


def test_the_coordinators_nan_are_refused_at_the_site(
    prepared: dict[str, PreparedMasks], tmp_path: Path
) -> None:
    found = hospitals(prepared, tmp_path)
    grid = InProcessGrid(apps(found))
    arrays = initial_arrays(METHOD, WIDTH, 4)
    arrays["classify.weight"][0] = np.inf
    body = SegmentationTrainRequest(task=plan().for_sites(), round=1)
    node = next(info.node_id for info in grid.get_nodes() if info.name == "alpha")
    message = Message(pack(body, {"arrays": arrays}), node, "train.segmentation")
    reply = next(iter(grid.send_and_receive([message])))
    assert json.loads(str(reply.content["body"]["json"]))["code"] == "REQUEST_INVALID"
    late = SegmentationTrainRequest(task=plan().for_sites(), round=ROUNDS + 2)
    good = initial_arrays(METHOD, WIDTH, 4)
    message = Message(pack(late, {"arrays": good}), node, "train.segmentation")
    reply = next(iter(grid.send_and_receive([message])))
    assert json.loads(str(reply.content["body"]["json"]))["code"] == "REQUEST_INVALID"
    assert {entry.decision for _, entry in found["alpha"].audit.records()} == {
        "allowed",
        "REQUEST_INVALID",
    }
