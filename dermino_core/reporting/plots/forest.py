"""AUROC of every model at every hospital as dots with intervals (a forest plot)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dermino_core.reporting.markup import shorten
from dermino_core.reporting.numbers import decimal, interval
from dermino_core.reporting.plots.colours import INK, MARKERS, MUTED, PAPER, model_colour
from dermino_core.reporting.plots.svg import WIDTH, add_grid, draw, label
from dermino_core.results import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 19
GROUP_GAP = 30
MARGIN_BOTTOM = 40
LEFT = 10
RIGHT = 14

Group = tuple[str, Sequence[tuple[int, str, Estimate]]]
"""A heading, then (index of the model, its title, its AUROC)."""


def forest_plot(groups: Sequence[Group], *, name: str) -> str:
    """The `<svg>`. Undefined values show as a dash with no dot."""
    height = sum(GROUP_GAP + ROW * len(rows) for _, rows in groups) + MARGIN_BOTTOM
    estimates = [e for _, rows in groups for _, _, e in rows if e.value is not None]
    lows = [e.low if e.low is not None else e.value or 0.5 for e in estimates]
    start = max(0.0, min([0.45, *(low - 0.03 for low in lows)]))

    def paint(figure: Figure) -> None:
        plot_width = WIDTH - LEFT - RIGHT
        axes = figure.add_axes(
            (LEFT / WIDTH, MARGIN_BOTTOM / height, plot_width / WIDTH, 1 - MARGIN_BOTTOM / height)
        )
        axes.set_xlim(start, 1.0)
        axes.set_ylim(height - MARGIN_BOTTOM, 0)
        axes.axvline(0.5, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        position = 0.0
        for title, rows in groups:
            text = axes.text(
                start,
                position + 14,
                label(shorten(title, 44)),
                fontsize=12,
                fontweight="bold",
                verticalalignment="center",
            )
            text.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 2})
            position += GROUP_GAP
            for index, model, estimate in rows:
                _dot(axes, estimate, position, index, f"— {shorten(model, 28)}: undefined")
                position += ROW
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("AUROC (0.5, dashed, is guessing)")
        add_grid(axes, "x")

    spoken = "; ".join(
        f"{title}: "
        + ", ".join(
            f"{model} {decimal(e.value)} ({interval(e) or 'no interval'})" for _, model, e in rows
        )
        for title, rows in groups
    )
    return draw(paint, height=height, name=name, description=f"AUROC with intervals. {spoken}.")


def _dot(axes: Axes, estimate: Estimate, y: float, index: int, missing: str) -> None:
    colour = model_colour(index)
    if estimate.value is None:
        start = axes.get_xlim()[0]
        text = axes.text(
            start, y, label(missing), fontsize=11, color=MUTED, verticalalignment="center"
        )
        text.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 1})
        return
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=2)
    axes.plot(
        [estimate.value],
        [y],
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        markersize=8,
        markeredgecolor=PAPER,
        markeredgewidth=1,
    )
