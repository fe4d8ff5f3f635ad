"""How alike the hospitals are: table, plot and what it means. HTML."""

from __future__ import annotations

from dermino_core.reporting.figures import Figure
from dermino_core.reporting.markup import escape, table
from dermino_core.reporting.numbers import UNDEFINED, count, join_names, percent, two_places
from dermino_core.reporting.plots.likeness import MOST_ROWS, Row, likeness_plot
from dermino_core.results import Results, SiteDistance, SiteLikeness, SiteStatistics

CLEAR_SCORE, CHANCE_SCORE = 3.0, 1.0
"""Of a difference that is called one: chance gives it to one site in 700; and of none at all."""

SMALL_DRIFT, SMALL_SHIFT = 0.2, 0.1
"""Standard deviations, and share of the images, beyond chance: less is "a little"."""

NOT_ASKED = (
    "Not asked: how many images of which class a hospital has and their mean have neither noise "
    "nor mask, so a private or secure run leaves them out."
)
MEANING = (
    "Counts are of training images. “Features” is how far a hospital’s average image is from the "
    "other hospitals’, as the backbone sees it, in standard deviations within hospitals (root mean "
    "square over the features); “class shares” is how many of its images would have to change "
    "class to have the others’ shares. In brackets what chance alone gives on average to hospitals "
    "of these sizes: a small one lies farther off without being different. “Differs” means that "
    "chance alone would do that to fewer than one hospital in 700."
)
SO_WHAT = (
    "A hospital that differs is no worse: other cameras, other patients, other shares of the "
    "classes. It is where to expect that the common model fits less well, where to read the "
    "hospital’s own results first, and what a personal model is for."
)


def likeness(results: Results) -> list[str]:
    """The section's parts; none where nothing was asked and nothing hindered it."""
    statistics = results.statistics
    if statistics is None:
        hidden = results.secure_aggregation or bool(results.privacy)
        return [f"<p>{escape(NOT_ASKED)}</p>"] if hidden else []
    silent = [
        r for record in results.rounds for r in record.rejected if record.kind == "statistics"
    ]
    parts = []
    if silent:
        reasons = "; ".join(f"{one.site}: {one.sentence.rstrip('.')}" for one in silent)
        parts.append(f"<p>{escape(f'Without {reasons}. Training does not depend on it.')}</p>")
    if not statistics.sites:
        return parts or ["<p>No hospital told anything.</p>"]
    parts.append(f'<p class="lead">{escape(summary(statistics))}</p>')
    parts += [f"<p>{escape(one.sentence)}</p>" for one in statistics.suspicious]
    figure = _figure(statistics)
    parts.append(f'<div class="grid">{figure}</div>' if figure else "")
    parts += [_table(statistics), f"<p>{escape(MEANING)}</p>", f"<p>{escape(SO_WHAT)}</p>"]
    return parts


def summary(statistics: SiteStatistics) -> str:
    """One or two sentences: who differs, in what. Plain text."""
    sentences = []
    for what, small, of in (
        ("features", SMALL_DRIFT, lambda site: site.drift),
        ("shares of the classes", SMALL_SHIFT, lambda site: site.class_shares),
    ):
        seen = [site for site in statistics.sites if of(site)]
        if len(seen) < 2:
            sentences.append(f"Too few hospitals told enough to compare their {what}.")
            continue
        names = [site.site for site in seen if _word(of(site), small) == "differs"]
        if names:
            verb = "differs" if len(names) == 1 else "differ"
            sentences.append(f"In {what}, {join_names(names)} {verb} from the other hospitals.")
        else:
            sentences.append(f"In {what}, no hospital differs much from the others.")
    return " ".join(sentences)


def _word(distance: SiteDistance, small: float) -> str:
    if distance.score < CLEAR_SCORE:
        return "as alike as chance" if distance.score < CHANCE_SCORE else "not clearly different"
    beyond = max(distance.value**2 - distance.chance**2, 0.0) ** 0.5
    return "differs" if beyond >= small else "differs a little"


def _figure(statistics: SiteStatistics) -> str:
    rows: list[Row] = [
        (site.site, site.drift.value, site.drift.chance, site.drift.score >= CLEAR_SCORE)
        for site in statistics.sites
        if site.drift
    ]
    if not rows:
        return ""
    drawn = sorted(rows, key=lambda row: -row[1])[:MOST_ROWS]
    more = f" The {len(drawn)} farthest of {len(rows)}." if len(drawn) < len(rows) else ""
    caption = f"Dots: distance of a hospital’s average image. Bars: what chance alone gives.{more}"
    return Figure("Features beside chance", likeness_plot(drawn, name="alike"), caption).html()


def _table(statistics: SiteStatistics) -> str:
    rows = [
        [
            f"<bdi>{escape(site.site)}</bdi>",
            count(site.images),
            _counts(site, statistics.min_count),
            _distance(site.drift, SMALL_DRIFT, share=False),
            _distance(site.class_shares, SMALL_SHIFT, share=True),
            UNDEFINED if site.contrast is None else two_places(site.contrast),
        ]
        for site in statistics.sites
    ]
    head = ["Hospital", "Images", "Classes", "Features", "Class shares", "Agreement on the classes"]
    return table(head, rows, label="How alike the hospitals are") + (
        '<p class="note">Agreement on the classes: cosine of the direction in which the classes '
        "differ there with that at the others; below 0 they differ the other way round.</p>"
    )


def _counts(site: SiteLikeness, minimum: int) -> str:
    told = []
    for name, number in site.class_counts.items():
        if number is not None:
            text = f"{count(number)} ({percent(number / site.images)})" if site.images else "0"
        else:
            text = f"&lt;{minimum}" if name in site.few else "not told"
        told.append(f"{escape(name)} {text}")
    return ", ".join(told)


def _distance(distance: SiteDistance | None, small: float, *, share: bool) -> str:
    if distance is None:
        return f'{UNDEFINED} <span class="why">not told</span>'
    value, chance = (
        (percent(v) if share else f"{v:.2f}") for v in (distance.value, distance.chance)
    )
    word = _word(distance, small)
    return (
        f'<span class="value">{value}</span> <span class="interval">({chance} by chance)</span> '
        f'<span class="why">{word}</span>'
    )
