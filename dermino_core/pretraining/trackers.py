"""Other people's trackers behind one small interface; each package is imported when asked for."""

from __future__ import annotations

import hashlib
import importlib
import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dermino_core.errors import DerminoError

_LOGGER = logging.getLogger(__name__)
_LONGEST_PARAMETER = 500
# Both would send usage or crash reports home, whatever they are told to do with the records.
_SILENCED = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}


class Sink(Protocol):
    """What a tracker is to the run."""

    def log(self, kind: str, record: Mapping[str, object]) -> None:
        """Take in one record."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def open_sink(
    name: str, folder: Path, config: Mapping[str, object], resume_step: int | None
) -> Sink:
    """Start or continue the tracker called `name`.

    Raises
    ------
    DerminoError
        CONFIG_INVALID for an unknown name, DEPENDENCY_MISSING without its package.
    """
    sink, package = _find(name)
    return sink(package, folder, config, resume_step)


def check_trackers(names: Iterable[str]) -> None:
    """As :func:`open_sink`, without starting anything: for every process of a run."""
    for name in names:
        _find(name)


def _find(name: str) -> tuple[Any, Any]:
    if name not in _SINKS:
        raise DerminoError(
            "CONFIG_INVALID",
            f"There is no tracker {name!r}.",
            where="monitor.trackers",
            fix=f"Known are {', '.join(_SINKS)}.",
        )
    sink, module, extra = _SINKS[name]
    for variable, value in _SILENCED.items():
        os.environ.setdefault(variable, value)
    try:
        package = importlib.import_module(module)
    except ImportError as error:
        raise DerminoError(
            "DEPENDENCY_MISSING",
            f"The tracker {name} needs the package {name}, which is not installed.",
            where="monitor.trackers",
            fix=f"Install dermino[{extra}], or leave {name!r} out of monitor.trackers; "
            "metrics.jsonl and report.html need neither.",
        ) from error
    return sink, package


class TensorBoard:
    """Event files in the run's folder `tensorboard`."""

    def __init__(
        self, package: Any, folder: Path, config: Mapping[str, object], resume_step: int | None
    ) -> None:
        purge = None if resume_step is None else resume_step + 1
        self._writer = package.SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, kind: str, record: Mapping[str, object]) -> None:
        """Numbers become scalars, sentences text."""
        step = _step(record)
        for name, value in _scalars(kind, record).items():
            self._writer.add_scalar(name, value, step)
        if text := record.get("text"):
            self._writer.add_text(kind, str(text), step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A W&B run in the run's folder; offline unless `WANDB_MODE` says otherwise."""

    def __init__(
        self, package: Any, folder: Path, config: Mapping[str, object], resume_step: int | None
    ) -> None:
        self._run = package.init(
            project=os.environ.get("WANDB_PROJECT", "dermino"),
            dir=str(folder),
            name=folder.name,
            id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
            resume=None if resume_step is None else "allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=dict(config),
        )

    def log(self, kind: str, record: Mapping[str, object]) -> None:
        """Numbers against the column `step`; a sentence also raises an alert when online."""
        values = _scalars(kind, record)
        if values:
            self._run.log({"step": _step(record), **values})
        if text := record.get("text"):
            self._run.alert(title=f"dermino: {kind}", text=str(text))

    def close(self) -> None:
        """Finish the W&B run."""
        self._run.finish()


class MLflow:
    """An MLflow run; in a database of the run's folder unless `MLFLOW_TRACKING_URI` is set.

    A server that fails does not end the training: it is said once, and no more is sent to it.
    """

    def __init__(
        self, package: Any, folder: Path, config: Mapping[str, object], resume_step: int | None
    ) -> None:
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

        self._failures: tuple[type[Exception], ...] = (MlflowException, OSError)
        self._package: Any = package
        if "MLFLOW_TRACKING_URI" not in os.environ:
            package.set_tracking_uri(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
        note = folder / "mlflow_run.txt"
        known = note.read_text("utf-8").strip() if resume_step is not None and note.exists() else ""
        try:
            package.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "dermino"))
            run = package.start_run(run_id=known or None, run_name=None if known else folder.name)
            note.write_text(run.info.run_id, "utf-8")
            if not known:
                flat = _flat(config)
                package.log_params({k: str(v)[:_LONGEST_PARAMETER] for k, v in flat.items()})
        except self._failures as error:
            self._give_up(error)

    def log(self, kind: str, record: Mapping[str, object]) -> None:
        """Numbers become metrics, sentences tags."""
        if self._package is None:
            return
        try:
            self._package.log_metrics(_scalars(kind, record), step=_step(record))
            if text := record.get("text"):
                self._package.set_tag(f"{kind} at step {_step(record)}", str(text))
        except self._failures as error:
            self._give_up(error)

    def close(self) -> None:
        """End the MLflow run."""
        if self._package is not None:
            self._package.end_run()

    def _give_up(self, error: Exception) -> None:
        _LOGGER.warning("MLflow failed and gets no more records of this run: %s", error)
        self._package = None


_SINKS: dict[str, tuple[Any, str, str]] = {
    "tensorboard": (TensorBoard, "torch.utils.tensorboard", "tracking"),
    "wandb": (WeightsAndBiases, "wandb", "wandb"),
    "mlflow": (MLflow, "mlflow", "mlflow"),
}


def _step(record: Mapping[str, object]) -> int:
    step = record.get("step")
    return step if isinstance(step, int) else 0


def _scalars(kind: str, record: Mapping[str, object]) -> dict[str, float]:
    """The finite numbers of a record; those of a probe are named after it."""
    prefix = "" if kind == "step" else f"{kind}/"
    return {
        f"{prefix}{name}": float(value)
        for name, value in record.items()
        if name != "step"
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def _flat(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
