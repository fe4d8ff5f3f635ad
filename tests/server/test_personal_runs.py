"""Runs with personal models in the clear: what sites get, keep, tell and refuse."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import hospital  # beside this file
from flwr.app import Message
from packed import arrays_in
from personal_runs import (  # beside this file
    NAMES,
    Run,
    apps,
    final_arrays,
    finished_run,
    halves,
    head_of,
    make_four,
    moments,
    own,
    personal_plan,
    watched,
)

from dermino_client.app import make_client_app
from dermino_client.hospital import Hospital
from dermino_client.own_results import personal_folder
from dermino_core.errors import DerminoError
from dermino_core.joining_curve import Half, joining_curve, sentence
from dermino_core.moments import Moments
from dermino_core.personal import personal_model
from dermino_core.privacy.plan import PrivacyRequest
from dermino_core.results import (
    Estimate,
    JoiningCurve,
    JoiningPoint,
    read_results,
)
from dermino_core.ridge import ScoreMoments, solve
from dermino_server.checkpoint import RunState
from dermino_server.inprocess import InProcessGrid
from dermino_server.personal import check_joining
from dermino_server.plan import RunPlan, check_protection
from dermino_server.plan import make_plan as checked_plan
from dermino_server.rounds import run_rounds
from dermino_strategies.base import Arrays
from dermino_strategies.fedavg import FedAvg
from dermino_strategies.protocol import (
    EvaluateReply,
    EvaluateRequest,
    Totals,
    TrainRequest,
    pack,
    refusal_in,
    unpack,
)
from dermino_strategies.ridge import Ridge


@pytest.fixture
def four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hospital]:
    return make_four(tmp_path_factory.mktemp("homes"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("homes"))


def test_a_site_s_personal_model_is_that_of_the_others_sums_and_its_own_images(ran: Run) -> None:
    """Written out from the sites' features: the others are three sites, never the site itself."""
    from sklearn.metrics import roc_auc_score

    plan, four, results = ran.plan, ran.sites, ran.results
    arrays = final_arrays(ran.folder, plan)
    penalty = float(arrays["penalty"][0])
    for name, site in four.items():
        others = Moments.zeros(2, 8, per_class=False)
        for other in (four[n] for n in NAMES if n != name):
            others = others + moments(other)
        total = others + moments(site)
        spread = float(arrays["held_out.spread"][0])
        held_out = ScoreMoments(total.counts, arrays["held_out.means"], spread)
        train, test = halves(site, "train"), halves(site, "test")
        expected = personal_model(
            train.features,
            train.labels,
            train.groups,
            total,
            own=moments(site),
            penalty=penalty,
            federated=solve(total, penalty),
            held_out=held_out,
        ).head
        found = head_of(site, plan)
        np.testing.assert_allclose(found[:16], expected.weight.ravel(), rtol=1e-4, atol=1e-6)
        result = next(s for s in results.sites if s.name == name)
        scores = expected.probabilities(test.features)[:, 1]
        assert result.evaluations["personal"].auroc.value == pytest.approx(
            roc_auc_score(test.labels, scores), abs=1e-3
        )
        by_hand = joining_curve(
            Half(train.features, train.labels, train.groups),
            Half(test.features, test.labels, test.groups),
            total,
            own=moments(site),
            penalty=penalty,
            held_out=held_out,
            replicates=plan.replicates,
            seed=plan.seed,
        )
        assert result.joining is not None
        assert [p.labels for p in result.joining.points] == [p.labels for p in by_hand.points]
        for one, other in zip(result.joining.points, by_hand.points, strict=True):
            assert one.personal.value == pytest.approx(other.personal.value, abs=2e-3)
        last = result.joining.all_labels
        assert last.personal == result.evaluations["personal"].auroc
        assert last.alone == result.evaluations["local_converged"].auroc
        assert last.federated == result.evaluations["global"].auroc
        assert own(site, plan).sentence == sentence(result.joining)
    assert set(results.mean) == {"global", "local", "local_converged", "personal"}
    assert [m.key for m in results.models][-1] == "personal"
    assert read_results(ran.folder) == results
    sent = ran.asked[-1].content.array_records["personal"]
    assert set(arrays_in(sent)) == set(Ridge().for_personal(arrays))


def gone_in_training(message: Message, reply: Message) -> Message | None:
    kind = message.content.config_records["body"]["kind"]
    return None if kind == "TrainRequest" else reply


def test_a_site_that_missed_training_has_nothing_to_take_out(
    four: dict[str, Hospital], tmp_path: Path
) -> None:
    plan = personal_plan()
    clients = apps(four) | {"gamma": watched(four["gamma"], gone_in_training)}
    results = run_rounds(InProcessGrid(clients), plan, tmp_path)
    assert results.rounds[0].sites == ["alpha", "beta", "delta"]
    arrays = final_arrays(tmp_path, plan)
    assert arrays["total.counts"].sum() == sum(
        len(halves(four[n], "train").labels) for n in ("alpha", "beta", "delta")
    )
    data = halves(four["gamma"], "train")
    right, wrong = (
        Ridge().personal(data, arrays, took_part=took_part).head.weight.ravel()
        for took_part in (False, True)
    )
    found = head_of(four["gamma"], plan)[:16]
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-7)
    assert np.abs(found - wrong).max() > 1e-3
    assert next(s for s in results.sites if s.name == "gamma").joining is not None


