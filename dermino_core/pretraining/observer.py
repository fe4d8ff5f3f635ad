"""What watches a run: records, measurements of the backbone, warnings in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermino_core.backbone_card import Preprocessing
from dermino_core.console import warn
from dermino_core.errors import DerminoError
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
        The step that a resumed run goes on from.
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
        resumed: bool,
    ) -> None:
        self.config, self.preprocessing, self.processes = config, preprocessing, processes
        self.steps, self.images_per_step = steps, images_per_step
        self.probe = probe
        self.results: list[tuple[int, ProbeResult]] = []
        self._health = Health(config, steps)
        self._tracker = None
        if processes.leads:
            self._tracker = Tracker(
                out,
                config.monitor.trackers,
                config.model_dump(mode="json"),
                first if resumed else None,
            )
            self._health.replay(self._tracker.kept)
        self._start_file = out / "probe_start.npz"
        self._last = first
        self._unread: Callable[[], None] | None = None
        share = config.monitor.probe_every
        self._every = max(1, round(share * steps)) if share > 0 and probe is not None else 0

    def resumed(self, step: int, before: int, now: int) -> None:
        """Say where the run goes on, and whether the number of processes changed."""
        text = f"goes on from step {step} of {self.steps}"
        if before != now:
            text += (
                f"; {before} processes before, {now} now: from the same number of images, but not "
                "with the same batches"
            )
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
        return self._every > 0 and step % self._every == 0

    def measure(self, step: int, method: Method) -> None:
        """Measure the backbone that would be exported now."""
        if self.probe is None:
            return
        result = self.probe.measure(lambda batch: self._embed(batch, method))
        self.results.append((step, result))
        if self._tracker is not None:
            record: dict[str, Any] = {"step": step, **result.record()}
            if step == 0:
                result.start().save(self._start_file)
            elif self._start_file.exists():
                record |= result.gain_over(ProbeStart.load(self._start_file))
            self._tracker.log("probe", record)
            self._warn(self._health.probe(record), step)

    def close(self) -> None:
        """Write the rest."""
        self.flush()
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
        if not np.isfinite(record.get("loss", 0.0)):
            raise DerminoError(
                "RUN_FAILED",
                f"The loss is not finite at step {record['step']}.",
                fix="Lower optimiser.learning_rate, or use run.precision = 'fp32'; then --resume: "
                "the last checkpoint is from before.",
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
