"""Bars with error bars: one group for each data set, one bar for each backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dermino_core.reporting.markup import shorten
from dermino_core.reporting.numbers import decimal
from dermino_core.reporting.plots.colours import INK, model_colour
from dermino_core.reporting.plots.svg import WIDTH, add_grid, draw, label, name_vertical_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 250
MOST_GROUPS = 6
"""More do not fit the width with their names."""

Bar = tuple[float | None, float | None, float | None]
"""Value, and its interval."""


def bars_plot(
    groups: Sequence[tuple[str, Sequence[Bar]]],
    series: Sequence[str],
    *,
    metric: str,
    name: str,
    guessing: float | None = None,
) -> str:
    """The `<svg>`. Bar i of a group belongs to entry i of `series`; undefined ones are left out.

    The axis starts at 0, so that lengths may be compared; `guessing` is a dashed line.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((44 / WIDTH, 44 / HEIGHT, 288 / WIDTH, 180 / HEIGHT))
        width = 0.8 / max(1, len(series))
        for place, (_, bars) in enumerate(groups):
            for index, (value, low, high) in enumerate(bars):
                if value is None:
                    continue
                x = place + (index - (len(series) - 1) / 2) * width
                axes.bar([x], [value], width=width * 0.86, color=model_colour(index), alpha=0.85)
                if low is not None and high is not None:
                    axes.plot([x, x], [low, high], color=INK, linewidth=1.3)
        if guessing is not None:
            axes.axhline(guessing, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_ylim(bottom=0)
        axes.set_xlim(-0.6, len(groups) - 0.4)
        letters = max(6, 46 // max(1, len(groups)))
        titles = [label(shorten(title, letters)) for title, _ in groups]
        axes.set_xticks(range(len(groups)), titles)
        name_vertical_axis(axes, label(metric))
        add_grid(axes, "y")

    spoken = "; ".join(
        f"{title}: "
        + ", ".join(f"{who} {decimal(bar[0])}" for who, bar in zip(series, bars, strict=True))
        for title, bars in groups
    )
    return draw(paint, height=HEIGHT, name=name, description=f"{metric} with intervals. {spoken}.")
