"""The tables of the report, as HTML."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dermino_core.reporting.markup import escape, scroll_box, table
from dermino_core.reporting.numbers import (
    UNDEFINED,
    amount_of_bytes,
    count,
    decimal,
    duration,
    estimate_html,
    join_names,
)
from dermino_core.reporting.plots.legend import model_swatch
from dermino_core.reporting.roles import models_of
from dermino_core.reporting.text import difference_sentence
from dermino_core.results import (
    CrossSite,
    Difference,
    Estimate,
    Evaluation,
    ModelSummary,
    Results,
    SiteResult,
)

MATRIX_LIMIT = 25


def site_tables(results: Results) -> str:
    """Every model's scores: one table for each hospital."""
    tables = "".join(_site_table(results, site) for site in results.sites)
    return f'<div class="grid small">{tables}</div>'


def _metrics(results: Results) -> tuple[str, ...]:
    """The columns: the paper's two, and of more than two classes the one of its benchmarks."""
    return ("AUROC", "F1", "Balanced accuracy")[: 3 if len(results.classes) > 2 else 2]


def _score_table(
    title: str, facts: str, metrics: Sequence[str], rows: list[str], *, label: str
) -> str:
    columns = "".join(f'<th scope="col">{name}</th>' for name in ("Model", *metrics))
    head = f"<tr>{columns}</tr>"
    content = f'<table class="scores"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
    box = scroll_box(content, label=f"{join_names(list(metrics))}, {label}")
    return f'<div><h3>{title}</h3><p class="facts">{facts}</p>{box}</div>'


def _score_row(
    label: str,
    scored: Evaluation | Difference | ModelSummary,
    metrics: Sequence[str],
    *,
    signed: bool = False,
) -> str:
    absent = Estimate(value=None, undefined_because="not measured")
    scores = (scored.auroc, scored.f1, scored.balanced_accuracy or absent)[: len(metrics)]
    verdicts = [difference_sentence(e) if signed else "" for e in scores]
    cells = "".join(
        f"<td>{estimate_html(e, signed=signed)}"
        + (f' <span class="verdict">{verdict}</span>' if verdict else "")
        + "</td>"
        for e, verdict in zip(scores, verdicts, strict=True)
    )
    css_class = ' class="difference"' if signed else ""
    return f'<tr{css_class}><th scope="row">{label}</th>{cells}</tr>'


def mean_table(results: Results) -> str:
    """Every model's scores, averaged over the hospitals."""
    metrics = _metrics(results)
    rows = [
        _score_row(f"{model_swatch(i)}{escape(model.title)}", results.mean[model.key], metrics)
        for i, model in enumerate(models_of(results))
        if model.key in results.mean
    ]
    title = "Mean over hospitals"
    return _score_table(title, "every hospital counts the same", metrics, rows, label=title)


def _site_table(results: Results, site: SiteResult) -> str:
    metrics = _metrics(results)
    rows = [
        _score_row(f"{model_swatch(i)}{escape(model.title)}", site.evaluations[model.key], metrics)
        for i, model in enumerate(models_of(results))
        if model.key in site.evaluations
    ]
    rows += [
        _score_row(
            f"Federated minus: {escape(model.title)}",
            site.global_minus[model.key],
            metrics,
            signed=True,
        )
        for model in models_of(results)
        if model.key in site.global_minus
    ]
    sizes = sorted({evaluation.n for evaluation in site.evaluations.values()})
    tested = " / ".join(count(n) for n in sizes) or UNDEFINED
    facts = f"n = {tested} test images: {_class_counts(_test_counts(site))}"
    careless = [e.f1_of_largest_class for e in site.evaluations.values()]
    if careless and careless[0] is not None:
        facts += f". F1 of calling every image the largest class: {careless[0]:.3f}"
    return _score_table(f"<bdi>{escape(site.name)}</bdi>", facts, metrics, rows, label=site.name)


def _test_counts(site: SiteResult) -> dict[str, int]:
    first: Evaluation | None = next(iter(site.evaluations.values()), None)
    return first.class_counts if first else {}


def _class_counts(counts: dict[str, int]) -> str:
    listed = ", ".join(f"{count(n)} {escape(label)}" for label, n in counts.items())
    return listed or UNDEFINED


