"""Late joiners: a new run that goes on from the sums that an earlier one kept."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from dermino_core import __version__
from dermino_core.errors import DerminoError
from dermino_core.results import BackboneInfo
from dermino_server.kept_run import KeptRun
from dermino_server.kept_sums import KeptSums
from dermino_server.plan import RunPlan, make_plan, versions


def plan_extension(
    base: KeptRun, new: Collection[str], backbone: BackboneInfo, **changes: Any
) -> RunPlan:
    """The plan of a run in which only `new` sites train; all else is as it was in `base`.

    Parameters
    ----------
    changes
        Fields that are this run's own: `engine`, `backbone_spec`, `min_sites`, times, data.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if a site took part already, none is new, or a field does not fit;
        `BACKBONE_MISMATCH` if the features would be other ones.
    """
    old = base.plan
    if again := sorted(set(new) & set(base.sites)):
        raise DerminoError(
            "CONFIG_INVALID",
            f"{', '.join(again)} took part in the run already.",
            where=base.folder,
            fix="Name new sites only. To replace what a site sent, withdraw it first with "
            "`dermino withdraw`, then let it join what that made.",
        )
    if not new:
        raise DerminoError(
            "CONFIG_INVALID",
            "No site is new.",
            where=base.folder,
            fix="Name those that join with --site; of a simulation, give --sites with a folder "
            f"that has more than {', '.join(base.sites)}.",
        )
    if backbone.fingerprint != old.backbone.fingerprint:
        raise DerminoError(
            "BACKBONE_MISMATCH",
            f"The run was made with the backbone {old.backbone.fingerprint[:12]}, this one is "
            f"{backbone.fingerprint[:12]}: its features do not fit the sums.",
            where=base.folder,
            fix="Give the same weights with --backbone.",
        )
    sites = sorted({*base.sites, *new})
    values: dict[str, Any] = dict(old)
    values |= {
        "run_id": uuid4().hex,
        "title": f"{old.task}: {', '.join(sites)}",
        "sites": sites,
        "backbone": backbone,
        "extends": old.run_id,
        "earlier": base.counts(base.sites),
        "withdrawn": [site for site in old.withdrawn if site not in new],
        "sites_folder": None,
        "data_digests": {},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dermino_version": __version__,
        "versions": versions(),
    }
    return make_plan(**(values | changes))


def begin_extension(base: KeptRun, plan: RunPlan, folder: Path) -> None:
    """Put the plan and the earlier sites' sums into a new run folder.

    Raises
    ------
    DerminoError
        `CHECKPOINT_INVALID` if one of them is missing or damaged.
    """
    for _ in base.sums.updates().values():
        pass  # each is held to its digest when it is read
    sums = KeptSums(folder)
    sums.take_over(base.sums, base.index)
    sums.write_index(base.index)
    plan.write(folder)


def check_same_task(base: KeptRun, task: str, classes: list[str]) -> None:
    """Refuse sites that learn something else.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID`.
    """
    if (task, classes) != (base.plan.task, base.plan.classes):
        raise DerminoError(
            "CONFIG_INVALID",
            f"The run is about {base.plan.task} {base.plan.classes}, the sites about {task} "
            f"{classes}.",
            where=base.folder,
            fix="Give sites with the same task and the same order of classes.",
        )


def check_same_data(base: KeptRun, now: dict[str, str]) -> None:
    """Refuse a simulated site whose kept sums are of other images than it has now.

    Raises
    ------
    DerminoError
        `DATA_CHANGED`.
    """
    before = base.plan.data_digests
    if other := [s for s in base.sites if s in now and s in before and now[s] != before[s]]:
        raise DerminoError(
            "DATA_CHANGED",
            f"The data of {', '.join(other)} is not what its kept sums are of.",
            where=base.folder,
            fix="Restore its images, labels and split, or run again.",
        )
