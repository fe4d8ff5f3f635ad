"""A site's own model, and what joining gives it, in a run that sends it the sums of all sites."""

from __future__ import annotations

import time
from dataclasses import dataclass

from flwr.app import RecordDict

from dermino_client.prepare import PreparedSite
from dermino_client.work import check_task, site_data
from dermino_core.errors import DerminoError
from dermino_core.personal import Personal
from dermino_core.results import JoiningCurve
from dermino_strategies.base import Arrays, Personalises, check_arrays
from dermino_strategies.protocol import Task, Totals, read_arrays


@dataclass(frozen=True)
class PersonalPart:
    """What a site made for itself. `seconds` is the time it took."""

    model: Personal
    joining: JoiningCurve
    seconds: float


def read_personal(content: RecordDict, site: PreparedSite, task: Task) -> Arrays:
    """The arrays `personal` of a request; empty where the run makes no personal models.

    Raises
    ------
    DerminoError
        As :func:`dermino_client.work.check_task`; `REQUEST_MISMATCH` for a method that makes
        none, `REQUEST_INVALID` for arrays that are not like what it needs.
    """
    if not task.personal:
        return {}
    strategy = _personalises(site, task)
    first = strategy.initial_arrays(len(task.classes), task.width, task.seed)
    like = strategy.for_personal(first)
    try:
        arrays = read_arrays(content, "personal", like)
        check_arrays(like, arrays)
    except ValueError as error:
        raise _unusable(error) from None
    return arrays


def personal_part(
    site: PreparedSite, task: Task, totals: Totals | None, arrays: Arrays, personal: Arrays
) -> PersonalPart | None:
    """The site's own model and its curve; None where the run makes none.

    Parameters
    ----------
    totals
        What the request says of the arrays `personal`.
    arrays, personal
        The federated model, and what :func:`read_personal` read.

    Raises
    ------
    DerminoError
        `REQUEST_INVALID` for sums that cannot be those of all sites, or of which nothing is said.
    """
    if not task.personal:
        return None
    if totals is None:
        raise DerminoError("REQUEST_INVALID", "The request does not say whose sums it carries.")
    start = time.perf_counter()
    strategy = _personalises(site, task)
    train, known = site_data(site, "train"), arrays | personal
    try:
        model = strategy.personal(train, known, took_part=totals.with_yours)
        joining = strategy.joining(
            train,
            site_data(site, "test"),
            known,
            took_part=totals.with_yours,
            replicates=task.replicates,
            seed=task.seed,
        )
    except ValueError as error:
        raise _unusable(error) from None
    return PersonalPart(model, joining, time.perf_counter() - start)


def _personalises(site: PreparedSite, task: Task) -> Personalises:
    strategy = check_task(site, task)
    if not isinstance(strategy, Personalises):
        raise DerminoError("REQUEST_MISMATCH", f"{strategy.name} makes no personal models.")
    return strategy


def _unusable(error: ValueError) -> DerminoError:
    return DerminoError("REQUEST_INVALID", f"The coordinator's arrays are not usable: {error}.")
