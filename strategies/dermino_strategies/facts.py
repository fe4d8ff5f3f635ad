"""What each method is, in a record: for `dermino strategies` and for whoever has to choose.

What a method sends is not written down here but asked of the method itself, so that the list
cannot drift from the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dermino_core.errors import DerminoError
from dermino_strategies.base import Additive, Private, Strategy
from dermino_strategies.registry import STRATEGIES, get_strategy

ATTACKS = {
    "nan": "numbers that are none",
    "inf": "infinite numbers",
    "scaled": "a change a thousand times too long",
    "sign-flipped": "the opposite of its change",
    "label-flipped": "honest training on swapped labels",
}
"""What one bad site of five sends, in `tests/benchmarks/robustness.py` and in the tests."""

REFUSED = ("nan", "inf")
"""Refused before any method sees them."""

HEAD_LEAVES = "the head after local training, the number of training images, the mean training loss"


@dataclass(frozen=True)
class Facts:
    """One method.

    `rounds` after which it was near its best on real features, iterative methods with a local
    learning rate of 1e-3; `survives` the attacks by one bad site of five that were tested and cost
    the others at most 0.05 of mean AUROC, beside a federation without that site.
    """

    title: str
    citation: str
    leaves: str
    rounds: int
    survives: tuple[str, ...] = REFUSED
    note: str = ""


@dataclass(frozen=True)
class Leaving:
    """One array of an update: its shape, type and size in bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


FACTS: Mapping[str, Facts] = {
    "fedavg": Facts(
        title="Federated averaging",
        citation="McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from "
        "Decentralized Data (AISTATS)",
        leaves=HEAD_LEAVES,
        rounds=10,
        note="The DermINO paper's method, with 2 rounds.",
    ),
    "fedprox": Facts(
        title="Federated averaging near the global model",
        citation="Li et al. 2020, Federated Optimization in Heterogeneous Networks (MLSys)",
        leaves=HEAD_LEAVES,
        rounds=10,
        note="For many local epochs on unlike hospitals; mu = 0 is FedAvg.",
    ),
    "fedavgm": Facts(
        title="Federated averaging with momentum",
        citation="Hsu, Qi & Brown 2019, Measuring the Effects of Non-Identical Data Distribution "
        "for Federated Visual Classification",
        leaves=HEAD_LEAVES,
        rounds=10,
        note="For small learning rates; with large ones it overshoots.",
    ),
    "fedadam": Facts(
        title="Adam at the coordinator",
        citation="Reddi et al. 2021, Adaptive Federated Optimization (ICLR)",
        leaves=HEAD_LEAVES,
        rounds=10,
    ),
    "fedyogi": Facts(
        title="Yogi at the coordinator",
        citation="Reddi et al. 2021, Adaptive Federated Optimization (ICLR)",
        leaves=HEAD_LEAVES,
        rounds=10,
    ),
    "median": Facts(
        title="Median of the sites' heads",
        citation="Yin et al. 2018, Byzantine-Robust Distributed Learning (ICML)",
        leaves=HEAD_LEAVES,
        rounds=10,
        survives=tuple(ATTACKS),
        note="Needs more than twice as many sites as bad ones; large hospitals count no more.",
    ),
    "trimmed_mean": Facts(
        title="Mean without the extremes",
        citation="Yin et al. 2018, Byzantine-Robust Distributed Learning (ICML)",
        leaves=HEAD_LEAVES,
        rounds=10,
        survives=tuple(ATTACKS),
        note="Needs 2 malicious + 1 sites; large hospitals count no more.",
    ),
    "krum": Facts(
        title="The update with the closest company (Krum, Multi-Krum)",
        citation="Blanchard et al. 2017, Machine Learning with Adversaries: Byzantine Tolerant "
        "Gradient Descent (NIPS)",
        leaves=HEAD_LEAVES,
        rounds=10,
        survives=tuple(ATTACKS),
        note="Needs 2 malicious + 3 sites; leaves out what most hospitals learned.",
    ),
    "qffl": Facts(
        title="Fair averaging: badly served sites count more",
        citation="Li et al. 2020, Fair Resource Allocation in Federated Learning (ICLR)",
        leaves=f"{HEAD_LEAVES}, the global head's loss on the training images, and how far the "
        "head moved",
        rounds=10,
        note="q = 0 is FedAvg. A site gains weight by claiming a large loss.",
    ),
    "ridge": Facts(
        title="Ridge regression in closed form",
        citation="Hoerl & Kennard 1970, Ridge Regression: Biased Estimation for Nonorthogonal "
        "Problems (Technometrics)",
        leaves="the number of training images of each class, the sum of their features, and the "
        "sum of the features' outer products, in all and for folds",
        rounds=1,
        note="Gives what pooled data would give; sums over few images hide little.",
    ),
    "logistic": Facts(
        title="Logistic regression by Newton steps",
        citation="Nelder & Wedderburn 1972, Generalized Linear Models (JRSS A); Boyd & "
        "Vandenberghe 2004, Convex Optimization, section 9.5",
        leaves="the number of training images of each class, the loss, its gradient and its "
        "Hessian, as sums over the training images",
        rounds=6,
        note="Gives the optimum of pooled data; sums over few images hide little.",
    ),
    "lora": Facts(
        title="Federated fine-tuning of the backbone's last blocks",
        citation="Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models (ICLR 2022); "
        "Sun et al. 2024, Improving LoRA in Privacy-preserving Federated Learning (ICLR)",
        leaves="the adapters of the last blocks after local training (or the blocks' changes), a "
        "linear head, the number of training images, the mean training loss",
        rounds=5,
        note="Trains on images, which stay; the tuned backbone lands in RUN/backbone.",
    ),
}


def facts_of(name: str) -> Facts:
    """The record of a method.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` naming the known methods.
    """
    if name not in FACTS:
        known = ", ".join(sorted(STRATEGIES))
        raise DerminoError(
            "CONFIG_INVALID", f"Nothing is known of '{name}'.", fix=f"Known: {known}."
        )
    return FACTS[name]


def leaving(strategy: Strategy, n_classes: int, width: int) -> list[Leaving]:
    """The arrays of one site's update, for features of this width."""
    like = strategy.update_like(strategy.initial_arrays(n_classes, width, seed=0))
    return [Leaving(name, a.shape, str(a.dtype), a.nbytes) for name, a in like.items()]


def works_with_secure_aggregation(name: str) -> bool:
    """Whether the coordinator can do with sums."""
    return isinstance(get_strategy(name), Additive)


def works_with_privacy(name: str) -> bool:
    """Whether the method can hold to a differential-privacy budget."""
    return isinstance(get_strategy(name), Private)
