"""FedAvgM, FedAdam and FedYogi against their papers' equations and against Flower's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load, save

from dermino_strategies.base import Additive, Arrays, SiteData, SiteUpdate
from dermino_strategies.fedadam import FedAdam, FedAdamSettings
from dermino_strategies.fedavg import FedAvg
from dermino_strategies.fedavgm import FedAvgM, FedAvgMSettings
from dermino_strategies.fedyogi import FedYogi, FedYogiSettings
from dermino_strategies.server_optimisers import ServerOptimiser

ETA, BETA_1, BETA_2, TAU = 0.05, 0.8, 0.9, 0.02
ADAPTIVE = {"server_learning_rate": ETA, "beta_1": BETA_1, "beta_2": BETA_2, "tau": TAU}
MAKE: dict[str, Callable[[], ServerOptimiser]] = {
    "fedavgm": lambda: FedAvgM(FedAvgMSettings(server_learning_rate=0.7, momentum=0.9)),
    "fedadam": lambda: FedAdam(FedAdamSettings.model_validate(ADAPTIVE)),
    "fedyogi": lambda: FedYogi(FedYogiSettings.model_validate(ADAPTIVE)),
}
ROUNDS = 5


def heads(round_: int) -> dict[str, SiteUpdate]:
    """What three sites send in a round, whatever they were sent."""
    rng = np.random.default_rng(round_)
    return {
        name: SiteUpdate(
            {
                "weight": rng.normal(size=(2, 4), scale=0.3).astype(np.float32),
                "bias": rng.normal(size=2).astype(np.float32),
            },
            examples,
        )
        for name, examples in (("a", 10), ("b", 35), ("c", 5))
    }


def mean(updates: dict[str, SiteUpdate], name: str) -> npt.NDArray[np.float64]:
    total = sum(u.examples for u in updates.values())
    parts = [u.arrays[name].astype(np.float64) * u.examples / total for u in updates.values()]
    return np.sum(parts, axis=0)


def by_the_paper(method: str, start: Arrays) -> list[dict[str, npt.NDArray[np.float64]]]:
    """The heads after each round, from the papers' equations in float64."""
    w = {name: start[name].astype(np.float64) for name in ("weight", "bias")}
    m = {name: np.zeros_like(a) for name, a in w.items()}
    v = {name: np.full_like(a, TAU**2) for name, a in w.items()}
    path = []
    for round_ in range(1, ROUNDS + 1):
        for name in w:
            delta = mean(heads(round_), name) - w[name]
            if method == "fedavgm":
                m[name] = 0.9 * m[name] + delta
                w[name] = w[name] + 0.7 * m[name]
                continue
            m[name] = BETA_1 * m[name] + (1 - BETA_1) * delta
            square = delta**2
            if method == "fedadam":
                v[name] = BETA_2 * v[name] + (1 - BETA_2) * square
            else:
                v[name] = v[name] - (1 - BETA_2) * square * np.sign(v[name] - square)
            w[name] = w[name] + ETA * m[name] / (np.sqrt(v[name]) + TAU)
        path.append({name: array.copy() for name, array in w.items()})
    return path


def by_flower(method: str, start: Arrays) -> list[dict[str, npt.NDArray]]:
    """The same rounds through Flower's strategies, fed with messages.

    Its second moments start from 0 and its FedAdam corrects their bias: both are set right, to
    compare the steps.
    """
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    now = {name: start[name] for name in ("weight", "bias")}
    if method == "fedavgm":
        theirs = flower.FedAvgM(server_learning_rate=0.7, server_momentum=0.9)
        theirs.current_arrays = ArrayRecord({n: Array(a) for n, a in now.items()})
    else:
        kind = flower.FedAdam if method == "fedadam" else flower.FedYogi
        theirs = kind(eta=ETA, beta_1=BETA_1, beta_2=BETA_2, tau=TAU)
        theirs.v_t = {name: np.full_like(a, TAU**2) for name, a in now.items()}
    path = []
    for round_ in range(1, ROUNDS + 1):
        if isinstance(theirs, flower.FedAdam):
            correction = np.sqrt(1 - BETA_2 ** (round_ + 1)) / (1 - BETA_1 ** (round_ + 1))
            theirs.eta = ETA / correction
        if not isinstance(theirs, flower.FedAvgM):
            theirs.current_arrays = now
        replies = [
            Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord({n: Array(a) for n, a in u.arrays.items()}),
                        "metrics": MetricRecord({"num-examples": u.examples}),
                    }
                ),
                dst_node_id=1,
                message_type="train",
            )
            for u in heads(round_).values()
        ]
        record, _ = theirs.aggregate_train(round_, replies)
        assert record is not None
        now = {name: array.numpy() for name, array in record.items()}
        path.append(now)
    return path


