"""`dermino withdraw`: a hospital leaves a finished run.

A new run folder gets the others' sums and the model that never saw the hospital; then the old one
loses all sums and what else holds them; then a receipt says so. Each step can be done twice, so
that the same command ends what a power cut began, and until the new folder is whole nothing is
touched.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from dermino_core import __version__
from dermino_core.certificate_checks import utc_now
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.machine import describe_machine
from dermino_core.model_folder import save_model
from dermino_core.names import check_name
from dermino_core.private_files import locked
from dermino_core.results import Results
from dermino_core.withdrawal_receipt import RECEIPT_FILE, Receipt, read_receipt, sign_receipt
from dermino_server.kept_run import (
    PENDING_FILE,
    KeptRun,
    Superseded,
    read_kept_run,
    read_superseded,
    refuse_superseded,
)
from dermino_server.kept_sums import SUMS_FOLDER, KeptSums, digests_as_sent
from dermino_server.plan import FEWEST_FOR_PERSONAL, RunPlan, make_plan, read_plan
from dermino_server.receipt_key import Signer
from dermino_server.withdrawal_words import not_undone, to_erase
from dermino_strategies.base import Arrays
from dermino_strategies.withdrawal import without_site


@dataclass(frozen=True)
class Withdrawal:
    """What came of it."""

    folder: Path
    """The run folder without the site."""
    receipt: Receipt
    again: bool
    """Whether all of it was done before."""


class _Pending(BaseModel):
    """`withdrawal.json`: what the receipt will say, until it does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    old_folder: str
    """Relative to the new run folder."""
    keep_original: bool
    site: str
    run: str
    sent_in: str
    new_run: str
    sums: dict[str, str]
    old_model: str
    new_model: str
    trained_on: list[str]
    erased: list[str]
    not_undone: list[str]


def withdraw(
    run: Path,
    site: str,
    signer: Signer,
    *,
    out: Path | None = None,
    keep_original: bool = False,
    now: datetime | None = None,
) -> Withdrawal:
    """Take a site out of a finished run.

    Parameters
    ----------
    run
        Folder of a run that kept sums.
    out
        New run folder; RUN-without-SITE beside it if not given.
    keep_original
        Leave `run` as it is.
    now
        Instead of the clock.

    Raises
    ------
    DerminoError
        As :func:`dermino_server.kept_run.read_kept_run`; `CONFIG_INVALID` for a site that took no
        part, for the last one, and if a folder cannot be written; `OUTPUT_EXISTS` if `out` holds
        something else; `CHECKPOINT_INVALID` if another site's sums are damaged.
    """
    run = run.absolute()
    check_name(site)
    plan = read_plan(run)
    new = (out or run.with_name(f"{run.name}-without-{site}")).absolute()
    if not keep_original and not os.access(run, os.W_OK | os.X_OK):
        raise _unwritable(run, "no permission to write there")
    with _explained(run), nullcontext() if keep_original else locked(run):
        gone = read_superseded(run)
        if gone is not None and gone.site == site:
            new = gone.folder(run)
        elif gone is not None:
            refuse_superseded(run)
        if (new / RECEIPT_FILE).is_file():
            return Withdrawal(
                new, _same_receipt(new, plan.run_id, site, keep_original=keep_original), again=True
            )
        if (new / PENDING_FILE).is_file():
            pending = _read_pending(new, plan.run_id, site, keep_original=keep_original)
        else:
            pending = _make(read_kept_run(run), site, new, keep_original=keep_original)
        if not pending.keep_original:
            _erase(run, new, pending)
        receipt = _write_receipt(new, pending, signer, now or utc_now())
        return Withdrawal(new, receipt, again=False)


