"""Stand-in colours: matplotlib draws with them, the SVG then carries CSS variables instead.

So one drawing serves light and dark. A stand-in is a hex colour that nothing else uses.
"""

from __future__ import annotations

import re

INK = "#010100"
MUTED = "#010101"
GRID = "#010102"
PAPER = "#010103"

_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"}
_STAND_IN = re.compile(r"#01(?:01|02|03)[0-9a-f]{2}")

MODEL_COLOURS = 6
SITE_COLOURS = 7
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[str, ...] = ("", "5 3", "2 2", "8 3 2 3", "14 3", "1 4")


def model_colour(index: int) -> str:
    """Stand-in for the colour of the model at `index`; they repeat after six."""
    return f"#0102{index % MODEL_COLOURS:02x}"


def site_colour(index: int) -> str:
    """Stand-in for the colour of the hospital at `index`; they repeat after seven."""
    return f"#0103{index % SITE_COLOURS:02x}"


def line_style(index: int) -> tuple[float, tuple[float, ...]] | str:
    """Matplotlib's line style that belongs to `DASHES[index]`."""
    dashes = DASHES[index % MODEL_COLOURS]
    if not dashes:
        return "solid"
    return (0, tuple(float(part) for part in dashes.split()))


def to_css(style: str) -> str:
    """Replace stand-ins in a style attribute by CSS variables."""
    return _STAND_IN.sub(lambda match: f"var(--{_variable(match.group())})", style)


def _variable(colour: str) -> str:
    if colour in _NAMES:
        return _NAMES[colour]
    kind = "model" if colour[3:5] == "02" else "site"
    return f"{kind}-{int(colour[5:7], 16)}"
