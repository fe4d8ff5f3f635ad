"""AUROC by the number of a hospital's own labels: alone, federated and personal, with bands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log2
from typing import TYPE_CHECKING

from dermino_core.reporting.numbers import decimal
from dermino_core.reporting.plots.colours import INK, MARKERS, line_style, model_colour
from dermino_core.reporting.plots.svg import WIDTH, add_grid, draw, name_vertical_axis
from dermino_core.results import Estimate, JoiningCurve, JoiningPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 250
APART = 0.45
"""Least distance of two ticks, in doublings."""

_UNIT = 10

Line = tuple[str, int, Callable[[JoiningPoint], Estimate]]
"""Title, the model's colour, and which estimate of a point it draws."""


def place(labels: float) -> float:
    """Where so many labels are on the axis: 0 at the left, then a step for each doubling."""
    return log2(1 + labels / _UNIT)


def ticks(labels: Sequence[int]) -> list[int]:
    """Which numbers are written: all that have room, the last one always."""
    kept = [labels[-1]]
    for number in reversed(labels[:-1]):
        if place(kept[-1]) - place(number) >= APART:
            kept.append(number)
    return kept[::-1]


def joining_plot(curve: JoiningCurve, lines: Sequence[Line], *, site: str, name: str) -> str | None:
    """The `<svg>`; None where no point has a number. A line leaves out what is undefined."""
    drawn = [
        (title, index, [(p.labels, read(p)) for p in curve.points if read(p).value is not None])
        for title, index, read in lines
    ]
    known = [estimate for _, _, points in drawn for _, estimate in points]
    if not known:
        return None
    lows = [e.low if e.low is not None else e.value or 0.0 for e in known]
    start = max(0.0, min(0.45, min(lows) - 0.03))

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((46 / WIDTH, 42 / HEIGHT, 284 / WIDTH, 180 / HEIGHT))
        axes.axhline(0.5, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        for _, index, points in drawn:
            colour = model_colour(index)
            edges = [
                (place(labels), e.low, e.high)
                for labels, e in points
                if e.low is not None and e.high is not None
            ]
            if len(edges) > 1:
                x, low, high = zip(*edges, strict=True)
                axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            elif edges:
                x, low, high = edges[0]
                axes.plot([x, x], [low, high], color=colour, linewidth=1.8, alpha=0.5)
            axes.plot(
                [place(labels) for labels, _ in points],
                [e.value or 0.0 for _, e in points],
                color=colour,
                linewidth=1.8,
                linestyle=line_style(index),
                marker=MARKERS[index % len(MARKERS)],
                markersize=5,
            )
        shown = ticks([point.labels for point in curve.points])
        axes.set_xticks([place(number) for number in shown], [str(number) for number in shown])
        axes.set_ylim(start, 1.0)
        axes.margins(x=0.05)
        axes.set_xlabel("Own labelled images")
        name_vertical_axis(axes, "AUROC")
        add_grid(axes)

    spoken = "; ".join(
        f"{title}: " + (", ".join(f"{decimal(e.value)} with {n}" for n, e in points) or "undefined")
        for title, _, points in drawn
    )
    description = f"AUROC at {site} by the number of its labelled images. {spoken}."
    return draw(paint, height=HEIGHT, name=name, description=description)
