"""The sentences of the report. Plain text: the page escapes it.

The rule: say what the numbers allow and no more. An interval that holds 0.5 is not evidence of
learning; a difference whose interval holds 0 is not a difference.
"""

from __future__ import annotations

from dermino_core.metrics import mean_over_sites
from dermino_core.reporting.numbers import (
    decimal,
    is_defined,
    join_names,
    percent,
    percent_estimate,
    plural,
    points_estimate,
    reason,
)
from dermino_core.reporting.roles import roles_of
from dermino_core.results import Estimate, Results

SMALL_TEST_SET = 100
SMALL_CLASS = 20


def answer(results: Results) -> list[str]:
    """What the run found, for somebody who reads nothing else: one to three sentences."""
    roles = roles_of(results)
    sentences: list[str] = []
    if unfit := results.backbone.unfit_because:
        sentences.append(
            f"This was a rehearsal: the backbone {unfit}, so the numbers below show that the "
            "machinery works and say nothing about skin disease."
        )
    summary = results.mean.get(roles.shared)
    hospitals = plural(len(results.site_names), "hospital")
    if summary is None:
        return [*sentences, "The results hold no mean for the federated model."]
    if not is_defined(summary.auroc.value):
        return [
            *sentences,
            f"The mean over {hospitals} could not be computed: {reason(summary.auroc)}.",
            "Hospitals where it could be are in the table.",
        ]
    mean = f"On average over {hospitals}" if len(results.site_names) > 1 else "At the one hospital"
    share = percent_estimate(summary.auroc, " of the time")
    sentences.append(f"{mean}, the federated model {_task_phrase(results)} {share}.")
    sentences.extend(_against_chance(summary.auroc))
    return sentences


def comparisons(results: Results) -> list[str]:
    """The personal models, then the federated one beside each baseline; a few sentences each."""
    roles = roles_of(results)
    summary = results.mean.get(roles.shared)
    if summary is None or not is_defined(summary.auroc.value):
        return []
    return [*_personal(results), *_baselines(results)]


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


def _baselines(results: Results) -> list[str]:
    """One sentence per other model, with the paired difference: never a verdict from overlap."""
    personal = roles_of(results).personal
    return [
        f"{model.title}: {percent_estimate(results.mean[model.key].auroc)}."
        f"{_verdict(results, model.key)}"
        for model in results.models[1:]
        if model.key in results.mean and model.key != personal
    ]


def _personal(results: Results) -> list[str]:
    """How the hospitals' own models do, beside the federated one and beside training alone."""
    key = roles_of(results).personal
    if key is None or key not in results.mean:
        return []
    text = (
        f"Personal models, one made by each hospital for itself: "
        f"{percent_estimate(results.mean[key].auroc)}."
    )
    parts = []
    if key in results.mean_global_minus:
        turned = _turned(results.mean_global_minus[key].auroc)
        parts.append((turned, "the federated one"))
    curves = [site.joining for site in results.sites if site.joining is not None]
    if curves and len(curves) == len(results.sites):
        changes = [curve.all_labels.personal_minus_alone for curve in curves]
        parts.append((mean_over_sites(changes, lowest=-1), "what each hospital trains alone"))
    told = [
        f"{_word(change)} than {what} on average ({points_estimate(change)})".replace(
            "different than", "different from"
        )
        for change, what in parts
        if change.low is not None
    ]
    if told:
        text += f" On the same test images they are {' and '.join(told)}."
    return [text]


def _turned(difference: Estimate) -> Estimate:
    """The other way about."""
    if difference.value is None or difference.low is None or difference.high is None:
        return difference
    return Estimate(value=-difference.value, low=-difference.high, high=-difference.low)


def _verdict(results: Results, key: str) -> str:
    mean = results.mean_global_minus.get(key)
    if mean is None or mean.auroc.low is None or mean.auroc.high is None:
        return ""
    parts = [f"{_word(mean.auroc)} on average ({points_estimate(mean.auroc)})"]
    differences = {
        site.name: site.global_minus[key].auroc
        for site in results.sites
        if key in site.global_minus and site.global_minus[key].auroc.low is not None
    }
    for word in ("clearly better", "clearly worse"):
        names = [name for name, difference in differences.items() if _word(difference) == word]
        if names:
            parts.append(f"{word} at {join_names(names)}")
    return f" On the same test images the federated model is {'; '.join(parts)}."


def _word(difference: Estimate) -> str:
    """Clear means that the 95 % interval of the paired difference leaves out 0."""
    if difference.low is not None and difference.low > 0:
        return "clearly better"
    if difference.high is not None and difference.high < 0:
        return "clearly worse"
    return "not clearly different"


def warnings(results: Results) -> list[str]:
    """The run's own warnings, then what a reader must know before believing a number."""
    notes = list(results.warnings)
    unfit = results.backbone.unfit_because
    if unfit and not _mentions(notes, unfit):
        notes.append(f"The backbone {unfit}: no number on this page says anything about skin.")
    if results.rounds_done < results.rounds_planned:
        notes.append(f"Only {results.rounds_done} of {results.rounds_planned} rounds were done.")
    if results.missing_sites:
        notes.append(f"Missing at the end of the run: {join_names(results.missing_sites)}.")
    rejected = sum(len(r.rejected) for r in results.rounds if r.kind != "statistics")
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
