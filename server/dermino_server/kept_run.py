"""A finished run whose sums were kept: what a withdrawal and a late joiner start from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.model_folder import ModelInfo, SiteCount, load_model
from dermino_server.kept_sums import KeptSite, KeptSums
from dermino_server.plan import RunPlan, read_plan
from dermino_strategies.base import Strategy
from dermino_strategies.registry import get_strategy

SUPERSEDED_FILE = "superseded.json"
PENDING_FILE = "withdrawal.json"

_AGAIN = "Run again with the sites that stay; under secure aggregation ridge takes one round."


class Superseded(BaseModel):
    """`superseded.json`: a site left this run, and another folder has the model without it."""

    model_config = ConfigDict(extra="forbid")

    site: str
    new_run: str
    new_folder: str
    """Relative to the run folder."""

    def folder(self, run: Path) -> Path:
        """The run folder that goes on in place of `run`."""
        return Path(os.path.normpath(run / self.new_folder))

    def write(self, run: Path) -> None:
        """Mark a run folder."""
        write_atomically(run / SUPERSEDED_FILE, self.model_dump_json(indent=1) + "\n")


@dataclass(frozen=True)
class KeptRun:
    """A finished run and what it kept."""

    folder: Path
    plan: RunPlan
    strategy: Strategy
    sums: KeptSums
    index: dict[str, KeptSite]
    model: ModelInfo

    @property
    def sites(self) -> list[str]:
        """Sites whose sums are in the model."""
        return sorted(self.index)

    def counts(self, sites: Iterable[str]) -> list[SiteCount]:
        """What the model card says of `sites`; 0 images where it could not tell."""
        known = {count.site: count for count in self.model.trained_on}
        return [known.get(s) or SiteCount(site=s, images=0, classes={}) for s in sorted(sites)]


def read_superseded(run: Path) -> Superseded | None:
    """What took the place of a run; None if it is the newest.

    Raises
    ------
    DerminoError
        `CHECKPOINT_INVALID` if the mark is damaged.
    """
    file = run / SUPERSEDED_FILE
    try:
        return Superseded.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise DerminoError(
            "CHECKPOINT_INVALID", "The mark that a site left this run is damaged.", where=file
        ) from error


def refuse_superseded(run: Path) -> None:
    """Refuse to go on with a run that a site has left.

    Raises
    ------
    DerminoError
        `CHECKPOINT_INVALID` naming the folder that took its place.
    """
    if gone := read_superseded(run):
        raise DerminoError(
            "CHECKPOINT_INVALID",
            f"{gone.site} was withdrawn from this run; what is left of it is a record.",
            where=run,
            fix=f"Go on with {gone.folder(run)}",
        )


def read_kept_run(folder: Path) -> KeptRun:
    """A finished run that a site can leave or join.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if its method or protection leaves no sums to keep, or they were not to
        be kept; `CHECKPOINT_INVALID` if it is unfinished, superseded or damaged.
    """
    folder = folder.absolute()
    plan = read_plan(folder)
    strategy = get_strategy(plan.strategy, plan.settings)
    if not strategy.keeps_sums:
        raise DerminoError(
            "CONFIG_INVALID",
            f"What {strategy.name} learned from one site cannot be taken out, or put in, after "
            "the run: what the other sites sent already depended on it.",
            where=folder,
            fix="Run again with the sites that should take part. `dermino strategies` tells which "
            "methods keep sums: with `ridge` a site can leave or join in a second.",
        )
    if plan.secure_aggregation:
        raise DerminoError(
            "CONFIG_INVALID",
            "Under secure aggregation nobody but a site itself ever had its sums, so none were "
            "kept.",
            where=folder,
            fix=_AGAIN,
        )
    refuse_superseded(folder)
    if (folder / PENDING_FILE).exists():
        raise DerminoError(
            "CHECKPOINT_INVALID",
            "A withdrawal that made this run folder was interrupted before it was done.",
            where=folder / PENDING_FILE,
            fix="Give the command of that withdrawal once more; the file names run and site.",
        )
    if not plan.withdrawn and not (folder / "results.json").is_file():
        raise DerminoError(
            "CHECKPOINT_INVALID",
            "This run has not finished.",
            where=folder,
            fix="Finish it first with --resume.",
        )
    sums = KeptSums(folder)
    index = sums.index
    if not index:
        raise DerminoError(
            "CONFIG_INVALID",
            "This run kept no sums: it was made with --no-keep-sums, or before there were any.",
            where=folder,
            fix=_AGAIN,
        )
    _, info = load_model(folder / "model")
    return KeptRun(folder, plan, strategy, sums, index, info)
