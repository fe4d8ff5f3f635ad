"""The sentences of the report. Plain text: the page escapes it.

The rule: say what the numbers allow and no more. An interval that holds 0.5 is not evidence of
learning; a difference whose interval holds 0 is not a difference.
"""

from __future__ import annotations

from dermino_core.reporting.numbers import (
    decimal,
    is_defined,
    join_names,
    percent,
    percent_estimate,
    plural,
    reason,
)
from dermino_core.reporting.roles import Roles, roles_of, title_of
from dermino_core.results import Estimate, Results

SMALL_TEST_SET = 100
SMALL_CLASS = 20
FAR_BETTER = 0.05


def answer(results: Results) -> list[str]:
    """What the run found, for somebody who reads nothing else: one to three sentences."""
    roles = roles_of(results)
    sentences: list[str] = []
    if not results.backbone.pretrained:
        sentences.append(
            "This was a rehearsal: the backbone has random weights, so the numbers below show "
            "that the machinery works and say nothing about skin disease."
        )
    summary = results.mean.get(roles.shared)
    hospitals = plural(len(results.sites), "hospital")
    if summary is None:
        return [*sentences, "The results hold no mean for the federated model."]
    if not is_defined(summary.auroc.value):
        return [
            *sentences,
            f"The mean over {hospitals} could not be computed: {reason(summary.auroc)}.",
            "Hospitals where it could be are in the table.",
        ]
    mean = f"On average over {hospitals}" if len(results.sites) > 1 else "At the one hospital"
    share = percent_estimate(summary.auroc, " of the time")
    sentences.append(f"{mean}, the federated model {_task_phrase(results)} {share}.")
    sentences.extend(_against_chance(summary.auroc))
    return sentences


def comparisons(results: Results) -> list[str]:
    """The federated model beside each baseline that the run has, one sentence or two each."""
    roles = roles_of(results)
    summary = results.mean.get(roles.shared)
    if summary is None or not is_defined(summary.auroc.value):
        return []
    return [
        *_baselines(results, roles, summary.auroc),
        *_converged(results, roles, summary.auroc),
    ]


def _task_phrase(results: Results) -> str:
    if len(results.classes) == 2:
        negative, positive = results.classes
        return f"ranks a {positive} image above a {negative} one"
    return (
        f"tells an image of one class from an image of the others (averaged over "
        f"{len(results.classes)} classes)"
    )


def _against_chance(estimate: Estimate) -> list[str]:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return []
    if estimate.high < 0.5:
        return ["That is worse than guessing: look at the label maps of the hospitals first."]
    if estimate.low <= 0.5:
        return [
            "The interval includes 50\u00a0%, which is what guessing gives: this run is no "
            "evidence that the model learnt anything."
        ]
    if estimate.value < 0.7:
        return ["That is better than guessing (50\u00a0%) but weak."]
    return ["Guessing would give 50\u00a0%."]


def _baselines(results: Results, roles: Roles, shared: Estimate) -> list[str]:
    sentences: list[str] = []
    if roles.local in results.mean and roles.local is not None:
        local = results.mean[roles.local].auroc
        sentences.append(
            f"Each hospital alone, on its own images: {percent_estimate(local)}."
            f"{_per_site_differences(results)}"
        )
    if roles.pooled in results.mean and roles.pooled is not None:
        pooled = results.mean[roles.pooled].auroc
        sentences.append(
            f"All data pooled in one place: {percent_estimate(pooled)}"
            f"{_pooled_verdict(shared, pooled)}."
        )
    return sentences


def _pooled_verdict(shared: Estimate, pooled: Estimate) -> str:
    order = _order(shared, pooled)
    if order is None:
        return ""
    return {
        0: "; the two intervals overlap, so this run shows no clear cost of keeping the data apart",
        1: "; it is clearly better, so keeping the data apart cost something here",
        -1: "; the federated model is clearly better, which is unusual and worth a second look",
    }[order]


