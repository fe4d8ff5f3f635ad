"""Around every message: policy first, then the audit log, then the reply; never the other way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import cloud_site, hospital  # beside this file
from flwr.app import Message
from packed import all_arrays

from dermino_client.app import make_client_app
from dermino_client.audit import AuditLog, AuditRecord
from dermino_client.hospital import Hospital
from dermino_client.ledger import Ledger
from dermino_core.privacy.plan import PrivacyRequest
from dermino_server.inprocess import InProcessGrid
from dermino_server.plan import RunPlan
from dermino_strategies.fedavg import FedAvg
from dermino_strategies.protocol import EvaluateRequest, Refusal, TrainRequest, pack, refusal_in

Plan = Callable[..., RunPlan]


def ask(site: Hospital, plan: RunPlan, round_: int = 1) -> Message:
    body = TrainRequest(task=plan.for_sites(), round=round_, send_local_head=True)
    content = pack(body, {"arrays": FedAvg().initial_arrays(2, 8, plan.seed)})
    grid = InProcessGrid({site.name: make_client_app(lambda _: site)})
    (reply,) = grid.send_and_receive([Message(content, 2, "train")])
    return reply


def refused(reply: Message) -> Refusal:
    refusal = refusal_in(reply.content)
    assert refusal is not None
    assert not reply.content.array_records
    assert not reply.content.metric_records
    return refusal


def records(site: Hospital) -> list[AuditRecord]:
    return [record for _, record in AuditLog(site.folder / "audit").records()]


@pytest.fixture
def site(tmp_path: Path) -> Hospital:
    return hospital(cloud_site("alpha", 60, 0), tmp_path)


def test_what_came_and_left_is_recorded_with_digests(site: Hospital, make_plan: Plan) -> None:
    plan = make_plan()
    reply = ask(site, plan)
    came, left = records(site)
    assert (came.direction, came.kind, came.run, came.round) == (
        "in",
        "TrainRequest",
        plan.run_id,
        1,
    )
    assert (left.direction, left.kind, left.decision) == ("out", "TrainReply", "allowed")
    arrays = all_arrays(reply.content)
    for name, array in arrays.items():
        assert left.digests[name].sha256 == hashlib.sha256(array.tobytes()).hexdigest()
    assert set(left.digests) == {
        *("arrays/weight", "arrays/bias", "local/weight", "local/bias"),
    }
    assert left.bytes > sum(array.nbytes for array in arrays.values())


def test_a_refusal_is_recorded_with_its_code(tmp_path: Path, make_plan: Plan) -> None:
    strict = hospital(cloud_site("alpha", 60, 0), tmp_path, strategies=["ridge"])
    assert refused(ask(strict, make_plan())).code == "POLICY_REFUSED"
    came, left = records(strict)
    assert (came.decision, left.decision) == ("POLICY_REFUSED", "POLICY_REFUSED")
    assert left.digests == {}


def test_a_model_that_is_too_large_is_refused(tmp_path: Path, make_plan: Plan) -> None:
    sent = sum(a.nbytes for a in FedAvg().initial_arrays(2, 8, 0).values())
    strict = hospital(cloud_site("alpha", 60, 0), tmp_path / "strict", max_model_bytes=sent - 1)
    assert refused(ask(strict, make_plan())).code == "POLICY_REFUSED"
    large = hospital(cloud_site("alpha", 60, 0), tmp_path / "large", max_model_bytes=10 * sent)
    assert refusal_in(ask(large, make_plan()).content) is None


def test_a_refusal_amid_the_work_is_recorded_with_its_code(tmp_path: Path, make_plan: Plan) -> None:
    site = hospital(cloud_site("alpha", 60, 0), tmp_path, epsilon_per_year=4.0)
    assert refusal_in(ask(site, private(make_plan, 3)).content) is None
    assert refused(ask(site, private(make_plan, 3))).code == "BUDGET_EXCEEDED"
    came, left = records(site)[-2:]
    assert (came.decision, left.decision) == ("allowed", "BUDGET_EXCEEDED")
    assert left.epsilon is None


def test_a_round_that_the_run_does_not_have_is_refused(site: Hospital, make_plan: Plan) -> None:
    plan = make_plan(rounds=2)
    assert refusal_in(ask(site, plan, round_=2).content) is None
    assert refused(ask(site, plan, round_=4)).code == "REQUEST_INVALID"


def test_a_crash_is_recorded_and_tells_nothing(tmp_path: Path, make_plan: Plan) -> None:
    def load() -> None:
        raise RuntimeError("/srv/patients/Jane_Doe.jpg")

    good = hospital(cloud_site("alpha", 60, 0), tmp_path)
    broken = Hospital("alpha", good.policy, good.folder, load)  # type: ignore[arg-type]
    reply = ask(broken, make_plan())
    assert refused(reply).code == "INTERNAL"
    assert "Jane" not in str(reply.content)
    assert [record.decision for record in records(good)] == ["INTERNAL", "INTERNAL"]


def test_nothing_leaves_that_cannot_be_recorded(site: Hospital, make_plan: Plan) -> None:
    site.folder.mkdir(parents=True)
    (site.folder / "audit").write_text("a file where the folder should be")
    assert refused(ask(site, make_plan())).code == "JOURNAL_UNWRITABLE"


def test_the_log_breaks_while_the_site_works(
    site: Hospital, make_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request was recorded, then the disk is full: the reply stays here."""
    import shutil

    work = FedAvg.site_update

    def fill_disk(*arguments: object, **options: object) -> object:
        shutil.rmtree(site.folder / "audit")
        (site.folder / "audit").write_text("")
        return work(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(FedAvg, "site_update", fill_disk)
    assert refused(ask(site, make_plan())).code == "JOURNAL_UNWRITABLE"


def private(make_plan: Plan, epsilon: float) -> RunPlan:
    return make_plan(cross_site=False, privacy=PrivacyRequest(epsilon=epsilon))


def test_a_private_reply_holds_its_cost_and_no_more(site: Hospital, make_plan: Plan) -> None:
    plan = private(make_plan, 3)
    reply = ask(site, plan)
    assert refusal_in(reply.content) is None
    assert set(reply.content.array_records) == {"arrays"}  # no head of its own, though asked for
    assert dict(reply.content.metric_records["metrics"]) == {"num-examples": 1}
    assert records(site)[-1].epsilon == pytest.approx(3, abs=1e-3)
    assert Ledger(site.folder / "ledger").spent(delta=1e-5) == pytest.approx(3, abs=1e-3)


def test_a_full_budget_refuses_before_anything_is_trained(
    tmp_path: Path, make_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = hospital(cloud_site("alpha", 60, 0), tmp_path, epsilon_per_year=4.0)
    assert refusal_in(ask(site, private(make_plan, 3)).content) is None
    spent = Ledger(site.folder / "ledger").spent(delta=1e-5)

    def never(*_: object) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr(FedAvg, "private_site_update", never)
    assert refused(ask(site, private(make_plan, 3))).code == "BUDGET_EXCEEDED"
    assert Ledger(site.folder / "ledger").spent(delta=1e-5) == spent


def test_the_final_evaluation_gives_back_what_was_not_spent(
    site: Hospital, make_plan: Plan
) -> None:
    plan = private(make_plan, 3)  # of two rounds, of which one is run
    assert refusal_in(ask(site, plan).content) is None
    ledger = Ledger(site.folder / "ledger")
    assert ledger.spent(delta=1e-5) == pytest.approx(3, abs=1e-3)
    body = EvaluateRequest(task=plan.for_sites(), heads=[])
    content = pack(body, {"arrays": FedAvg().initial_arrays(2, 8, plan.seed)})
    grid = InProcessGrid({site.name: make_client_app(lambda _: site)})
    (reply,) = grid.send_and_receive([Message(content, 2, "evaluate")])
    assert refusal_in(reply.content) is None
    assert 0 < ledger.spent(delta=1e-5) < 2.9


def test_no_ledger_no_training(site: Hospital, make_plan: Plan) -> None:
    site.folder.mkdir(parents=True)
    (site.folder / "ledger").write_text("a file where the folder should be")
    assert refused(ask(site, private(make_plan, 3))).code == "JOURNAL_UNWRITABLE"
