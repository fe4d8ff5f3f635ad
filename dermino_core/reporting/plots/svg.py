"""A matplotlib figure as a small, deterministic SVG that can stand inside an HTML page."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from dermino_core.reporting.markup import clean
from dermino_core.reporting.plots.colours import GRID, INK, MUTED, to_css

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 340
"""Drawing units of every plot: what a phone shows, so that text stays legible there."""

SHARES = (0, 0.25, 0.5, 0.75, 1)
SHARE_LABELS = ("0", "25 %", "50 %", "75 %", "100 %")
"""Ticks of every axis that runs from 0 to 100 %."""

_DROPPED_TAGS = {"metadata", "style"}
_LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_FONT = re.compile(r"font: ([^;]*?)([\d.]+)px [^;]*")
# matplotlib's settings are global to the process.
_LOCK = threading.Lock()

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dermino",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(paint: Callable[[Figure], None], *, height: float, name: str, description: str) -> str:
    """Let `paint` fill a figure of `WIDTH` x `height` units and return its `<svg>` element.

    Parameters
    ----------
    name
        Makes the ids of this SVG unique on the page: letters, digits and `-` only.
    description
        What the plot shows, for those who cannot see it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with _LOCK, matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # The browser's fonts draw the text, so glyphs that matplotlib's font lacks do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        paint(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name=name, description=description)


def label(text: object) -> str:
    """Untrusted text for matplotlib: one line, and never read as mathematics."""
    return clean(text).replace("$", r"\$")


def add_grid(axes: Axes, axis: str = "both") -> None:
    """Faint lines behind the data; no tick marks."""
    axes.grid(visible=True, axis=axis)  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)


def name_vertical_axis(axes: Axes, text: str) -> None:
    """The name lies above the axis, where it can be read without turning the head."""
    axes.annotate(
        text,
        (0, 1),
        xycoords="axes fraction",
        xytext=(-28, 9),
        textcoords="offset points",
        fontsize=11.5,
        verticalalignment="bottom",
    )


def _inline(svg: bytes, *, name: str, description: str) -> str:
    root = ElementTree.fromstring(svg)  # noqa: S314 (matplotlib wrote it a moment ago)
    box = root.attrib["viewBox"]
    root.attrib.clear()
    _prune(root)
    short: dict[str, str] = {}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: value
            for key, value in element.attrib.items()
            if not key.startswith("{http://www.w3.org/XML")
        }
        if element.tag == "g":
            element.attrib.pop("id", None)
        _restyle(element)
    for element in root.iter():
        identifier = element.attrib.get("id")
        if identifier is not None:
            short[identifier] = f"{name}-{len(short)}"
            element.attrib["id"] = short[identifier]
    for element in root.iter():
        for key in ("href", "clip-path"):
            if key in element.attrib:
                element.attrib[key] = re.sub(
                    r"#([^)]+)", lambda match: "#" + short[match.group(1)], element.attrib[key]
                )
        if element.tag != "text":
            element.text = None
        element.tail = None
    root.attrib = {"viewBox": box, "role": "img", "aria-label": clean(description)}
    return ElementTree.tostring(root, encoding="unicode")


def _prune(element: ElementTree.Element) -> None:
    for child in list(element):
        if child.tag.rpartition("}")[2] in _DROPPED_TAGS:
            element.remove(child)
        else:
            _prune(child)


def _restyle(element: ElementTree.Element) -> None:
    for key, value in element.attrib.items():
        if key == "style":
            style = _FONT.sub(r"font-weight: \g<1>; font-size: \2px", to_css(value))
            element.attrib[key] = style.replace("font-weight: ; ", "").replace(" ; ", "; ")
        elif key not in {"id", "href", "clip-path"}:
            element.attrib[key] = _LONG_NUMBER.sub(_round, " ".join(value.split()))


def _round(match: re.Match[str]) -> str:
    return f"{float(match.group()):.1f}".removesuffix(".0")
