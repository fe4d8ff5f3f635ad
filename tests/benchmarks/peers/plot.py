"""One picture of the table: seconds, bytes and AUROC of every contestant, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.peers.judge import MEAN
from tests.benchmarks.peers.show import Row, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"dermino": "#0072b2", "vit": "#d55e00", "cached": "#009e73"}
MEANINGS = {
    "dermino": "dermino",
    "vit": "peer, frozen ViT in every epoch",
    "cached": "peer on vectors it keeps",
}
"""Colours that people who confuse red and green tell apart; each group has its own marker, too."""
MARKERS = {"dermino": "o", "vit": "s", "cached": "D"}


def draw(rows: Sequence[Row], file: Path) -> None:
    """Write the picture; its ending says which format. Failed rows are named, without marks."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    height = 1.6 + 0.3 * len(rows)
    figure, panels = plt.subplots(1, 3, figsize=(13, height), sharey=True, layout="constrained")
    for panel in panels:
        panel.grid(axis="x", color="#dddddd", linewidth=0.8)
        panel.set_axisbelow(True)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
        panel.tick_params(axis="y", length=0)
        for place in range(0, len(rows), 2):
            panel.axhspan(place - 0.5, place + 0.5, color="#f6f6f6", zorder=0)
    titles = [f"{row.title} ({row.verdict})" if row.failed else row.title for row in rows]
    panels[0].set_yticks(range(len(rows)), titles)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    _seconds(panels[0], rows)
    _bytes(panels[1], rows)
    _auroc(panels[2], rows)
    families = [name for name in MEANINGS if any(row.family == name for row in rows)]
    marks = [
        Line2D([], [], color=COLOURS[name], marker=MARKERS[name], linestyle="") for name in families
    ]
    names = [MEANINGS[name] for name in families]
    figure.legend(marks, names, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _marked(panel: Axes, row: Row, place: int, value: float, text: str) -> None:
    panel.plot(value, place, MARKERS[row.family], color=COLOURS[row.family], markersize=7)
    panel.annotate(
        text, (value, place), (7, 0), textcoords="offset points", va="center", fontsize=8
    )


def _room(panel: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis from a power of ten, with room for the numbers on the right."""
    from matplotlib.ticker import NullFormatter

    panel.set_xscale("log")
    panel.xaxis.set_minor_formatter(NullFormatter())
    if values:
        start = 10.0 ** math.floor(math.log10(min(values) / 1.2))
        panel.set_xlim(start, max(values) * (max(values) / min(values)) ** 0.25 * 2)


def _seconds(panel: Axes, rows: Sequence[Row]) -> None:
    panel.set_title("seconds of the job", fontsize=10)
    for place, row in enumerate(rows):
        if not row.failed:
            _marked(panel, row, place, row.job_seconds, f"{row.job_seconds:.1f}")
    _room(panel, [row.job_seconds for row in rows if not row.failed])


def _bytes(panel: Axes, rows: Sequence[Row]) -> None:
    panel.set_title("bytes of one site, up and down", fontsize=10)
    shown = [row for row in rows if not row.failed and row.bytes_of_site]
    for place, row in enumerate(rows):
        if row in shown:
            _marked(panel, row, place, row.bytes_of_site, size(row.bytes_of_site))
    _room(panel, [float(row.bytes_of_site) for row in shown])


def _auroc(panel: Axes, rows: Sequence[Row]) -> None:
    panel.set_title("mean AUROC of the sites with 95 % interval", fontsize=10)
    panel.axvline(0.5, color="#888888", linewidth=0.8, linestyle=":")
    for place, row in enumerate(rows):
        found = row.auroc.get(MEAN)
        if row.failed or not found or found["value"] is None:
            continue
        colour = COLOURS[row.family]
        if found["low"] is not None and found["high"] is not None:
            panel.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=1.5)
        panel.plot(found["value"], place, MARKERS[row.family], color=colour, markersize=7)
