"""The rounds driver with the real apps in one process: quorum, deadlines, poison, resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from packed import arrays_in

from dermino_client.app import make_client_app
from dermino_client.hospital import Hospital
from dermino_core.errors import DerminoError
from dermino_core.model_folder import load_model
from dermino_core.results import read_results
from dermino_server import rounds as rounds_module
from dermino_server.inprocess import InProcessGrid
from dermino_server.plan import RunPlan
from dermino_server.rounds import run_rounds
from dermino_strategies.base import SiteData
from dermino_strategies.fedavg import FedAvg
from dermino_strategies.packing import FORMAT
from dermino_strategies.protocol import (
    TrainRequest,
    pack_update,
    unpack,
    unpack_update,
)

Plan = Callable[..., RunPlan]


def apps(sites: Mapping[str, Hospital]) -> dict[str, ClientApp]:
    return {name: make_client_app(lambda _, site=site: site) for name, site in sites.items()}


def tampered(site: Hospital, change: Callable[[Message], Message]) -> ClientApp:
    """The site's real app, whose training replies are changed on their way out."""
    honest = make_client_app(lambda _: site)
    app = ClientApp()

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        return change(honest(message, context))

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        return change(honest(message, context))

    return app


def with_weights(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Message], Message]:
    def tamper(reply: Message) -> Message:
        from dermino_strategies.protocol import TrainReply

        if "arrays" not in reply.content.array_records:
            return reply
        update = unpack_update(reply.content, FedAvg().initial_arrays(2, 8, 0))
        update.arrays["weight"] = change(update.arrays["weight"])
        reply.content = pack_update(unpack(reply.content, TrainReply), update, None)
        return reply

    return tamper


def weights_of(folder: Path) -> np.ndarray:
    return load_model(folder / "model")[0].weight


def test_two_rounds_equal_fedavg_by_hand(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    plan = make_plan()
    results = run_rounds(InProcessGrid(apps(sites)), plan, tmp_path)
    strategy = FedAvg()
    arrays = strategy.initial_arrays(2, 8, plan.seed)
    for round_ in (1, 2):
        updates = {}
        for name, site in sites.items():
            x, y, _ = site.prepared.half("train")
            updates[name] = strategy.site_update(SiteData(name, x, y, 2), arrays, round_, plan.seed)
        arrays = strategy.aggregate(arrays, updates)
    np.testing.assert_array_equal(weights_of(tmp_path), arrays["weight"])
    assert results.rounds_done == 2
    assert [r.kind for r in results.rounds] == ["train", "train", "evaluate"]
    assert read_results(tmp_path) == results


def test_results_hold_every_model_and_the_cross_site_matrix(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    results = run_rounds(InProcessGrid(apps(sites)), make_plan(), tmp_path)
    assert set(results.mean) == {"global", "local", "local_converged"}
    assert results.cross_site is not None
    for i, name in enumerate(results.cross_site.rows):
        own = next(s for s in results.sites if s.name == name).evaluations["local"].auroc.value
        assert results.cross_site.auroc[i][i] == own
    first, second, final = results.rounds
    assert set(first.auroc) == set(second.auroc) == {"alpha", "beta", "gamma"}
    by_site = {s.name: s.evaluations["global"].auroc.value for s in results.sites}
    assert second.auroc == by_site
    assert final.auroc == {}
    assert all(t.bytes_from_site > 0 for r in results.rounds for t in r.transfers)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w * np.float32(np.nan), "NaN or infinite"),
        (lambda w: w + np.float32(np.inf), "NaN or infinite"),
        (lambda w: w[:, :-1], "shape"),
        (lambda w: w.astype(np.float64), "type"),
    ],
)
def test_poison_is_rejected_by_name_and_the_quorum_goes_on(
    sites: dict[str, Hospital],
    make_plan: Plan,
    tmp_path: Path,
    change: Callable[[np.ndarray], np.ndarray],
    words: str,
) -> None:
    clients = apps(sites) | {"beta": tampered(sites["beta"], with_weights(change))}
    results = run_rounds(InProcessGrid(clients), make_plan(min_sites=2), tmp_path)
    for record in results.rounds[:2]:
        assert record.sites == ["alpha", "gamma"]
        assert [(r.site, r.code) for r in record.rejected] == [("beta", "REPLY_INVALID")]
        assert words in record.rejected[0].sentence
    assert np.isfinite(weights_of(tmp_path)).all()


def with_file(data: bytes) -> Callable[[Message], Message]:
    def tamper(reply: Message) -> Message:
        if "arrays" in reply.content.array_records:
            file = Array(dtype="uint8", shape=(len(data),), stype=FORMAT, data=data)
            reply.content["arrays"] = ArrayRecord({FORMAT: file})
        return reply

    return tamper


