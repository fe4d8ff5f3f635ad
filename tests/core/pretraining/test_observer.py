"""A record that is not finite ends the run before a checkpoint could keep it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dermino_core.backbone_card import Preprocessing
from dermino_core.errors import DerminoError
from dermino_core.pretraining.config_file import resolve_config
from dermino_core.pretraining.observer import Observer
from dermino_core.pretraining.processes import Processes
from dermino_core.pretraining.schedules import settings_at


@pytest.mark.parametrize("sick", ["loss", "gradient/backbone", "gradient/image_head"])
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, sick: str) -> None:
    config = resolve_config({"monitor": {"trackers": []}})
    preprocessing = Preprocessing(64, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    watch = Observer(
        tmp_path,
        config,
        preprocessing,
        Processes(0, 1, "cpu"),
        None,
        first=0,
        steps=10,
        images_per_step=4,
        done=None,
    )
    settings = settings_at(config, 0, 10, batch_of_all=4)
    means = {"loss": 1.0, "gradient/backbone": 1.0, "gradient/image_head": 1.0}
    watch.step(1, settings, lambda: means, 1.0, 0.0)
    watch.flush()
    watch.step(2, settings, lambda: {**means, sick: float("nan")}, 1.0, 0.0)
    with pytest.raises(DerminoError, match=f"Not finite at step 2: {sick}"):
        watch.flush()
