"""What a receipt says was erased, and what it does not undo, in plain words for the hospital."""

from __future__ import annotations

from pathlib import Path

from dermino_core.errors import DerminoError
from dermino_server.kept_run import KeptRun
from dermino_server.kept_sums import KeptSums


def to_erase(kept: KeptRun, site: str, new: Path) -> list[str]:
    """What goes from the run folder."""
    erased = [f"the sums of {site} (sums/{site}.safetensors)"]
    if len(kept.index) > 1:
        erased.append(f"the other sites' sums in this run folder: {new.name} has them now")
    if checkpoints := len(list((kept.folder / "checkpoints").glob("*.safetensors"))):
        held = "the sum over all sites"
        if kept.plan.cross_site:
            held += " and the heads that sites trained alone"
        erased.append(f"checkpoints, which held {held} ({checkpoints})")
    return erased


def not_undone(kept: KeptRun, site: str, new: Path, *, keep_original: bool) -> list[str]:
    """What stays in the world."""
    plan, name = kept.plan, kept.folder.name
    stays = [f"nothing was erased: the run {name} keeps all it has"] if keep_original else []
    stays.append(
        f"the earlier model, which saw {site}: model/ of the run {name}, every copy that was "
        "handed out, and whatever was decided with it"
    )
    if (sent_in := kept.index[site].run) != plan.run_id:
        stays.append(
            f"the models, results and reports of the runs since {sent_in} that used its sums"
        )
    stays.append(
        f"results, statistics, metrics and report of the run {name}, with the numbers of images "
        f"and the scores of {site}"
    )
    stays.append(
        "the difference between the earlier model and this one, which tells whoever has both "
        f"something about the images of {site}"
    )
    if plan.cross_site:
        stays.append(
            f"the head that {site} trained alone, if it shared it: the other sites were sent it "
            "to evaluate it"
        )
    if plan.personal:
        stays.append(
            f"the sums over all sites, {site} among them, which the sites were sent for models of "
            "their own, and these models"
        )
    if plan.privacy is not None:
        stays.append(f"the privacy budget that {site} spent, at its own ledger too")
    if held := _held_elsewhere(kept, site, new):
        stays.append(f"the same sums in other run folders: {', '.join(held)}")
    stays.append(f"what {site} itself keeps: its audit log and its own results")
    stays.append(
        "copies of the run folder, backups and snapshots of the coordinator's disk, and what a "
        "deleted file leaves on it; logs and the database of the SuperLink"
    )
    return stays


def _held_elsewhere(kept: KeptRun, site: str, new: Path) -> list[str]:
    """Run folders beside the old or the new one that hold the very same sums."""
    held = set()
    for folder in {*kept.folder.parent.iterdir(), *new.parent.iterdir()}:
        if folder in (kept.folder, new):
            continue
        try:
            entry = KeptSums(folder).index.get(site)
        except (DerminoError, OSError):  # not readable, or no folder
            continue
        if entry is not None and entry.as_sent == kept.index[site].as_sent:
            held.add(folder.name)
    return sorted(held)