def ours(strategy: ServerOptimiser, start: Arrays) -> list[Arrays]:
    path = [start]
    for round_ in range(1, ROUNDS + 1):
        path.append(strategy.aggregate(path[-1], heads(round_)))
    return path[1:]


@pytest.mark.parametrize("reference", [by_the_paper, by_flower])
@pytest.mark.parametrize("method", MAKE)
def test_steps_are_those_of_the_reference(
    method: str, reference: Callable[[str, Arrays], list[dict[str, npt.NDArray]]]
) -> None:
    strategy = MAKE[method]()
    assert strategy.name == method
    start = strategy.initial_arrays(2, 4, seed=1)
    for mine, theirs in zip(ours(strategy, start), reference(method, start), strict=True):
        for name in ("weight", "bias"):
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", MAKE)
def test_a_run_goes_on_from_its_arrays_alone(method: str) -> None:
    """A new object every round, its arrays through a checkpoint's file format: the same bits."""
    arrays = start = MAKE[method]().initial_arrays(2, 4, seed=1)
    for round_ in range(1, ROUNDS + 1):
        arrays = load(save(MAKE[method]().aggregate(arrays, heads(round_))))
    whole = ours(MAKE[method](), start)[-1]
    assert set(arrays) == set(start) > {"weight", "bias"}
    for name, array in whole.items():
        np.testing.assert_array_equal(array, arrays[name])
        assert (array.shape, array.dtype) == (start[name].shape, start[name].dtype)


@pytest.mark.parametrize("method", MAKE)
def test_the_state_stays_at_the_coordinator(method: str) -> None:
    strategy = MAKE[method]()
    arrays = strategy.initial_arrays(2, 6, seed=1)
    rng = np.random.default_rng(0)
    data = SiteData("a", rng.normal(size=(20, 6)).astype(np.float32), np.arange(20) % 2, 2)
    sent = strategy.for_sites(arrays)
    assert set(sent) == {"weight", "bias"}
    update = strategy.site_update(data, sent, 1, 0)
    assert set(update.arrays) == set(strategy.update_like(arrays)) == {"weight", "bias"}
    strategy.check_update(arrays, update)
    reference = FedAvg().site_update(data, sent, 1, 0)
    again = strategy.site_update(data, arrays, 1, 0)
    for name in sent:
        np.testing.assert_array_equal(update.arrays[name], reference.arrays[name])
        np.testing.assert_array_equal(update.arrays[name], again.arrays[name])
    assert strategy.head(arrays).weight is arrays["weight"]
    np.testing.assert_array_equal(strategy.head(sent).bias, arrays["bias"])


@pytest.mark.parametrize("method", MAKE)
def test_sums_are_enough(method: str) -> None:
    strategy = MAKE[method]()
    assert isinstance(strategy, Additive)
    arrays = ours(strategy, strategy.initial_arrays(2, 4, seed=1))[1]
    total = strategy.summand_like(arrays)
    limits = strategy.summand_limits(arrays)
    assert set(limits) == set(total)
    at_a_site = strategy.for_sites(arrays)
    assert strategy.summand_limits(at_a_site) == limits
    assert set(strategy.summand_like(at_a_site)) == set(total)
    for update in heads(7).values():
        for name, part in strategy.summand(update).items():
            assert np.abs(part).max() < limits[name]
            total[name] += part
    following = strategy.from_sum(arrays, total)
    for name, array in strategy.aggregate(arrays, heads(7)).items():
        np.testing.assert_allclose(following[name], array, rtol=1e-4, atol=1e-6)


def test_without_momentum_fedavgm_is_fedavg() -> None:
    strategy = FedAvgM(FedAvgMSettings(momentum=0))
    start = strategy.initial_arrays(2, 4, seed=1)
    average = FedAvg().aggregate(strategy.for_sites(start), heads(1))
    for name, array in average.items():
        np.testing.assert_allclose(strategy.aggregate(start, heads(1))[name], array, atol=1e-6)


def test_yogi_forgets_a_large_change_more_slowly_than_adam() -> None:
    """After one large change and many small ones Adam's second moment decays by its factor."""
    adam, yogi = (
        FedAdam(FedAdamSettings.model_validate(ADAPTIVE)),
        FedYogi(FedYogiSettings.model_validate(ADAPTIVE)),
    )
    a = y = np.array([4.0])
    for _ in range(10):
        a, y = (s.second_moment(v, np.array([0.01])) for s, v in ((adam, a), (yogi, y)))
    assert a[0] == pytest.approx(4 * 0.9**10 + 0.01 * (1 - 0.9**10))
    assert y[0] == pytest.approx(4 - 10 * 0.1 * 0.01)