def test_bytes_that_are_no_arrays_are_rejected_by_name(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    clients = apps(sites) | {"beta": tampered(sites["beta"], with_file(b"PK not this"))}
    results = run_rounds(InProcessGrid(clients), make_plan(min_sites=2), tmp_path)
    assert [(r.site, r.code) for r in results.rounds[0].rejected] == [("beta", "REPLY_INVALID")]
    assert "cannot be read" in results.rounds[0].rejected[0].sentence


def with_json(change: Callable[[dict], None], kind: str) -> Callable[[Message], Message]:
    def tamper(reply: Message) -> Message:
        body = reply.content.config_records["body"]
        if body["kind"] == kind:
            content = json.loads(str(body["json"]))
            change(content)
            body["json"] = json.dumps(content)
        return reply

    return tamper


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(evaluations={}),
        lambda body: body["evaluations"]["global"].update(class_counts={}),
        lambda body: body["evaluations"]["global"]["auroc"].update(value=9.0),
        lambda body: body["evaluations"]["global"]["auroc"].update(low=float("nan")),
        lambda body: body.update(n_train=-5),
        lambda body: body.update(n_test=1000),
        lambda body: body.update(cross={"nobody": {"auroc": 0.5, "f1": 0.5}}),
        lambda body: body.update(classes=["malignant", "benign"]),
        lambda body: body.update(surprise=1),
    ],
)
def test_evaluations_that_do_not_add_up_are_rejected_by_name(
    sites: dict[str, Hospital],
    make_plan: Plan,
    tmp_path: Path,
    change: Callable[[dict], None],
) -> None:
    clients = apps(sites) | {"beta": tampered(sites["beta"], with_json(change, "EvaluateReply"))}
    results = run_rounds(InProcessGrid(clients), make_plan(min_sites=2), tmp_path)
    assert [(r.site, r.code) for r in results.rounds[2].rejected] == [("beta", "REPLY_INVALID")]
    assert results.missing_sites == ["beta"]
    assert [s.name for s in results.sites] == ["alpha", "gamma"]
    trained = {s.site for s in load_model(tmp_path / "model")[1].trained_on}
    assert trained == {"alpha", "beta", "gamma"}


