"""Four hospitals and their runs with personal models, for the tests of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conftest import CARD, cloud_site, hospital  # beside this file
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from dermino_client.app import make_client_app
from dermino_client.hospital import Hospital
from dermino_client.own_results import OwnResults, personal_folder, read_own, results_file
from dermino_core.model_folder import load_model
from dermino_core.moments import Moments
from dermino_core.results import (
    BackboneInfo,
    Results,
)
from dermino_server.checkpoint import latest_checkpoint
from dermino_server.inprocess import InProcessGrid
from dermino_server.plan import RunPlan
from dermino_server.rounds import run_rounds
from dermino_server.simulated_consortium import enrol_simulated
from dermino_strategies.base import Arrays, SiteData

Look = Callable[[Message, Message], Message | None]
SIZES = {"alpha": 60, "beta": 110, "delta": 70, "gamma": 41}
NAMES = sorted(SIZES)


def make_four(folder: Path) -> dict[str, Hospital]:
    sites = {n: hospital(cloud_site(n, SIZES[n], i), folder) for i, n in enumerate(NAMES)}
    enrol_simulated(folder / "authority", {name: site.folder for name, site in sites.items()})
    return sites


def personal_plan(**changes: Any) -> RunPlan:
    values: dict[str, Any] = {
        "title": "test",
        "task": "malignancy",
        "classes": ["benign", "malignant"],
        "strategy": "ridge",
        "rounds": 1,
        "personal": True,
        "sites": NAMES,
        "min_sites": 3,
        "engine": "inprocess",
        "replicates": 50,
        "wait_seconds": 0.5,
        "deadline_seconds": 60.0,
        "cross_site": not (changes.get("privacy") or changes.get("secure_aggregation")),
        "backbone": BackboneInfo.of(CARD, "fp32"),
        "backbone_spec": "clouds",
        "created": "2026-01-01T00:00:00+00:00",
        "dermino_version": "0",
    }
    return RunPlan(**(values | changes))


def watched(site: Hospital, look: Look) -> ClientApp:
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


def apps(sites: Mapping[str, Hospital]) -> dict[str, ClientApp]:
    return {name: watched(site, lambda _, reply: reply) for name, site in sites.items()}


def halves(site: Hospital, split: str) -> SiteData:
    x, y, groups = site.prepared.half(split)
    return SiteData(site.name, x, y, 2, groups=tuple(groups))


def moments(site: Hospital) -> Moments:
    data = halves(site, "train")
    return Moments.of(data.features, data.labels, 2, per_class=False)


def own(site: Hospital, plan: RunPlan) -> OwnResults:
    kept = read_own(results_file(site.folder, plan.run_id))
    assert kept is not None
    return kept


def head_of(site: Hospital, plan: RunPlan) -> np.ndarray:
    head, info = load_model(personal_folder(site.folder, plan.run_id))
    assert info.trained_on[0].site == site.name
    return np.concatenate([head.weight.ravel(), head.bias])


def final_arrays(folder: Path, plan: RunPlan) -> Arrays:
    state = latest_checkpoint(folder, plan.digest())
    assert state is not None
    return state.arrays


@dataclass(frozen=True)
class Run:
    """A finished plain run; nothing in it is changed."""

    plan: RunPlan
    sites: dict[str, Hospital]
    folder: Path
    results: Results
    asked: list[Message]


def finished_run(folder: Path, homes: Path) -> Run:
    """A plain run of four sites."""
    plan, sites = personal_plan(), make_four(homes)
    clients, asked = apps(sites), []
    clients["alpha"] = watched(sites["alpha"], lambda m, r: asked.append(m) or r)
    results = run_rounds(InProcessGrid(clients), plan, folder)
    return Run(plan, sites, folder, results, asked)
