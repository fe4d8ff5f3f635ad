"""What a run gave this hospital, kept for the hospital: the whole evaluation, in every mode.

In a private or secure run part of it, or all of it, does not leave the building; here it is, with
the hospital's personal model as a model folder beside it, where the run made one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from dermino_client.hospital import Hospital
from dermino_client.personal_work import PersonalPart
from dermino_client.prepare import PreparedSite
from dermino_core import __version__
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.model_folder import ModelInfo, SiteCount, interval_of, write_model
from dermino_core.private_files import private_folder
from dermino_core.results import BackboneInfo
from dermino_strategies.protocol import EvaluateReply, Task

FOLDER = "results"


class OwnResults(EvaluateReply):
    """`results/RUN.json`: the whole evaluation, and what it was of."""

    task: Task | None = None
    date: str | None = None
    sentence: str | None = None
    """What joining gives this hospital, in a run with personal models."""


def results_file(folder: Path, run_id: str) -> Path:
    """Where the results of a run are, in a site's folder."""
    return folder / FOLDER / f"{run_id}.json"


def personal_folder(folder: Path, run_id: str) -> Path:
    """Where the personal model of a run is, in a site's folder."""
    return folder / FOLDER / f"{run_id}-personal"


def keep_evaluation(
    hospital: Hospital, task: Task, reply: EvaluateReply, own: PersonalPart | None = None
) -> Path:
    """Write `results/RUN.json` in the site's folder, and the personal model's folder beside it.

    Raises
    ------
    DerminoError
        `JOURNAL_UNWRITABLE` if it cannot be written.
    """
    from dermino_core.joining_curve import sentence

    file = results_file(hospital.folder, task.run_id)
    kept = OwnResults(
        **dict(reply),
        task=task,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        sentence=sentence(own.joining) if own else None,
    )
    try:
        private_folder(file.parent)
        if own is not None:
            _keep_model(personal_folder(hospital.folder, task.run_id), hospital, kept, own)
        write_atomically(file, kept.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise DerminoError(
            "JOURNAL_UNWRITABLE",
            f"This site's own results cannot be written: {error.strerror}.",
            where=file,
            fix="Nothing was sent. Check the disk and who owns the folder.",
        ) from error
    return file


def read_own(file: Path) -> OwnResults | None:
    """What :func:`keep_evaluation` wrote; None for a file of another kind of run.

    Raises
    ------
    DerminoError
        `RESULTS_INVALID` if there is no such file.
    """
    try:
        return OwnResults.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        return None
    except OSError as error:
        raise DerminoError(
            "RESULTS_INVALID",
            f"This site has no results of that run: {error.strerror}.",
            where=file,
            fix="Without --run the command takes the newest, and lists the others.",
        ) from error


def _keep_model(folder: Path, hospital: Hospital, kept: OwnResults, own: PersonalPart) -> None:
    site, task = hospital.prepared, kept.task
    if task is None:
        raise TypeError("results without a task")
    info = ModelInfo(
        title=f"{task.name}: personal model of {hospital.name}",
        task=task.name,
        classes=task.classes,
        backbone=BackboneInfo.of(site.card, site.precision),
        backbone_spec=site.card.name,
        strategy=task.strategy,
        rounds=task.rounds,
        seed=task.seed,
        created=kept.date or "",
        dermino_version=__version__,
        trained_on=[
            SiteCount(site=hospital.name, images=kept.n_train, classes=kept.train_class_counts)
        ],
    )
    write_model(folder, own.model.head, info, _card(info, kept, site, own))


def _card(info: ModelInfo, kept: OwnResults, site: PreparedSite, own: PersonalPart) -> str:
    """The model card: what it is, how it did here, and what not to do with it."""
    counts = ", ".join(f"{label} {n}" for label, n in kept.train_class_counts.items())
    scores = "\n".join(
        f"| {title} | {interval_of(kept.evaluations[key].auroc)} "
        f"| {interval_of(kept.evaluations[key].f1)} |"
        for key, title in TITLES.items()
        if key in kept.evaluations
    )
    weight = own.model.others_count_as
    others = (
        "This hospital's labels could not take part: it is the federated model."
        if weight is None
        else f"The images of all other hospitals together count as {weight:.0f} of its own."
    )
    return f"""# {info.title}

A linear head for the task *{info.task}* (classes: {", ".join(info.classes)}) on the frozen backbone
`{info.backbone.name}` (fingerprint `{info.backbone.fingerprint[:16]}`), made by this hospital for
itself on {info.created}, from its own {kept.n_train} training images ({counts}) and the sums of the
other hospitals of run `{kept.task.run_id if kept.task else ""}`. {others}

Intended use: research at this hospital. Not a medical device, not for diagnosis.

## On this hospital's test half ({kept.n_test} images; 95 % intervals)

| Model | AUROC | F1 |
| --- | --- | --- |
{scores}

{kept.sentence or ""}

## Read this first

- It was made on this machine and has not left it. It tells about this hospital's patients as any
  model that was trained on their images without noise does: share it only if you would share that.
- Its probabilities stand for the shares of the classes among this hospital's training images, or
  for equal shares where the run's settings say `prior = "equal"`.
- {site.unreadable} of this hospital's images could not be read.

## Use

    dermino predict --model THIS_FOLDER IMAGE...
"""


TITLES = {
    "local": "Alone, with the run's method",
    "local_converged": "Alone, converged",
    "global": "Federated",
    "personal": "Personal",
}
"""Models of a site's own results, in the order in which they are shown."""
