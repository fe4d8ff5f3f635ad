"""What watches a run: records, measurements of the backbone, warnings in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermino_core.backbone_card import Preprocessing
from dermino_core.console import warn
from dermino_core.errors import DerminoError
from dermino_core.pretraining.checkpoint import Position
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.health import Health
from dermino_core.pretraining.method import Method
from dermino_core.pretraining.probe import Probe
from dermino_core.pretraining.probe_scores import ProbeResult, ProbeStart
from dermino_core.pretraining.processes import Processes
from dermino_core.pretraining.schedules import Settings
from dermino_core.pretraining.tracking import Tracker

EMBED_BATCH = 32
"""Images of one forward pass of a measurement."""


class Observer:
    """Logs steps, measures the backbone on a schedule, and says when something looks wrong.

    Every process measures (a sharded backbone needs all of them); the first one writes.

    Parameters
    ----------
    out
        Run folder.
    steps, images_per_step
        Of the whole run, of all processes.
    probe
        None without `monitor.manifest`.
    first
        The step that the run goes on from.
    done
        The checkpoint that it goes on from; None for a new run.

    Raises
    ------
    DerminoError
        DEPENDENCY_MISSING without a tracker's package; CHECKPOINT_INVALID if the probe's images
        are not those of the start.
    """

    def __init__(
        self,
        out: Path,
        config: PretrainConfig,
        preprocessing: Preprocessing,
        processes: Processes,
        probe: Probe | None,
        *,
        first: int,
        steps: int,
        images_per_step: int,
        done: Position | None,
    ) -> None:
        self.config, self.preprocessing, self.processes = config, preprocessing, processes
        self.steps, self.images_per_step = steps, images_per_step
        self.probe = probe
        self.last_result: ProbeResult | None = None
        self._health = Health(config, steps)
        self._tracker = None
        if processes.leads:
            self._tracker = Tracker(
                out,
                config.monitor.trackers,
                config.model_dump(mode="json"),
                None if done is None else done.step,
                steps_now=first,
            )
            self._health.replay(self._tracker.kept)
        self._start_file = out / "probe_start.npz"
        self._start = None
        if done is not None and probe is not None and self._start_file.exists():
            self._start = ProbeStart.load(self._start_file)
            self._start.check(probe.test_labels)
        self._last = first
        self._unread: Callable[[], None] | None = None
        self._every = max(1, round(config.monitor.probe_every * steps))

    def resumed(self, done: Position, changed: Sequence[str]) -> None:
        """Say where the run goes on, and what is not as it was."""
        text = f"goes on from step {self._last} of {self.steps}"
        now = self.processes.world_size
        if done.world_size != now:
            text += (
                f"; {done.world_size} processes before, {now} now: from the same number of images, "
                "but not with the same batches"
            )
        if changed:
            text += f"; changed: {', '.join(changed)}"
        self._event(text)

    def step(
        self,
        step: int,
        settings: Settings,
        means: Callable[[], dict[str, float]],
        seconds: float,
        waited: float,
    ) -> None:
        """Log a step: its scalars are read when the next one is logged, or by :meth:`flush`."""
        self.flush()
        done, self._last = step - self._last, step
        record: dict[str, Any] = {
            "step": step,
            "images": step * self.images_per_step,
            "seconds": seconds,
            "images_per_second": done * self.images_per_step / max(seconds, 1e-9),
            "data_wait": min(1.0, waited / max(seconds, 1e-9)),
            "learning_rate": settings.backbone_rate,
            "head_learning_rate": settings.head_rate,
            "weight_decay": settings.weight_decay,
            "momentum": settings.momentum,
            "teacher_temperature": settings.teacher_temperature,
        }
        self._unread = lambda: self._write({**record, **means()})

    def flush(self) -> None:
        """Read and write what is still on the device.

        Raises
        ------
        DerminoError
            RUN_FAILED if the loss is not finite.
        """
        unread, self._unread = self._unread, None
        if unread is not None:
            unread()

    def is_due(self, step: int) -> bool:
        """Whether the backbone is to be measured after this step."""
        return self.probe is not None and (step % self._every == 0 or step == self.steps)

    def measure(self, step: int, method: Method) -> None:
        """Measure the backbone that would be exported now, and log it."""
        result = self.look(method)
        if result is None:
            return
        if self._tracker is not None:
            record: dict[str, Any] = {"step": step, **result.record()}
            if step == 0:
                self._start = result.start()
                self._start.save(self._start_file)
            elif self._start is not None:
                record |= result.gain_over(self._start)
            self._tracker.log("probe", record)
            self._warn(self._health.probe(record), step)

    def look(self, method: Method) -> ProbeResult | None:
        """Measure without a record; None without a probe."""
        if self.probe is not None:
            self.last_result = self.probe.measure(lambda batch: self._embed(batch, method))
        return self.last_result

    def close(self) -> None:
        """Write the rest."""
        try:
            self.flush()
        finally:
            if self._tracker is not None:
                self._tracker.close()

    def _embed(self, batch: np.ndarray, method: Method) -> np.ndarray:
        mean = torch.tensor(self.preprocessing.mean).view(3, 1, 1)
        std = torch.tensor(self.preprocessing.std).view(3, 1, 1)
        parts = []
        for start in range(0, len(batch), EMBED_BATCH):
            part = torch.from_numpy(np.ascontiguousarray(batch[start : start + EMBED_BATCH]))
            pixels = (part.permute(0, 3, 1, 2).float() / 255.0 - mean) / std
            kind = self.processes.device.partition(":")[0]
            with torch.autocast(kind, torch.bfloat16, enabled=self._is_bf16()):
                parts.append(method.embed(pixels.to(self.processes.device)).float().cpu().numpy())
        return np.concatenate(parts)

    def _is_bf16(self) -> bool:
        from dermino_core.precision import resolve_precision

        return resolve_precision(self.config.run.precision, self.processes.device) == "bf16"

    def _write(self, record: dict[str, Any]) -> None:
        # Gradients are those of all processes, so all of them decide alike.
        watched = [name for name in record if name == "loss" or name.startswith("gradient/")]
        if sick := [name for name in watched if not np.isfinite(record[name])]:
            raise DerminoError(
                "RUN_FAILED",
                f"Not finite at step {record['step']}: {', '.join(sick)}.",
                fix="Go on from the last checkpoint, which is from before, with --resume and a "
                "lower optimiser.learning_rate or run.precision = 'fp32'.",
            )
        if self._tracker is not None:
            self._tracker.log("step", record)
            self._warn(self._health.step(record), record["step"])

    def _warn(self, sentences: list[str], step: int) -> None:
        for sentence in sentences:
            warn(f"warning: {sentence}")
            if self._tracker is not None:
                self._tracker.log("warning", {"step": step, "text": sentence})

    def _event(self, text: str) -> None:
        if self._tracker is not None:
            warn(text)
            self._tracker.log("event", {"step": self._last, "text": text})
