"""Statistics beside the first round, with the real apps: what is told, refused, kept and shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from packed import all_arrays, arrays_in
from typer.testing import CliRunner

from dermino_client.app import make_client_app
from dermino_client.hospital import Hospital
from dermino_client.policy import PolicySection
from dermino_core.errors import DerminoError
from dermino_core.reporting.page import render_page
from dermino_core.results import Results, RoundRecord, read_results
from dermino_server.checkpoint import RunState
from dermino_server.cli import app as cli
from dermino_server.inprocess import InProcessGrid
from dermino_server.plan import RunPlan
from dermino_server.plan import make_plan as plan_from_options
from dermino_server.rounds import run_rounds
from dermino_server.statistics import read_statistics
from dermino_strategies.packing import pack_arrays
from dermino_strategies.protocol import (
    StatisticsReply,
    StatisticsRequest,
    pack,
    refusal_in,
    unpack,
)

Plan = Callable[..., RunPlan]
Change = Callable[[dict[str, Any], RecordDict], None]


def apps(sites: dict[str, Hospital]) -> dict[str, ClientApp]:
    return {name: make_client_app(lambda _, site=site: site) for name, site in sites.items()}


def with_policy(site: Hospital, **policy: Any) -> Hospital:
    return replace(site, policy=PolicySection(**policy))


def with_labels(site: Hospital, labels: np.ndarray) -> Hospital:
    prepared = replace(site.prepared, labels=labels)
    return replace(site, load=lambda: prepared)


def asked(site: Hospital, plan: RunPlan, min_count: int = 5) -> Message:
    content = pack(StatisticsRequest(task=plan.for_sites(), min_count=min_count))
    grid = InProcessGrid(apps({site.name: site}))
    (reply,) = grid.send_and_receive([Message(content, 2, "query.statistics")])
    return reply


def changed(content: RecordDict, change: Change) -> None:
    body = content.config_records["body"]
    fields = json.loads(str(body["json"]))
    change(fields, content)
    body["json"] = json.dumps(fields)


def lying(site: Hospital, change: Change) -> ClientApp:
    """The site's real app, whose statistics are changed on their way out."""
    honest = make_client_app(lambda _: site)
    app = ClientApp()

    @app.query("statistics")
    def _statistics(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        changed(reply.content, change)
        return reply

    app.train()(lambda message, context: honest(message, context))
    app.evaluate()(lambda message, context: honest(message, context))
    return app


def test_counts_distances_and_their_record(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    results = run_rounds(InProcessGrid(apps(sites)), make_plan(statistics=True), tmp_path)
    statistics = results.statistics
    assert statistics is not None
    for told in statistics.sites:
        _, labels, _ = sites[told.site].prepared.half("train")
        assert told.images == len(labels)
        counts = np.bincount(labels, minlength=2).tolist()
        assert list(told.class_counts.values()) == counts
        assert told.drift is not None
        assert told.drift.score < 3, "all sites are of the same cloud"
        assert told.class_shares is not None
    assert [r.kind for r in results.rounds] == ["statistics", "train", "train", "evaluate"]
    record = results.rounds[0]
    assert (record.round, record.sites, record.auroc) == (0, ["alpha", "beta", "gamma"], {})
    assert all(t.bytes_from_site > 0 for t in record.transfers)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines][:2] == ["statistics", "train"]
    assert read_results(tmp_path) == results


def test_training_does_not_depend_on_it(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    models = []
    for asks in (True, False):
        folder = tmp_path / str(asks)
        folder.mkdir()
        results = run_rounds(InProcessGrid(apps(sites)), make_plan(statistics=asks), folder)
        models.append((folder / "model" / "model.safetensors").read_bytes())
        assert (results.statistics is not None) is asks
        assert (folder / "statistics.json").exists() is asks
    assert models[0] == models[1]


def numbers_in(value: object) -> set[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*map(numbers_in, value)) if value else set()
    return {round(float(value), 5)} if isinstance(value, float) else set()


def test_no_mean_and_no_variance_is_in_a_file(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    plan = make_plan(statistics=True)
    run_rounds(InProcessGrid(apps(sites)), plan, tmp_path)
    content = asked(sites["alpha"], plan).content
    sent = {round(float(x), 5) for array in all_arrays(content).values() for x in array.ravel()}
    assert len(sent) >= 16
    for name in ("statistics.json", "results.json"):
        assert not sent & numbers_in(json.loads((tmp_path / name).read_text()))


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ({"share_statistics": False}, "POLICY_REFUSED"),
        ({"min_count": 500}, "POLICY_REFUSED"),
        ({"opening_hours": ["Mon 03:00-03:01"]}, "OUTSIDE_HOURS"),
    ],
)
def test_a_site_that_refuses_does_not_end_the_run(
    sites: dict[str, Hospital],
    make_plan: Plan,
    tmp_path: Path,
    policy: dict[str, Any],
    code: str,
) -> None:
    reply = asked(with_policy(sites["beta"], **policy), make_plan())
    refusal = refusal_in(reply.content)
    assert refusal is not None
    if code == "OUTSIDE_HOURS" and refusal.code != code:
        pytest.skip("this test runs within the one minute")
    assert refusal.code == code
    assert not reply.content.array_records
    if "share_statistics" not in policy:
        return
    closed = sites | {"beta": with_policy(sites["beta"], **policy)}
    results = run_rounds(InProcessGrid(apps(closed)), make_plan(statistics=True), tmp_path)
    assert results.statistics is not None
    assert [told.site for told in results.statistics.sites] == ["alpha", "gamma"]
    first, second = results.rounds[:2]
    assert [(r.site, r.code) for r in first.rejected] == [("beta", code)]
    assert second.sites == ["alpha", "beta", "gamma"]
    page = render_page(results)
    assert "Without beta: The site’s policy" in page.replace("&#x27;", "’")
    assert "left out" not in " ".join(results.warnings)


def test_the_audit_log_holds_it(sites: dict[str, Hospital], make_plan: Plan) -> None:
    site, plan = sites["alpha"], make_plan()
    asked(site, plan)
    came, left = [record for _, record in site.audit.records()]
    assert (came.kind, left.kind) == ("StatisticsRequest", "StatisticsReply")
    assert came.run == left.run == plan.run_id
    assert {"features/mean", "features/variance"} <= set(left.digests)


def test_the_larger_minimum_counts(sites: dict[str, Hospital], make_plan: Plan) -> None:
    train = sites["alpha"].prepared.split == "train"
    labels = np.zeros(len(train), np.int64)
    labels[np.flatnonzero(train)[:7]] = 1
    site = with_labels(sites["alpha"], labels)
    for own, wanted, told in ((5, 2, True), (5, 7, True), (8, 2, False), (2, 8, False)):
        policy = with_policy(site, min_count=own)
        reply = unpack(asked(policy, make_plan(), wanted).content, StatisticsReply)
        assert reply.min_count == max(own, wanted)
        assert (reply.class_counts["malignant"] == 7) is told
        assert reply.few == ([] if told else ["malignant"])
        assert (reply.class_counts["benign"] is None) is not told


def test_few_images_have_no_mean(sites: dict[str, Hospital], make_plan: Plan) -> None:
    prepared = sites["alpha"].prepared
    split = np.array(["train"] * 19 + ["test"] * (len(prepared.split) - 19))
    small = replace(prepared, split=split)
    reply = asked(replace(sites["alpha"], load=lambda: small), make_plan())
    assert not reply.content.array_records
    body = unpack(reply.content, StatisticsReply)
    assert (body.images, body.design_effect, body.effective_features) == (19, None, None)


def test_a_private_or_secure_run_neither_asks_nor_is_answered(
    sites: dict[str, Hospital], make_plan: Plan
) -> None:
    from dermino_core.privacy.plan import PrivacyRequest

    for changes in ({"secure_aggregation": True}, {"privacy": PrivacyRequest(epsilon=3)}):
        values = make_plan(cross_site=False, **changes)
        refusal = refusal_in(asked(sites["alpha"], values).content)
        assert refusal is not None
        assert refusal.code == "REQUEST_MISMATCH"
        options = values.model_dump() | {"statistics": True}
        with pytest.raises(DerminoError, match="neither noise nor mask"):
            plan_from_options(**options)
    private = CliRunner().invoke(cli, ["simulate", "--epsilon", "3", "--help"])
    assert "--no-statistics" in private.output


def put(**values: Any) -> Change:
    return lambda fields, _: fields.update(values)


def array(group: str, **arrays: np.ndarray) -> Change:
    def change(_: dict[str, Any], content: RecordDict) -> None:
        content[group] = pack_arrays(arrays_in(content.array_records[group]) | arrays)

    return change


def drop(_: dict[str, Any], content: RecordDict) -> None:
    content["features"] = ArrayRecord()


NAN = np.full(8, np.nan, np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (array("features", mean=NAN), "NaN or infinite"),
        (array("features", variance=np.full(8, -1, np.float32)), "below 0"),
        (array("features", mean=np.zeros(7, np.float32)), "shape"),
        (array("features", mean=np.zeros(8)), "type"),
        (array("features", more=np.zeros(8, np.float32)), "sent (the arrays|no group)"),
        (drop, "sent (the arrays|no group)"),
        (put(class_counts={"benign": -1, "malignant": 31}), "do not add up"),
        (put(class_counts={"benign": 1, "malignant": 2}), "do not add up"),
        (put(class_counts={"benign": 900, "malignant": None}), "do not add up"),
        (put(class_counts={"malignant": 15, "benign": 15}), "classes"),
        (put(few=["benign"]), "small"),
        (put(images=0), "protocol"),
        (put(design_effect=-1.0), "protocol"),
        (put(effective_features=float("inf")), "protocol"),
        (put(note="hello"), "protocol"),
    ],
)
def test_a_lie_is_not_read(
    sites: dict[str, Hospital], make_plan: Plan, change: Change, words: str
) -> None:
    plan = make_plan()
    content = asked(sites["beta"], plan).content
    assert read_statistics(plan, content).site.images == 55
    changed(content, change)
    with pytest.raises((DerminoError, ValueError), match=words):
        read_statistics(plan, content)


