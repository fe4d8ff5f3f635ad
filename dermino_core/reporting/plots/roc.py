"""ROC curves of one hospital: every model a line, the federated one with its band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dermino_core.reporting.plots.colours import MUTED, line_style, model_colour
from dermino_core.reporting.plots.svg import (
    SHARE_LABELS,
    SHARES,
    WIDTH,
    add_grid,
    draw,
    name_vertical_axis,
)
from dermino_core.reporting.text import roc_description
from dermino_core.results import ModelDescription, RocCurve, SiteResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 352
LEFT = 46
SIDE = 284


@dataclass(frozen=True)
class RocLine:
    """A curve, drawn as line `index` of the legend; `banded`: with its pointwise 95 % band."""

    index: int
    roc: RocCurve
    banded: bool = False


def roc_plot(
    site: SiteResult, models: list[ModelDescription], *, banded: str, name: str
) -> str | None:
    """The `<svg>` of one hospital, or `None` if no model has a curve there.

    `banded` is the key of the model whose pointwise 95 % band is drawn.
    """
    lines, spoken = [], []
    for index, model in enumerate(models):
        evaluation = site.evaluations.get(model.key)
        if evaluation is not None and evaluation.roc is not None:
            lines.append(RocLine(index, evaluation.roc, model.key == banded))
            spoken.append((model.title, evaluation.auroc, evaluation.n))
    if not lines:
        return None
    return roc_lines_plot(lines, name=name, description=roc_description(site.name, spoken))


def roc_lines_plot(lines: Sequence[RocLine], *, name: str, description: str) -> str:
    """The `<svg>` of any curves on one test set."""

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((LEFT / WIDTH, 38 / HEIGHT, SIDE / WIDTH, SIDE / HEIGHT))
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        # Those with a band are drawn last, on top.
        for line in sorted(lines, key=lambda line: line.banded):
            colour, roc = model_colour(line.index), line.roc
            if line.banded:
                axes.fill_between(
                    roc.false_positive_rate,
                    roc.low,
                    roc.high,
                    color=colour,
                    alpha=0.18,
                    linewidth=0,
                )
            axes.plot(
                roc.false_positive_rate,
                roc.true_positive_rate,
                color=colour,
                linewidth=2.4 if line.banded else 1.6,
                linestyle=line_style(line.index),
            )
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_xticks(SHARES, SHARE_LABELS)
        axes.set_yticks(SHARES, SHARE_LABELS)
        for tick, side in zip(
            (axes.get_xticklabels()[0], axes.get_xticklabels()[-1]), ("left", "right"), strict=True
        ):
            tick.set_horizontalalignment(side)
        axes.set_xlabel("False alarms (1 − specificity)")
        name_vertical_axis(axes, "Found (sensitivity)")
        add_grid(axes)

    return draw(paint, height=HEIGHT, name=name, description=description)
