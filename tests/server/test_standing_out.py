"""Updates that do not fit the others', as a run files and shows them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import cloud_site, hospital
from test_rounds import apps, tampered, with_weights

from dermino_client.hospital import Hospital
from dermino_core.privacy.plan import PrivacyRequest
from dermino_core.reporting.page import render_page
from dermino_core.reporting.standing_out import PRIVATE, SECURE, TOO_FEW, standing_out
from dermino_core.results import Results, RoundRecord, Suspicion, read_results
from dermino_server.commands.show import show_round
from dermino_server.gathering import Gathering
from dermino_server.inprocess import InProcessGrid
from dermino_server.plan import RunPlan
from dermino_server.rounds import run_rounds
from dermino_strategies.base import SiteData, SiteUpdate
from dermino_strategies.fedavg import FedAvg
from dermino_strategies.median import Median
from dermino_strategies.registry import get_strategy

Plan = Callable[..., RunPlan]
NAMES = ["alpha", "beta", "delta", "gamma"]


@pytest.fixture
def four(sites: dict[str, Hospital], tmp_path: Path) -> dict[str, Hospital]:
    return sites | {"delta": hospital(cloud_site("delta", 80, 7), tmp_path / "delta")}


def run(
    sites: dict[str, Hospital], make_plan: Plan, folder: Path, change: Callable | None = None
) -> Results:
    clients = apps(sites)
    if change is not None:
        clients |= {"beta": tampered(sites["beta"], with_weights(change))}
    folder.mkdir()
    return run_rounds(InProcessGrid(clients), make_plan(sites=NAMES), folder)


def test_honest_sites_are_compared_and_not_named(
    four: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    results = run(four, make_plan, tmp_path / "run")
    first, second, final = results.rounds
    assert list(first.update_length) == list(first.update_cosine) == NAMES
    assert all(length > 0 for length in first.update_length.values())
    assert first.suspicious == second.suspicious == []
    assert (final.update_length, final.update_cosine) == ({}, {})
    page = render_page(results)
    assert "None stood out" in page
    assert read_results(tmp_path / "run") == results


def test_lengths_are_those_of_the_updates(
    four: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    results = run(four, make_plan, tmp_path / "run")
    strategy, plan = FedAvg(), make_plan()
    arrays = strategy.initial_arrays(2, 8, plan.seed)
    for name, site in four.items():
        x, y, _ = site.prepared.half("train")
        update = strategy.site_update(SiteData(name, x, y, 2), arrays, 1, plan.seed)
        parts = [(update.arrays[n] - arrays[n]).ravel() for n in ("weight", "bias")]
        expected = float(np.linalg.norm(np.concatenate(parts)))
        assert results.rounds[0].update_length[name] == pytest.approx(expected, rel=1e-5)


def test_a_scaled_update_is_named_everywhere(
    four: dict[str, Hospital],
    make_plan: Plan,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.WARNING, logger="dermino.server"):
        results = run(four, make_plan, tmp_path / "run", lambda w: w + np.float32(1000))
    found = results.rounds[0].suspicious
    assert (found[0].site, found[0].reason) == ("beta", "length")
    assert found[0].value > 100
    assert found[0].sentence in caplog.text
    assert any(w.startswith("beta: an update of it stands out") for w in results.warnings)
    page = render_page(results)
    assert "beta changed the model" in page
    assert "A reason to ask, not a proof" in page
    show_round(results.rounds[0])
    assert found[0].sentence in " ".join(capsys.readouterr().err.split())


def test_the_gathering_keeps_little_of_an_update() -> None:
    """Of a method that adds: the sum, and at most 4096 numbers a site."""
    strategy = get_strategy("ridge", {})
    arrays = strategy.initial_arrays(2, 40, 0)
    gathering = Gathering(strategy, arrays, ["a", "b", "c"])
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        data = SiteData(name, rng.normal(size=(30, 40)).astype("f4"), np.arange(30) % 2, 2)
        gathering.add(name, strategy.site_update(data, arrays, 1, 0))
    assert gathering._updates == {}
    assert all(seen.direction.size <= 4096 for seen in gathering._outlines.values())
    wide = np.zeros((3, 40_000), np.float32)
    big = {"weight": wide, "bias": np.zeros(3, np.float32)}
    kept = Gathering(Median(), big, ["a"])
    kept.add("a", SiteUpdate({"weight": wide + 1, "bias": big["bias"]}, 5))
    assert kept._outlines["a"].direction.size == 4096


def test_an_update_that_cannot_be_summed_leaves_no_outline() -> None:
    strategy = get_strategy("qffl", {})
    arrays = strategy.initial_arrays(2, 8, 0)
    gathering = Gathering(strategy, arrays, ["a"])
    with pytest.raises(KeyError):
        gathering.add("a", SiteUpdate({n: a + 1 for n, a in arrays.items()}, 5))
    assert gathering._outlines == {}


@pytest.mark.parametrize("size", [1e38, 1e-38, 0.0])
def test_updates_of_any_size_can_be_filed(size: float) -> None:
    arrays = FedAvg().initial_arrays(2, 8, 0)
    gathering = Gathering(FedAvg(), arrays, ["a", "b", "c"])
    for name, factor in (("a", size), ("b", 1.0), ("c", 1.1)):
        sent = {n: (a + np.float32(factor)).astype("f4") for n, a in arrays.items()}
        gathering.add(name, SiteUpdate(sent, 3))
    record = RoundRecord(round=1, kind="train", seconds=0, sites=["a", "b", "c"])
    gathering.compare(record)
    assert RoundRecord.model_validate_json(record.model_dump_json()) == record


def test_sums_of_any_size_can_be_filed() -> None:
    strategy = get_strategy("ridge", {})
    arrays = strategy.initial_arrays(2, 4, 0)
    gathering = Gathering(strategy, arrays, ["a", "b", "c"])
    rng = np.random.default_rng(0)
    for name, factor in (("a", 1.0), ("b", 1.0), ("c", 1e308)):
        data = SiteData(name, rng.normal(size=(30, 4)).astype("f4"), np.arange(30) % 2, 2)
        update = strategy.site_update(data, arrays, 1, 0)
        signs = np.sign(update.arrays["total.sums"])
        sums = update.arrays["total.sums"] if factor == 1 else signs * factor
        gathering.add(name, replace(update, arrays=update.arrays | {"total.sums": sums}))
    record = RoundRecord(round=1, kind="train", seconds=0, sites=["a", "b", "c"])
    gathering.compare(record)
    found = next(one for one in record.suspicious if one.site == "c")
    assert len(found.sentence) < 200
    assert RoundRecord.model_validate_json(record.model_dump_json()) == record


@pytest.mark.slow
def test_private_updates_are_not_compared(
    four: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    plan = make_plan(privacy=PrivacyRequest(epsilon=3), cross_site=False, rounds=1)
    sites = {name: four[name] for name in plan.sites}
    results = run_rounds(InProcessGrid(apps(sites)), plan, tmp_path)
    assert results.rounds[0].update_length == {}
    assert standing_out(results) == [f"<p>{PRIVATE}</p>"]


def test_what_the_report_says_where_nothing_can_be_compared(
    sites: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    two = {name: sites[name] for name in ("alpha", "beta")}
    plan = make_plan(sites=["alpha", "beta"], min_sites=2, rounds=1)
    results = run_rounds(InProcessGrid(apps(two)), plan, tmp_path)
    assert standing_out(results) == [f"<p>{TOO_FEW}</p>"]
    secure = results.model_copy(update={"secure_aggregation": True})
    assert standing_out(secure) == [f"<p>{SECURE}</p>"]
    results.rounds[0].update_length = {}
    assert standing_out(results) == [], "a run of before updates were compared"


def test_names_are_text_and_rounds_are_listed(
    four: dict[str, Hospital], make_plan: Plan, tmp_path: Path
) -> None:
    results = run(four, make_plan, tmp_path / "run")
    for round_, record in enumerate(results.rounds[:2]):
        sentence = f"<b>beta</b> was odd {round_}."
        one = Suspicion(site="beta", reason="length", value=20, score=7 + round_, sentence=sentence)
        record.suspicious = [one]
    shown = "".join(standing_out(results))
    assert "&lt;b&gt;beta&lt;/b&gt; was odd 1. " in shown
    assert "was odd 0" not in shown
    assert "In rounds 1 and 2 (the sentence is of round 2)." in shown
    assert shown.count("stands out") == 1