def test_a_lie_is_rejected_by_name(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    clients = apps(sites) | {"beta": lying(sites["beta"], array("features", mean=NAN))}
    results = run_rounds(InProcessGrid(clients), make_plan(statistics=True, rounds=1), tmp_path)
    record = results.rounds[0]
    assert record.sites == ["alpha", "gamma"]
    assert [(r.site, r.code) for r in record.rejected] == [("beta", "REPLY_INVALID")]
    assert "NaN or infinite" in record.rejected[0].sentence
    assert results.rounds[1].sites == ["alpha", "beta", "gamma"]


def test_swapped_labels_show_before_training(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    grown = {
        name: replace(site, load=lambda site=site: _with_clear_classes(site))
        for name, site in sites.items()
    }
    labels = 1 - grown["beta"].prepared.labels
    swapped = grown | {"beta": with_labels(grown["beta"], labels)}
    results = run_rounds(InProcessGrid(apps(swapped)), make_plan(statistics=True), tmp_path)
    assert results.statistics is not None
    assert [one.site for one in results.statistics.suspicious] == ["beta"]
    assert any("right way round" in warning for warning in results.warnings)
    assert "Are its labels the right way round" in render_page(results)


def _with_clear_classes(site: Hospital):
    prepared = site.prepared
    apart = prepared.features + 3 * prepared.labels[:, None].astype(np.float32)
    return replace(prepared, features=np.repeat(apart, 3, axis=0), **_tripled(prepared))


def _tripled(prepared: Any) -> dict[str, Any]:
    return {
        "labels": np.repeat(prepared.labels, 3),
        "split": np.repeat(prepared.split, 3),
        "groups": [group for group in prepared.groups for _ in range(3)],
    }


class Stopped(Exception):
    pass


def counting(site: Hospital, tally: list[str], *, stop_in: str = "") -> ClientApp:
    """The site's real app, which notes what it is asked, and raises at one kind of message."""
    honest = make_client_app(lambda _: site)
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        tally.append(message.metadata.message_type)
        if stop_in == message.metadata.message_type:
            raise Stopped
        return honest(message, context)

    app.query("statistics")(answer)
    app.train()(answer)
    app.evaluate()(answer)
    return app


@pytest.mark.parametrize("stop_in", ["train", "evaluate"])
def test_a_run_that_goes_on_does_not_ask_again(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path, stop_in: str
) -> None:
    plan, tally = make_plan(statistics=True), []
    broken = {name: counting(site, tally, stop_in=stop_in) for name, site in sites.items()}
    with pytest.raises(DerminoError, match="usable replies"):
        run_rounds(InProcessGrid(broken), plan, tmp_path)
    clients = {name: counting(site, tally) for name, site in sites.items()}
    resumed = run_rounds(InProcessGrid(clients), plan, tmp_path, resume=True)
    assert tally.count("query.statistics") == 3
    assert [r.kind for r in resumed.rounds] == ["statistics", "train", "train", "evaluate"]
    whole = tmp_path / "whole"
    whole.mkdir()
    assert run_rounds(InProcessGrid(apps(sites)), plan, whole).statistics == resumed.statistics


@pytest.mark.parametrize("left", ["", "{", "of another plan"])
def test_lost_statistics_do_not_stop_a_run_that_goes_on(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path, left: str
) -> None:
    plan, tally = make_plan(statistics=True), []
    broken = {name: counting(site, [], stop_in="evaluate") for name, site in sites.items()}
    with pytest.raises(DerminoError):
        run_rounds(InProcessGrid(broken), plan, tmp_path)
    file = tmp_path / "statistics.json"
    whole = file.read_text()
    assert plan.digest() in whole
    other = whole.replace(plan.digest(), "0" * 64)
    file.write_text(other if left == "of another plan" else left)
    clients = {name: counting(site, tally) for name, site in sites.items()}
    results = run_rounds(InProcessGrid(clients), plan, tmp_path, resume=True)
    assert (results.statistics, results.rounds_done) == (None, 2)
    assert "query.statistics" not in tally


def test_who_told_nothing_is_waited_for_but_who_was_away_is_not() -> None:
    rejected = [
        {"site": "shy", "code": "POLICY_REFUSED", "sentence": "no"},
        {"site": "gone", "code": "NOT_CONNECTED", "sentence": "gone"},
        {"site": "slow", "code": "DEADLINE_MISSED", "sentence": "slow"},
    ]
    values: dict[str, Any] = {"round": 0, "seconds": 0, "sites": [], "rejected": rejected}
    state = RunState({}, records=[RoundRecord(kind="statistics", **values)])
    assert state.away == {"gone", "slow"}
    state = RunState({}, records=[RoundRecord(kind="train", **values)])
    assert state.away == {"shy", "gone", "slow"}


def told_by(results: Results, name: str) -> str:
    page = render_page(results)
    return page[page.index(f'id="{name}"') :].split("</section>")[0]


def test_the_report_says_who_differs(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    shifted = replace(sites["beta"].prepared, features=sites["beta"].prepared.features + 2)
    moved = sites | {"beta": replace(sites["beta"], load=lambda: shifted)}
    results = run_rounds(InProcessGrid(apps(moved)), make_plan(statistics=True), tmp_path)
    shown = told_by(results, "alike")
    assert "beta" in shown
    assert "differs" in shown
    assert "In shares of the classes, no hospital differs much" in shown
    assert 'aria-label="Distance of features. beta:' in shown
    assert results.statistics is not None
    results.statistics.sites[0].class_counts = {"benign": None, "malignant": None}
    results.statistics.sites[0].few = ["malignant"]
    results.statistics.sites[0].drift = None
    shown = told_by(results, "alike")
    assert "benign not told, malignant &lt;5" in shown
    plain = run_rounds(InProcessGrid(apps(moved)), make_plan(), tmp_path)
    assert "How alike the hospitals are" not in render_page(plain)


def test_its_replies_are_taken_while_the_round_is_on(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    """Here a site works when its reply is fetched: all tell before the first one trains."""
    tally: list[str] = []
    clients = {name: counting(site, tally) for name, site in sites.items()}
    run_rounds(InProcessGrid(clients), make_plan(statistics=True, rounds=1), tmp_path)
    assert tally == 3 * ["query.statistics"] + 3 * ["train"] + 3 * ["evaluate"]
