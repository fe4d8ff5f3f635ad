"""Lines with their intervals as bands, over a share on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dermino_core.reporting.numbers import decimal
from dermino_core.reporting.plots.colours import MARKERS, line_style, model_colour
from dermino_core.reporting.plots.svg import WIDTH, add_grid, draw, label, name_vertical_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 260

Point = tuple[float, float, float | None, float | None]
"""Share in (0, 1], value, and its interval."""


def bands_plot(
    lines: Mapping[str, Sequence[Point]], *, metric: str, horizontal: str, name: str
) -> str:
    """The `<svg>`: line i has the colour, dashes and marker of entry i of a legend."""

    def paint(figure: Figure) -> None:
        from matplotlib.ticker import NullLocator

        axes = figure.add_axes((46 / WIDTH, 44 / HEIGHT, 284 / WIDTH, 190 / HEIGHT))
        for index, points in enumerate(lines.values()):
            if not points:
                continue
            x = [share for share, *_ in points]
            colour = model_colour(index)
            edges = [
                (share, low, high)
                for share, _, low, high in points
                if low is not None and high is not None
            ]
            if len(edges) > 1:
                shares, lows, highs = zip(*edges, strict=True)
                axes.fill_between(shares, lows, highs, color=colour, alpha=0.15, linewidth=0)
            axes.plot(
                x,
                [value for _, value, _, _ in points],
                color=colour,
                linewidth=1.8,
                linestyle=line_style(index),
                marker=MARKERS[index % len(MARKERS)],
                markersize=5,
            )
        axes.set_xscale("log")
        ticks = sorted({share for points in lines.values() for share, *_ in points})
        axes.set_xticks(ticks, [f"{100 * share:g} %" for share in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(label(horizontal))
        name_vertical_axis(axes, label(metric))
        add_grid(axes)

    spoken = "; ".join(
        f"{who}: "
        + ", ".join(f"{decimal(value)} at {100 * share:g} %" for share, value, *_ in line)
        for who, line in lines.items()
    )
    return draw(paint, height=HEIGHT, name=name, description=f"{metric}. {spoken}.")
