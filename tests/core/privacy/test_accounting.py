"""The accountant against 20-digit integrals, closed forms and other people's accountants."""

from __future__ import annotations

import itertools
import subprocess
import sys

import dp_accounting
import mpmath
import numpy as np
import pytest
from absl import logging as absl_logging
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis.rdp import compute_rdp

from dermino_core.errors import DerminoError
from dermino_core.privacy.accounting import ORDERS, epsilon, noise_multiplier, rdp
from dermino_core.privacy.plan import Mechanism

RATES = (1e-6, 1e-3, 0.02, 0.1, 0.3, 0.5, 0.8, 0.999)
NOISES = (0.06, 0.3, 0.7, 1.0, 1.7, 5.0, 40.0, 1000.0)


def test_orders_are_usable() -> None:
    assert (ORDERS > 1.01).all()
    assert (np.diff(ORDERS) > 0).all()
    assert not ORDERS.flags.writeable


@pytest.mark.parametrize("sigma", [1e-3, 0.4, 1.0, 7.0, 1e5])
def test_plain_gaussian_is_the_closed_form(sigma: float) -> None:
    np.testing.assert_allclose(rdp(Mechanism(sigma, 1.0, 12)), 12 * ORDERS / (2 * sigma**2))


def integral(rate: float, sigma: float, order: float) -> float:
    """Renyi divergence of one step from the definition, by tanh-sinh with 20 digits."""
    with mpmath.workdps(20):
        q, s, a = mpmath.mpf(rate), mpmath.mpf(sigma), mpmath.mpf(order)
        kink = s * s * mpmath.log(1 / q - 1) + mpmath.mpf(1) / 2
        cuts = {c + k * s for c in (0, a) for k in (-12, 0, 12)} | {kink}

        def integrand(z):
            ratio = (1 - q) + q * mpmath.exp((2 * z - 1) / (2 * s * s))
            return mpmath.exp(-z * z / (2 * s * s)) * ratio**a

        value = mpmath.quad(integrand, sorted(cuts)) / (s * mpmath.sqrt(2 * mpmath.pi))
        return float(mpmath.log(value) / (a - 1))


@pytest.mark.parametrize(
    ("rate", "sigma"),
    [(1e-6, 0.06), (1e-3, 30.0), (0.02, 0.5), (0.1, 1.0), (0.3, 5.0), (0.999, 0.3)],
)
def test_curve_is_the_integral_of_its_definition(rate: float, sigma: float) -> None:
    curve = rdp(Mechanism(sigma, rate, 1))
    for place in (0, 30, 106):
        expected = integral(rate, sigma, float(ORDERS[place]))
        assert abs(curve[place] / expected - 1) < 1e-9, ORDERS[place]


def test_without_fine_grids_the_curve_is_an_upper_bound() -> None:
    curve = rdp(Mechanism(0.045, 0.1, 1))
    for place in (0, 40):
        exact = integral(0.1, 0.045, float(ORDERS[place]))
        assert exact * (1 - 1e-12) <= curve[place] <= ORDERS[place] / (2 * 0.045**2)


def their_accountant(mechanisms: list[Mechanism], orders: np.ndarray) -> RdpAccountant:
    absl_logging.set_verbosity("error")
    accountant = RdpAccountant([float(order) for order in orders])
    for m in mechanisms:
        gaussian = dp_accounting.GaussianDpEvent(m.noise_multiplier)
        event = dp_accounting.PoissonSampledDpEvent(m.sampling_rate, gaussian)
        accountant.compose(event, m.steps)
    return accountant


GRID = [
    *([Mechanism(s, q, n)] for s, q, n in itertools.product(NOISES[1:7:2], RATES[1::2], (1, 200))),
    [Mechanism(1.1, 0.1, 300), Mechanism(2.0, 1.0, 3), Mechanism(0.9, 0.003, 4000)],
    [Mechanism(4.0, 0.25, 10)] * 5,
    [Mechanism(6.0, 0.5, 40), Mechanism(5.0, 0.01, 1)],
]