def images_table(results: Results) -> str:
    """What each hospital had: images used of those listed, train and test, per class."""
    rows = [
        [
            f"<bdi>{escape(site.name)}</bdi>",
            f"{count(site.images_used)} of {count(site.images_total)}",
            count(site.unreadable),
            f'{count(site.n_train)} <span class="why">{_class_counts(site.train_class_counts)}'
            "</span>",
            f'{count(site.n_test)} <span class="why">{_class_counts(_test_counts(site))}</span>',
        ]
        for site in results.sites
    ]
    if totals := results.totals:
        rows.append(
            [
                "all together",
                f"{count(totals.images_used)} of {count(totals.images_total)}",
                count(totals.unreadable),
                f'{count(totals.n_train)} <span class="why">'
                f"{_class_counts(totals.train_class_counts)}</span>",
                count(totals.n_test),
            ]
        )
    head = ["Hospital", "Images used", "Unreadable", "Training", "Test"]
    return table(head, rows, label="Images of each hospital")


def matrix_table(cross: CrossSite, values: list[list[float | None]], metric: str) -> str:
    """The cross-site matrix as a heatmap; at most 25 rows and columns are drawn."""
    rows, columns = cross.rows[:MATRIX_LIMIT], cross.columns[:MATRIX_LIMIT]
    return heat_table(
        rows,
        columns,
        [row[:MATRIX_LIMIT] for row in values[:MATRIX_LIMIT]],
        corner=("trained at ↓", "tested at →"),
        caption=metric,
        label=f"{metric} of the model of each row on each column's images",
        marked={(name, name) for name in rows},
    )


def heat_table(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    corner: tuple[str, str],
    caption: str,
    label: str,
    marked: Collection[tuple[str, str]] = (),
) -> str:
    """Numbers in 0..1 as a heatmap whose cells are numbers. All names are plain text.

    Cells get one of eleven shades for 0, 0.1, … 1; those of `marked` (row, column) a frame.
    """
    head = "".join(f'<th scope="col"><bdi>{escape(name)}</bdi></th>' for name in columns)
    lines: list[str] = []
    for name, row in zip(rows, values, strict=True):
        cells = "".join(
            _matrix_cell(value, own=(name, column) in marked)
            for column, value in zip(columns, row, strict=True)
        )
        lines.append(f'<tr><th scope="row"><bdi>{escape(name)}</bdi></th>{cells}</tr>')
    first = "<br>".join(map(escape, corner))
    content = (
        f'<table class="matrix"><caption>{escape(caption)}</caption>'
        f'<thead><tr><td class="corner">{first}</td>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
    return scroll_box(content, label=label)


def _matrix_cell(value: float | None, *, own: bool) -> str:
    text = decimal(value)
    if value is None or text == UNDEFINED:
        return f'<td class="shade-none" title="undefined">{UNDEFINED}</td>'
    shade = min(10, max(0, int(value * 10 + 1e-9)))
    return f'<td class="shade-{shade}{" own" if own else ""}">{text}</td>'


def exchange_table(results: Results) -> str:
    """Messages and bytes per hospital, over all rounds."""
    replies: dict[str, int] = {}
    sent: dict[str, int] = {}
    received: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for record in results.rounds:
        for transfer in record.transfers:
            name = transfer.site
            replies[name] = replies.get(name, 0) + transfer.messages
            sent[name] = sent.get(name, 0) + transfer.bytes_from_site
            received[name] = received.get(name, 0) + transfer.bytes_to_site
            seconds[name] = seconds.get(name, 0.0) + transfer.seconds
    rows = [
        [
            f"<bdi>{escape(name)}</bdi>",
            count(replies[name]),
            f'{amount_of_bytes(sent[name])} <span class="why">{count(sent[name])} bytes</span>',
            f'{amount_of_bytes(received[name])} <span class="why">{count(received[name])} bytes'
            "</span>",
            UNDEFINED if results.secure_aggregation else duration(seconds[name]),
        ]
        for name in replies
    ]
    if not rows:
        return "<p>No exchange with a hospital was recorded.</p>"
    head = ["Hospital", "Messages out", "Left the hospital", "Came in", "Computing time"]
    return table(head, rows, label="Messages and bytes per hospital")
