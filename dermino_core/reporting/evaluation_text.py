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
    ("captioning", None, "cider"),
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

PAPER_TERMS = (
    *(term for term in TERMS if term[0] not in ("95 % interval", "Beyond chance")),
    (
        "The paper's statistics",
        "Mean and variance of the number over bootstrap replicates, and t-tests on the replicates. "
        "Neither is a confidence interval nor a test: in simulation the range holds the truth in 4 "
        "% of trials, and the test finds a difference in 95 % of comparisons that have none.",
    ),
)
"""The same with `--statistics paper`."""


def headline(results: EvaluationResults) -> ScoreTable | None:
    """The table that the page's answer is about."""
    tables = score_tables(results)
    for task, method, metric in FIRST:
        for table in tables:
            if (table.task, table.metric) == (task, metric) and method in (None, table.method):
                return table
    return next(iter(tables), None)


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
    left_out = [who for who in table.backbones if who not in ranking]
    if not ranking:
        return [f"No backbone has a number for {where} on all of {data}."]
    missing = [f"Not ranked, for want of a number: {join_names(left_out)}."] if left_out else []
    best = (min if name.lower_is_better else max)(ranking, key=lambda who: ranking[who])
    said = f"{name.title} {decimal(ranking[best])}"
    if len(ranking) == 1:
        return [f"{best} reaches a {kind}{said} on {data} ({where}).", *missing]
    return [
        f"{best} has the best {kind}{name.title} on {data}: {decimal(ranking[best])} ({where}).",
        *_against_others(results.comparisons, table, best),
        *missing,
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
        rest = len(those) - len(ahead) - len(behind)
        parts = [f"better on {join_names(ahead)}"] if ahead else []
        parts += [f"worse on {join_names(behind)}"] if behind else []
        if rest and parts:
            parts.append(f"on {rest} it may be chance")
        if not parts:
            yield f"The difference to {other} may be chance on {_all_of(len(those))}."
        else:
            yield f"Against {other} it is beyond chance {', '.join(parts)}."


def _all_of(number: int) -> str:
    return "the data set" if number == 1 else f"all {number} data sets"


def terms(results: EvaluationResults) -> tuple[tuple[str, str], ...]:
    """What the page's words mean."""
    return PAPER_TERMS if results.statistics == "paper" else TERMS


def verdict(row: Comparison) -> str:
    """A comparison in a few words."""
    if row.test.startswith("t-test"):
        return "not to be relied on"
    if not row.beyond_chance:
        return "may be chance"
    return f"{row.first if row.difference > 0 else row.second} is ahead"