def _make(kept: KeptRun, site: str, new: Path, *, keep_original: bool) -> _Pending:
    """The new run folder, whole or not there."""
    old = kept.plan
    if new.is_relative_to(kept.folder) and new != kept.folder:
        raise DerminoError(
            "CONFIG_INVALID",
            "The folder for the run without the site lies in the one that is to be erased.",
            where=new,
            fix="Choose one beside it with --out.",
        )
    if new.exists() and (not new.is_dir() or any(new.iterdir())):
        raise DerminoError(
            "OUTPUT_EXISTS",
            "The folder for the run without the site is not empty.",
            where=new,
            fix="Choose another one with --out.",
        )
    start = kept.strategy.initial_arrays(len(old.classes), old.backbone.width, old.seed)
    arrays = without_site(kept.strategy, start, kept.sums.updates(), site)
    plan = _plan_without(kept, site)
    partial = new.with_name(f".{new.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        pending = _fill(partial, kept, plan, arrays, site, new, keep_original=keep_original)
        if new.exists():
            new.rmdir()
        os.rename(partial, new)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(new.parent)
    return pending


def _fill(
    partial: Path,
    kept: KeptRun,
    plan: RunPlan,
    arrays: Arrays,
    site: str,
    new: Path,
    *,
    keep_original: bool,
) -> _Pending:
    plan.write(partial)
    rest = {name: entry for name, entry in kept.index.items() if name != site}
    sums = KeptSums(partial)
    sums.take_over(kept.sums, rest)
    sums.write_index(rest)
    _save_model(partial / "model", kept, plan, arrays, site)
    pending = _Pending(
        old_folder=os.path.relpath(kept.folder, new),
        keep_original=keep_original,
        site=site,
        run=kept.plan.run_id,
        sent_in=kept.index[site].run,
        new_run=plan.run_id,
        sums=_digests(kept, site),
        old_model=_model_digest(kept.folder),
        new_model=_model_digest(partial),
        trained_on=sorted(rest),
        erased=[] if keep_original else to_erase(kept, site, new),
        not_undone=not_undone(kept, site, new, keep_original=keep_original),
    )
    write_atomically(partial / PENDING_FILE, pending.model_dump_json(indent=1) + "\n")
    return pending


def _digests(kept: KeptRun, site: str) -> dict[str, str]:
    """Of the leaving site's sums as they travelled; if they are lost already, as noted then."""
    noted = kept.index[site]
    try:
        found = digests_as_sent(kept.sums.read(site, noted.sha256).arrays)
    except DerminoError:
        return noted.as_sent
    if found != noted.as_sent:
        raise DerminoError(
            "CHECKPOINT_INVALID",
            f"The kept sums of {site} are not those that were noted when they came.",
            where=kept.sums.folder,
            fix="Bring the folder back from a backup, or run again with the sites that stay.",
        )
    return found


def _plan_without(kept: KeptRun, site: str) -> RunPlan:
    """The plan of a run of the others, all of whose sums are there: --resume evaluates it."""
    old = kept.plan
    sites = [name for name in old.sites if name != site]
    usual = f"{old.task}: {', '.join(old.sites)}"
    new_title = f"{old.task}: {', '.join(sites)}"
    quorum = min(old.min_sites, len(sites))
    personal = old.personal and (old.privacy is not None or quorum >= FEWEST_FOR_PERSONAL)
    changed = {
        "run_id": uuid4().hex,
        "title": new_title if old.title == usual else f"{old.title}, without {site}",
        "sites": sites,
        "min_sites": quorum,
        "personal": personal,
        "extends": old.run_id,
        "earlier": kept.counts([name for name in kept.sites if name != site]),
        "withdrawn": sorted({*old.withdrawn, site}),
        "data_digests": {name: d for name, d in old.data_digests.items() if name != site},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dermino_version": __version__,
    }
    return make_plan(**(dict(old) | changed))


def _save_model(folder: Path, kept: KeptRun, plan: RunPlan, arrays: Arrays, site: str) -> None:
    info = kept.model.model_copy(
        update={
            "title": plan.title,
            "created": plan.created,
            "dermino_version": __version__,
            "trained_on": plan.earlier,
        }
    )
    results = Results(
        dermino_version=__version__,
        created=plan.created,
        title=plan.title,
        task=plan.task,
        classes=plan.classes,
        strategy=plan.strategy,
        engine=plan.engine,
        rounds_planned=plan.rounds,
        rounds_done=plan.rounds,
        seed=plan.seed,
        backbone=plan.backbone,
        machine=describe_machine(),
        models=[],
        sites=[],
        mean={},
        rounds=[],
        warnings=[
            "This model has not been evaluated: scores of an earlier one are not its own. "
            "`dermino federate --resume` (`dermino simulate --resume`) with its run folder asks "
            "the sites to evaluate it.",
            f"Made after {site} withdrew, from what the other sites had sent; it is the model of "
            f"a run in which {site} was never asked.",
        ],
    )
    save_model(folder, kept.strategy.head(arrays), info, results)


def _erase(run: Path, new: Path, pending: _Pending) -> None:
    """Mark the old run first, so that nobody goes on with half of it."""
    if read_superseded(run) is None:
        Superseded(
            site=pending.site, new_run=pending.new_run, new_folder=os.path.relpath(new, run)
        ).write(run)
    for name in (SUMS_FOLDER, "checkpoints"):
        if (run / name).exists():
            shutil.rmtree(run / name)
    _sync(run)


def _write_receipt(new: Path, pending: _Pending, signer: Signer, now: datetime) -> Receipt:
    content = pending.model_dump(exclude={"old_folder", "keep_original"})
    unsigned = Receipt(
        **content,
        created=now,
        dermino_version=__version__,
        key=signer.public,
        certificate=signer.certificate,
        signature="A",
    )
    receipt = sign_receipt(unsigned, signer.key)
    write_atomically(new / RECEIPT_FILE, receipt.text())
    (new / PENDING_FILE).unlink()
    _sync(new)
    return receipt


def _read_pending(new: Path, run_id: str, site: str, *, keep_original: bool) -> _Pending:
    try:
        pending = _Pending.model_validate_json((new / PENDING_FILE).read_bytes())
    except ValidationError as error:
        raise DerminoError(
            "CHECKPOINT_INVALID", "The mark of a withdrawal is damaged.", where=new / PENDING_FILE
        ) from error
    if (pending.run, pending.site, pending.keep_original) != (run_id, site, keep_original):
        raise _other_withdrawal(new)
    return pending


def _same_receipt(new: Path, run_id: str, site: str, *, keep_original: bool) -> Receipt:
    """The receipt of this very withdrawal, which ended before."""
    receipt = read_receipt(new / RECEIPT_FILE)
    if (receipt.run, receipt.site) != (run_id, site):
        raise _other_withdrawal(new)
    if not receipt.erased and not keep_original:
        raise DerminoError(
            "OUTPUT_EXISTS",
            "This withdrawal was done with --keep-original, and its receipt says that nothing "
            "was erased.",
            where=new,
            fix="To erase now, choose another folder with --out.",
        )
    (new / PENDING_FILE).unlink(missing_ok=True)
    return receipt


def _other_withdrawal(new: Path) -> DerminoError:
    return DerminoError(
        "OUTPUT_EXISTS",
        "The folder holds another withdrawal.",
        where=new,
        fix="Choose another one with --out.",
    )


def _model_digest(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _explained(run: Path) -> Iterator[None]:
    """A disk that is full or read-only, in words."""
    try:
        yield
    except OSError as error:
        raise _unwritable(Path(error.filename or run), str(error.strerror or error)) from error


def _unwritable(where: Path, reason: str) -> DerminoError:
    return DerminoError(
        "CONFIG_INVALID",
        f"The withdrawal could not be ended: {reason}. No sums of other sites are lost.",
        where=where,
        fix="Mend the disk, or give the command as the user whom the run folder belongs to: what "
        "is done already is not done twice. With --keep-original the run folder is only read.",
    )
