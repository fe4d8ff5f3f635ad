"""ROC curves of one hospital: every model a line, the federated one with its band."""

from __future__ import annotations

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
from dermino_core.results import ModelDescription, SiteResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 352
LEFT = 46
SIDE = 284


def roc_plot(
    site: SiteResult, models: list[ModelDescription], *, banded: str, name: str
) -> str | None:
    """The `<svg>` of one hospital, or `None` if no model has a curve there.

    `banded` is the key of the model whose pointwise 95 % band is drawn.
    """
    shown = [
        (index, model, site.evaluations[model.key])
        for index, model in enumerate(models)
        if model.key in site.evaluations and site.evaluations[model.key].roc is not None
    ]
    if not shown:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((LEFT / WIDTH, 38 / HEIGHT, SIDE / WIDTH, SIDE / HEIGHT))
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        # The federated model is drawn last, on top.
        for index, model, evaluation in sorted(shown, key=lambda item: item[1].key == banded):
            roc = evaluation.roc
            if roc is None:
                continue
            main = model.key == banded
            if main:
                axes.fill_between(
                    roc.false_positive_rate,
                    roc.low,
                    roc.high,
                    color=model_colour(index),
                    alpha=0.18,
                    linewidth=0,
                )
            axes.plot(
                roc.false_positive_rate,
                roc.true_positive_rate,
                color=model_colour(index),
                linewidth=2.4 if main else 1.6,
                linestyle=line_style(index),
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

    lines = [(model.title, evaluation.auroc, evaluation.n) for _, model, evaluation in shown]
    return draw(paint, height=HEIGHT, name=name, description=roc_description(site.name, lines))
