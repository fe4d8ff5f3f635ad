"""`run.json`: how the plan of any kind of run is written, read and told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically

PLAN_FILE = "run.json"


class PlanFile(BaseModel):
    """What a run does. Written before it starts and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def write(self, folder: Path) -> None:
        """Write `run.json` into a run folder."""
        write_atomically(folder / PLAN_FILE, self.model_dump_json(indent=2) + "\n")


P = TypeVar("P", bound=PlanFile)


def read_plan_file(kind: type[P], folder: Path, *, holds: str, began: str) -> P:
    """Read the plan of a run folder.

    Parameters
    ----------
    holds, began
        What the folder is not if there is no such plan in it, and what `--out` was given to.

    Raises
    ------
    DerminoError
        `CHECKPOINT_INVALID` if it is missing, damaged or of another kind of run.
    """
    file = folder / PLAN_FILE
    try:
        return kind.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise DerminoError(
            "CHECKPOINT_INVALID",
            f"This is not {holds}: {PLAN_FILE} is missing or damaged.",
            where=file,
            fix=f"Give the folder that --out named when {began} started.",
        ) from error


def plan_digest(task: BaseModel, sites: Iterable[str], *more: str) -> str:
    """SHA-256 of what decides the numbers: the task but for the run's name, the sites, and `more`.

    Run folders hold it: other bytes here would refuse the checkpoints of every run before.
    """
    told = task.model_dump_json(exclude={"run_id"}) + "|".join(sorted(sites)) + "".join(more)
    return hashlib.sha256(told.encode()).hexdigest()


def check_quorum(quorum: int, sites: int) -> None:
    """Raise `ValueError` if so many sites cannot give that quorum."""
    if quorum > sites:
        raise ValueError(f"a quorum of {quorum} is more than {sites} sites")


def first_fault(error: ValidationError, whole: str) -> str:
    """Which option is wrong and why, in a sentence; `whole` where no single one is."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or whole
    return f"{key}: {first['msg'].removeprefix('Value error, ')}."
