"""What an evaluation's page says in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dermino_core.evaluation.metric_names import metric_name
from dermino_core.evaluation.results import Comparison, EvaluationResults
from dermino_core.evaluation.tables import ScoreTable, score_tables
from dermino_core.reporting.numbers import decimal, join_names, plural

FIRST = (
    ("classification", "logistic regression", "auroc"),
    ("classification", "linear probe", "auroc"),
    ("retrieval", "softmax", "auroc"),
    ("segmentation", "upernet", "dice"),
    ("captioning", "greedy", "cider"),
)
"""What the page's first sentence is about: the first of these that was measured."""

TERMS = (
    (
        "AUROC",
        "How often an image of the class scores above one that is not: 1 is perfect, 0.5 is "
        "guessing. For several classes the mean over the classes.",
    ),
    ("F1", "Harmonic mean of precision and recall, averaged over the classes."),
    (
        "95 % interval",
        "Between the 2.5th and the 97.5th percentile of the number on resampled test halves; "
        "patients or lesions are drawn as a whole where the data name them.",
    ),
    (
        "Beyond chance",
        "A paired test on the same test images, its p-value adjusted for the number of comparisons "
        "(Holm), below 0.05. That a difference is not beyond chance does not mean there is none.",
    ),
    ("Dice, Jaccard", "Overlap of the predicted and the true mask: 1 is perfect."),
    (
        "Expected calibration error",
        "By how much the predicted probability misses the observed share, on average.",
    ),
)


def headline(results: EvaluationResults) -> ScoreTable | None:
    """The table that the page's answer is about."""
    tables = {(t.task, t.method, t.metric): t for t in score_tables(results)}
    for kind in FIRST:
        if kind in tables:
            return tables[kind]
    return next(iter(tables.values()), None)


def means(table: ScoreTable) -> dict[str, float]:
    """Backbone -> mean over the data sets, of those that have a number on all of them."""
    found = {}
    for backbone in table.backbones:
        values = [
            score.value
            for data in table.datasets
            if (score := table.cells.get((backbone, data))) and score.value is not None
        ]
        if len(values) == len(table.datasets):
            found[backbone] = sum(values) / len(values)
    return found


def answer(results: EvaluationResults, table: ScoreTable) -> list[str]:
    """The answer in a few sentences."""
    name, ranking = metric_name(table.metric), means(table)
    where = f"{table.task}, {table.method}"
    one = table.datasets[0] if len(table.datasets) == 1 else ""
    data = one or plural(len(table.datasets), "data set")
    kind = "" if one else "mean "
    if not ranking:
        return [f"No backbone has a number for {where} on all of {data}."]
    best = (min if name.lower_is_better else max)(ranking, key=lambda who: ranking[who])
    said = f"{name.title} {decimal(ranking[best])}"
    if len(ranking) == 1:
        return [f"{best} reaches a {kind}{said} on {data} ({where})."]
    return [
        f"{best} has the best {kind}{name.title} on {data}: {decimal(ranking[best])} ({where}).",
        *_against_others(results.comparisons, table, best),
    ]


def _against_others(
    comparisons: Sequence[Comparison], table: ScoreTable, best: str
) -> Iterator[str]:
    kind = (table.task, table.method, table.metric)
    for other in table.backbones:
        those = [
            row
            for row in comparisons
            if (row.task, row.method, row.metric) == kind
            and row.test != "DeLong"
            and {row.first, row.second} == {best, other}
        ]
        if other == best or not those:
            continue
        ahead = [
            r.dataset for r in those if r.beyond_chance and (r.difference > 0) == (r.first == best)
        ]
        behind = [r.dataset for r in those if r.beyond_chance and r.dataset not in ahead]
        parts = [f"better than {other} beyond chance on {join_names(ahead)}"] if ahead else []
        parts += [f"worse on {join_names(behind)}"] if behind else []
        rest = len(those) - len(ahead) - len(behind)
        if rest:
            parts.append(
                f"on {plural(rest, 'data set')} the difference to {other} may be chance"
                if not ahead
                else f"on {rest} it may be chance"
            )
        yield f"It is {', '.join(parts)}." if ahead or behind else f"{parts[0].capitalize()}."


def verdict(row: Comparison) -> str:
    """A comparison in a few words."""
    if not row.beyond_chance:
        return "may be chance"
    return f"{row.first if row.difference > 0 else row.second} is ahead"
