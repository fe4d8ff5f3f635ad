"""The whole page: sections in reading order, one file, nothing loaded from anywhere."""

from __future__ import annotations

from pathlib import Path

from dermino_core.files import write_atomically
from dermino_core.reporting.document import (
    definitions,
    document,
    header,
    section,
    warning_box,
)
from dermino_core.reporting.facts import facts_list, rejections_table, sent_explanation
from dermino_core.reporting.figures import (
    calibration_grid,
    cost_figures,
    cost_names,
    forest,
    grid,
    limit_note,
    roc_grid,
    rounds_figures,
)
from dermino_core.reporting.glossary import TERMS
from dermino_core.reporting.joining import joining_section
from dermino_core.reporting.likeness import likeness
from dermino_core.reporting.markup import escape, paragraphs
from dermino_core.reporting.numbers import headline_html, plural
from dermino_core.reporting.plots.legend import model_legend, model_swatch, site_legend
from dermino_core.reporting.plots.rounds import DRAWN_SITES
from dermino_core.reporting.privacy import privacy_explanation, privacy_table
from dermino_core.reporting.roles import models_of, roles_of, title_of
from dermino_core.reporting.standing_out import standing_out
from dermino_core.reporting.tables import (
    MATRIX_LIMIT,
    exchange_table,
    images_table,
    matrix_table,
    mean_table,
    site_tables,
)
from dermino_core.reporting.text import answer, comparisons, warnings
from dermino_core.results import Results


def write_report(results: Results, out: Path) -> Path:
    """Write one self-contained HTML file and return its path.

    The same results give the same bytes: no dates, no random identifiers.

    Parameters
    ----------
    out
        The file to write, or an existing folder, which gets a `report.html`.

    Raises
    ------
    OSError
        If `out` cannot be written.
    """
    file = out / "report.html" if out.is_dir() else out
    write_atomically(file, render_page(results))
    return file


def render_page(results: Results) -> str:
    """The HTML of the report."""
    sections = (
        _header(results),
        _answer(results),
        warning_box("Before you rely on it", warnings(results)),
        _scores(results),
        joining_section(results),
        _roc(results),
        _matrix(results),
        _rounds(results),
        _likeness(results),
        _standing_out(results),
        _calibration(results),
        _costs(results),
        _sent(results),
        _privacy(results),
        _glossary(),
        _facts(results),
    )
    return document(results.title, sections)


def _header(results: Results) -> str:
    facts = (
        results.task,
        plural(len(results.site_names), "hospital"),
        plural(results.rounds_done, "round"),
        results.created[:10],
    )
    return header(results.title, facts)


def _answer(results: Results) -> str:
    cards: list[str] = []
    for index, model in enumerate(models_of(results)):
        summary = results.mean.get(model.key)
        if summary is None:
            continue
        cards.append(
            f"<li><span>{model_swatch(index)}{escape(model.title)}</span>{headline_html(summary.auroc)}</li>"
        )
    row = f'<h3>Mean AUROC, with its 95 % interval</h3><ul class="cards">{"".join(cards)}</ul>'
    if not cards:
        row = ""
    compared = "".join(f"<li>{escape(sentence)}</li>" for sentence in comparisons(results))
    if compared:
        compared = f'<ul class="compared">{compared}</ul>'
    return section("answer", "The answer", paragraphs(answer(results), "lead"), compared, row)


def _scores(results: Results) -> str:
    models = models_of(results)
    described = "".join(
        f"<div><dt>{model_swatch(i)}{escape(m.title)}</dt><dd>{escape(m.description)}</dd></div>"
        for i, m in enumerate(models)
        if m.description
    )
    legend = f'<dl class="models">{described}</dl>' if described else ""
    return section(
        "scores",
        "How well each model does",
        f'<div class="grid beside"><div>{legend}{mean_table(results)}</div>{forest(results)}</div>',
        site_tables(results),
        "<h3>Images of each hospital</h3>",
        images_table(results),
    )


def _roc(results: Results) -> str:
    plots, drawn = roc_grid(results)
    if not plots:
        return ""
    shared = title_of(results, roles_of(results).shared)
    return section(
        "roc",
        "Found against false alarms (ROC)",
        f"<p>Shaded: 95 % band of “{escape(shared)}”, whose AUROC is in the captions.</p>",
        model_legend([model.title for model in models_of(results)], line=True),
        plots,
        limit_note(drawn, len(results.sites)),
    )


def _matrix(results: Results) -> str:
    cross = results.cross_site
    if cross is None or not cross.rows:
        return ""
    note = ""
    if max(len(cross.rows), len(cross.columns)) > MATRIX_LIMIT:
        note = f'<p class="note">The first {MATRIX_LIMIT} hospitals are shown.</p>'
    auroc = matrix_table(cross, cross.auroc, "AUROC")
    f1 = matrix_table(cross, cross.f1, "F1")
    return section(
        "matrix",
        "Does one hospital’s model work elsewhere?",
        "<p>The model that one hospital trained alone (row) on the test images of another "
        "(column). Framed: at home. These are the heads of “each hospital alone”, with the run’s "
        "own schedule: one that is weak at home will be weak elsewhere. The numbers have no "
        "intervals; the sizes of the test sets are in the tables above.</p>",
        f'<div class="grid">{auroc}{f1}</div>',
        note,
    )


def _rounds(results: Results) -> str:
    figures = rounds_figures(results)
    if not figures:
        return ""
    names = [site.name for site in results.sites]
    legend = (
        site_legend(names)
        if len(names) <= DRAWN_SITES
        else "<p>Thin lines: hospitals. Bold line: their mean.</p>"
    )
    return section("rounds", "Round by round", legend, grid(figures))


def _likeness(results: Results) -> str:
    parts = likeness(results)
    return section("alike", "How alike the hospitals are", *parts) if parts else ""


def _standing_out(results: Results) -> str:
    parts = standing_out(results)
    return section("standing-out", "Updates that stand out", *parts) if parts else ""


def _calibration(results: Results) -> str:
    plots, drawn = calibration_grid(results)
    if not plots:
        return ""
    return section(
        "calibration",
        "Can its probabilities be taken at their word? (calibration)",
        "<p>The federated model. On the diagonal, what it predicts is what happens; points grow "
        "with the number of images.</p>",
        plots,
        limit_note(drawn, len(results.sites)),
    )


def _costs(results: Results) -> str:
    figures = cost_figures(results)
    if not figures:
        return ""
    return section("costs", "Time and traffic", site_legend(cost_names(results)), grid(figures))


def _sent(results: Results) -> str:
    return section(
        "sent", "What left each hospital", sent_explanation(results), exchange_table(results)
    )


def _privacy(results: Results) -> str:
    if not results.privacy:
        return ""
    return section(
        "privacy", "What it cost in privacy", privacy_explanation(results), privacy_table(results)
    )


def _glossary() -> str:
    return section("reading", "How to read this", definitions(TERMS, "glossary"))


def _facts(results: Results) -> str:
    return section(
        "facts",
        "Run facts",
        facts_list(results),
        "<h3>Replies that did not count</h3>",
        rejections_table(results),
    )
