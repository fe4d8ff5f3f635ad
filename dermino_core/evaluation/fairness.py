"""Does a model serve everyone alike? Its numbers by skin type, sex and age, and the gaps.

The paper compares AUROC between Fitzpatrick groups and between the sexes (section 2.3, Fig. 6a);
here are also age, the crossings, and for binary tasks the error rates: equal opportunity (a gap in
the true positive rate) and equalised odds (a gap in either rate), Hardt et al. 2016. All groups
share the bootstrap's draws, so a gap's interval is that of a paired difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from dermino_core.errors import DerminoError
from dermino_core.evaluation.examples import Floats, Integers
from dermino_core.evaluation.fairness_groups import AGE_EDGES, Booleans, Grouping, groupings
from dermino_core.evaluation.measure import FloatArray, Measure, Outcome, measured
from dermino_core.evaluation.statistics import NOT_FINITE, classification_measures, draw_units
from dermino_core.manifest import Record

SMALLEST = 20
"""Fewest images of a group that is scored."""

SMALLEST_CLASS = 5
"""Fewest images of each class in a group that is scored."""

TRUE_POSITIVES, FALSE_POSITIVES = "true positive rate", "false positive rate"
RATES = (TRUE_POSITIVES, FALSE_POSITIVES)
GAPS = ("auroc", "f1", *RATES)
"""Metrics whose differences between groups are measured."""

_Scored = Mapping[str, Mapping[str, Measure]]
"""Group -> metric -> measure."""


def fairness(
    labels: Integers,
    scores: Floats,
    units: Sequence[str],
    records: Sequence[Record],
    *,
    method: str,
    n_classes: int,
    predicted: Integers | None = None,
    smallest: int = SMALLEST,
    smallest_class: int = SMALLEST_CLASS,
    age_edges: Sequence[float] = AGE_EDGES,
    replicates: int = 1000,
    seed: int = 0,
) -> Outcome:
    """A task's class scores, group by group.

    Parameters
    ----------
    labels, scores
        Class index [n] and class scores [n, C] of the test images.
    units
        Patient or lesion of each image, drawn together.
    records
        The images' rows of the manifest, with `skin_type`, `sex` and `age`, [n].
    predicted
        Class that is called, [n]; default: the highest score.
    smallest, smallest_class
        A group with fewer images, or fewer of any class that occurs, is named in the notes only.
    age_edges
        Years at which a new age band begins.

    Returns
    -------
    Outcome
        For each group the metrics of a classification (`group="sex=female"`), of a binary task
        also the rates of :data:`RATES`; `auroc gap`, ... of every pair within an attribute
        (`group="sex: female - male"`) and of the group with the largest against that with the
        smallest value (`group="sex: largest - smallest"`, `setting` says which). The latter pair
        was picked on the same images: its interval is that of the picked pair. `equalised odds
        difference` is the larger of both rates' ranges, taken anew in every replicate, and so
        never below 0: of two equal groups, too, its interval ends above it.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` if no image has any of the three attributes.
    ValueError
        If shapes do not fit or `age_edges` do not rise.
    """
    _check(labels, scores, units, records, n_classes)
    found = groupings(records, age_edges)
    if not found:
        raise DerminoError(
            "DATA_TOO_FEW",
            "No test image has a skin type, a sex or an age.",
            fix="Fill the columns skin_type, sex or age of the table of images.",
        )
    called = scores.argmax(axis=1) if predicted is None else predicted
    weights = draw_units(units, replicates=replicates, seed=seed)
    measures: list[Measure] = []
    gaps: list[Measure] = []
    notes: list[str] = []
    for grouping in found:
        large, small = _by_size(grouping, labels, smallest, smallest_class)
        notes += [grouping.note] if grouping.note else []
        if small:
            notes.append(
                f"Too few to be scored ({smallest} images, {smallest_class} of each class are "
                f"needed): {', '.join(small)}."
            )
        scored = {
            group: _scores(
                labels,
                scores,
                units,
                called,
                weights,
                grouping.members[group],
                method=method,
                group=grouping.labels[group],
                n_classes=n_classes,
                replicates=replicates,
                seed=seed,
            )
            for group in large
        }
        measures += [one for by_metric in scored.values() for one in by_metric.values()]
        gaps += _gaps(grouping, scored)
    return Outcome([*measures, *gaps], notes=notes)


def _check(
    labels: Integers,
    scores: Floats,
    units: Sequence[str],
    records: Sequence[Record],
    n_classes: int,
) -> None:
    if not len(labels) == len(scores) == len(units) == len(records):
        raise ValueError(
            f"{len(labels)} labels, {len(scores)} scores, {len(units)} units, "
            f"{len(records)} records"
        )
    if scores.ndim != 2 or scores.shape[1] != n_classes:
        raise ValueError(f"scores must be [n, {n_classes}], not {list(scores.shape)}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < n_classes:
        raise ValueError(f"labels must be from 0 to {n_classes - 1}")


def _by_size(
    grouping: Grouping, labels: Integers, smallest: int, smallest_class: int
) -> tuple[list[str], list[str]]:
    """Groups to score, and descriptions of those too small for it."""
    occurring = np.unique(labels)
    large: list[str] = []
    small: list[str] = []
    for group, members in grouping.members.items():
        n = int(members.sum())
        fewest = int((labels[members][:, None] == occurring).sum(axis=0).min())
        if n >= smallest and fewest >= smallest_class:
            large.append(group)
        else:
            small.append(f"{grouping.labels[group]} ({n} images, {fewest} of the rarest class)")
    return large, small


def _scores(
    labels: Integers,
    scores: Floats,
    units: Sequence[str],
    called: Integers,
    weights: Integers,
    members: Booleans,
    *,
    method: str,
    group: str,
    n_classes: int,
    replicates: int,
    seed: int,
) -> dict[str, Measure]:
    """Metric -> measure of one group."""
    found = classification_measures(
        labels,
        scores,
        units,
        method=method,
        n_classes=n_classes,
        predicted=called,
        rows=members,
        replicates=replicates,
        seed=seed,
        group=group,
    )
    by_metric = {one.metric: one for one in found}
    if n_classes == 2:
        finite = bool(np.isfinite(scores).all())
        for metric, given in zip(RATES, (labels == 1, labels == 0), strict=True):
            of = members & given
            value, drawn = _share(called == 1, of, weights) if finite else (np.nan, None)
            by_metric[metric] = measured(
                method,
                metric,
                value,
                drawn,
                n=int(of.sum()),
                group=group,
                why_undefined="the group has no image of this class" if finite else NOT_FINITE,
            )
    return by_metric


def _share(hits: Booleans, of: Booleans, weights: Integers) -> tuple[float, FloatArray]:
    """Share of `hits` among `of`: as it is, and in every replicate [B]."""
    columns = np.stack([hits & of, of], axis=1).astype(np.float32)
    # Sums of whole numbers below 2^24 are exact in float32.
    counted = np.concatenate(
        [columns.sum(axis=0)[None], weights[:, of].astype(np.float32) @ columns[of]]
    ).astype(np.float64)
    shares = np.divide(
        counted[:, 0],
        counted[:, 1],
        out=np.full(len(counted), np.nan),
        where=counted[:, 1] > 0,
    )
    return float(shares[0]), shares[1:]


def _gaps(grouping: Grouping, scored: _Scored) -> Iterator[Measure]:
    if len(scored) < 2:
        return
    is_crossed = "&" in grouping.name
    for metric in GAPS:
        defined = {
            group: by_metric[metric]
            for group, by_metric in scored.items()
            if metric in by_metric and by_metric[metric].value is not None
        }
        if len(defined) < 2:
            continue
        # Crossings have dozens of pairs: only the widest is of use.
        if not is_crossed:
            for one, two in combinations(defined, 2):
                yield _difference(
                    defined[one], defined[two], group=f"{grouping.name}: {one} - {two}"
                )
        ranked = sorted(defined, key=lambda group: defined[group].value or 0.0)
        low, high = ranked[0], ranked[-1]
        widest = f"{grouping.name}: largest - smallest"
        gap = _difference(defined[high], defined[low], group=widest)
        yield replace(gap, setting=f"{high} - {low}")
    if all(set(RATES) <= set(by_metric) for by_metric in scored.values()):
        yield _equalised_odds(grouping.name, scored)


def _difference(one: Measure, two: Measure, *, group: str) -> Measure:
    value = np.nan if one.value is None or two.value is None else one.value - two.value
    drawn = None
    if one.replicates is not None and two.replicates is not None:
        drawn = one.replicates - two.replicates
    return measured(one.method, f"{one.metric} gap", value, drawn, n=one.n + two.n, group=group)


def _equalised_odds(name: str, scored: _Scored) -> Measure:
    """Largest difference between two groups, in either rate."""
    ranges = []
    for metric in RATES:
        rows = [
            np.r_[
                np.nan if (of := by_metric[metric]).value is None else of.value,
                [] if of.replicates is None else of.replicates,
            ]
            for by_metric in scored.values()
        ]
        ranges.append(np.ptp(np.stack(rows), axis=0))
    both = np.maximum(*ranges)
    some = next(iter(scored.values()))[TRUE_POSITIVES]
    n = sum(by_metric[metric].n for by_metric in scored.values() for metric in RATES)
    return measured(
        some.method,
        "equalised odds difference",
        float(both[0]),
        both[1:],
        n=n,
        group=f"{name}: largest - smallest",
        why_undefined="a group has no image of one class",
    )
