"""FedProx against its equation, and against FedAvg where they are the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from dermino_core.errors import DerminoError
from dermino_core.heads import HeadRecipe, LinearHead, fit_head
from dermino_strategies.base import Additive, SiteData
from dermino_strategies.fedavg import FedAvg, FedAvgSettings
from dermino_strategies.fedprox import FedProx, FedProxSettings

RECIPE = HeadRecipe(epochs=3, learning_rate=0.05, batch_size=7)


def site(name: str, n: int, seed: int) -> SiteData:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    return SiteData(name, x, (x[:, 0] + 0.3 * seed > 0).astype(np.int64), 2)


SITES = [site("a", 30, 1), site("b", 90, 2), site("c", 7, 3)]


def fit_proximal(
    start: LinearHead, data: SiteData, mu: float, *, seed: tuple[int, ...]
) -> tuple[LinearHead, float]:
    recipe = replace(RECIPE, proximal=mu)
    return fit_head(start, data.features, data.labels, recipe, seed=seed)


def distance(one: LinearHead, other: LinearHead) -> float:
    weight, bias = one.weight - other.weight, one.bias - other.bias
    return float(np.sqrt(np.square(weight).sum() + np.square(bias).sum()))


def test_without_a_proximal_term_it_is_fedavg_bit_for_bit() -> None:
    settings = {"local_epochs": 3, "learning_rate": 0.01, "batch_size": 8}
    average = FedAvg(FedAvgSettings.model_validate(settings))
    proximal = FedProx(FedProxSettings.model_validate({"mu": 0, **settings}))
    one, other = (s.initial_arrays(2, 6, seed=5) for s in (average, proximal))
    for round_ in (1, 2):
        updates = [
            {data.site: s.site_update(data, a, round_, 5) for data in SITES}
            for s, a in ((average, one), (proximal, other))
        ]
        for data in SITES:
            assert updates[0][data.site].metrics == updates[1][data.site].metrics
        one, other = average.aggregate(one, updates[0]), proximal.aggregate(other, updates[1])
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])


@pytest.mark.parametrize("mu", [0.5, 20.0])
def test_training_is_adam_on_the_papers_objective(mu: float) -> None:
    """The reference: torch's Adam and autograd on `F(w) + mu/2 ||w - w_t||^2`."""
    import torch
    from torch.nn import functional as F

    data, start = SITES[1], LinearHead.initial(2, 6, seed=3)
    head, loss = fit_proximal(start, data, mu, seed=(1, 2))

    x, y = torch.from_numpy(data.features), torch.from_numpy(data.labels)
    fixed = [torch.from_numpy(start.weight.copy()), torch.from_numpy(start.bias.copy())]
    w, b = (t.clone().requires_grad_() for t in fixed)
    optimizer = torch.optim.Adam([w, b])
    batches = -(-len(y) // RECIPE.batch_size)
    rng = np.random.default_rng([1, 2])
    step, total = 0, 0.0
    for _ in range(RECIPE.epochs):
        order, total = rng.permutation(len(y)), 0.0
        for rows in torch.from_numpy(order).split(RECIPE.batch_size):
            share = step / (RECIPE.epochs * batches)
            optimizer.param_groups[0]["lr"] = (
                RECIPE.learning_rate * 0.5 * (1 + np.cos(np.pi * share))
            )
            step += 1
            cross_entropy = F.cross_entropy(F.linear(x[rows], w, b), y[rows])
            pull = ((w - fixed[0]) ** 2).sum() + ((b - fixed[1]) ** 2).sum()
            optimizer.zero_grad()
            (cross_entropy + mu / 2 * pull).backward()
            optimizer.step()
            total += float(cross_entropy.detach()) * len(rows)
    np.testing.assert_allclose(head.weight, w.detach().numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(head.bias, b.detach().numpy(), rtol=1e-3, atol=1e-5)
    assert loss == pytest.approx(total / len(y), rel=1e-4)


def test_a_vanishing_term_is_plain_training() -> None:
    data, start = SITES[1], LinearHead.initial(2, 6, seed=3)
    plain, plain_loss = fit_head(start, data.features, data.labels, RECIPE, seed=(4,))
    head, loss = fit_proximal(start, data, 1e-20, seed=(4,))
    np.testing.assert_allclose(head.weight, plain.weight, rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(plain_loss, rel=1e-4)


def test_a_stronger_pull_stays_nearer() -> None:
    data, start = SITES[1], LinearHead.initial(2, 6, seed=3)
    moved = [
        distance(fit_proximal(start, data, mu, seed=(4,))[0], start) for mu in (0.0, 0.1, 1.0, 10.0)
    ]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 0.2 * moved[0]


def test_the_given_head_stays_as_it_was() -> None:
    data, start = SITES[1], LinearHead.initial(2, 6, seed=3)
    before = start.weight.copy()
    fit_proximal(start, data, 1.0, seed=(4,))
    np.testing.assert_array_equal(start.weight, before)


def test_sums_are_enough() -> None:
    strategy = FedProx(FedProxSettings(learning_rate=0.05))
    assert isinstance(strategy, Additive)
    start = strategy.initial_arrays(2, 6, seed=0)
    updates = {data.site: strategy.site_update(data, start, 1, 0) for data in SITES}
    total = strategy.summand_like(start)
    for update in updates.values():
        for name, part in strategy.summand(update).items():
            total[name] += part
    both = strategy.aggregate(start, updates), strategy.from_sum(start, total)
    np.testing.assert_allclose(both[0]["weight"], both[1]["weight"], rtol=1e-5, atol=1e-7)
    assert both[1]["weight"].dtype == np.float32


def test_wrong_settings_and_no_images_are_refused() -> None:
    with pytest.raises(ValidationError):
        FedProxSettings(mu=-1)
    start = LinearHead.initial(2, 6, seed=3)
    none = SiteData("none", np.zeros((0, 6), np.float32), np.zeros(0, np.int64), 2)
    with pytest.raises(DerminoError, match="no images"):
        fit_proximal(start, none, 1.0, seed=(1,))
    with pytest.raises(ValueError, match="proximal"):
        HeadRecipe(proximal=-1.0)
