"""Schedules against their closed forms."""

from __future__ import annotations

import math

import pytest

from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.config_file import resolve_config
from dermino_core.pretraining.schedules import is_head_warmup, peak_rate, settings_at


def dinov2(**sections: object) -> PretrainConfig:
    return resolve_config({"preset": "dinov2", **sections})


def test_rate_scales_with_the_root_of_the_batch() -> None:
    assert peak_rate(dinov2(), 2048) == pytest.approx(2e-3 * math.sqrt(2))
    assert peak_rate(resolve_config({"preset": "paper"}), 2048) == 2e-3


def test_dinov2_schedules_at_their_ends_and_in_the_middle() -> None:
    config, steps = dinov2(), 1001
    first = settings_at(config, 0, steps, batch_of_all=1024)
    assert first.backbone_rate == pytest.approx(2e-3 / 100)
    assert first.last_layer_rate == 0.0
    assert first.momentum == pytest.approx(0.992)
    assert first.weight_decay == pytest.approx(0.04)
    assert first.teacher_temperature == pytest.approx(0.04)
    peak = settings_at(config, 99, steps, batch_of_all=1024)
    assert peak.backbone_rate == pytest.approx(2e-3)
    middle = settings_at(config, 500, steps, batch_of_all=1024)
    assert middle.weight_decay == pytest.approx(0.22)
    assert middle.momentum == pytest.approx(0.996)
    assert middle.teacher_temperature == pytest.approx(0.07)
    last = settings_at(config, 1000, steps, batch_of_all=1024)
    assert last.backbone_rate == pytest.approx(1e-6)
    assert last.momentum == pytest.approx(1.0)
    assert last.weight_decay == pytest.approx(0.4)


@pytest.mark.parametrize("steps", [200, 21132])
def test_the_last_layer_is_held_for_one_per_cent(steps: int) -> None:
    rates = [
        settings_at(dinov2(), step, steps, batch_of_all=1024).last_layer_rate
        for step in range(steps // 50)
    ]
    assert sum(rate == 0.0 for rate in rates) == math.ceil(0.01 * steps)


def test_head_warmup_holds_the_backbone_and_then_warms_it_up() -> None:
    config = resolve_config({"optimiser": {"head_warmup": 0.1, "head_learning_rate": 1e-3}})
    steps = 200
    rates = [settings_at(config, s, steps, batch_of_all=1024).backbone_rate for s in range(steps)]
    assert all(rate == 0.0 for rate in rates[:20])
    assert all(is_head_warmup(config, s, steps) == (s < 20) for s in range(steps))
    assert 0.0 < rates[20] < rates[30]
    assert max(rates) == pytest.approx(peak_rate(config, 1024))
    heads = settings_at(config, 19, steps, batch_of_all=1024).head_rate
    assert heads == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("steps", [50, 500, 50_000])
def test_the_teacher_reaches_back_a_fixed_share_of_the_run(steps: int) -> None:
    config = PretrainConfig()
    middle = settings_at(config, steps // 2, steps, batch_of_all=1024).momentum
    reach = -1.0 / math.log(middle)
    assert reach <= max(1.0, 0.1 * steps) + 1e-6


def test_a_run_of_one_step_has_settings() -> None:
    for preset in ("recommended", "dinov2", "paper"):
        settings = settings_at(resolve_config({"preset": preset}), 0, 1, batch_of_all=4)
        assert all(math.isfinite(value) for value in vars(settings).values())
