"""The figures of an evaluation: bars, curves, groups, maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from dermino_core.evaluation.measure import EVERYONE
from dermino_core.evaluation.metric_names import metric_name
from dermino_core.evaluation.reader_shares import SHARE
from dermino_core.evaluation.results import CurveOf, EvaluationResults, Score
from dermino_core.evaluation.tables import ScoreTable
from dermino_core.reporting.figures import Figure, grid
from dermino_core.reporting.markup import escape
from dermino_core.reporting.numbers import decimal
from dermino_core.reporting.plots.bands import Point, bands_plot
from dermino_core.reporting.plots.bars import MOST_GROUPS, Bar, bars_plot
from dermino_core.reporting.plots.calibration import calibration_plot
from dermino_core.reporting.plots.forest import Group, forest_plot
from dermino_core.reporting.plots.legend import model_legend
from dermino_core.reporting.plots.roc import RocLine, roc_lines_plot
from dermino_core.reporting.plots.scatter import classes_legend, classes_plot
from dermino_core.results import Estimate


def bar_figures(table: ScoreTable, backbones: Sequence[str], *, key: str) -> list[Figure]:
    """One metric on all data sets, at most six in a figure (the paper's Fig. 2 to 4)."""
    name = metric_name(table.metric)
    figures = []
    for start in range(0, len(table.datasets), MOST_GROUPS):
        part = table.datasets[start : start + MOST_GROUPS]
        groups = [(data, [_bar(table, who, data) for who in backbones]) for data in part]
        svg = bars_plot(
            groups, backbones, metric=name.title, name=f"{key}-{start}", guessing=name.guessing
        )
        figures.append(Figure(escape(f"{name.title}, {table.method}"), svg))
    return figures


def _bar(table: ScoreTable, backbone: str, dataset: str) -> Bar:
    score = table.cells.get((backbone, dataset))
    return (None, None, None) if score is None else (score.value, score.low, score.high)


def share_figures(results: EvaluationResults, backbones: Sequence[str]) -> str:
    """AUROC against the share of the training half, one figure for each data set (Fig. 6)."""
    chosen = [s for s in results.scores if s.setting.startswith(SHARE) and s.metric == "auroc"]
    figures = []
    for place, dataset in enumerate(dict.fromkeys(score.dataset for score in chosen)):
        lines = {who: list(_points(chosen, dataset, who)) for who in backbones}
        svg = bands_plot(
            lines,
            metric="AUROC",
            horizontal="Share of the training half",
            name=f"share-{place}",
        )
        figures.append(Figure(escape(dataset), svg))
    return _with_legend(figures, backbones, line=True)


def _points(scores: Iterable[Score], dataset: str, backbone: str) -> Iterator[Point]:
    for score in scores:
        if (score.dataset, score.backbone) == (dataset, backbone) and score.value is not None:
            yield float(score.setting.removeprefix(SHARE)), score.value, score.low, score.high


def fairness_figures(results: EvaluationResults, backbones: Sequence[str]) -> str:
    """AUROC of every group of people, one figure for each data set."""
    found = [s for s in results.scores if s.task == "fairness" and s.metric == "auroc"]
    found = [score for score in found if score.group != EVERYONE]
    figures = []
    for place, dataset in enumerate(dict.fromkeys(score.dataset for score in found)):
        here = [score for score in found if score.dataset == dataset]
        method = here[0].method
        groups: list[Group] = []
        for group in dict.fromkeys(score.group for score in here):
            rows = [
                (backbones.index(score.backbone), score.backbone, _estimate(score))
                for score in here
                if score.group == group and score.method == method
            ]
            if rows:
                n = next(score.n for score in here if score.group == group)
                groups.append((f"{group} (n = {n})", rows))
        if groups:
            svg = forest_plot(groups, name=f"fairness-{place}")
            figures.append(Figure(escape(dataset), svg, escape(method)))
    return _with_legend(figures, backbones, line=False)


def _estimate(score: Score) -> Estimate:
    return Estimate(
        value=score.value,
        low=score.low,
        high=score.high,
        undefined_because=score.undefined_because,
    )


def roc_figures(results: EvaluationResults, backbones: Sequence[str]) -> str:
    """ROC curves of the last method that has any, one figure for each data set."""
    figures = []
    for place, those in enumerate(_together(results, "roc")):
        lines = [
            RocLine(backbones.index(curve.backbone), curve.roc, banded=len(those) == 1)
            for curve in those
            if curve.roc is not None
        ]
        title = f"{those[0].dataset}: {those[0].task.replace('_', ' ')}"
        spoken = f"ROC curves, {title}: {', '.join(curve.backbone for curve in those)}."
        svg = roc_lines_plot(lines, name=f"roc-{place}", description=spoken)
        figures.append(Figure(escape(title), svg, escape(those[0].method)))
    return _with_legend(figures, backbones, line=True)


def calibration_figures(results: EvaluationResults, backbones: Sequence[str]) -> str:
    """Predicted against observed, one figure for each data set and backbone."""
    figures = []
    for place, those in enumerate(_together(results, "calibration")):
        for curve in those:
            if curve.calibration is None:
                continue
            svg = calibration_plot(
                curve.calibration,
                site=curve.dataset,
                model=backbones.index(curve.backbone),
                multiclass=curve.classes > 2,
                name=f"calibration-{place}-{backbones.index(curve.backbone)}",
            )
            error = decimal(curve.calibration.expected_calibration_error)
            caption = escape(f"{curve.method}, expected calibration error {error}")
            title = f"{curve.dataset}, {curve.backbone}"
            figures.append(Figure(escape(title), svg, caption))
    return grid(figures, small=True) if figures else ""


def _together(results: EvaluationResults, kind: str) -> list[list[CurveOf]]:
    """Curves of one figure: one task on one data set, the last method listed, every backbone."""
    found = []
    having = [curve for curve in results.curves if getattr(curve, kind) is not None]
    for place in dict.fromkeys((curve.dataset, curve.task) for curve in having):
        those = [curve for curve in having if (curve.dataset, curve.task) == place]
        found.append([curve for curve in those if curve.method == those[-1].method])
    return found


def maps(results: EvaluationResults) -> str:
    """t-SNE of the test features, one figure for each data set and backbone (Fig. 5)."""
    figures = []
    names: Mapping[str, list[str]] = {data.name: data.classes for data in results.datasets}
    for place, projection in enumerate(results.projections):
        classes = [*names.get(projection.dataset, [])]
        classes += [label for label in dict.fromkeys(projection.label) if label not in classes]
        number = {label: index for index, label in enumerate(classes)}
        counts = Counter(projection.label)
        xy = np.column_stack([projection.x, projection.y])
        if not len(xy):
            continue
        svg = classes_plot(
            xy, [number[label] for label in projection.label], classes, name=f"map-{place}"
        )
        legend = classes_legend(
            [label or "no label" for label in classes], [counts[label] for label in classes]
        )
        title = f"{projection.dataset}, {projection.backbone}"
        figures.append(Figure(escape(title), svg, legend=legend))
    return grid(figures) if figures else ""


def _with_legend(figures: list[Figure], backbones: Sequence[str], *, line: bool) -> str:
    if not figures:
        return ""
    legend = model_legend(backbones, line=line) if len(backbones) > 1 else ""
    return legend + grid(figures)
