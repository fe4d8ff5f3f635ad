"""Evaluate backbones on data sets: embed each image once, then run every task on the features."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from dermino_core import __version__
from dermino_core.backbone import describe_backbone
from dermino_core.errors import DerminoError
from dermino_core.evaluation.cohort import Cohort, Division, divide_cohort, summary
from dermino_core.evaluation.comparisons import Found, compare, too_few_replicates
from dermino_core.evaluation.paper_statistics import paper_interval
from dermino_core.evaluation.parts import content_of, part_key, read_part, write_part
from dermino_core.evaluation.results import (
    CurveOf,
    DatasetSummary,
    EvaluationResults,
    ProjectionOf,
    Score,
    Skipped,
)
from dermino_core.evaluation.tasks import TASKS
from dermino_core.evaluation.work import Options, Work
from dermino_core.features import FeatureTable, extract_features
from dermino_core.files import write_atomically
from dermino_core.machine import describe_machine
from dermino_core.results import BackboneInfo, Results

PROJECTED = 2000
"""Most images of a t-SNE."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
"""Of files whose name without it names the backbone."""


@dataclass(frozen=True)
class Plan:
    """What is evaluated on what.

    Attributes
    ----------
    backbones
        Specs; see :data:`dermino_core.backbone_spec.SPEC_GRAMMAR`.
    tasks
        Names of :data:`dermino_core.evaluation.tasks.TASKS`. A task that was named and does not
        fit a data set is listed as skipped; with `whatever_fits` it is passed over in silence.
    cache
        Of features.
    title
        Of the report; by default the backbones' names.
    missing
        What was asked for and could not be made a cohort.
    federation
        Results of a federated run, to be shown beside (the paper's Fig. 6).
    """

    backbones: Sequence[str]
    cohorts: Sequence[Cohort]
    tasks: Sequence[str]
    cache: Path
    options: Options = field(default_factory=Options)
    whatever_fits: bool = False
    statistics: Literal["percentile", "paper"] = "percentile"
    title: str | None = None
    missing: Sequence[Skipped] = ()
    federation: Results | None = None


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


@dataclass
class _State:
    """What has been found so far."""

    plan: Plan
    out: Path
    clock: _Clock = field(default_factory=_Clock)
    found: list[Found] = field(default_factory=list)
    backbones: dict[str, BackboneInfo] = field(default_factory=dict)
    datasets: dict[str, DatasetSummary] = field(default_factory=dict)
    projections: list[ProjectionOf] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    leaks: dict[str, tuple[str, ...]] = field(default_factory=dict)


def evaluate(plan: Plan, out: Path) -> EvaluationResults:
    """Run every task for every backbone on every data set; write `out/results.json`.

    What cannot be done (a data set without readable images, a task without its masks) is listed
    under `skipped`, and the rest goes on. Called again with the same plan and folder, what is
    finished is not computed again.

    Raises
    ------
    DerminoError
        BACKBONE_UNAVAILABLE and its like before anything is computed; CONFIG_INVALID if two data
        sets have one name.
    """
    _check_names([cohort.name for cohort in plan.cohorts], "data sets")
    cards = {spec: describe_backbone(spec, cache_dir=plan.cache) for spec in plan.backbones}
    names = dict(zip(plan.backbones, _short_names(plan.backbones), strict=True))
    out.mkdir(parents=True, exist_ok=True)
    state = _State(plan, out, skipped=list(plan.missing))
    for cohort in plan.cohorts:
        for spec in plan.backbones:
            try:
                _evaluate_one(state, cohort, spec, names[spec], cards[spec].fingerprint)
            except DerminoError as error:
                state.skipped.append(_skipped(cohort.name, "all", names[spec], error))
    results = _results(state)
    write_atomically(out / "results.json", results.model_dump_json(indent=1) + "\n")
    return results