def _order(first: Estimate, second: Estimate) -> int | None:
    """1 if `second` lies above `first` with intervals apart, -1 below, 0 overlapping."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return None
    if second.low > first.high:
        return 1
    return -1 if second.high < first.low else 0


def _per_site_differences(results: Results) -> str:
    better: list[str] = []
    worse: list[str] = []
    open_: list[str] = []
    for site in results.sites:
        difference = site.global_minus_local.get("auroc")
        if difference is None or difference.low is None or difference.high is None:
            continue
        if difference.low > 0:
            better.append(site.name)
        elif difference.high < 0:
            worse.append(site.name)
        else:
            open_.append(site.name)
    if not (better or worse or open_):
        return ""
    parts: list[str] = []
    if better:
        parts.append(f"clearly better at {join_names(better)}")
    if worse:
        parts.append(f"clearly worse at {join_names(worse)}")
    if open_:
        parts.append(f"not clearly different at {join_names(open_)}")
    return (
        f" Compared on the same test images, the federated model is {join_names(parts)} "
        "(clear means that the 95\u00a0% interval of the difference leaves out 0)."
    )


def _converged(results: Results, roles: Roles, shared: Estimate) -> list[str]:
    for key in roles.converged:
        if key not in results.mean or shared.value is None:
            continue
        longer = results.mean[key].auroc
        if longer.value is None or _order(shared, longer) != 1:
            continue
        if longer.value - shared.value < FAR_BETTER:
            continue
        return [
            f"{title_of(results, key)}, on the same features: {percent_estimate(longer)}. So the "
            f"{plural(results.rounds_done, 'round')} of training were too short to bring out what "
            "the backbone can see."
        ]
    return []


def warnings(results: Results) -> list[str]:
    """The run's own warnings, then what a reader must know before believing a number."""
    notes = list(results.warnings)
    if not results.backbone.pretrained and not _mentions(notes, "random"):
        notes.append("The backbone has random weights: no number on this page has a meaning.")
    if results.rounds_done < results.rounds_planned:
        notes.append(f"Only {results.rounds_done} of {results.rounds_planned} rounds were done.")
    if results.missing_sites:
        notes.append(f"Missing at the end of the run: {join_names(results.missing_sites)}.")
    rejected = sum(len(record.rejected) for record in results.rounds)
    if rejected:
        verb = "was" if rejected == 1 else "were"
        notes.append(
            f"{plural(rejected, 'reply', 'replies')} {verb} missing or not usable and {verb} left "
            "out; see “Run facts”."
        )
    notes.extend(_small_sets(results))
    return list(dict.fromkeys(notes))


def _mentions(notes: list[str], word: str) -> bool:
    return any(word in note.lower() for note in notes)


def _small_sets(results: Results) -> list[str]:
    small: list[str] = []
    for site in results.sites:
        evaluation = next(iter(site.evaluations.values()), None)
        counts = evaluation.class_counts if evaluation else {}
        rarest = min(counts, key=lambda label: counts[label], default=None)
        if rarest is not None and counts[rarest] < SMALL_CLASS:
            small.append(f"{site.name} ({site.n_test} images, {counts[rarest]} of them {rarest})")
        elif site.n_test < SMALL_TEST_SET:
            small.append(f"{site.name} ({plural(site.n_test, 'image')})")
    if not small:
        return []
    return [
        f"Small test sets: {join_names(small)}. Read the intervals rather than the single values."
    ]


def difference_sentence(difference: Estimate) -> str:
    """What a paired difference, federated minus own model, allows to say."""
    if difference.low is None or difference.high is None or difference.value is None:
        return ""
    if difference.low > 0:
        return "clearly better"
    if difference.high < 0:
        return "clearly worse"
    return "not clearly different"


def roc_description(site: str, lines: list[tuple[str, Estimate, int]]) -> str:
    """Alternative text of a ROC plot. `lines`: model title, AUROC, n."""
    parts = [
        f"{title}: AUROC {decimal(e.value)}" + (f" ({reason(e)})" if e.value is None else "")
        for title, e, _ in lines
    ]
    n = lines[0][2] if lines else 0
    return f"ROC curves at {site}, {plural(n, 'test image')}. {'; '.join(parts)}."


def share_read(used: int, total: int) -> str:
    """`168 of 170 (98.8 %)`."""
    return f"{used} of {total}" + (f" ({percent(used / total)})" if total else "")
