"""The page of a pretraining run: did it learn, what looked wrong, and everything it logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dermino_core.files import write_atomically
from dermino_core.reporting.document import (
    definitions,
    document,
    header,
    section,
    warning_box,
)
from dermino_core.reporting.markup import escape, paragraphs, shorten
from dermino_core.reporting.numbers import plural
from dermino_core.reporting.pretraining_figures import (
    INSIDE,
    LOSSES,
    MEASURED,
    SPEED,
    Panel,
    gradients,
    maps,
    panels,
)
from dermino_core.reporting.pretraining_run import PretrainingRun, Values, part, read_run
from dermino_core.reporting.pretraining_text import TERMS, answer, cards, noted, unfinished
from dermino_core.reporting.projection import project

__all__ = ["project", "render_pretraining_page", "write_pretraining_report"]

_LONGEST_VALUE = 300


def write_pretraining_report(run: Path) -> Path:
    """Write RUN/report.html and return its path. Works while the run is still going on.

    Parameters
    ----------
    run
        The run folder, with metrics.jsonl and, if they are there, run.json and projection.npz.

    Raises
    ------
    DerminoError
        RESULTS_INVALID if metrics.jsonl is missing, or one of the files is damaged.
    """
    file = run / "report.html"
    write_atomically(file, render_pretraining_page(read_run(run)))
    return file


def render_pretraining_page(run: PretrainingRun) -> str:
    """The HTML of the report: the same run gives the same bytes."""
    notes = [*unfinished(run), *noted(run.warnings)]
    parts = (
        header(run.title, _facts_line(run)),
        _answer(run),
        warning_box("Look at this first", notes),
        _titled("measured", "Did it learn?", panels(run, MEASURED, key="measured")),
        _titled("losses", "Losses", panels(run, LOSSES, key="losses")),
        _titled("inside", "Teacher, gradients, schedules", panels(run, _inside(run), key="inside")),
        _titled("speed", "Speed", panels(run, SPEED, key="speed")),
        _titled("maps", "Maps", "" if run.projection is None else maps(run.projection)),
        section("reading", "How to read this", definitions(TERMS, "glossary")),
        _configuration(run),
        _facts(run),
    )
    return document(run.title, parts)


def _titled(identifier: str, title: str, content: str) -> str:
    return section(identifier, title, content) if content else ""


def _inside(run: PretrainingRun) -> tuple[Panel, ...]:
    return (INSIDE[0], gradients(run), *INSIDE[1:])


def _facts_line(run: PretrainingRun) -> Iterator[str]:
    for name in ("method", "preset"):
        if run.config.get(name):
            yield f"{name} {run.config[name]}"
    yield plural(run.last_step, "step")
    if created := run.about.get("created"):
        yield str(created)[:10]


def _answer(run: PretrainingRun) -> str:
    items = "".join(
        f"<li><span>{escape(title)}</span><strong>{escape(value)}</strong>"
        f'<span class="interval">{escape(below)}</span></li>'
        for title, value, below in cards(run)
    )
    row = f'<ul class="cards">{items}</ul>' if items else ""
    return section("answer", "The answer", paragraphs(answer(run), "lead"), row)


def _configuration(run: PretrainingRun) -> str:
    """Every field, one list for each section of the file."""
    if not run.config:
        return ""
    plain = {k: v for k, v in run.config.items() if not isinstance(v, Mapping)}
    tables = {"": plain, **{k: part(run.config, k) for k in run.config if k not in plain}}
    lists = (
        f"<div><h3>{escape(name or 'general')}</h3>{definitions(_rows(values), 'facts-list')}</div>"
        for name, values in tables.items()
        if values
    )
    return section(
        "configuration", "Configuration", f'<div class="grid configuration">{"".join(lists)}</div>'
    )


def _facts(run: PretrainingRun) -> str:
    about = {k: v for k, v in run.about.items() if k not in {"config", "kind"}}
    rows = [(name.replace("_", " "), value) for name, value in _rows(about)]
    events = "".join(f"<li>{escape(note)}</li>" for note in noted(run.events))
    history = f"<h3>What happened on the way</h3><ul>{events}</ul>" if events else ""
    if not rows and not history:
        return ""
    return section("facts", "Run facts", definitions(rows, "facts-list"), history)


def _rows(values: Values) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        yield name, shorten(_written(value), _LONGEST_VALUE)


def _written(value: object) -> str:
    """A value of the configuration as one line."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_written(v)}" for k, v in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_written, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
