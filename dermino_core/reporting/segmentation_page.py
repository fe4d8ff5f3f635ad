"""The page of a segmentation federation: how well lesions are outlined, together and alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dermino_core.files import write_atomically
from dermino_core.reporting.document import (
    definitions,
    document,
    header,
    section,
    warning_box,
)
from dermino_core.reporting.figures import Figure, grid
from dermino_core.reporting.markup import escape, paragraphs, table
from dermino_core.reporting.numbers import (
    UNDEFINED,
    amount_of_bytes,
    count,
    decimal,
    duration,
    estimate_html,
    headline_html,
    interval,
    plural,
)
from dermino_core.reporting.plots.bars import MOST_GROUPS, Bar, bars_plot
from dermino_core.reporting.plots.legend import model_legend, model_swatch, site_legend
from dermino_core.reporting.plots.rounds import DRAWN_SITES, rounds_plot
from dermino_core.results import Estimate
from dermino_core.segmentation_results import Overlap, SegmentationResults

TERMS = (
    (
        "Dice",
        "Twice the shared area of prediction and mask over the sum of both areas: 1 is the same "
        "outline, 0 no overlap. The mean over test images; an empty mask scores 1 if the "
        "prediction is empty, too.",
    ),
    ("Jaccard", "The shared area over the area of either; always at most the Dice."),
    (
        "Interval",
        "Where 95 % of bootstrap replicates fall when the test half's patients are drawn anew. "
        "That of the mean over hospitals is normal, from the hospitals' standard errors.",
    ),
    (
        "Federated minus",
        "The same test images under both heads, drawn together. An interval that holds 0 shows no "
        "difference.",
    ),
    (
        "Each hospital alone",
        "The same schedule and seed on one hospital's images only: what joining is compared with.",
    ),
)


def write_segmentation_report(results: SegmentationResults, out: Path) -> Path:
    """Write the page and return its path. The same results give the same bytes.

    Parameters
    ----------
    out
        The file to write, or an existing folder, which gets a `report.html`.
    """
    file = out / "report.html" if out.is_dir() else out
    write_atomically(file, render_segmentation_page(results))
    return file


def render_segmentation_page(results: SegmentationResults) -> str:
    """The HTML of the report."""
    parts = (
        header(results.title, _facts_line(results)),
        _answer(results),
        warning_box("Before you rely on it", results.warnings),
        _hospitals(results),
        section("data", "The data", _data_table(results)),
        _rounds(results),
        _exchange(results),
        section("reading", "How to read this", definitions(TERMS, "glossary")),
        _facts(results),
    )
    return document(results.title, parts)


def _facts_line(results: SegmentationResults) -> Iterator[str]:
    yield plural(len(results.sites), "hospital")
    yield f"{count(sum(site.n_test for site in results.sites))} test images"
    yield f"{results.head} head, {plural(results.rounds_done, 'round')}"
    yield results.created[:10]


def _answer(results: SegmentationResults) -> str:
    items = "".join(
        f"<li><span>{model_swatch(i)}{escape(model.title)}</span>"
        f"{headline_html(results.mean[model.key].dice)}</li>"
        for i, model in enumerate(results.models)
        if model.key in results.mean
    )
    return section(
        "answer",
        "The answer",
        paragraphs(_sentences(results), "lead"),
        f'<ul class="cards">{items}</ul>' if items else "",
    )


def _sentences(results: SegmentationResults) -> Iterator[str]:
    if unfit := results.backbone.unfit_because:
        yield (
            f"This was a rehearsal: the backbone {unfit}, so the numbers below show that the "
            "machinery works and say nothing about skin."
        )
    mean = results.mean.get("global")
    if mean is None or mean.dice.value is None:
        yield "The results hold no mean for the federated head."
        return
    whose = "at the one hospital"
    if len(results.sites) > 1:
        whose = f"on average over {plural(len(results.sites), 'hospital')}"
    yield (
        f"The federated head outlines lesions with a Dice of {decimal(mean.dice.value)} "
        f"({interval(mean.dice) or 'no interval'}), {whose}."
    )
    titles = {model.key: model.title for model in results.models}
    for key, found in results.mean_global_minus.items():
        yield _compared(titles.get(key, key), found.dice)


def _compared(title: str, difference: Estimate) -> str:
    if difference.value is None or difference.low is None or difference.high is None:
        return f"Against “{title}” there is no interval."
    amount = f"{decimal(difference.value, signed=True)} ({interval(difference, signed=True)})"
    if difference.low > 0:
        return f"It is better than “{title}”: {amount}."
    if difference.high < 0:
        return f"It is worse than “{title}”: {amount}."
    return f"Against “{title}” no difference is shown: {amount}."


def _hospitals(results: SegmentationResults) -> str:
    titles = [model.title for model in results.models]
    drawn = results.sites[:MOST_GROUPS]
    figures: list[Figure] = []
    for metric in ("dice", "jaccard"):
        name = metric.capitalize()
        groups = [
            (site.name, [_bar(site.scores.get(model.key), metric) for model in results.models])
            for site in drawn
        ]
        svg = bars_plot(groups, titles, metric=name, name=f"bars-{metric}")
        figures.append(Figure(f"{name} with 95 % intervals", svg))
    note = ""
    if len(drawn) < len(results.sites):
        total = plural(len(results.sites), "hospital")
        note = f'<p class="note">The first {len(drawn)} of {total} are drawn.</p>'
    return section(
        "hospitals",
        "Every hospital",
        model_legend(titles, line=False),
        grid(figures),
        note,
        _score_table(results),
    )


def _bar(found: Overlap | None, metric: str) -> Bar:
    if found is None:
        return None, None, None
    estimate: Estimate = getattr(found, metric)
    return estimate.value, estimate.low, estimate.high


def _score_table(results: SegmentationResults) -> str:
    rows: list[list[str]] = []
    named = [(site.name, site.scores, site.global_minus) for site in results.sites]
    for name, scores, minus in [
        *named,
        ("Mean over hospitals", results.mean, results.mean_global_minus),
    ]:
        for model in results.models:
            if (found := scores.get(model.key)) is None:
                continue
            less = minus.get(model.key)
            rows.append(
                [
                    f"<bdi>{escape(name)}</bdi>",
                    escape(model.title),
                    estimate_html(found.dice),
                    estimate_html(found.jaccard),
                    UNDEFINED if less is None else estimate_html(less.dice, signed=True),
                ]
            )
    head = ["Hospital", "Trained on", "Dice", "Jaccard", "Federated minus this, Dice"]
    return table(head, rows, label="Overlap at each hospital")


def _data_table(results: SegmentationResults) -> str:
    rows = [
        [
            f"<bdi>{escape(site.name)}</bdi>",
            f"{count(site.n_train)} in {plural(site.views, 'view')}",
            f"{count(site.n_test)} ({plural(site.units_test, 'group')})",
            count(site.left_out),
            escape(site.precision),
        ]
        for site in results.sites
    ]
    head = ["Hospital", "Training images", "Test images", "Left out", "Arithmetic"]
    return table(head, rows, label="Images of each hospital")


def _rounds(results: SegmentationResults) -> str:
    names = [site.name for site in results.sites]
    figures: list[Figure] = []
    for title, key, caption in (
        ("Dice after each round", "dice", "The federated head on each hospital's test images."),
        ("Training loss", "train_loss", "Mean loss in the last local epoch; lower is better."),
    ):
        points = [
            (record.round, str(record.round), getattr(record, key))
            for record in results.rounds
            if getattr(record, key)
        ]
        svg = rounds_plot(points, names, title=title, chance=None, name=f"rounds-{key}")
        if svg is not None:
            figures.append(Figure(title, svg, caption))
    if not figures:
        return ""
    legend = site_legend(names) if len(names) <= DRAWN_SITES else ""
    return section("rounds", "Round by round", legend, grid(figures), _rejections(results))


def _rejections(results: SegmentationResults) -> str:
    rows = [
        [
            f"<bdi>{escape(one.site)}</bdi>",
            "final" if record.kind == "evaluate" else str(record.round),
            escape(one.sentence),
        ]
        for record in results.rounds
        for one in record.rejected
    ]
    if not rows:
        return ""
    return table(["Hospital", "Round", "Did not count because"], rows, label="Replies left out")


def _exchange(results: SegmentationResults) -> str:
    transfers = [one for record in results.rounds for one in record.transfers]
    rows = []
    for name in dict.fromkeys(one.site for one in transfers):
        own = [one for one in transfers if one.site == name]
        left, came = (
            sum(one.bytes_from_site for one in own),
            sum(one.bytes_to_site for one in own),
        )
        rows.append(
            [
                f"<bdi>{escape(name)}</bdi>",
                count(sum(one.messages for one in own)),
                f'{amount_of_bytes(left)} <span class="why">{count(left)} bytes</span>',
                f'{amount_of_bytes(came)} <span class="why">{count(came)} bytes</span>',
                duration(sum(one.seconds for one in own)),
            ]
        )
    if not rows:
        return ""
    said = (
        "What left a hospital: the head it trained, how many images it trained on, its loss, and "
        "means of Dice and Jaccard over its test images. No image, no mask, no feature."
    )
    head = ["Hospital", "Messages out", "Left the hospital", "Came in", "Computing time"]
    return section(
        "exchange",
        "What crossed the network",
        paragraphs([said]),
        table(head, rows, label="Messages and bytes per hospital"),
    )


def _facts(results: SegmentationResults) -> str:
    info = results.backbone
    facts = [
        ("dermino", results.dermino_version),
        ("machine", results.machine),
        ("engine", results.engine),
        ("seed", str(results.seed)),
        ("bootstrap replicates", count(results.replicates)),
        (
            info.name,
            f"{info.architecture}, {info.width} features, {info.precision}, fingerprint "
            f"{info.fingerprint[:12]}",
        ),
        *((name.replace("_", " "), str(value)) for name, value in results.settings.items()),
        *((f"time for {stage}", duration(value)) for stage, value in results.seconds.items()),
    ]
    return section("facts", "Run facts", definitions(facts, "facts-list"))
