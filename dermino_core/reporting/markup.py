"""From untrusted text to HTML. Site names, labels and warnings all pass through here."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable

# No-break blanks are deliberate; every other white space becomes a plain blank.
_BLANKS = re.compile(r"[^\S\u00a0\u202f]+")


def clean(text: object) -> str:
    """One line of printable text: runs of white space become one blank, controls are dropped."""
    line = _BLANKS.sub(" ", str(text)).strip()
    return "".join(c for c in line if unicodedata.category(c) not in {"Cc", "Cf", "Cs"})


def escape(text: object) -> str:
    """Text that is safe between tags and inside a quoted attribute."""
    return html.escape(clean(text), quote=True)


def shorten(text: object, length: int) -> str:
    """At most `length` characters, with an ellipsis where something was cut."""
    line = clean(text)
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def paragraphs(sentences: Iterable[str], css_class: str = "") -> str:
    """The sentences as one escaped paragraph, or nothing when there are none."""
    text = " ".join(escape(s) for s in sentences)
    attribute = f' class="{css_class}"' if css_class else ""
    return f"<p{attribute}>{text}</p>" if text else ""


def table(head: Iterable[str], rows: Iterable[Iterable[str]], *, label: str) -> str:
    """A table in a box that scrolls by itself; on a phone each row becomes a block.

    Parameters
    ----------
    head
        Plain text, one per column.
    rows
        Cells that already are HTML. The first cell of a row is its header.
    label
        Plain text; names the box for screen readers.
    """
    names = [escape(name) for name in head]
    columns = "".join(f'<th scope="col">{name}</th>' for name in names)
    lines: list[str] = []
    for row in rows:
        first, *rest = row
        cells = "".join(
            f'<td data-label="{name}"><span>{cell}</span></td>'
            for name, cell in zip(names[1:], rest, strict=True)
        )
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return scroll_box(
        f'<table class="stacking"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>",
        label=label,
    )


def scroll_box(content: str, *, label: str) -> str:
    """A box that scrolls sideways on its own, reachable by keyboard. `content` is HTML."""
    name = escape(label)
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{name}">{content}</div>'
