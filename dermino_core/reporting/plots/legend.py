"""Legends as HTML lists, so that they wrap on a narrow screen. Colour never stands alone."""

from __future__ import annotations

from collections.abc import Sequence

from dermino_core.reporting.markup import escape
from dermino_core.reporting.plots.colours import DASHES, MODEL_COLOURS, SITE_COLOURS

_SHAPES = (
    '<circle cx="14" cy="7" r="4"/>',
    '<rect x="10.4" y="3.4" width="7.2" height="7.2"/>',
    '<path d="M14 2.4 18.6 10.8H9.4Z"/>',
    '<path d="M14 2 19 7 14 12 9 7Z"/>',
    '<path d="M14 11.6 18.6 3.2H9.4Z"/>',
    '<path d="M12.6 2.5h2.8v3.1h3.1v2.8h-3.1v3.1h-2.8V8.4H9.5V5.6h3.1Z"/>',
)


def model_swatch(index: int, *, line: bool = False) -> str:
    """The marker of a model, on its line if asked, as a small decorative SVG."""
    slot = index % MODEL_COLOURS
    stroke = (
        f'<path d="M0 7H28" fill="none" stroke="currentColor" stroke-width="2" '
        f'stroke-dasharray="{DASHES[slot]}"/>'
        if line
        else _SHAPES[slot]
    )
    box = "0 0 28 14" if line else "7 0 14 14"
    css_class = "swatch line" if line else "swatch"
    return (
        f'<svg class="{css_class}" viewBox="{box}" aria-hidden="true" '
        f'style="color:var(--model-{slot})" fill="currentColor">{stroke}</svg>'
    )


def model_legend(titles: Sequence[str], *, line: bool) -> str:
    """One entry per model."""
    items = (f"<li>{model_swatch(i, line=line)}{escape(t)}</li>" for i, t in enumerate(titles))
    return f'<ul class="legend">{"".join(items)}</ul>'


def site_legend(names: Sequence[str]) -> str:
    """One entry per hospital, with the letter that its segments and lines carry."""
    items = (
        f'<li><span class="key" style="background:var(--site-{i % SITE_COLOURS})" '
        f'aria-hidden="true">{site_letter(i)}</span><bdi>{escape(name)}</bdi></li>'
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def point_swatch(index: int) -> str:
    """A point of the class at `index`: its colour and its shape, as a small decorative SVG."""
    return (
        f'<svg class="swatch" viewBox="7 0 14 14" aria-hidden="true" '
        f'style="color:var(--site-{index % SITE_COLOURS})" fill="currentColor">'
        f"{_SHAPES[index % len(_SHAPES)]}</svg>"
    )


def site_letter(index: int) -> str:
    """`A`, `B`, …"""
    return chr(ord("A") + index)
