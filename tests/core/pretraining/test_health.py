"""Warnings: each sickness is named once, and a healthy run is left in peace."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.health import Health

STEPS = 100
CONFIG = PretrainConfig()


def healthy(step: int) -> dict[str, float | int]:
    """Falling losses with noise, as a good run has them."""
    rng = np.random.default_rng(step)
    fall = math.exp(-step / 60)
    return {
        "step": step,
        "loss": 12 * fall + rng.normal() * 0.1,
        "uniform/image": 0.55 + 0.4 * fall + rng.normal() * 0.003,
        "teacher/entropy": 0.5,
        "teacher/prototypes_in_use": 0.6,
        "gradient/backbone": 1.0 + rng.random(),
        "gradient/image_head": 0.2 + rng.random(),
        "data_wait": 0.05,
    }


def run(change: dict[str, object] | None = None, *, since: int = 0) -> list[str]:
    """All warnings of a run whose records have `change` from a step on."""
    health = Health(CONFIG, STEPS)
    found: list[str] = []
    for step in range(1, STEPS + 1):
        record: dict[str, object] = dict(healthy(step))
        if step >= since:
            record.update(change or {})
        found.extend(health.step(record))
    return found


def test_a_healthy_run_is_left_in_peace() -> None:
    assert run() == []


@pytest.mark.parametrize(
    ("change", "since", "words", "field"),
    [
        ({"loss": math.nan}, 20, "loss is not a finite number at step 20", "learning_rate"),
        ({"gradient/backbone": math.inf}, 7, "gradient of backbone is not", "learning_rate"),
        ({"teacher/entropy": 0.995, "uniform/image": 0.999}, 0, "nearly uniform", "temperature"),
        ({"teacher/entropy": 1e-4, "uniform/image": 1e-3}, 0, "one point", "loss.koleo"),
        (
            {"teacher/prototypes_in_use": 0.03},
            30,
            "uses only 3 % of the prototypes",
            "loss.targets",
        ),
        ({"uniform/image": 0.7}, 40, "not fallen for a fifth of the run", "crops.global_scale"),
        ({"gradient/image_head": 60.0}, 50, "gradient of image_head has grown", "optimiser.clip"),
        ({"data_wait": 0.6}, 10, "60 % of the time is spent waiting", "data.workers"),
    ],
)
def test_each_sickness_is_named_once_with_the_field_to_change(
    change: dict[str, object], since: int, words: str, field: str
) -> None:
    warnings = [text for text in run(change, since=since) if words in text]
    assert len(warnings) == 1
    assert field in warnings[0]


def test_one_bad_step_is_no_warning() -> None:
    health = Health(CONFIG, STEPS)
    found: list[str] = []
    for step in range(1, STEPS + 1):
        spike = {"gradient/backbone": 500.0, "data_wait": 0.9, "teacher/prototypes_in_use": 0.01}
        found.extend(health.step({**healthy(step), **(spike if step % 40 == 0 else {})}))
    assert found == []


def test_the_beginning_is_not_judged() -> None:
    flat = {"teacher/entropy": 1.0, "uniform/image": 1.0, "teacher/prototypes_in_use": 0.01}
    health = Health(CONFIG, 1000)
    assert not any(health.step({**healthy(step), **flat}) for step in range(1, 95))


def test_a_loss_without_image_level_can_have_a_plateau() -> None:
    health = Health(CONFIG, STEPS)
    found = [text for step in range(1, STEPS) for text in health.step({"step": step, "loss": 2.0})]
    assert len(found) == 1
    assert found[0].startswith("The loss has not fallen")


def test_probe_warnings() -> None:
    health = Health(CONFIG, STEPS)
    assert health.probe({"step": 0, "knn_auroc": 0.8, "rank_me": 100.0}) == []
    assert health.probe({"step": 10, "knn_auroc": 0.79, "rank_me": 60.0}) == []
    found = health.probe({"step": 20, "knn_auroc": 0.7, "rank_me": 40.0})
    assert len(found) == 2
    assert "from 100 to 40" in found[0]
    assert "from 0.800 at the start to 0.700" in found[1]
    assert health.probe({"step": 30, "knn_auroc": 0.6, "rank_me": 20.0}) == []
    assert "diverged" in health.probe({"step": 40, "knn_auroc": math.nan, "rank_me": None})[0]


def test_records_from_before_a_restart_count_and_are_not_repeated() -> None:
    records = [{"kind": "step", **healthy(step), "data_wait": 0.7} for step in range(1, 60)]
    records.append({"kind": "probe", "step": 0, "knn_auroc": 0.8, "rank_me": 100.0})
    records.append({"kind": "warning", "step": 9, "text": "said"})
    whole, resumed = Health(CONFIG, STEPS), Health(CONFIG, STEPS)
    whole.replay(records)
    resumed.replay(records)
    assert [resumed.step({**healthy(s), "data_wait": 0.7}) for s in range(60, 99)] == [[]] * 39
    assert len(resumed.probe({"step": 60, "knn_auroc": 0.5, "rank_me": 90.0})) == 1


def test_every_field_that_a_warning_names_exists() -> None:
    sections = {
        name: set(type(section).model_fields)
        for name, section in CONFIG
        if isinstance(section, BaseModel)
    }
    source = Path(Health.step.__code__.co_filename).read_text("utf-8")
    named = re.findall(rf"\b({'|'.join(sections)})\.([a-z_]+)\b", source)
    assert len(set(named)) > 10
    assert [
        f"{section}.{field}" for section, field in named if field not in sections[section]
    ] == []
