"""What each round cost, stacked by hospital: seconds or bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from dermino_core.reporting.numbers import without_zeros
from dermino_core.reporting.plots.colours import PAPER, site_colour
from dermino_core.reporting.plots.legend import site_letter
from dermino_core.reporting.plots.svg import WIDTH, add_grid, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 240
LABELLED_BARS = 12
SMALLEST_LABELLED_SHARE = 0.08

Bars = Sequence[tuple[str, Mapping[str, float]]]
"""Label under the bar, then site -> amount."""


def cost_plot(
    bars: Bars, sites: Sequence[str], *, title: str, written: Callable[[float], str], name: str
) -> str | None:
    """The `<svg>`, or `None` if nothing was spent. `written` formats an amount."""
    totals = [sum(values.get(site, 0.0) for site in sites) for _, values in bars]
    top = max(totals, default=0.0)
    if top <= 0:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((58 / WIDTH, 38 / HEIGHT, 274 / WIDTH, 192 / HEIGHT))
        few = len(bars) <= LABELLED_BARS
        base = [0.0] * len(bars)
        for index, site in enumerate(sites):
            heights = [values.get(site, 0.0) for _, values in bars]
            axes.bar(
                range(len(bars)),
                heights,
                bottom=base,
                width=0.62 if few else 1.0,
                color=site_colour(index),
                edgecolor=PAPER if few else "none",
                linewidth=1.5 if few else 0,
            )
            for position, height in enumerate(heights):
                if few and height > SMALLEST_LABELLED_SHARE * top:
                    axes.text(
                        position,
                        base[position] + height / 2,
                        site_letter(index),
                        color=PAPER,
                        fontsize=11,
                        fontweight="bold",
                        horizontalalignment="center",
                        verticalalignment="center",
                    )
            base = [b + h for b, h in zip(base, heights, strict=True)]
        step = max(1, -(-len(bars) // LABELLED_BARS))
        axes.set_xticks(range(0, len(bars), step), [label for label, _ in bars[::step]])
        axes.set_xlim(-0.6, len(bars) - 0.4)
        axes.set_xlabel("Round")
        axes.set_ylim(0, top * 1.12)
        axes.locator_params(axis="y", nbins=5)
        ticks = [tick for tick in axes.get_yticks() if 0 <= tick <= top * 1.12]
        axes.set_yticks(ticks, [without_zeros(written(tick)) if tick else "0" for tick in ticks])
        if few:
            for position, total in enumerate(totals):
                axes.text(
                    position,
                    total + top * 0.015,
                    written(total),
                    fontsize=11,
                    horizontalalignment="center",
                    verticalalignment="bottom",
                )
        add_grid(axes, "y")

    spoken = "; ".join(
        f"{label}: {written(total)}"
        for (label, _), total in list(zip(bars, totals, strict=True))[:LABELLED_BARS]
    )
    return draw(paint, height=HEIGHT, name=name, description=f"{title} by round. {spoken}.")