@pytest.mark.parametrize("mechanisms", GRID)
def test_equals_dp_accounting_where_that_is_exact_and_never_exceeds_it(
    mechanisms: list[Mechanism],
) -> None:
    """At whole orders both are exact. At fractional ones dp-accounting adds the absolute values of
    an alternating series: an upper bound of what the test of the integrals compares ours with."""
    whole = np.equal(ORDERS, ORDERS.round())
    curve = np.sum([rdp(m) for m in mechanisms], axis=0)
    theirs = their_accountant(mechanisms, ORDERS[whole])
    for delta in (1e-8, 1e-5, 1e-3):
        ours_converted_by_them, _ = compute_epsilon(list(ORDERS[whole]), list(curve[whole]), delta)
        assert ours_converted_by_them == pytest.approx(theirs.get_epsilon(delta), abs=1e-6)
        same_curve, _ = compute_epsilon(list(ORDERS), list(curve), delta)
        assert epsilon(mechanisms, delta) == pytest.approx(same_curve, rel=1e-12, abs=1e-12)
    bound = their_accountant(mechanisms, ORDERS[::7]).get_epsilon(1e-5)
    assert epsilon(mechanisms, 1e-5) <= bound + 1e-6


@pytest.mark.parametrize(
    ("mechanism", "slack"),
    [
        (Mechanism(1.0, 0.1, 100), 0.25),
        (Mechanism(5.0, 0.3, 40), 0.25),
        (Mechanism(2.0, 1, 1), 0.2),
    ],
)
def test_above_the_privacy_loss_distribution_but_not_far(
    mechanism: Mechanism, slack: float
) -> None:
    """The numerical privacy loss distribution is nearly exact: no bound may be below it."""
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    gaussian = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
    event = dp_accounting.PoissonSampledDpEvent(mechanism.sampling_rate, gaussian)
    accountant.compose(event, mechanism.steps)
    exact = accountant.get_epsilon(1e-5)
    assert exact * 0.98 < epsilon([mechanism], 1e-5) < exact * (1 + slack)


def test_curve_equals_the_one_of_opacus() -> None:
    orders = ORDERS[(ORDERS >= 1.5) & (ORDERS < 64)]
    for rate, sigma in itertools.product(RATES[2:6:2], NOISES[2:6]):
        ours = rdp(Mechanism(sigma, rate, 7))[np.isin(ORDERS, orders)]
        theirs = compute_rdp(q=rate, noise_multiplier=sigma, steps=7, orders=list(orders))
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-9)


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon([], 1e-5) == 0
    assert epsilon([Mechanism(1.0, 0.0, 10), Mechanism(1.0, 0.5, 0)], 1e-5) == 0
    assert epsilon([Mechanism(0.0, 0.5, 1)], 1e-5) == np.inf
    assert epsilon([Mechanism(1e-170, 0.5, 1), Mechanism(9.0, 0.1, 1)], 1e-5) == np.inf
    assert 0 <= epsilon([Mechanism(1e9, 0.5, 1)], 1e-5) < 1e-6


def test_delta_alone_covers_what_hardly_differs() -> None:
    """Total variation of N(0, s^2) and N(1, s^2) is 2 Phi(1 / (2 s)) - 1, here below delta."""
    sigma, delta = 1e3, 1e-3
    assert mpmath.erf(1 / (2 * sigma) / mpmath.sqrt(2)) < delta
    assert epsilon([Mechanism(sigma, 1.0, 1)], delta) == 0
    assert epsilon([Mechanism(sigma, 1.0, 1)], delta / 10) > 0


@pytest.mark.parametrize(
    "mechanism",
    [
        Mechanism(-1.0, 0.1, 1),
        Mechanism(1.0, 1.1, 1),
        Mechanism(1.0, -0.1, 1),
        Mechanism(float("nan"), 0.1, 1),
        Mechanism(1.0, float("nan"), 1),
        Mechanism(1.0, 0.1, -1),
    ],
)
def test_what_is_no_mechanism_is_refused(mechanism: Mechanism) -> None:
    with pytest.raises(ValueError, match="not a mechanism"):
        epsilon([mechanism], 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, float("nan")])