def _evaluate_one(state: _State, cohort: Cohort, spec: str, name: str, fingerprint: str) -> None:
    plan, options = state.plan, state.plan.options
    with state.clock.stage("features"):
        table = extract_features(
            cohort.paths,
            spec,
            cache=plan.cache,
            precision=options.precision,
            device=options.device,
            title=f"{cohort.name} with {name}",
        )
    state.backbones[name] = BackboneInfo.of(table.card, table.precision).model_copy(
        update={"name": name}
    )
    division = divide_cohort(cohort, table, seed=options.seed)
    state.leaks[cohort.name] = division.notes
    notes = state.notes.setdefault(cohort.name, {}).setdefault(name, [])
    work = Work(cohort, division, table, name, spec, options, state.out)
    identity = {
        "fingerprint": fingerprint,
        "precision": table.precision,
        "data": _digest(cohort, division, table),
    }
    for task in plan.tasks:
        if (reason := TASKS[task].why_not(work)) is not None:
            skipped = Skipped(dataset=cohort.name, task=task, code="DATA_TOO_FEW", sentence=reason)
            if not plan.whatever_fits and skipped not in state.skipped:
                state.skipped.append(skipped)
            continue
        key = part_key(task=task, depends=TASKS[task].depends_on(work), **identity)
        outcome = read_part(state.out / "parts", key)
        if outcome is None:
            try:
                with state.clock.stage(task):
                    outcome = TASKS[task].run(work)
            except DerminoError as error:
                state.skipped.append(_skipped(cohort.name, task, name, error))
                continue
            write_part(state.out / "parts", key, outcome)
        work.earlier[task] = outcome
        notes += [note for note in outcome.notes if note not in notes]
        labels, units = work.test_labels_and_units() if outcome.predictions else (None, None)
        classes = 0
        if outcome.rocs or outcome.calibrations:
            classes = 2 if task == "longitudinal" else len(work.halves.classes)
        state.found.append(Found(cohort.name, task, name, outcome, labels, units, classes))
    notes += [note for note in work.label_notes if note not in notes]
    with state.clock.stage("projection"):
        file = state.out / "parts" / f"{part_key(task='projection', **identity)}.json"
        state.projections.append(_kept_projection(work, file))
    state.datasets[cohort.name] = summary(
        cohort, division, table, _attributed(state.notes[cohort.name])
    )


def _attributed(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Notes of all backbones; those that not every one has begin with its name."""
    everyone = [
        note
        for note in dict.fromkeys(note for those in notes.values() for note in those)
        if all(note in those for those in notes.values())
    ]
    rest = [
        f"{backbone}: {note}"
        for backbone, those in notes.items()
        for note in those
        if note not in everyone
    ]
    return [*everyone, *rest]


def _digest(cohort: Cohort, division: Division, table: FeatureTable) -> str:
    """Of everything in the data that a task's numbers depend on."""
    return part_key(
        digests=table.digests,
        records=[[getattr(record, name) for name in record.__slots__] for record in cohort.records],
        table=content_of(cohort.manifest.file),
        classes=cohort.classes,
        train=division.train.tolist(),
        test=division.test.tolist(),
    )


def _kept_projection(work: Work, file: Path) -> ProjectionOf:
    """The projection in `file`, or a new one, which is kept there."""
    try:
        return ProjectionOf.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = _projection(work)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, found.model_dump_json())
        return found


def _projection(work: Work) -> ProjectionOf:
    from dermino_core.reporting.projection import to_plane

    rows = work.division.test
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), PROJECTED)).astype(int)]
    plane = to_plane(work.features_of(rows))
    return ProjectionOf(
        dataset=work.cohort.name,
        backbone=work.backbone,
        x=[round(float(x), 3) for x in plane[:, 0]],
        y=[round(float(y), 3) for y in plane[:, 1]],
        label=[work.cohort.records[row].label or "" for row in rows],
    )


