"""How far each hospital is from the others, beside what chance alone gives: a dot and a bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dermino_core.reporting.markup import shorten
from dermino_core.reporting.plots.colours import INK, MUTED, PAPER, model_colour
from dermino_core.reporting.plots.svg import WIDTH, add_grid, draw, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 20
ROW = 34
MARGIN_BOTTOM = 40
LEFT, RIGHT = 10, 14

Row = tuple[str, float, float, bool]
"""Hospital, distance, what chance gives, and whether it differs clearly."""


def likeness_plot(rows: Sequence[Row], *, name: str) -> str:
    """The `<svg>`: filled dots differ clearly, open ones do not."""
    height = ROW * len(rows) + MARGIN_BOTTOM + 6
    largest = max([0.1, *(max(value, chance) for _, value, chance, _ in rows)])

    def paint(figure: Figure) -> None:
        width = (WIDTH - LEFT - RIGHT) / WIDTH
        axes = figure.add_axes(
            (LEFT / WIDTH, MARGIN_BOTTOM / height, width, 1 - MARGIN_BOTTOM / height)
        )
        axes.set_xlim(0, 1.06 * largest)
        axes.set_ylim(height - MARGIN_BOTTOM, 0)
        for place, (site, value, chance, clear) in enumerate(rows):
            y = place * ROW + 26
            text = axes.text(0, y - 15, label(shorten(site, 44)), fontsize=11.5, va="center")
            text.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 1})
            axes.plot([0, chance], [y, y], color=MUTED, linewidth=6, alpha=0.45)
            axes.plot(
                [value],
                [y],
                color=model_colour(0),
                marker="o",
                markersize=8,
                markerfacecolor=model_colour(0) if clear else PAPER,
                markeredgecolor=model_colour(0),
                markeredgewidth=1.6,
            )
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("standard deviations from the other hospitals")
        add_grid(axes, "x")

    spoken = "; ".join(
        f"{site}: {value:.2f}, by chance {chance:.2f}{', clearly different' if clear else ''}"
        for site, value, chance, clear in rows
    )
    return draw(paint, height=height, name=name, description=f"Distance of features. {spoken}.")
