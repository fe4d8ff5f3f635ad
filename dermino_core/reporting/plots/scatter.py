"""Points in the plane: images by class, or named prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dermino_core.reporting.markup import escape, shorten
from dermino_core.reporting.plots.colours import (
    MARKERS,
    MUTED,
    PAPER,
    SITE_COLOURS,
    site_colour,
)
from dermino_core.reporting.plots.legend import point_swatch
from dermino_core.reporting.plots.svg import WIDTH, draw, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plane = npt.NDArray[np.floating]
"""Coordinates [n, 2]."""

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""

HEIGHT = WIDTH
SHOWN_CLASSES = SITE_COLOURS * len(MARKERS)
"""As many as have a colour and shape of their own."""

_NAME_LENGTH = 24
_FONT = 10.0
_LETTER = 0.56 * _FONT
# A name's alignment -> where it begins, seen from its point (points to the right and up).
_OFFSETS: dict[str, tuple[float, float]] = {"left": (6, 0), "right": (-6, 0), "center": (0, 9)}
_SHIFT = {"left": 0.0, "right": 1.0, "center": 0.5}


def classes_plot(xy: Plane, classes: Sequence[int], names: Sequence[str], *, name: str) -> str:
    """The `<svg>`: one point per image; class i has colour and shape i. Later classes are grey."""
    places = np.asarray(classes)

    def paint(figure: Figure) -> None:
        axes = _plane(figure, xy)
        for index in range(len(names)):
            chosen = xy[places == index]
            known = index < SHOWN_CLASSES
            axes.plot(
                chosen[:, 0],
                chosen[:, 1],
                linestyle="none",
                color=site_colour(index) if known else MUTED,
                marker=MARKERS[index % len(MARKERS)],
                markersize=4.5 if len(xy) > 300 else 6,
                markeredgecolor=PAPER,
                markeredgewidth=0.5,
                alpha=0.85,
            )

    described = f"Map of {len(xy)} images of {len(names)} classes by likeness of their features."
    return draw(paint, height=HEIGHT, name=name, description=described)


def classes_legend(names: Sequence[str], counts: Sequence[int]) -> str:
    """One entry per class, with its number of images. HTML."""
    items = [
        f"<li>{point_swatch(index)}<bdi>{escape(shorten(text, 60))}</bdi> ({count})</li>"
        for index, (text, count) in enumerate(zip(names, counts, strict=True))
        if index < SHOWN_CLASSES
    ]
    if len(names) > SHOWN_CLASSES:
        items.append(f"<li>{len(names) - SHOWN_CLASSES} more classes, in grey</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def names_plot(xy: Plane, names: Sequence[str], *, name: str) -> tuple[str, int]:
    """The `<svg>` of named points, and how many names found room."""
    texts = [shorten(text, _NAME_LENGTH) for text in names]
    places = _room_for(xy, texts)

    def paint(figure: Figure) -> None:
        axes = _plane(figure, xy)
        axes.plot(xy[:, 0], xy[:, 1], "o", color=site_colour(0), markersize=5)
        for index, (side, text) in enumerate(zip(places, texts, strict=True)):
            if side is not None:
                axes.annotate(
                    label(text),
                    (float(xy[index, 0]), float(xy[index, 1])),
                    xytext=_OFFSETS[side],
                    textcoords="offset points",
                    horizontalalignment=side,
                    verticalalignment="center",
                    fontsize=_FONT,
                )

    described = f"Map of {len(xy)} disease prototypes by their likeness: {'; '.join(texts[:40])}."
    return draw(paint, height=HEIGHT, name=name, description=described), len(xy) - places.count(
        None
    )


def _plane(figure: Figure, xy: Plane) -> Axes:
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    low, high = _bounds(xy)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _bounds(xy: Plane) -> tuple[Plane, Plane]:
    low, high = xy.min(axis=0), xy.max(axis=0)
    margin = 0.06 * np.maximum(high - low, 1e-6)
    return low - margin, high + margin


def _room_for(xy: Plane, texts: Sequence[str]) -> list[str | None]:
    """Where each name stands (a key of `_OFFSETS`); None where it would cover something."""
    low, high = _bounds(xy)
    points = (xy - low) / (high - low) * (0.98 * WIDTH)
    dots = [(x - 3, y - 3, x + 3, y + 3) for x, y in points]
    taken: list[Box] = []
    sides: list[str | None] = []
    for index, ((x, y), text) in enumerate(zip(points, texts, strict=True)):
        width = _LETTER * len(text)
        others = [*taken, *dots[:index], *dots[index + 1 :]]
        chosen = None
        for side, (right, up) in _OFFSETS.items():
            left = x + right - _SHIFT[side] * width
            box = (left, y + up - _FONT / 2, left + width, y + up + _FONT / 2)
            inside = box[0] >= 0 and box[2] <= 0.98 * WIDTH
            if inside and not any(_overlap(box, other) for other in others):
                taken.append(box)
                chosen = side
                break
        sides.append(chosen)
    return sides


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