def evaluation(plan: RunPlan, arrays: Arrays, totals: Totals | None, **changed: Any) -> Message:
    """The final request, with the arrays of `personal` that `changed` names replaced."""
    strategy = Ridge()
    personal = strategy.for_personal(arrays) | changed
    groups = {"arrays": strategy.for_sites(arrays)}
    groups["personal"] = {name: a for name, a in personal.items() if a is not None}
    body = EvaluateRequest(task=plan.for_sites(), heads=[], totals=totals)
    return Message(pack(body, groups), 2, "evaluate")


ALL_FOUR = Totals(sites=4, with_yours=True)
WRONG = [
    ({"total.sums": None}, ALL_FOUR),
    ({"total.sums": np.zeros((2, 7))}, ALL_FOUR),
    ({"total.products": np.zeros((1, 36), np.float32)}, ALL_FOUR),
    ({"held_out.spread": np.array([np.nan])}, ALL_FOUR),
    ({"penalty": np.zeros(1)}, ALL_FOUR),
    ({"total.counts": np.array([1.0, 1.0])}, ALL_FOUR),  # fewer images than the site sent
    ({}, None),
]


@pytest.mark.parametrize(("changed", "totals"), WRONG)
def code_of(site: Hospital, message: Message) -> str | None:
    """The site's refusal, if it refuses."""
    grid = InProcessGrid({site.name: make_client_app(lambda _: site)})
    message.metadata.dst_node_id = next(iter(grid.get_nodes())).node_id
    (reply,) = grid.send_and_receive([message])
    refusal = refusal_in(reply.content)
    return None if refusal is None else refusal.code


@pytest.mark.parametrize(("changed", "totals"), WRONG)
def test_a_coordinator_s_wrong_sums_are_refused(
    ran: Run, changed: dict[str, Any], totals: Totals | None
) -> None:
    arrays = final_arrays(ran.folder, ran.plan)
    message = evaluation(ran.plan, arrays, totals, **changed)
    assert code_of(ran.sites["alpha"], message) == "REQUEST_INVALID"


def test_sums_of_too_few_others_are_refused(ran: Run) -> None:
    """The task promised three sites; the sums are of two."""
    arrays = final_arrays(ran.folder, ran.plan)
    two = evaluation(ran.plan, arrays, Totals(sites=2, with_yours=True))
    assert code_of(ran.sites["alpha"], two) == "POLICY_REFUSED"
    assert code_of(ran.sites["alpha"], evaluation(ran.plan, arrays, ALL_FOUR)) is None


@pytest.mark.parametrize(
    ("policy", "personal", "privacy", "refused"),
    [
        ({}, True, None, False),
        ({"allow_personal": False}, True, None, True),
        ({"allow_personal": False}, False, None, False),
        ({"min_other_sites": 3}, True, None, True),
        ({"min_other_sites": 3}, False, None, False),
        ({"min_other_sites": 3}, True, PrivacyRequest(epsilon=3), False),
    ],
)
def test_the_policy_refuses_before_anything_is_sent(
    four: dict[str, Hospital],
    policy: dict[str, Any],
    personal: bool,
    privacy: PrivacyRequest | None,
    refused: bool,
) -> None:
    plan = personal_plan(personal=personal, privacy=privacy, cross_site=False)
    shy = hospital(four["beta"].prepared, four["beta"].folder.parent, **policy)
    strategy = Ridge()
    arrays = strategy.for_sites(strategy.initial_arrays(2, 8, plan.seed))
    body = TrainRequest(task=plan.for_sites(), round=1, send_local_head=False)
    grid = InProcessGrid({"beta": make_client_app(lambda _: shy)})
    node = next(iter(grid.get_nodes())).node_id
    (reply,) = grid.send_and_receive([Message(pack(body, {"arrays": arrays}), node, "train")])
    refusal = refusal_in(reply.content)
    assert (refusal is not None) is refused
    if refusal is not None:
        assert refusal.code == "POLICY_REFUSED"
        assert not reply.content.array_records


def test_two_sites_and_methods_without_sums_make_no_personal_models() -> None:
    right = personal_plan().model_dump()
    two = right | {"sites": NAMES[:2], "min_sites": 2}
    with pytest.raises(DerminoError, match="the other's sums") as caught:
        checked_plan(**two)
    assert caught.value.code == "CONFIG_INVALID"
    with pytest.raises(DerminoError, match="quorum is 2"):
        checked_plan(**(right | {"min_sites": 2}))
    private = {"privacy": PrivacyRequest(epsilon=3), "cross_site": False}
    assert checked_plan(**(two | private)).personal
    with pytest.raises(DerminoError) as caught:
        check_protection(FedAvg(), None, secure_aggregation=False, personal=True)
    assert caught.value.fix is not None
    assert "ridge" in caught.value.fix
    with pytest.raises(DerminoError, match="There are 2 sites"):
        check_protection(Ridge(), None, secure_aggregation=False, personal=True, sites=2)
    check_protection(Ridge(), None, secure_aggregation=True, personal=True, sites=3)