def test_claiming_more_images_than_it_has_is_rejected(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    def claim(reply: Message) -> Message:
        if reply.content.metric_records:
            reply.content["metrics"]["num-examples"] = 2**62
        return reply

    clients = apps(sites) | {"beta": tampered(sites["beta"], claim)}
    results = run_rounds(InProcessGrid(clients), make_plan(min_sites=2), tmp_path)
    assert "images" in results.rounds[0].rejected[0].sentence


def test_a_site_that_is_back_counts_for_the_quorum(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    """beta fails in round 1; in round 2 alpha is gone and beta is back: two of two are there."""

    class Changing(SilentGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            if any(m.metadata.group_id == "1" for m in replies):
                self.silent, self.absent = None, "alpha"
            return replies

    grid = Changing(apps(sites), silent="beta")
    results = run_rounds(grid, make_plan(min_sites=2, deadline_seconds=1.0), tmp_path)
    assert [r.sites for r in results.rounds] == [
        ["alpha", "gamma"],
        ["beta", "gamma"],
        ["beta", "gamma"],
    ]


def test_a_hanging_site_costs_one_deadline_not_one_per_round(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    grid = SilentGrid(apps(sites), silent="beta")
    plan = make_plan(min_sites=2, rounds=6, deadline_seconds=1.5)
    results = run_rounds(grid, plan, tmp_path)
    waited = [record.seconds > 1.4 for record in results.rounds]
    assert waited == [True] + [False] * 6


def test_poison_without_quorum_ends_with_the_name_and_no_model(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    clients = apps(sites) | {
        "beta": tampered(sites["beta"], with_weights(lambda w: w * np.float32(np.nan)))
    }
    with pytest.raises(DerminoError, match="beta: Its reply is not usable") as caught:
        run_rounds(InProcessGrid(clients), make_plan(min_sites=3), tmp_path)
    assert caught.value.exit_code == 7
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "results.json").exists()


def test_wrong_class_order_is_refused_by_the_site(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    from dataclasses import replace

    other = replace(sites["gamma"].prepared, classes=["malignant", "benign"])
    sites["gamma"] = replace(sites["gamma"], load=lambda: other)
    results = run_rounds(InProcessGrid(apps(sites)), make_plan(min_sites=2), tmp_path)
    assert results.rounds[0].rejected[0].code == "REQUEST_MISMATCH"
    assert results.missing_sites == ["gamma"]


def test_a_crash_at_a_site_sends_no_text(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    secret = "/srv/patients/Jane_Doe.jpg"

    def load(_: Context) -> Hospital:
        raise RuntimeError(secret)

    def refuse(_: Context) -> Hospital:
        raise DerminoError("DATA_CHANGED", f"{secret} vanished", where=secret)

    clients = apps(sites) | {"beta": make_client_app(load), "gamma": make_client_app(refuse)}
    run_rounds(InProcessGrid(clients), make_plan(min_sites=1), tmp_path)
    text = "".join(p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())
    assert "Jane" not in text
    assert "DATA_CHANGED" in text
    assert "INTERNAL" in text


def test_every_site_failing_never_completes(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    def load(_: Context) -> Hospital:
        raise RuntimeError

    clients = {name: make_client_app(load) for name in sites}
    with pytest.raises(DerminoError, match="0 usable replies"):
        run_rounds(InProcessGrid(clients), make_plan(min_sites=1), tmp_path)
    assert not (tmp_path / "results.json").exists()


class SilentGrid(InProcessGrid):
    """Some sites are reachable but never answer, others never connect."""

    def __init__(
        self,
        clients: Mapping[str, ClientApp],
        *,
        silent: str | None = None,
        absent: str | None = None,
    ) -> None:
        super().__init__(clients)
        self.silent, self.absent = silent, absent

    def get_nodes(self) -> Iterable:
        return [node for node in super().get_nodes() if node.name != self.absent]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        silent = {n.node_id for n in super().get_nodes() if n.name == self.silent}
        return [
            "lost"
            if m.metadata.dst_node_id in silent
            else next(iter(super(SilentGrid, self).push_messages([m])))
            for m in messages
        ]


def test_silence_ends_at_the_deadline(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    grid = SilentGrid(apps(sites), silent="beta")
    plan = make_plan(min_sites=2, deadline_seconds=0.5)
    results = run_rounds(grid, plan, tmp_path)
    assert results.rounds[0].rejected[0].code == "DEADLINE_MISSED"
    assert results.missing_sites == ["beta"]
    with pytest.raises(DerminoError, match=r"beta: No reply within 0\.5 s"):
        run_rounds(grid, make_plan(min_sites=3, deadline_seconds=0.5), tmp_path / "second")


def test_absent_site_is_named(sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path) -> None:
    grid = SilentGrid(apps(sites), absent="gamma")
    results = run_rounds(grid, make_plan(min_sites=2), tmp_path)
    assert [r.site for r in results.rounds[0].rejected] == ["gamma"]
    with pytest.raises(DerminoError, match="missing: gamma"):
        run_rounds(grid, make_plan(min_sites=3), tmp_path / "second")


def test_resume_is_bit_identical(
    sites: dict[str, Hospital],
    make_plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = make_plan(rounds=4)
    whole = run_rounds(InProcessGrid(apps(sites)), plan, tmp_path / "whole")

    class Killed(BaseException):
        pass

    write = rounds_module.write_checkpoint

    def die_after_two(folder: Path, digest: str, state: rounds_module.RunState) -> Path:
        file = write(folder, digest, state)
        if state.round == 2:
            raise Killed
        return file

    monkeypatch.setattr(rounds_module, "write_checkpoint", die_after_two)
    with pytest.raises(Killed):
        run_rounds(InProcessGrid(apps(sites)), plan, tmp_path / "cut")
    monkeypatch.undo()
    resumed = run_rounds(InProcessGrid(apps(sites)), plan, tmp_path / "cut", resume=True)
    np.testing.assert_array_equal(weights_of(tmp_path / "cut"), weights_of(tmp_path / "whole"))
    assert resumed.mean == whole.mean
    assert resumed.cross_site == whole.cross_site
    assert [r.round for r in resumed.rounds] == [1, 2, 3, 4, 5]


def test_checkpoints_of_another_plan_and_damaged_ones_are_refused(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    run_rounds(InProcessGrid(apps(sites)), make_plan(), tmp_path)
    with pytest.raises(DerminoError, match="another configuration"):
        run_rounds(InProcessGrid(apps(sites)), make_plan(seed=1), tmp_path, resume=True)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.raises(DerminoError, match="damaged"):
        run_rounds(InProcessGrid(apps(sites)), make_plan(), tmp_path, resume=True)


def test_a_lying_coordinator_is_refused_by_the_site(
    sites: dict[str, Hospital], make_plan: Plan
) -> None:
    from dermino_client.work import train

    plan = make_plan()
    request = TrainRequest(task=plan.for_sites(), round=1, send_local_head=False)
    poisoned = {"weight": np.full((2, 8), np.nan, np.float32), "bias": np.zeros(2, np.float32)}
    with pytest.raises(DerminoError, match="coordinator's arrays"):
        train(sites["alpha"], request, poisoned)
    other = request.model_copy(
        update={"task": request.task.model_copy(update={"backbone_fingerprint": "0" * 64})}
    )
    with pytest.raises(DerminoError, match="backbone"):
        train(sites["alpha"], other, FedAvg().initial_arrays(2, 8, 0))


def test_messages_carry_no_features_labels_or_paths(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    """Everything that leaves a site, byte for byte: heads and summaries only."""
    leaving: list[Message] = []

    def keep(reply: Message) -> Message:
        leaving.append(reply)
        return reply

    clients = {name: tampered(site, keep) for name, site in sites.items()}
    run_rounds(InProcessGrid(clients), make_plan(), tmp_path)
    assert len(leaving) == 9
    for reply in leaving:
        groups = set(reply.content.array_records)
        assert groups <= {"arrays", "local"}
        for group in groups:
            arrays = arrays_in(reply.content.array_records[group])
            shapes = {name: array.shape for name, array in arrays.items()}
            assert shapes == {"weight": (2, 8), "bias": (2,)}