def test_delta_is_a_probability(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon([], delta)
    with pytest.raises(ValueError, match="delta"):
        noise_multiplier(1.0, delta, 0.1, 10)


@pytest.mark.parametrize("target", [0.05, 0.5, 1.0, 3.0, 8.0, 50.0, 300.0])
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (1.0, 500), (0.2, 60), (0.01, 10_000)])
def test_noise_is_enough_and_no_larger_than_needed(target: float, rate: float, steps: int) -> None:
    sigma = noise_multiplier(target, 1e-5, rate, steps)
    cost = epsilon([Mechanism(sigma, rate, steps)], 1e-5)
    assert target - 1e-4 <= cost <= target
    assert epsilon([Mechanism(sigma * 0.999, rate, steps)], 1e-5) > cost


@pytest.mark.parametrize("arguments", [(0.0, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.5, 1), (1.0, 0.1, 0)])
def test_noise_for_nonsense_is_refused(arguments: tuple[float, float, int]) -> None:
    target, rate, steps = arguments
    with pytest.raises(ValueError, match="no noise"):
        noise_multiplier(target, 1e-5, rate, steps)


def test_an_epsilon_out_of_reach_is_said_in_words() -> None:
    with pytest.raises(DerminoError, match="larger epsilon") as caught:
        noise_multiplier(1e-6, 1e-12, 1.0, 10**9)
    assert caught.value.code == "CONFIG_INVALID"


rates = st.floats(1e-6, 1.0)
noises = st.floats(0.05, 100.0)
many = st.integers(1, 10_000)
more = st.floats(1.0, 3.0)


@settings(max_examples=20, deadline=None)
@given(rates, noises, many, more, st.sampled_from([1e-7, 1e-5, 1e-3]))
def test_more_of_anything_costs_more(
    rate: float, sigma: float, steps: int, factor: float, delta: float
) -> None:
    slack = 1 + 1e-9
    cost = epsilon([Mechanism(sigma, rate, steps)], delta)
    assert cost >= 0
    assert cost <= epsilon([Mechanism(sigma, rate, round(steps * factor))], delta) * slack
    assert cost <= epsilon([Mechanism(sigma, min(1.0, rate * factor), steps)], delta) * slack
    assert cost <= epsilon([Mechanism(sigma / factor, rate, steps)], delta) * slack + 1e-12
    assert cost <= epsilon([Mechanism(sigma, rate, steps)] * 2, delta) * slack
    assert cost <= epsilon([Mechanism(sigma, rate, steps)], delta / factor) * slack
    assert cost <= epsilon([Mechanism(sigma, 1.0, steps)], delta) * slack


@settings(max_examples=20, deadline=None)
@given(rates, noises)
def test_curve_rises_with_the_order(rate: float, sigma: float) -> None:
    curve = rdp(Mechanism(sigma, rate, 1))
    assert np.isfinite(curve).all()
    assert (curve > 0).all()
    assert (np.diff(curve) >= -1e-9 * curve[1:]).all()


@settings(max_examples=15, deadline=None)
@given(rates, noises, st.integers(1, 50), st.integers(1, 50))
def test_steps_add_up(rate: float, sigma: float, first: int, second: int) -> None:
    together = epsilon([Mechanism(sigma, rate, first + second)], 1e-5)
    parts = [Mechanism(sigma, rate, first), Mechanism(sigma, rate, second)]
    assert epsilon(parts, 1e-5) == pytest.approx(together, rel=1e-12, abs=1e-12)


def test_counting_needs_no_torch() -> None:
    code = (
        "import sys; from dermino_core.privacy.accounting import noise_multiplier as n;"
        "n(1.0, 1e-5, 0.1, 100); sys.exit('torch' in sys.modules or 'opacus' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