def _results(state: _State) -> EvaluationResults:
    plan = state.plan
    comparisons = compare(state.found, plan.statistics)
    needed = too_few_replicates(comparisons, plan.options.replicates)
    warnings = _warnings(state)
    if needed is not None:
        warnings.append(
            f"With {plan.options.replicates} replicates the paired bootstrap cannot find a "
            "difference beyond chance in the task with the most comparisons: use --replicates "
            f"{needed}."
        )
    return EvaluationResults(
        dermino_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        title=plan.title or _title(list(state.backbones)),
        seed=plan.options.seed,
        replicates=plan.options.replicates,
        statistics=plan.statistics,
        machine=describe_machine(),
        backbones=list(state.backbones.values()),
        datasets=list(state.datasets.values()),
        scores=[score for one in state.found for score in _scores(one, plan.statistics)],
        comparisons=comparisons,
        curves=[curve for one in state.found for curve in _curves(one)],
        projections=state.projections,
        federation=plan.federation,
        skipped=state.skipped,
        seconds={name: round(value, 2) for name, value in state.clock.seconds.items()},
        warnings=warnings,
    )


def _scores(found: Found, statistics: str) -> Iterator[Score]:
    for measure in found.outcome.measures:
        low, high = measure.low, measure.high
        if statistics == "paper" and measure.value is not None and measure.replicates is not None:
            low, high = paper_interval(measure.replicates)
        yield Score(
            dataset=found.dataset,
            task=found.task,
            backbone=found.backbone,
            method=measure.method,
            metric=measure.metric,
            group=measure.group,
            setting=measure.setting,
            value=measure.value,
            low=low,
            high=high,
            standard_error=measure.standard_error,
            n=measure.n,
            undefined_because=measure.undefined_because,
        )


def _curves(found: Found) -> Iterator[CurveOf]:
    outcome = found.outcome
    for method in dict.fromkeys([*outcome.rocs, *outcome.calibrations]):
        yield CurveOf(
            dataset=found.dataset,
            task=found.task,
            backbone=found.backbone,
            method=method,
            classes=found.classes,
            roc=outcome.rocs.get(method),
            calibration=outcome.calibrations.get(method),
        )


def _warnings(state: _State) -> list[str]:
    warnings = [
        f"{info.name} {why}: it is here to try the software, not to be used."
        for info in state.backbones.values()
        if (why := info.unfit_because)
    ]
    if state.plan.statistics == "paper":
        warnings.append(
            "Intervals of numbers that have replicates are mean +- variance, as the paper prints "
            "them, and tests are t-tests over replicates: these are no confidence intervals, and "
            "nearly every difference is called significant."
        )
    warnings += [f"{name}: {note}" for name, those in state.leaks.items() for note in those]
    for data in state.datasets.values():
        if data.unreadable:
            warnings.append(f"{data.name}: {data.unreadable} images could not be read.")
        if not data.grouped:
            warnings.append(
                f"{data.name} does not say which images show one patient or lesion: if some do, "
                "its intervals are too narrow and both halves may know each other."
            )
    return warnings


def _skipped(dataset: str, task: str, backbone: str, error: DerminoError) -> Skipped:
    return Skipped(
        dataset=dataset, task=task, backbone=backbone, code=error.code, sentence=error.what
    )


def _check_names(names: Sequence[str], what: str) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DerminoError(
            "CONFIG_INVALID",
            f"Two {what} are called {twice[0]!r}.",
            fix="Name them: NAME=FILE.",
        )


def _title(backbones: Sequence[str]) -> str:
    return " against ".join(backbones) if 0 < len(backbones) < 4 else f"{len(backbones)} backbones"


def _short_names(specs: Sequence[str]) -> list[str]:
    """Names for people: a folder's or file's own name where the specs stay apart by it."""
    short = [_short_name(spec) for spec in specs]
    return short if len(set(short)) == len(short) else list(specs)


def _short_name(spec: str) -> str:
    if "/" not in spec or ":" in spec or "@" in spec:
        return spec.partition("@")[0]
    path = Path(spec)
    if path.suffix in WEIGHT_SUFFIXES:
        return path.stem
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def write_configuration(plan: Plan, out: Path) -> None:
    """Write `out/run.json`: what was asked for."""
    content = {
        "kind": "evaluation",
        "dermino_version": __version__,
        "backbones": list(plan.backbones),
        "data": {cohort.name: str(cohort.manifest.file) for cohort in plan.cohorts},
        "tasks": list(plan.tasks),
        "statistics": plan.statistics,
        "options": plan.options.as_json(),
    }
    write_atomically(out / "run.json", json.dumps(content, indent=1) + "\n")
