"""One number per hospital and round: AUROC of the federated model, or its training loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dermino_core.reporting.numbers import decimal
from dermino_core.reporting.plots.colours import INK, MARKERS, MUTED, site_colour
from dermino_core.reporting.plots.legend import site_letter
from dermino_core.reporting.plots.svg import WIDTH, add_grid, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 240
PLOT_HEIGHT = 192
LETTER = 12
DRAWN_SITES = 7
TICKS_WITHOUT_THINNING = 12

Points = Sequence[tuple[int, str, Mapping[str, float | None]]]
"""Round, its name on the axis, then site -> value."""


def rounds_plot(
    points: Points, sites: Sequence[str], *, title: str, chance: float | None, name: str
) -> str | None:
    """The `<svg>`, or `None` without any number.

    Up to seven hospitals get a line each; of more, all lines are grey and their mean is bold.
    """
    series = {
        site: [(r, v) for r, _, values in points if (v := values.get(site)) is not None]
        for site in sites
    }
    series = {site: values for site, values in series.items() if values}
    if not series:
        return None
    many = len(sites) > DRAWN_SITES
    names = {number: text for number, text, _ in points}
    all_rounds = sorted({r for values in series.values() for r, _ in values})

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((42 / WIDTH, 38 / HEIGHT, 270 / WIDTH, PLOT_HEIGHT / HEIGHT))
        if chance is not None:
            axes.axhline(chance, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        for index, site in enumerate(sites):
            if site not in series:
                continue
            values = series[site]
            axes.plot(
                [r for r, _ in values],
                [v for _, v in values],
                color=MUTED if many else site_colour(index),
                linewidth=0.7 if many else 1.8,
                marker="" if many and len(all_rounds) > 1 else MARKERS[index % len(MARKERS)],
                markersize=6 if len(all_rounds) < 20 else 3,
            )
        if many:
            means = [_mean_at(series, r) for r in all_rounds]
            axes.plot(all_rounds, means, color=site_colour(0), linewidth=3)
        axes.set_xlim(all_rounds[0] - 0.25, all_rounds[-1] + 0.25)
        step = max(1, -(-len(all_rounds) // TICKS_WITHOUT_THINNING))
        axes.set_xticks(all_rounds[::step], [names[r] for r in all_rounds[::step]])
        axes.set_xlabel("Round")
        axes.margins(y=0.12)
        axes.locator_params(axis="y", nbins=5)
        add_grid(axes, "y")
        if not many:
            _letters(axes, {i: series[s][-1] for i, s in enumerate(sites) if s in series})

    spoken = "; ".join(
        f"{site} {', '.join(f'round {r}: {decimal(v)}' for r, v in values[-3:])}"
        for site, values in list(series.items())[:DRAWN_SITES]
    )
    return draw(paint, height=HEIGHT, name=name, description=f"{title} by round. {spoken}.")


def _letters(axes: Axes, ends: Mapping[int, tuple[int, float]]) -> None:
    """Name every line at its end; letters that would touch are moved apart."""
    low, high = axes.get_ylim()
    unit = (high - low) / PLOT_HEIGHT
    lowest = low
    for index, (number, value) in sorted(ends.items(), key=lambda item: item[1][1]):
        place = max(value, lowest)
        lowest = place + LETTER * unit
        axes.annotate(
            site_letter(index),
            (number, place),
            xytext=(9, 0),
            textcoords="offset points",
            verticalalignment="center",
            fontsize=11,
            fontweight="bold",
            annotation_clip=False,
        )


def _mean_at(series: Mapping[str, Sequence[tuple[int, float]]], number: int) -> float:
    values = [v for points in series.values() for r, v in points if r == number]
    return sum(values) / len(values)
