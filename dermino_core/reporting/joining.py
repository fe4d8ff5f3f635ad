"""What joining gives each hospital, against the number of its labels. HTML."""

from __future__ import annotations

from dermino_core.joining_curve import sentence
from dermino_core.reporting.document import section
from dermino_core.reporting.figures import SMALL_MULTIPLES, Figure, grid, limit_note
from dermino_core.reporting.markup import escape, table
from dermino_core.reporting.numbers import count, estimate_html, join_names, plural
from dermino_core.reporting.plots.joining import Line, joining_plot
from dermino_core.reporting.plots.legend import model_swatch
from dermino_core.reporting.roles import models_of
from dermino_core.results import Estimate, JoiningCurve, JoiningPoint, Results

ALONE, SHARED, PERSONAL = "local_converged", "global", "personal"
"""The models of the results that the three lines are, at all labels."""

_HEAD = ["Own labels", "Alone", "Federated", "Personal", "Personal minus alone"]

_NOTES = (
    "“Alone” is logistic regression on the hospital’s own labelled images, solved to its optimum; "
    "“federated” is the model of all hospitals, its own labels among them; “personal” is the "
    "hospital’s own mixture of the two. With 0 labels of its own a hospital has the others’ model. "
    "What the run’s own method gives on a hospital’s images alone is in the tables above.",
    "Every curve was computed inside its hospital, from the sums of all hospitals less its own: "
    "fewer labels are its own training images of which only so many may take part, drawn five "
    "times by patient. So a curve says what fewer labels would have given, and not what more "
    "will.",
    "The bands are 95 % intervals over which images were tested and, but for all labels, which "
    "were labelled. The three lines share test images, so compare them by their difference, not "
    "by whether bands overlap.",
)


def joining_section(results: Results) -> str:
    """The section; nothing where no hospital told a curve."""
    curves = {site.name: site.joining for site in results.sites if site.joining is not None}
    if not curves:
        return ""
    drawn = dict(list(curves.items())[:SMALL_MULTIPLES])
    lines = _lines(results)
    figures = [
        Figure(
            f"<bdi>{escape(name)}</bdi>",
            joining_plot(curve, lines, site=name, name=f"joining{index}") or "",
            _told(curve),
        )
        for index, (name, curve) in enumerate(drawn.items())
    ]
    rest = "".join(
        f"<h3><bdi>{escape(name)}</bdi></h3><p>{_told(curve)}</p>"
        for name, curve in curves.items()
        if name not in drawn
    )
    return section(
        "joining",
        "What joining gives each hospital",
        f"<p>{escape(_summary(curves))}</p>",
        _legend(lines),
        grid(figures),
        limit_note(len(drawn), len(curves)),
        rest,
        _with_all_labels(curves),
        "".join(_details(name, curve) for name, curve in curves.items()),
        "<h3>How to read the curves</h3>",
        "".join(f'<p class="note">{escape(note)}</p>' for note in _NOTES),
    )


def _told(curve: JoiningCurve) -> str:
    """The sentence, with the minus of print."""
    return f'<span class="told">{escape(sentence(curve).replace(" -0.", " −0."))}</span>'


def _summary(curves: dict[str, JoiningCurve]) -> str:
    """In how many hospitals the personal model is clearly better than the hospital alone."""
    changes = {name: curve.all_labels.personal_minus_alone for name, curve in curves.items()}
    better = [n for n, change in changes.items() if change.low is not None and change.low > 0]
    worse = [n for n, change in changes.items() if change.high is not None and change.high < 0]
    hospitals = plural(len(curves), "hospital")
    text = (
        f"With all labels that they have, the personal model is clearly better than training alone "
        f"at {len(better)} of {hospitals}"
        + (f" ({join_names(better)})" if better else "")
        + f" and clearly worse at {len(worse)}"
        + (f" ({join_names(worse)})" if worse else "")
        + "; clearly means that the 95 % interval of the difference leaves out 0."
    )
    if len(curves) > 1:
        text += (
            " Where joining changes nothing, about one hospital in 20 still looks clearly "
            "different by chance."
        )
    return text


def _lines(results: Results) -> list[Line]:
    keys = [model.key for model in models_of(results)]

    def colour(key: str, otherwise: int) -> int:
        return keys.index(key) if key in keys else otherwise

    return [
        ("Alone", colour(ALONE, 2), _alone),
        ("Federated", colour(SHARED, 0), _federated),
        ("Personal", colour(PERSONAL, 3), _personal),
    ]


def _alone(point: JoiningPoint) -> Estimate:
    return point.alone


def _federated(point: JoiningPoint) -> Estimate:
    return point.federated


def _personal(point: JoiningPoint) -> Estimate:
    return point.personal


def _legend(lines: list[Line]) -> str:
    items = "".join(
        f"<li>{model_swatch(index, line=True)}{escape(title)}</li>" for title, index, _ in lines
    )
    return f'<ul class="legend">{items}</ul>'


def _with_all_labels(curves: dict[str, JoiningCurve]) -> str:
    rows = [
        [f"<bdi>{escape(name)}</bdi>", *_cells(curve.all_labels)] for name, curve in curves.items()
    ]
    title = "With all labels that each has"
    return f"<h3>{title}</h3>" + table(["Hospital", *_HEAD], rows, label=title)


def _details(name: str, curve: JoiningCurve) -> str:
    rows = [_cells(point) for point in curve.points]
    label = f"AUROC at {name} by its labels"
    return (
        f"<details><summary>By number of labels: <bdi>{escape(name)}</bdi></summary>"
        f"{table(_HEAD, rows, label=label)}</details>"
    )


def _cells(point: JoiningPoint) -> list[str]:
    return [
        count(point.labels),
        estimate_html(point.alone),
        estimate_html(point.federated),
        estimate_html(point.personal),
        estimate_html(point.personal_minus_alone, signed=True),
    ]
