"""Sites join a finished run, and leave in turn: real apps in one process, exact to the bit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import withdrawing
from conftest import cloud_site, hospital
from federation import contents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from withdrawing import (
    BACKBONE,
    SIGNER,
    assert_same_model,
    join,
    killed,
    model_bytes,
    ridge,
    ridge_of,
    run,
    without,
)

from dermino_client.audit import AuditLog
from dermino_client.hospital import Hospital
from dermino_core.errors import DerminoError
from dermino_core.model_folder import load_model
from dermino_core.privacy.plan import PrivacyRequest
from dermino_core.results import BackboneInfo
from dermino_server.extend import begin_extension, plan_extension
from dermino_server.kept_run import read_kept_run
from dermino_server.kept_sums import KeptSums
from dermino_server.plan import RunPlan, read_plan
from dermino_server.withdraw import withdraw
from dermino_strategies.base import SiteData
from dermino_strategies.ridge import Ridge

sites, finished, first = withdrawing.sites, withdrawing.finished, withdrawing.first


def test_a_late_joiner_gives_the_run_of_all_and_only_it_trains(
    sites: dict[str, Hospital], first: Path, tmp_path: Path
) -> None:
    names = ["alpha", "beta", "delta", "gamma"]
    everyone = {**sites, "delta": hospital(cloud_site("delta", 50, 7), tmp_path / "delta")}
    run(everyone, ridge(sites=names, min_sites=4), tmp_path / "fresh")
    before, asked = contents(first), _trainings(everyone)
    results = join(first, everyone, {"delta"}, tmp_path / "later")
    assert contents(first) == before
    assert model_bytes(tmp_path / "later") == model_bytes(tmp_path / "fresh")
    assert _trainings(everyone) == asked | {"delta": asked["delta"] + 1}
    assert results.rounds[0].sites == ["delta"]
    assert results.rounds[0].kept == ["alpha", "beta", "gamma"]
    assert [site.name for site in results.sites] == names
    fresh, later = (load_model(tmp_path / f / "model")[1] for f in ("fresh", "later"))
    assert later.trained_on == fresh.trained_on
    assert any("alpha, beta, gamma did not train again" in text for text in results.warnings)
    left = withdraw(tmp_path / "later", "beta", SIGNER).receipt
    assert left.sent_in == read_plan(first).run_id != left.run
    assert "the same sums in other run folders: first, fresh" in left.not_undone
    assert any(f"runs since {left.sent_in}" in text for text in left.not_undone)


def _trainings(sites: Mapping[str, Hospital]) -> dict[str, int]:
    return {
        name: sum(
            record.direction == "in" and record.kind == "TrainRequest"
            for _, record in AuditLog(site.folder / "audit").records()
        )
        for name, site in sites.items()
    }


def test_sites_that_are_away_are_neither_waited_for_nor_forgotten(
    sites: dict[str, Hospital], first: Path, tmp_path: Path
) -> None:
    delta = hospital(cloud_site("delta", 50, 7), tmp_path / "delta")
    here = {"alpha": sites["alpha"], "delta": delta}
    results = join(first, here, {"delta"}, tmp_path / "later", wait_seconds=120)
    assert sum(record.seconds for record in results.rounds) < 100
    assert_same_model(tmp_path / "later", ridge_of({**sites, "delta": delta}))
    assert [site.name for site in results.sites] == ["alpha", "delta"]
    assert results.missing_sites == ["beta", "gamma"]
    trained = {s.site: s.images for s in load_model(tmp_path / "later" / "model")[1].trained_on}
    assert trained == {"alpha": 30, "beta": 55, "delta": 25, "gamma": 21}


def test_a_joining_run_that_waskilled_goes_on(
    sites: dict[str, Hospital], first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dermino_server import rounds

    everyone = {**sites, "delta": hospital(cloud_site("delta", 50, 7), tmp_path / "delta")}
    folder = tmp_path / "later"
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "write_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            join(first, everyone, {"delta"}, folder)
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_final_evaluation", killed)
        with pytest.raises(KeyboardInterrupt):
            run(everyone, read_plan(folder), folder, resume=True)
    run(everyone, read_plan(folder), folder, resume=True)
    assert_same_model(folder, ridge_of(everyone))


def test_a_run_is_not_joined_by_what_does_not_fit(first: Path) -> None:
    kept = read_kept_run(first)

    def plan(new: set[str], backbone: BackboneInfo = BACKBONE, **changes: Any) -> RunPlan:
        changes = {"min_sites": 1, "engine": "inprocess"} | changes
        return plan_extension(kept, new, backbone, **changes)

    other = BACKBONE.model_copy(update={"fingerprint": "e" * 64})
    with pytest.raises(DerminoError, match="beta took part in the run already"):
        plan({"beta", "delta"})
    with pytest.raises(DerminoError, match="No site is new"):
        plan(set())
    with pytest.raises(DerminoError, match="backbone") as caught:
        plan({"delta"}, other)
    assert caught.value.code == "BACKBONE_MISMATCH"
    with pytest.raises(DerminoError, match="keeps sums itself"):
        plan({"delta"}, keep_sums=False)
    file = first / "sums" / "beta.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DerminoError, match="not what was written"):
        begin_extension(kept, plan({"delta"}), first.parent / "later")


def test_sums_that_cannot_be_kept_end_the_run_and_blame_no_site(
    sites: dict[str, Hospital],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(KeptSums, "write", full)
        with pytest.raises(DerminoError, match="cannot be kept: No space left") as caught:
            run(sites, ridge(), tmp_path / "run")
    assert caught.value.code == "RUN_FAILED"
    run(sites, read_plan(tmp_path / "run"), tmp_path / "run", resume=True)
    assert_same_model(tmp_path / "run", ridge_of(sites))


def test_a_site_that_failed_leaves_no_sums_behind(
    sites: dict[str, Hospital], tmp_path: Path
) -> None:
    """Its sums of an interrupted attempt do not count."""

    folder = tmp_path / "run"
    KeptSums(folder).write("beta", next(iter(_updates(sites).values())))
    away = replace(sites["beta"], load=lambda: (_ for _ in ()).throw(RuntimeError))
    run({**sites, "beta": away}, ridge(min_sites=2), folder)
    assert sorted(KeptSums(folder).index) == ["alpha", "gamma"]
    assert not (folder / "sums" / "beta.safetensors").exists()
    assert_same_model(folder, ridge_of(without(sites, "beta")))


def _updates(sites: Mapping[str, Hospital]) -> dict[str, Any]:
    strategy = Ridge()
    start = strategy.initial_arrays(2, 8, 0)
    x, y, groups = sites["alpha"].prepared.half("train")
    data = SiteData("alpha", x, y, 2, groups=tuple(groups))
    return {"alpha": strategy.site_update(data, start, 1, 0)}


def test_a_private_run_can_be_left_though_its_budget_stays_spent(
    sites: dict[str, Hospital], tmp_path: Path
) -> None:
    privacy = PrivacyRequest(epsilon=5.0, delta=1e-5)
    plan = ridge(privacy=privacy, cross_site=False, settings={"projection": 4})
    results = run(sites, plan, tmp_path / "private")
    kept = read_kept_run(tmp_path / "private")
    updates = dict(kept.sums.updates())
    start = kept.strategy.initial_arrays(2, 8, 0)
    rest = {name: update for name, update in updates.items() if name != "gamma"}
    expected = kept.strategy.head(kept.strategy.aggregate(start, rest)).arrays()
    done = withdraw(tmp_path / "private", "gamma", SIGNER)
    assert_same_model(done.folder, expected)
    assert any("privacy budget that gamma spent" in text for text in done.receipt.not_undone)
    new = cloud_site("delta", 50, 7)
    everyone = {**without(sites, "gamma"), "delta": hospital(new, tmp_path / "delta")}
    later = join(done.folder, everyone, {"delta"}, tmp_path / "later")
    assert later.privacy == {
        "alpha": results.privacy["alpha"],
        "beta": results.privacy["beta"],
        "delta": later.privacy["delta"],
    }
    trained = load_model(tmp_path / "later" / "model")[1].trained_on
    assert [site.images for site in trained] == [30, 55, 25]


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(moves=st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_any_order_of_leaving_and_joining_gives_the_run_of_who_is_left(
    tmp_path_factory: pytest.TempPathFactory, moves: list[int]
) -> None:
    """Each move: who is in leaves, who is out joins; the model is that of exactly those in."""
    tmp = tmp_path_factory.mktemp("moves")
    names = ["a", "b", "c", "d", "e"]
    every = {n: hospital(cloud_site(n, 20 + 9 * i, i), tmp) for i, n in enumerate(names)}
    inside, folder = {"a", "c"}, tmp / "0"
    run(every, ridge(sites=sorted(inside), min_sites=2, cross_site=False), folder)
    for number, move in enumerate(moves, 1):
        site, following = names[move], tmp / str(number)
        if site not in inside:
            join(folder, every, {site}, following)
            inside.add(site)
        elif len(inside) > 1:
            withdraw(folder, site, SIGNER, out=following, keep_original=bool(number % 2))
            inside.remove(site)
        else:
            with pytest.raises(DerminoError, match="no site is left"):
                withdraw(folder, site, SIGNER, out=following)
            continue
        folder = following
        assert_same_model(folder, ridge_of({name: every[name] for name in inside}))
        assert {s.site for s in load_model(folder / "model")[1].trained_on} == inside
    assert json.loads((folder / "run.json").read_text())["sites"] == sorted(inside)
    assert os.listdir(folder / "model")
