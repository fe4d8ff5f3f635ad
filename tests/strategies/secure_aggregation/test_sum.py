"""The sum that comes out is the sum of what went in."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process import STAGES, TASK, Federation, site_names

from dermino_strategies.base import Arrays, SiteData
from dermino_strategies.fedavg import FedAvg
from dermino_strategies.secure_aggregation.coordinator import Coordinator
from dermino_strategies.secure_aggregation.messages import MaskedRequest
from dermino_strategies.secure_aggregation.session import Session, default_threshold


def exact_sum(federation: Federation, coordinator: Coordinator, shown: int) -> Arrays:
    """Fixed point in Python's integers: the sum bit for bit, for `shown` sites in the list."""
    total: Arrays = {}
    for key, like in federation.like.items():
        exponent = 62 - math.frexp(shown * federation.limits[key])[1]
        flat = [0] * like.size
        for name in coordinator.participants:
            for i, value in enumerate(federation.summands[name][key].reshape(-1)):
                flat[i] += round(Fraction(float(value)) * Fraction(2) ** exponent)
        values = [math.ldexp(float(number), -exponent) for number in flat]
        total[key] = np.array(values).reshape(like.shape)
    return total


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_any_sites_any_arrays_any_drop_outs(data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 10), "sites")
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3), "sizes")
    limits = {
        f"array-{i}": data.draw(st.sampled_from([1e-6, 1.0, 17.3, 2.0**34]))
        for i in range(len(sizes))
    }
    like = {f"array-{i}": np.zeros(size) for i, size in enumerate([*sizes[:-1], sizes[-1] + 1])}
    federation = Federation(
        count, like=like, limits=limits, seed=data.draw(st.integers(0, 2**32 - 1), "seed")
    )
    threshold = default_threshold(count)
    spare = data.draw(st.permutations(federation.names))[: count - threshold]
    fate = {name: data.draw(st.sampled_from([*STAGES, "never"])) for name in spare}
    silent = {stage: [n for n, lost in fate.items() if lost == stage] for stage in STAGES}
    coordinator = federation.until("done", silent=silent)
    assert coordinator.lost == {n: stage for n, stage in fate.items() if stage != "never"}
    assert coordinator.participants == [
        n for n in federation.names if fate.get(n) not in ("keys", "shares", "masked")
    ]
    total = coordinator.total()
    shown = count - len(silent["keys"])
    for key, wanted in exact_sum(federation, coordinator, shown).items():
        np.testing.assert_array_equal(total[key], wanted)
        plain = federation.expected(coordinator.participants)[key]
        np.testing.assert_allclose(total[key], plain, rtol=1e-12, atol=1e-12 * limits[key])


def test_federated_averaging_comes_out_the_same() -> None:
    """FedAvg by secure aggregation beside FedAvg in the clear."""
    strategy = FedAvg()
    rng = np.random.default_rng(0)
    start = strategy.initial_arrays(2, 6, seed=0)
    updates = {}
    for i, name in enumerate(site_names(4)):
        x = rng.normal(size=(20 + 7 * i, 6)).astype(np.float32)
        data = SiteData(name, x, (x[:, 0] > 0).astype(np.int64), 2)
        updates[name] = strategy.site_update(data, start, 1, 0)
    federation = Federation(
        4, like=strategy.summand_like(start), limits=strategy.summand_limits(start)
    )
    federation.summands = {name: strategy.summand(update) for name, update in updates.items()}
    total = federation.until("done").total()
    assert total["examples"][0] == sum(update.examples for update in updates.values())
    plain = strategy.aggregate(start, updates)
    for key, array in strategy.from_sum(start, total).items():
        np.testing.assert_allclose(array, plain[key], rtol=3e-7, atol=1e-7)
        assert array.dtype == plain[key].dtype


def test_rounds_purposes_and_attempts_follow_each_other() -> None:
    federation = Federation(3)
    sessions = [
        federation.session(round_=1),
        federation.session(round_=2),
        Session(run="run", round=2, purpose="evaluate", attempt=1, task_digest=TASK, threshold=3),
        federation.session(run="another"),
    ]
    for session in sessions:
        total = federation.until("done", session).total()
        wanted = federation.expected(federation.names)
        for key, array in total.items():
            np.testing.assert_allclose(array, wanted[key], rtol=1e-12)


def test_a_second_attempt_after_too_many_were_lost() -> None:
    federation = Federation(5)
    first = federation.until("masked")
    federation.stage_fails(first, silent=federation.names[:2])
    assert first.repeatable
    again = first.session.next_attempt()
    coordinator = federation.until("done", again, silent={"masked": federation.names[:1]})
    assert coordinator.participants == federation.names[1:]
    wanted = federation.expected(federation.names[1:])
    for key, array in coordinator.total().items():
        np.testing.assert_allclose(array, wanted[key], rtol=1e-12)


def test_the_site_computes_once_and_only_when_asked_properly() -> None:
    """The summand is not computed for a request that is refused."""
    federation = Federation(3)
    coordinator = federation.until("masked")
    name = federation.names[0]
    request = coordinator.requests()[name]
    assert isinstance(request, MaskedRequest)
    calls = []

    def summand() -> Arrays:
        calls.append(1)
        return federation.summands[name]

    site = federation.site(name)
    short = request.model_copy(update={"sealed": {}})
    for asked, task in ((short, TASK), (request, "cd" * 32)):
        federation.fails(
            "SECURE_REFUSED",
            lambda asked=asked, task=task: site.masked(
                asked, summand, limits=federation.limits, like=federation.like, task_digest=task
            ),
        )
    assert not calls
    site.masked(request, summand, limits=federation.limits, like=federation.like, task_digest=TASK)
    assert len(calls) == 1