def test_a_resumed_run_gives_the_same_personal_models(ran: Run, tmp_path: Path) -> None:
    shutil.copytree(ran.folder, tmp_path / "run")
    before = {name: head_of(site, ran.plan) for name, site in ran.sites.items()}
    grid = InProcessGrid(apps(ran.sites))
    again = run_rounds(grid, ran.plan, tmp_path / "run", resume=True)
    for name, site in ran.sites.items():
        np.testing.assert_array_equal(head_of(site, ran.plan), before[name])
    assert [s.joining for s in again.sites] == [s.joining for s in ran.results.sites]


def test_a_run_without_personal_models_is_as_before(
    four: dict[str, Hospital], tmp_path: Path
) -> None:
    plan = personal_plan(personal=False)
    clients = apps(four)
    asked: list[Message] = []
    clients["alpha"] = watched(four["alpha"], lambda m, r: asked.append(m) or r)
    results = run_rounds(InProcessGrid(clients), plan, tmp_path)
    assert "personal" not in results.mean
    assert all(site.joining is None for site in results.sites)
    assert not any("personal" in message.content.array_records for message in asked)
    assert not personal_folder(four["alpha"].folder, plan.run_id).exists()
    assert own(four["alpha"], plan).sentence is None


def curve(*labels: int, **changes: Estimate) -> JoiningCurve:
    some = Estimate(value=0.7, low=0.6, high=0.8)
    values: dict[str, Estimate] = dict.fromkeys(("alone", "federated", "personal"), some)
    for name in ("personal_minus_alone", "federated_minus_alone", "personal_minus_federated"):
        values[name] = Estimate(value=0.1, low=-0.1, high=0.3)
    points = [JoiningPoint(labels=n, draws=1, **(values | changes)) for n in labels]
    return JoiningCurve(n_train=50, n_test=40, points=points)


@pytest.mark.parametrize(
    "bad",
    [
        curve(0, 20, 49),
        curve(20, 0, 50),
        curve(50, alone=Estimate(value=-0.2)),
        curve(50, alone=Estimate(value=0.7, low=0.8, high=0.75)),
        curve(50, alone=Estimate(value=0.7, low=0.6)),
        curve(50, personal_minus_alone=Estimate(value=None, low=0.1, high=0.2)),
        curve(50, alone=Estimate(value=None)),
        curve(50).model_copy(update={"n_test": 41}),
    ],
)
def test_curves_that_do_not_fit_are_rejected(bad: JoiningCurve) -> None:
    check_joining(curve(0, 20, 20, 50), n_train=50, n_test=40)
    with pytest.raises(ValueError, match="curve"):
        check_joining(bad, n_train=50, n_test=40)


def without_curve(reply: EvaluateReply) -> EvaluateReply:
    return reply.model_copy(update={"joining": None})


def other_images(reply: EvaluateReply) -> EvaluateReply:
    if reply.joining is None:
        raise AssertionError
    joining = reply.joining.model_copy(update={"n_train": reply.n_train + 1})
    return reply.model_copy(update={"joining": joining})


@pytest.mark.parametrize("change", [without_curve, other_images])
def test_a_reply_whose_curve_is_missing_or_wrong_does_not_count(
    four: dict[str, Hospital],
    tmp_path: Path,
    change: Callable[[EvaluateReply], EvaluateReply],
) -> None:
    def look(_: Message, reply: Message) -> Message:
        if reply.content.config_records["body"]["kind"] == "EvaluateReply":
            reply.content = pack(change(unpack(reply.content, EvaluateReply)))
        return reply

    clients = apps(four) | {"beta": watched(four["beta"], look)}
    results = run_rounds(InProcessGrid(clients), personal_plan(), tmp_path)
    assert [s.name for s in results.sites] == ["alpha", "delta", "gamma"]
    assert [(r.site, r.code) for r in results.rounds[-1].rejected] == [("beta", "REPLY_INVALID")]


def test_totals_are_those_of_the_last_round_of_training() -> None:
    """Also of sites whose sums an earlier run left."""
    from dermino_core.results import RoundRecord
    from dermino_server.personal import totals_for

    records = [
        RoundRecord(round=1, kind="train", seconds=0, sites=["alpha", "beta", "gamma"]),
        RoundRecord(round=2, kind="train", seconds=0, sites=["alpha", "delta"], kept=["old"]),
    ]
    state = RunState({}, round=2, records=records)
    plan = personal_plan(rounds=2)
    assert totals_for(plan, state, "delta") == Totals(sites=3, with_yours=True)
    assert totals_for(plan, state, "old") == Totals(sites=3, with_yours=True)
    assert totals_for(plan, state, "beta") == Totals(sites=3, with_yours=False)
    assert totals_for(plan.model_copy(update={"personal": False}), state, "beta") is None
