"""The coordinator's part in personal models: what sites are sent, and a check of what they tell."""

from __future__ import annotations

from dermino_core.results import Estimate, JoiningCurve
from dermino_server.checkpoint import RunState
from dermino_server.plan import RunPlan
from dermino_strategies.base import Arrays, Personalises, Strategy
from dermino_strategies.protocol import Totals


def personal_arrays(plan: RunPlan, strategy: Strategy, state: RunState) -> Arrays:
    """What sites are sent beside the model, for models of their own; empty if they make none."""
    if not (plan.personal and isinstance(strategy, Personalises)):
        return {}
    return strategy.for_personal(state.arrays)


def totals_for(plan: RunPlan, state: RunState, site: str) -> Totals | None:
    """What a site is told of the sums that it gets: how many sites they are of, and if of it too.

    They are those of the last round of training.
    """
    if not plan.personal:
        return None
    last = next(record for record in reversed(state.records) if record.kind == "train")
    inside = {*last.sites, *last.kept}
    return Totals(sites=len(inside), with_yours=site in inside)


def check_joining(curve: JoiningCurve, *, n_train: int, n_test: int) -> None:
    """Refuse a curve whose numbers do not fit each other or the site's other ones.

    Raises
    ------
    ValueError
        In words that name no path.
    """
    if (curve.n_train, curve.n_test) != (n_train, n_test):
        raise ValueError("its joining curve is of other images")
    labels = [point.labels for point in curve.points]
    if labels != sorted(labels) or labels[-1] != n_train:
        raise ValueError("its joining curve does not end with all labels")
    for point in curve.points:
        for estimate in (point.alone, point.federated, point.personal):
            _check(estimate, lowest=0.0)
        for one, other, difference in (
            (point.personal, point.alone, point.personal_minus_alone),
            (point.federated, point.alone, point.federated_minus_alone),
            (point.personal, point.federated, point.personal_minus_federated),
        ):
            _check(difference, lowest=-1.0)
            defined = one.value is not None and other.value is not None
            if difference.value is not None and not defined:
                raise ValueError("its joining curve has a difference of what is undefined")


def _check(estimate: Estimate, *, lowest: float) -> None:
    low, high = estimate.low, estimate.high
    if (low is None) != (high is None) or (low is not None and estimate.value is None):
        raise ValueError("its joining curve has half an interval")
    for value in (estimate.value, low, high):
        if value is not None and value < lowest:
            raise ValueError("its joining curve has an AUROC below 0")
    if low is not None and high is not None and low > high:
        raise ValueError("its joining curve has an interval that ends before it begins")
