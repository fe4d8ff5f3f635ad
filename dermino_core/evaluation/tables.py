"""Tables of an evaluation: tidy CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dermino_core.evaluation.comparisons import COMPARED
from dermino_core.evaluation.measure import EVERYONE
from dermino_core.evaluation.metric_names import metric_name
from dermino_core.evaluation.results import EvaluationResults, Score
from dermino_core.files import write_atomically

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_MARKDOWN = re.compile(r"([|\\`*_<>\[\]])")


@dataclass(frozen=True)
class ScoreTable:
    """One metric of one method: backbones down, data sets across.

    `best` has the best value of each column; `beyond` those that are also
    better than every other backbone beyond chance.
    """

    task: str
    method: str
    metric: str
    datasets: tuple[str, ...]
    backbones: tuple[str, ...]
    cells: dict[tuple[str, str], Score]
    best: frozenset[tuple[str, str]]
    beyond: frozenset[tuple[str, str]]


def score_tables(results: EvaluationResults) -> list[ScoreTable]:
    """The tables of everything about whole test halves, in the order of the results.

    Groups of people and settings (`share=0.05`) are in `results.csv` and on the page.
    """
    kinds = dict.fromkeys(
        (score.task, score.method, score.metric)
        for score in results.scores
        if score.group == EVERYONE and not score.setting
    )
    return [_table(results, *kind) for kind in kinds]


def _table(results: EvaluationResults, task: str, method: str, metric: str) -> ScoreTable:
    cells = {
        (s.backbone, s.dataset): s
        for s in results.scores
        if (s.task, s.method, s.metric) == (task, method, metric)
        and s.group == EVERYONE
        and not s.setting
    }
    backbones = tuple(dict.fromkeys(backbone for backbone, _ in cells))
    datasets = tuple(dict.fromkeys(dataset for _, dataset in cells))
    name = metric_name(metric)
    lower = name.lower_is_better
    best_of = min if lower else max
    better = {
        (row.dataset, *((row.first, row.second)[:: 1 if (row.difference > 0) != lower else -1]))
        for row in results.comparisons
        if row.beyond_chance
        and row.test == "paired bootstrap"
        and (row.task, row.method, row.metric) == (task, method, metric)
    }
    best, beyond = set(), set()
    for dataset in datasets if len(backbones) > 1 and name.ranked else ():
        values = {
            backbone: value
            for backbone in backbones
            if (score := cells.get((backbone, dataset))) and (value := score.value) is not None
        }
        for backbone, value in values.items() if len(values) > 1 else ():
            if value == best_of(values.values()):
                best.add((backbone, dataset))
                if all(
                    (dataset, backbone, other) in better for other in values.keys() - {backbone}
                ):
                    beyond.add((backbone, dataset))
    return ScoreTable(
        task, method, metric, datasets, backbones, cells, frozenset(best), frozenset(beyond)
    )


def write_tables(results: EvaluationResults, out: Path) -> None:
    """Write `results.csv`, `tables.md` and `tables.tex`."""
    write_atomically(out / "results.csv", as_csv(results.scores))
    write_atomically(out / "tables.md", as_markdown(results))
    write_atomically(out / "tables.tex", as_latex(results))


def as_csv(scores: Sequence[Score]) -> str:
    """One line for each score; undefined numbers are empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = list(Score.model_fields)
    writer.writerow(names)
    for score in scores:
        values = score.model_dump()
        writer.writerow(["" if values[name] is None else values[name] for name in names])
    return buffer.getvalue()


def as_text(results: EvaluationResults) -> str:
    """The main numbers for a terminal: AUROC, Dice and their like, one line each."""
    lines = []
    for table in score_tables(results):
        if table.metric not in COMPARED or table.metric == "f1":
            continue
        for dataset in table.datasets:
            for backbone in table.backbones:
                value, interval = _written(table.cells.get((backbone, dataset)), dash="-")
                where = f"{table.task}, {table.method}"
                lines.append(
                    f"{dataset:<14} {where:<38} {table.metric:<8} {backbone:<24} {value} {interval}"
                )
    return "\n".join(lines)


def as_markdown(results: EvaluationResults) -> str:
    """All tables, each under its task and metric."""
    parts = [f"# {_markdown(results.title)}\n", _legend(results) + "\n"]
    for table in score_tables(results):
        parts.append(f"## {_markdown(_title(table))}\n")
        parts.append("| " + " | ".join(["", *map(_markdown, table.datasets)]) + " |")
        parts.append("|---" * (len(table.datasets) + 1) + "|")
        for backbone in table.backbones:
            cells = [_markdown_cell(table, backbone, dataset) for dataset in table.datasets]
            parts.append("| " + " | ".join([_markdown(backbone), *cells]) + " |")
        parts.append("")
    return "\n".join(parts)


def _markdown_cell(table: ScoreTable, backbone: str, dataset: str) -> str:
    value, interval = _written(table.cells.get((backbone, dataset)))
    value = f"**{value}**" if (backbone, dataset) in table.best else value
    mark = " †" if (backbone, dataset) in table.beyond else ""
    return f"{value}{mark} {interval}".strip()


def as_latex(results: EvaluationResults) -> str:
    """All tables for `\\usepackage{booktabs}`."""
    parts = [f"% {_legend(results)}"]
    for table in score_tables(results):
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(_title(table))}}}",
            rf"\begin{{tabular}}{{l{'c' * len(table.datasets)}}}",
            r"\toprule",
            " & ".join(["", *map(_latex, table.datasets)]) + r" \\",
            r"\midrule",
        ]
        for backbone in table.backbones:
            cells = []
            for dataset in table.datasets:
                value, interval = _written(table.cells.get((backbone, dataset)), dash="--")
                if (backbone, dataset) in table.best:
                    value = rf"\textbf{{{value}}}"
                if (backbone, dataset) in table.beyond:
                    value += r"$^\dagger$"
                cells.append(f"{value} {interval}".strip())
            parts.append(" & ".join([_latex(backbone), *cells]) + r" \\")
        parts += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(parts) + "\n"


def _title(table: ScoreTable) -> str:
    return f"{table.task}, {table.method}: {metric_name(table.metric).title}"


def _legend(results: EvaluationResults) -> str:
    if results.statistics == "paper":
        return (
            "Value (mean +- variance of the replicates as in the paper, no confidence interval, "
            f"{results.replicates} replicates). Bold: the best value."
        )
    return (
        f"Value (95 % bootstrap interval, {results.replicates} replicates). Bold: the best value. "
        "†: better than every other backbone beyond chance (Holm-adjusted p below 0.05)."
    )


def _written(score: Score | None, *, dash: str = "–") -> tuple[str, str]:
    if score is None or score.value is None:
        return dash, ""
    if score.low is None or score.high is None:
        return f"{score.value:.3f}", ""
    return f"{score.value:.3f}", f"({score.low:.3f}{dash}{score.high:.3f})"


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
