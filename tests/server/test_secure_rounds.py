"""Secure aggregation with the real apps: the sum and nothing else reaches the coordinator."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import cloud_site, hospital  # beside this file
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from packed import all_arrays

from dermino_client.app import make_client_app
from dermino_client.hospital import Hospital
from dermino_client.ledger import Ledger
from dermino_client.own_results import OwnResults
from dermino_core.errors import DerminoError
from dermino_core.metrics import mean_over_sites
from dermino_core.model_folder import load_model
from dermino_core.privacy.plan import PrivacyRequest
from dermino_core.results import Results
from dermino_server.inprocess import InProcessGrid
from dermino_server.plan import RunPlan
from dermino_server.rounds import run_rounds
from dermino_server.simulated_consortium import enrol_simulated
from dermino_strategies.base import SiteData
from dermino_strategies.fedavg import FedAvg
from dermino_strategies.protocol import pack, refusal_in
from dermino_strategies.secure_aggregation.ring import FixedPoint

Plan = Callable[..., RunPlan]
NAMES = ["alpha", "beta", "delta", "epsilon", "gamma"]


@pytest.fixture
def five(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hospital]:
    folder = tmp_path_factory.mktemp("hospitals")
    sites = {n: hospital(cloud_site(n, 50 + 16 * i, i), folder) for i, n in enumerate(NAMES)}
    enrol_simulated(folder / "authority", {name: site.folder for name, site in sites.items()})
    return sites


def apps(sites: Mapping[str, Hospital]) -> dict[str, ClientApp]:
    return {name: make_client_app(lambda _, site=site: site) for name, site in sites.items()}


def watched(site: Hospital, look: Callable[[Message, Message], Message | None]) -> ClientApp:
    """The site's real app; `look` sees request and reply, and may replace or drop the reply."""
    honest, app = make_client_app(lambda _: site), ClientApp()

    def handle(message: Message, context: Context) -> Message:
        reply = look(message, honest(message, context))
        if reply is None:
            raise RuntimeError("gone")
        return reply

    app.train("secure")(handle)
    app.train()(handle)
    app.evaluate()(handle)
    return app


def secure_plan(make_plan: Plan, **changes: object) -> RunPlan:
    values = {"secure_aggregation": True, "cross_site": False, "sites": NAMES, "min_sites": 3}
    return make_plan(**(values | {"threshold": 3} | changes))


def head_of(folder: Path) -> np.ndarray:
    head = load_model(folder / "model")[0]
    return np.concatenate([head.weight.ravel(), head.bias])


