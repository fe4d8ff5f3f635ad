"""Calibration of the federated model at one hospital, with the counts that each point rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dermino_core.reporting.numbers import decimal
from dermino_core.reporting.plots.colours import MARKERS, MUTED, model_colour
from dermino_core.reporting.plots.svg import (
    SHARE_LABELS,
    SHARES,
    WIDTH,
    add_grid,
    draw,
    name_vertical_axis,
)
from dermino_core.results import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 410


def calibration_plot(
    calibration: Calibration, *, site: str, model: int, multiclass: bool, name: str
) -> str:
    """The `<svg>`: points above, one bar per bin below. `model` is the federated model's index."""
    points = [
        (predicted, observed, count)
        for predicted, observed, count in zip(
            calibration.predicted, calibration.observed, calibration.count, strict=True
        )
        if predicted is not None and observed is not None
    ]
    largest = max([1, *calibration.count])
    colour = model_colour(model)

    def paint(figure: Figure) -> None:
        left, width = 46 / WIDTH, 284 / WIDTH
        axes = figure.add_axes((left, 122 / HEIGHT, width, 262 / HEIGHT))
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        axes.plot(
            [p for p, _, _ in points],
            [o for _, o, _ in points],
            color=colour,
            linewidth=1,
            alpha=0.6,
        )
        for predicted, observed, count in points:
            axes.plot(
                [predicted],
                [observed],
                color=colour,
                marker=MARKERS[model % len(MARKERS)],
                markersize=4 + 7 * (count / largest) ** 0.5,
                clip_on=False,
            )
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks(SHARES, SHARE_LABELS)
        name_vertical_axis(axes, "Correct" if multiclass else "Observed share")

        bars = figure.add_axes((left, 38 / HEIGHT, width, 60 / HEIGHT))
        edges = calibration.edges
        for start, end, count in zip(edges[:-1], edges[1:], calibration.count, strict=True):
            bars.bar((start + end) / 2, count, width=(end - start) * 0.86, color=colour, alpha=0.45)
            if count:
                bars.text(
                    (start + end) / 2, count, str(count), fontsize=10,
                    horizontalalignment="center", verticalalignment="bottom",
                )  # fmt: skip
        bars.set_ylim(0, largest * 1.3)
        bars.set_yticks([])
        name_vertical_axis(bars, "Images")
        bars.set_xlabel("Confidence of the model" if multiclass else "Predicted probability")
        for panel, labels in ((axes, [""] * len(SHARES)), (bars, SHARE_LABELS)):
            panel.set_xlim(-0.02, 1.02)
            panel.set_xticks(SHARES, labels)
        bars.get_xticklabels()[-1].set_horizontalalignment("right")
        add_grid(axes)
        bars.tick_params(length=0, pad=5)

    error = decimal(calibration.expected_calibration_error)
    return draw(
        paint,
        height=HEIGHT,
        name=name,
        description=f"Calibration at {site}: expected calibration error {error}, "
        f"{sum(calibration.count)} images in {len(calibration.count)} bins.",
    )
