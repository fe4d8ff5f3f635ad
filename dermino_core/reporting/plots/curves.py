"""Numbers of a run by optimiser step, one line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dermino_core.reporting.plots.colours import INK, MARKERS, line_style, model_colour
from dermino_core.reporting.plots.svg import WIDTH, add_grid, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]
"""Step and value, in the order of the steps."""

HEIGHT = 240
MOST_POINTS = 200
MARKED_POINTS = 25


def curves_plot(
    lines: Mapping[str, Points],
    *,
    title: str,
    name: str,
    level: float | None = None,
    share: bool = False,
    logarithmic: bool = False,
) -> str:
    """The `<svg>`: line i has the colour and dashes of entry i of a legend.

    Parameters
    ----------
    lines
        Title of each line -> its points; at least one line, and none without a point.
    level
        Where a dashed line shows what to compare with, such as guessing.
    share
        Whether values are shares, written as per cent.
    logarithmic
        Whether the vertical axis is; all values are then above 0.
    """
    drawn = {text: thinned(points) for text, points in lines.items()}

    def paint(figure: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

        axes = figure.add_axes((52 / WIDTH, 38 / HEIGHT, 274 / WIDTH, 192 / HEIGHT))
        if level is not None:
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        for index, points in enumerate(drawn.values()):
            few = len(points) <= MARKED_POINTS
            axes.plot(
                [step for step, _ in points],
                [value for _, value in points],
                color=model_colour(index),
                linewidth=1.8,
                linestyle=line_style(index),
                marker=MARKERS[index % len(MARKERS)] if few else "",
                markersize=4.5,
            )
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=_log_steps(drawn.values()), numticks=6))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        if share:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_value(value)))
        axes.set_xlabel("Optimiser step")
        axes.margins(x=0.03, y=0.1)
        add_grid(axes)

    spoken = "; ".join(
        f"{text} from {short_value(points[0][1])} to {short_value(points[-1][1])}"
        for text, points in drawn.items()
    )
    return draw(paint, height=HEIGHT, name=name, description=f"{title} by step. {spoken}.")


def _log_steps(lines: Iterable[Points]) -> tuple[float, ...]:
    """Ticks within a decade: none but its start if the values span two or more."""
    values = [value for points in lines for _, value in points]
    return (1.0,) if max(values) > 100 * min(values) else (1.0, 2.0, 5.0)


def thinned(points: Points) -> list[tuple[int, float]]:
    """At most `MOST_POINTS` points: the mean of neighbours, at the last one's step."""
    size = bin_size(len(points))
    bins = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in bins]


def bin_size(records: int) -> int:
    """How many neighbours become one point."""
    return max(1, -(-records // MOST_POINTS))


def short_count(value: float) -> str:
    """`950`, `1.5k`, `20k`, `1.2M`."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def short_value(value: float) -> str:
    """Up to four digits, without an exponent for numbers of everyday size."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.4g}".replace("-", "−")
    if 1e3 <= abs(value) < 1e9:
        return short_count(value).replace("-", "−")
    return f"{value:.1e}".replace("-", "−")