def test_a_secure_run_gives_the_plain_result(
    five: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    plain = make_plan(sites=NAMES, min_sites=5, cross_site=False)
    before = run_rounds(InProcessGrid(apps(five)), plain, tmp_path / "plain")
    after = run_rounds(InProcessGrid(apps(five)), secure_plan(make_plan), tmp_path / "secure")
    np.testing.assert_allclose(
        head_of(tmp_path / "secure"), head_of(tmp_path / "plain"), atol=1e-6, rtol=0
    )
    assert after.sites == []
    assert after.totals is not None
    assert after.totals.sites == NAMES
    assert after.totals.n_test == sum(site.n_test for site in before.sites)
    assert after.rounds[0].examples == {}
    assert after.rounds[0].examples_total == sum(before.rounds[0].examples.values())
    for key, summary in before.mean.items():
        for metric in ("auroc", "f1"):
            expected, found = getattr(summary, metric), getattr(after.mean[key], metric)
            assert found.value == pytest.approx(expected.value, abs=1e-9)
            assert found.low == pytest.approx(expected.low, abs=1e-6)
            assert found.high == pytest.approx(expected.high, abs=1e-6)


def test_a_site_keeps_its_own_evaluation(
    five: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    plan = secure_plan(make_plan)
    results = run_rounds(InProcessGrid(apps(five)), plan, tmp_path)
    own = [
        OwnResults.model_validate_json(
            (site.folder / "results" / f"{plan.run_id}.json").read_text()
        )
        for site in five.values()
    ]
    mean = mean_over_sites([reply.evaluations["global"].auroc for reply in own])
    assert results.mean["global"].auroc.value == pytest.approx(mean.value, abs=1e-9)


def _record(sites: Mapping[str, Hospital]) -> tuple[dict[str, ClientApp], list[Message]]:
    seen: list[Message] = []

    def look(_: Message, reply: Message) -> Message:
        seen.append(reply)
        return reply

    return {name: watched(site, look) for name, site in sites.items()}, seen


def _plain_vector(site: Hospital, plan: RunPlan) -> np.ndarray:
    """What a site adds in round 1, as the ring holds it."""
    strategy = FedAvg()
    arrays = strategy.initial_arrays(2, 8, plan.seed)
    x, y, _ = site.prepared.half("train")
    update = strategy.site_update(SiteData(site.name, x, y, 2), arrays, 1, plan.seed)
    point = FixedPoint(strategy.summand_limits(arrays), strategy.summand_like(arrays), len(NAMES))
    return point.flatten(strategy.summand(update))


def test_nothing_that_reaches_the_coordinator_tells_of_one_site(
    five: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    clients, seen = _record(five)
    plan = secure_plan(make_plan, rounds=1)
    run_rounds(InProcessGrid(clients), plan, tmp_path)
    vectors = [array for reply in seen for array in all_arrays(reply.content).values()]
    assert len(vectors) == 2 * len(NAMES)  # training and evaluation
    plain = {name: _plain_vector(site, plan) for name, site in five.items()}
    for vector in vectors:
        assert vector.dtype == np.uint64
        for other in plain.values():
            if other.shape == vector.shape:
                assert not np.array_equal(vector, other)
                # Unmasked, the top bytes of all entries are the sign: 0 or 255.
                assert len(set((vector - other) >> np.uint64(56))) > 5
    texts = [json.loads(str(reply.content.config_records["body"]["json"])) for reply in seen]
    assert all(set(text) == {"stage", "reply"} for text in texts)
    assert not any(reply.content.metric_records for reply in seen)
    stored = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    for name, site in five.items():
        x, y, _ = site.prepared.half("train")
        head = FedAvg().site_update(
            SiteData(name, x, y, 2), FedAvg().initial_arrays(2, 8, plan.seed), 1, plan.seed
        )
        assert head.arrays["weight"].tobytes() not in stored
        assert plain[name].tobytes() not in stored
        for size in (len(y), site.prepared.images_used):
            assert f'"{name}": {size}'.encode() not in stored


def _gone_at(stage: str, step: str) -> Callable[[Message, Message], Message | None]:
    def look(message: Message, reply: Message) -> Message | None:
        body = json.loads(str(message.content.config_records["body"]["json"]))
        return None if (body["stage"], body["step"]) == (stage, step) else reply

    return look


@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "confirm", "unmask"])
def test_a_site_that_goes_at_any_stage_does_not_end_the_run(
    five: dict[str, Hospital], make_plan: Plan, tmp_path: Path, stage: str
) -> None:
    clients = apps(five) | {
        name: watched(five[name], _gone_at(stage, "train")) for name in ("beta", "gamma")
    }
    results = run_rounds(InProcessGrid(clients), secure_plan(make_plan, rounds=1), tmp_path)
    stays = ["alpha", "delta", "epsilon"]
    counted = NAMES if stage in ("confirm", "unmask") else stays
    assert results.rounds[0].sites == counted
    assert {r.site for r in results.rounds[0].rejected} == {"beta", "gamma"}
    expected = sum(len(five[name].prepared.half("train")[1]) for name in counted)
    assert results.rounds[0].examples_total == expected


def test_too_few_sites_end_the_run_with_names(
    five: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    clients = apps(five) | {
        name: watched(five[name], _gone_at("unmask", "train")) for name in NAMES[:3]
    }
    with pytest.raises(DerminoError) as caught:
        run_rounds(InProcessGrid(clients), secure_plan(make_plan), tmp_path)
    assert caught.value.code == "SECURE_ABORTED"
    assert "alpha (unmask)" in caught.value.what
    assert not (tmp_path / "results.json").exists()


def test_by_default_more_than_two_thirds_must_stay(
    five: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    """Three of five would do for `threshold=3`; not where nobody chose one."""
    clients = apps(five) | {
        name: watched(five[name], _gone_at("unmask", "train")) for name in NAMES[:2]
    }
    with pytest.raises(DerminoError, match="alpha \\(unmask\\)"):
        run_rounds(InProcessGrid(clients), secure_plan(make_plan, threshold=None), tmp_path)


def test_a_site_whose_company_leaves_it_sends_nothing(
    five: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    """Enough were invited; that too few are left, the site sees at a later stage."""
    shy = hospital(five["beta"].prepared, five["beta"].folder.parent, min_other_sites=4)
    clients = apps(five | {"beta": shy}) | {
        "gamma": watched(five["gamma"], _gone_at("shares", "train"))
    }
    results = run_rounds(InProcessGrid(clients), secure_plan(make_plan, rounds=1), tmp_path)
    assert results.rounds[0].sites == ["alpha", "delta", "epsilon"]
    assert "beta" in {rejection.site for rejection in results.rounds[0].rejected}


def test_a_secure_run_with_a_budget_is_settled_at_its_end(
    five: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    plan = secure_plan(make_plan, privacy=PrivacyRequest(epsilon=3))
    run_rounds(InProcessGrid(apps(five)), plan, tmp_path)
    for site in five.values():
        (spending,) = Ledger(site.folder / "ledger").by_run()
        assert not spending.is_open


def test_a_run_that_promises_secure_aggregation_gets_nothing_in_the_clear(
    five: dict[str, Hospital], make_plan: Plan
) -> None:
    from dermino_strategies.protocol import EvaluateRequest, TrainRequest

    task = secure_plan(make_plan).for_sites()
    arrays = {"arrays": FedAvg().initial_arrays(2, 8, 0)}
    grid = InProcessGrid(apps(five))
    for kind, body in (
        ("train", TrainRequest(task=task, round=1, send_local_head=False)),
        ("evaluate", EvaluateRequest(task=task, heads=[])),
    ):
        message = Message(pack(body, arrays), 2, kind)
        (reply,) = grid.send_and_receive([message])
        refusal = refusal_in(reply.content)
        assert refusal is not None
        assert refusal.code == "REQUEST_MISMATCH"


def test_a_site_that_asks_for_more_company_stays_out(
    five: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    shy = hospital(five["beta"].prepared, five["beta"].folder.parent, min_other_sites=7)
    results: Results = run_rounds(
        InProcessGrid(apps(five | {"beta": shy})), secure_plan(make_plan, rounds=1), tmp_path
    )
    assert results.missing_sites == ["beta"]
    assert {(r.site, r.code) for r in results.rounds[0].rejected} == {("beta", "POLICY_REFUSED")}


def test_a_session_of_another_sum_is_refused(five: dict[str, Hospital], make_plan: Plan) -> None:
    from dermino_strategies.protocol import SecureRequest
    from dermino_strategies.secure_aggregation.messages import KeysRequest
    from dermino_strategies.secure_aggregation.session import Session

    task = secure_plan(make_plan).for_sites()
    right = {
        "run": task.run_id,
        "round": 1,
        "purpose": "train",
        "attempt": 1,
        "task_digest": "0" * 64,
        "threshold": 3,
    }
    grid = InProcessGrid(apps(five))
    for wrong in ({"run": "f" * 32}, {"round": 2}, {"purpose": "evaluate"}):
        session = Session.model_validate(right | wrong)
        body = SecureRequest(
            task=task,
            round=1,
            step="train",
            stage="keys",
            request=KeysRequest(session=session, invited=NAMES).model_dump_json(),
        )
        (reply,) = grid.send_and_receive([Message(pack(body), 2, "train.secure")])
        refusal = refusal_in(reply.content)
        assert refusal is not None
        assert refusal.code == "REQUEST_MISMATCH"
