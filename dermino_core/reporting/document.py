"""The frame of every page: one file, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources

from dermino_core.reporting.glossary import NOT_A_DEVICE
from dermino_core.reporting.markup import escape

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)


def document(title: str, parts: Iterable[str]) -> str:
    """The page of these parts, which are HTML; empty ones are left out. `title` is plain text."""
    style = resources.files("dermino_core.reporting").joinpath("style.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n"
        + f"<footer><p>{escape(NOT_A_DEVICE)}</p></footer>\n</body>\n</html>\n"
    )


def header(title: str, facts: Iterable[str]) -> str:
    """The page's heading and the line under it. Plain text."""
    line = " · ".join(f'<span class="whole">{escape(part)}</span>' for part in facts)
    return f"<header><h1>{escape(title)}</h1><p>{line}</p></header>"


def section(identifier: str, title: str, *content: str) -> str:
    """A section with its heading; `content` is HTML."""
    body = "\n".join(part for part in content if part)
    return (
        f'<section aria-labelledby="{identifier}">\n<h2 id="{identifier}">{escape(title)}</h2>\n'
        f"{body}\n</section>"
    )


def warning_box(title: str, notes: Iterable[str]) -> str:
    """What a reader has to know first; nothing without notes. Plain text."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    if not items:
        return ""
    return (
        '<aside class="warnings" aria-labelledby="warnings">'
        f'<h2 id="warnings">{escape(title)}</h2><ul>{items}</ul></aside>'
    )


def definitions(pairs: Iterable[tuple[str, str]], css_class: str) -> str:
    """A definition list. Plain text."""
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs)
    return f'<dl class="{css_class}">{items}</dl>'
