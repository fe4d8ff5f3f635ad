"""FedAvg under differential privacy: what it promises, and what it lets out."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from pydantic import ValidationError

from dermino_core.errors import DerminoError
from dermino_core.metrics import macro_auroc
from dermino_core.privacy import sgd
from dermino_core.privacy.plan import PrivacyRequest
from dermino_strategies.base import Private, SiteData, SiteUpdate
from dermino_strategies.fedavg import FedAvg, FedAvgSettings

WIDTH = 6


def site(name: str, images: int, seed: int, *, patients: int | None = None) -> SiteData:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(images, WIDTH)).astype(np.float32)
    groups = tuple(str(i % patients) for i in range(images)) if patients else ()
    return SiteData(name, x, (x[:, 0] > 0).astype(np.int64), 2, groups=groups)


def start() -> dict[str, np.ndarray]:
    return FedAvg().initial_arrays(2, WIDTH, seed=0)


@pytest.mark.parametrize(("epsilon", "rounds"), [(1.0, 1), (3.0, 2), (8.0, 10)])
def test_all_rounds_together_cost_what_was_asked(epsilon: float, rounds: int) -> None:
    """By Google's accountant, over every step of every round."""
    request = PrivacyRequest(epsilon=epsilon, delta=1e-5)
    plan = FedAvg().privacy_plan(site("a", 60, 0), request, rounds)
    step = plan.per_round
    accountant = RdpAccountant()
    gaussian = dp_accounting.GaussianDpEvent(step.noise_multiplier)
    accountant.compose(
        dp_accounting.PoissonSampledDpEvent(step.sampling_rate, gaussian), rounds * step.steps
    )
    assert 0.97 * epsilon < accountant.get_epsilon(1e-5) < 1.03 * epsilon
    assert (plan.rounds, plan.units, plan.request) == (rounds, 60, request)
    assert step.steps == FedAvgSettings().private_steps


def test_the_noise_does_not_depend_on_the_data() -> None:
    request = PrivacyRequest(epsilon=2.0)
    sites = [site("a", 30, 1), site("b", 500, 2), site("c", 500, 2, patients=9)]
    plans = [FedAvg().privacy_plan(each, request, 2) for each in sites]
    assert len({plan.per_round for plan in plans}) == 1
    assert [plan.units for plan in plans] == [30, 500, 9]
    image = request.model_copy(update={"unit": "image"})
    assert FedAvg().privacy_plan(sites[2], image, 2).units == 500


def update(
    data: SiteData, settings: FedAvgSettings | None = None, **request: Any
) -> tuple[FedAvg, SiteUpdate]:
    strategy = FedAvg(settings)
    plan = strategy.privacy_plan(data, PrivacyRequest(**{"epsilon": 3.0, **request}), 2)
    return strategy, strategy.private_site_update(data, start(), 1, plan)


@pytest.mark.parametrize("images", [8, 200])
def test_what_leaves_is_a_head_and_nothing_else(images: int) -> None:
    strategy, sent = update(site("a", images, 1))
    strategy.check_update(start(), sent)
    assert sent.metrics == {}
    assert sent.examples == 1
    assert isinstance(strategy, Private)
    assert strategy.summand(sent)["examples"].tolist() == [1.0]


def test_the_same_seeds_give_another_head() -> None:
    data = site("a", 40, 1)
    _, first = update(data)
    _, second = update(data)
    assert (first.arrays["weight"] != second.arrays["weight"]).all()


def test_settings_and_request_reach_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spy beside the real training."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    real = sgd.fit_private_head

    def spy(*arguments: Any, **named: Any) -> Any:
        seen.append((arguments, named))
        return real(*arguments, **named)

    monkeypatch.setattr(sgd, "fit_private_head", spy)
    centre = tuple(float(i) for i in range(WIDTH))
    settings = FedAvgSettings(
        private_steps=3, private_sampling_rate=0.7, private_learning_rate=0.5, centre=centre
    )
    data = site("a", 30, 1, patients=5)
    update(data, settings, clip=0.25, images_per_patient=2)
    update(data, settings, unit="image")
    (arguments, named), (by_image, _) = seen
    mechanism = arguments[4]
    assert (mechanism.steps, mechanism.sampling_rate) == (3, 0.7)
    assert named["learning_rate"] == 0.5
    assert named["clip"] == 0.25
    assert named["images_per_unit"] == 2
    assert named["centre"].tolist() == list(centre)
    assert arguments[3].max() == 4
    assert by_image[3].tolist() == list(range(30))


def test_a_federation_learns_within_a_generous_budget() -> None:
    sites = [site("a", 200, 1), site("b", 300, 2), site("c", 100, 3, patients=50)]
    test = site("test", 400, 9)
    strategy, arrays = FedAvg(), start()
    request = PrivacyRequest(epsilon=30.0)
    plans = {each.site: strategy.privacy_plan(each, request, 2) for each in sites}
    for round_ in (1, 2):
        updates = {
            each.site: strategy.private_site_update(each, arrays, round_, plans[each.site])
            for each in sites
        }
        arrays = strategy.aggregate(arrays, updates)
    scores = strategy.head(arrays).probabilities(test.features)
    assert macro_auroc(test.labels, scores)[0] > 0.9


def test_every_site_weighs_the_same() -> None:
    strategy = FedAvg()
    sent = [update(site(name, n, n))[1] for name, n in (("a", 10), ("b", 300))]
    mean = strategy.aggregate(start(), dict(zip("ab", sent, strict=True)))
    expected = (sent[0].arrays["weight"] + sent[1].arrays["weight"]) / 2
    np.testing.assert_allclose(mean["weight"], expected, rtol=1e-6)


@pytest.mark.parametrize(("images", "patients"), [(1, None), (20, 1), (0, None)])
def test_one_patient_alone_is_refused(images: int, patients: int | None) -> None:
    with pytest.raises(DerminoError, match="too few for a private run") as caught:
        update(site("a", images, 1, patients=patients))
    assert caught.value.code == "DATA_TOO_FEW"


def test_a_budget_that_no_noise_keeps_is_refused() -> None:
    settings = FedAvgSettings(private_sampling_rate=1.0, private_steps=100_000)
    with pytest.raises(DerminoError, match="No noise keeps") as caught:
        FedAvg(settings).privacy_plan(
            site("a", 20, 1), PrivacyRequest(epsilon=1e-6, delta=1e-12), 10_000
        )
    assert caught.value.code == "CONFIG_INVALID"


def test_a_centre_of_another_backbone_is_refused() -> None:
    with pytest.raises(DerminoError, match="centre has 2 numbers") as caught:
        update(site("a", 20, 1), FedAvgSettings(centre=(0.0, 1.0)))
    assert caught.value.code == "CONFIG_INVALID"


def test_a_plan_for_other_settings_is_refused() -> None:
    data = site("a", 20, 1)
    plan = FedAvg().privacy_plan(data, PrivacyRequest(epsilon=3.0), 2)
    other = FedAvg(FedAvgSettings(private_steps=41))
    with pytest.raises(DerminoError, match="other settings"):
        other.private_site_update(data, start(), 1, plan)


@pytest.mark.parametrize(
    "wrong",
    [
        {"private_sampling_rate": 0.0},
        {"private_sampling_rate": 1.1},
        {"private_steps": 0},
        {"centre": (float("nan"),)},
        {"private_noise": 0.1},
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FedAvgSettings(**wrong)


def test_a_run_without_privacy_needs_no_torch() -> None:
    code = (
        "import sys; from dermino_strategies.fedavg import FedAvg;"
        "sys.exit('torch' in sys.modules or 'opacus' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
