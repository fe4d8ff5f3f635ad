"""What every kind of run writes in the same way: its plan, its records, its warnings."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import CARD
from pydantic import BaseModel

from dermino_core.errors import DerminoError
from dermino_core.results import BackboneInfo
from dermino_server.checkpoint import RunState
from dermino_server.exchange import Outcome
from dermino_server.plan import RunPlan, read_plan
from dermino_server.plan_file import plan_digest
from dermino_server.round_records import (
    close_exchange,
    new_record,
    score_last_round,
    write_metrics,
)
from dermino_server.run_summary import backbone_warnings, means_of_all, precision_warnings
from dermino_server.segmentation_plan import read_segmentation_plan
from dermino_strategies.protocol import NameRequest, pack, size_in_bytes


class Named(BaseModel):
    run_id: str
    rounds: int


@dataclass
class Reply:
    seconds: float


def test_a_digest_is_of_the_task_and_its_sites_but_not_of_the_runs_name() -> None:
    """As written in checkpoints since the first version: these very bytes."""
    told = b'{"rounds":2}alpha|beta|from x: alpha|from x: beta'
    more = ("|from x: alpha", "|from x: beta")
    found = plan_digest(Named(run_id="one", rounds=2), ["beta", "alpha"], *more)
    assert found == hashlib.sha256(told).hexdigest()
    assert found == plan_digest(Named(run_id="two", rounds=2), ["alpha", "beta"], *more)


def test_a_quorum_of_more_than_all_sites_is_refused(make_plan: Callable[..., RunPlan]) -> None:
    assert make_plan(min_sites=3).min_sites == 3
    with pytest.raises(ValueError, match="a quorum of 4 is more than 3 sites"):
        make_plan(min_sites=4)


def test_each_kind_of_run_says_what_a_folder_is_not(
    make_plan: Callable[..., RunPlan], tmp_path: Path
) -> None:
    make_plan().write(tmp_path)
    assert read_plan(tmp_path).sites == ["alpha", "beta", "gamma"]
    with pytest.raises(DerminoError, match="not the folder of a segmentation run") as caught:
        read_segmentation_plan(tmp_path)
    assert caught.value.code == "CHECKPOINT_INVALID"
    assert "when `dermino segmentation` started" in str(caught.value.fix)
    (tmp_path / "run.json").write_bytes(b"\xff")
    with pytest.raises(DerminoError, match=r"not a run folder: run\.json is missing") as caught:
        read_plan(tmp_path)
    assert caught.value.where == str(tmp_path / "run.json")


def test_a_record_tells_what_travelled_to_and_from_whom(tmp_path: Path) -> None:
    """One site answers, one sends what is not usable, one is silent, one was never there."""
    content = pack(NameRequest())
    outcome = Outcome({"beta": Reply(1.5)}, bytes_from_site={"alpha": 7, "beta": 9})
    outcome.reject("alpha", "REPLY_INVALID", "Odd.")
    outcome.reject("gamma", "DEADLINE_MISSED")
    close_exchange(outcome, ["delta"], 1, "Round 1 of 1")
    asked: list[str] = ["gamma", "beta", "alpha"]
    contents = dict.fromkeys(asked, content)
    record = new_record(1, "train", time.monotonic() - 5, contents, outcome)
    assert record.sites == ["beta"]
    assert [(one.site, one.code) for one in record.rejected] == [
        ("alpha", "REPLY_INVALID"),
        ("gamma", "DEADLINE_MISSED"),
        ("delta", "NOT_CONNECTED"),
    ]
    size = size_in_bytes(content)
    assert [
        (one.site, one.seconds, one.bytes_to_site, one.bytes_from_site) for one in record.transfers
    ] == [("alpha", 0.0, size, 7), ("beta", 1.5, size, 9), ("gamma", 0.0, size, 0)]
    assert 5 <= record.seconds < 60
    state = RunState({"w": np.zeros(1)}, records=[record, record.model_copy()])
    score_last_round(state, auroc={"gamma": 0.5, "beta": None})
    assert list(state.records[1].auroc.items()) == [("beta", None), ("gamma", 0.5)]
    assert state.records[0].auroc == {}
    write_metrics(tmp_path, state)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [one.model_dump() for one in state.records]
    with pytest.raises(DerminoError, match="Round 2 of 2: 1 usable replies") as caught:
        close_exchange(outcome, ["delta"], 2, "Round 2 of 2")
    assert caught.value.code == "QUORUM_LOST"


def test_a_mean_is_of_all_sites_or_not_there() -> None:
    sites = [{"global": 1.0, "own": 5.0}, {"global": 3.0}]
    assert means_of_all(["global", "own"], sites, lambda v: sum(v) / len(v)) == {"global": 2.0}


def test_warnings_are_there_where_they_apply() -> None:
    assert precision_warnings([]) == []
    assert precision_warnings([("alpha", "fp32"), ("beta", "fp32")]) == []
    (told,) = precision_warnings([("alpha", "fp32"), ("beta", "bf16")])
    assert told.endswith("in different arithmetic: alpha fp32, beta bf16.")
    info = BackboneInfo.of(CARD, "fp32")
    assert backbone_warnings(info) == []
    (told,) = backbone_warnings(info.model_copy(update={"pretrained": False}))
    assert told.endswith("this run shows that the system works, and says nothing about skin.")
