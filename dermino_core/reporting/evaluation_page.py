"""The page of an evaluation: which backbone, how good, for whom, and whether it may be chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dermino_core.evaluation.comparisons import COMPARED
from dermino_core.evaluation.measure import EVERYONE
from dermino_core.evaluation.metric_names import metric_name
from dermino_core.evaluation.results import EvaluationResults, Score
from dermino_core.evaluation.tables import ScoreTable, score_tables
from dermino_core.files import write_atomically
from dermino_core.reporting.document import (
    definitions,
    document,
    header,
    section,
    warning_box,
)
from dermino_core.reporting.evaluation_figures import (
    bar_figures,
    calibration_figures,
    fairness_figures,
    maps,
    roc_figures,
    share_figures,
)
from dermino_core.reporting.evaluation_text import (
    answer,
    headline,
    means,
    terms,
    verdict,
)
from dermino_core.reporting.figures import forest, grid
from dermino_core.reporting.markup import escape, paragraphs, table
from dermino_core.reporting.numbers import UNDEFINED, count, decimal, duration, plural
from dermino_core.reporting.plots.colours import MODEL_COLOURS
from dermino_core.reporting.plots.legend import model_legend
from dermino_core.reporting.tables import heat_table


def write_evaluation_report(results: EvaluationResults, out: Path) -> Path:
    """Write the page and return its path. The same results give the same bytes.

    Parameters
    ----------
    out
        The file to write, or an existing folder, which gets a `report.html`.
    """
    file = out / "report.html" if out.is_dir() else out
    write_atomically(file, render_evaluation_page(results))
    return file


def render_evaluation_page(results: EvaluationResults) -> str:
    """The HTML of the report."""
    backbones = [info.name for info in results.backbones]
    parts = (
        header(results.title, _facts_line(results)),
        _answer(results, backbones),
        warning_box("Before you rely on it", [*results.warnings, *_repeating(backbones)]),
        *_tasks(results, backbones),
        _overview(results, backbones),
        _comparisons(results),
        _titled("labels", "How many labels", share_figures(results, backbones)),
        _titled("fairness", "For whom", fairness_figures(results, backbones)),
        _federation(results),
        _titled("roc", "ROC curves", roc_figures(results, backbones)),
        _titled("curves", "Calibration curves", calibration_figures(results, backbones)),
        _titled("maps", "Maps of the features", maps(results)),
        _data(results),
        _skipped(results),
        section("reading", "How to read this", definitions(terms(results), "glossary")),
        _facts(results),
    )
    return document(results.title, parts)


def _repeating(backbones: Sequence[str]) -> list[str]:
    if len(backbones) <= MODEL_COLOURS:
        return []
    return [
        f"Colours repeat after {MODEL_COLOURS} backbones: in the figures, "
        f"{backbones[MODEL_COLOURS]} looks like {backbones[0]}. The tables name each."
    ]


def _titled(identifier: str, title: str, content: str) -> str:
    return section(identifier, title, content) if content else ""


def _facts_line(results: EvaluationResults) -> Iterator[str]:
    yield plural(len(results.backbones), "backbone")
    yield plural(len(results.datasets), "data set")
    yield f"{count(sum(data.n_test for data in results.datasets))} test images"
    yield results.created[:10]


def _answer(results: EvaluationResults, backbones: Sequence[str]) -> str:
    first = headline(results)
    if first is None:
        said = "See the sections below." if results.scores else "Nothing was measured."
        return section("answer", "The answer", paragraphs([said], "lead"))
    title = metric_name(first.metric).title
    below = escape(f"mean {title}, {first.task}")
    ranking = means(first)
    items = "".join(
        f"<li><span>{escape(who)}</span><strong>{decimal(ranking[who])}</strong>"
        f'<span class="interval">{below}</span></li>'
        for who in backbones
        if who in ranking
    )
    cards = f'<ul class="cards">{items}</ul>' if items else ""
    return section("answer", "The answer", paragraphs(answer(results, first), "lead"), cards)


def _tasks(results: EvaluationResults, backbones: Sequence[str]) -> Iterator[str]:
    """One section for each task: bars and every number."""
    tables = score_tables(results)
    legend = model_legend(backbones, line=False) if len(backbones) > 1 else ""
    for task in dict.fromkeys(score.task for score in results.scores):
        own = [found for found in tables if found.task == task]
        figures = [
            figure
            for place, found in enumerate(own)
            if found.metric in COMPARED
            for figure in bar_figures(found, backbones, key=f"bars-{task}-{place}")
        ]
        drawn = legend + grid(figures) if figures else ""
        title = task.replace("_", " ").capitalize()
        yield section(task, title, drawn, _score_table(own), _parts_table(results, task))


def _score_table(tables: Sequence[ScoreTable]) -> str:
    datasets = list(dict.fromkeys(data for found in tables for data in found.datasets))
    rows = [
        [
            escape(f"{metric_name(found.metric).title}, {found.method}"),
            escape(backbone),
            *(_cell(found, backbone, data) for data in datasets),
        ]
        for found in tables
        for backbone in found.backbones
    ]
    if not rows:
        return ""
    return table(["Measure", "Backbone", *datasets], rows, label="Scores with intervals")


def _parts_table(results: EvaluationResults, task: str) -> str:
    """Groups of people, operating points, shares of the labels: folded away."""
    parts = [
        score
        for score in results.scores
        if score.task == task and (score.group != EVERYONE or score.setting)
    ]
    rows = [
        [
            escape(f"{metric_name(score.metric).title}, {score.method}"),
            escape(", ".join(p for p in (score.group, score.setting) if p not in ("", EVERYONE))),
            escape(score.dataset),
            escape(score.backbone),
            _value(score),
            count(score.n),
        ]
        for score in parts
    ]
    if not rows:
        return ""
    head = ["Measure", "Of", "Data set", "Backbone", "Value", "n"]
    inside = table(head, rows, label="Groups and settings")
    title = f"Groups and settings: {plural(len(rows), 'number')}"
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def _cell(found: ScoreTable, backbone: str, dataset: str) -> str:
    score = found.cells.get((backbone, dataset))
    if score is None:
        return UNDEFINED
    mark = ""
    if (backbone, dataset) in found.beyond:
        mark = ' <abbr title="better than every other beyond chance">†</abbr>'
    return _value(score, best=(backbone, dataset) in found.best, mark=mark)


def _value(score: Score, *, best: bool = False, mark: str = "") -> str:
    """The number, its interval, or why there is none."""
    if score.value is None:
        why = escape((score.undefined_because or "undefined").rstrip("."))
        return f'<span class="undefined">{UNDEFINED} <span class="why">{why}</span></span>'
    value = f'<span class="value">{decimal(score.value)}</span>'
    value = f"<strong>{value}</strong>{mark}" if best else value
    if score.low is None or score.high is None:
        return value
    return f'{value} <span class="interval">{decimal(score.low)}–{decimal(score.high)}</span>'


def _overview(results: EvaluationResults, backbones: Sequence[str]) -> str:
    """Every AUROC at a glance (the paper's Fig. 5d)."""
    chosen = [found for found in score_tables(results) if found.metric == "auroc"]
    places = [(found, data) for found in chosen for data in found.datasets]
    if len(places) < 2:
        return ""
    rows = [f"{data}: {found.task}, {found.method}" for found, data in places]
    values = [
        [score.value if (score := found.cells.get((who, data))) else None for who in backbones]
        for found, data in places
    ]
    heat = heat_table(
        rows,
        backbones,
        values,
        corner=("task ↓", "backbone →"),
        caption="AUROC",
        label="AUROC of every backbone in every task",
    )
    return section("overview", "All at a glance", heat)


def _comparisons(results: EvaluationResults) -> str:
    rows = [
        [
            escape(f"{row.first} − {row.second}"),
            escape(row.dataset),
            escape(f"{row.task}, {row.method}: {metric_name(row.metric).title}"),
            f'<span class="value">{decimal(row.difference, signed=True)}</span> <span '
            f'class="interval">{decimal(row.low, signed=True)} to '
            f"{decimal(row.high, signed=True)}</span>",
            escape(row.test),
            _p_value(row.p_adjusted),
            escape(verdict(row)),
        ]
        for row in results.comparisons
    ]
    if not rows:
        return ""
    head = ["Backbones", "Data set", "Measure", "Difference", "Test", "Adjusted p", "So"]
    return section("comparisons", "May it be chance?", table(head, rows, label="Comparisons"))


def _p_value(value: float) -> str:
    return "below 0.001" if value < 0.001 else decimal(value)


def _federation(results: EvaluationResults) -> str:
    """Every model of the federated run at every hospital (the paper's Fig. 6)."""
    federated = results.federation
    if federated is None:
        return ""
    backbone = federated.backbone.name
    said = f"{federated.title}; {federated.strategy}, {federated.rounds_done} rounds, {backbone}."
    notes = [f"Its report has the rest. {backbone} is not among the backbones of this page."]
    known = {info.fingerprint for info in results.backbones}
    if federated.backbone.fingerprint in known:
        notes = ["Its report has the rest."]
    return section("federation", "Trained together", paragraphs([said, *notes]), forest(federated))


def _data(results: EvaluationResults) -> str:
    rows = [
        [
            f"<bdi>{escape(data.title)}</bdi>",
            count(data.n_train),
            f"{count(data.n_test)} ({plural(data.units_test, 'unit')})",
            count(data.unreadable),
            escape(", ".join(f"{label} {n}" for label, n in data.test_counts.items())),
        ]
        for data in results.datasets
    ]
    head = ["Data set", "Training images", "Test images", "Unreadable", "Test labels"]
    noted = "".join(
        f"<li><bdi>{escape(data.title)}</bdi>: {escape(note)}</li>"
        for data in results.datasets
        for note in data.notes
    )
    return section(
        "data",
        "The data, and how it was used",
        table(head, rows, label="Images of each data set"),
        f"<ul>{noted}</ul>" if noted else "",
    )


def _skipped(results: EvaluationResults) -> str:
    rows = [
        [escape(one.dataset), escape(one.task), escape(one.backbone or "all"), escape(one.sentence)]
        for one in results.skipped
    ]
    if not rows:
        return ""
    head = ["Data set", "Task", "Backbone", "Why"]
    return section("skipped", "What was not done", table(head, rows, label="What was skipped"))


def _facts(results: EvaluationResults) -> str:
    facts = [
        ("dermino", results.dermino_version),
        ("machine", results.machine),
        ("seed", str(results.seed)),
        ("bootstrap replicates", count(results.replicates)),
        *(
            (
                info.name,
                f"{info.architecture}, {info.width} features, {info.precision}, fingerprint "
                f"{info.fingerprint[:12]}",
            )
            for info in results.backbones
        ),
        *((f"time for {stage}", duration(value)) for stage, value in results.seconds.items()),
    ]
    return section("facts", "Run facts", definitions(facts, "facts-list"))
