"""What Gaussian mechanisms cost: Renyi differential privacy, composed, as (epsilon, delta).

A *unit* (a patient, or an image) is added or removed. One step takes every unit with probability
`q`, sums clipped vectors and adds Gaussian noise of standard deviation `sigma` times the clip. Its
Renyi divergence of order alpha is `log(A) / (alpha - 1)` with

    A = E over z ~ N(0, sigma^2) of (1 + u(z))^alpha,   u(z) = q (exp((2 z - 1) / (2 sigma^2)) - 1)

(Mironov, Talwar & Zhang 2019, "Renyi Differential Privacy of the Sampled Gaussian Mechanism",
arXiv:1908.10530, section 3; adding and removing a unit are both covered, their Theorem 5). Orders
add over steps and mechanisms (Mironov 2017, arXiv:1702.07476, Proposition 1), also when a later
mechanism looks at what earlier ones gave out.

Because `E u = 0`, what is computed is `A - 1 = E ((1 + u)^alpha - 1 - alpha u)`, whose integrand is
never negative: a step that costs almost nothing is not lost to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special

from dermino_core.errors import DerminoError
from dermino_core.privacy.plan import Mechanism

Float64 = npt.NDArray[np.float64]

ORDERS: Float64 = np.array(
    [1.02, 1.04, 1.06, 1.08]
    + [1 + tenth / 10 for tenth in range(1, 100)]
    + list(range(11, 65))
    + [72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 768, 1024, 2048],
    dtype=np.float64,
)
"""Orders alpha at which a mechanism is described, all above 1.01 (see :func:`epsilon`)."""
ORDERS.setflags(write=False)

_WHOLE = np.equal(ORDERS, ORDERS.round())
_SMALLEST_INTEGRATED = 0.05
"""Noise below which fractional orders get an upper bound instead of an integral on a fine grid."""
_TAYLOR = 1e-4
_LARGEST_NOISE = 1e8


def rdp(mechanism: Mechanism) -> Float64:
    """Renyi divergence of all steps together at every order of :data:`ORDERS`.

    Infinite without noise, 0 without steps or with a sampling rate of 0.

    Raises
    ------
    ValueError
        For a sampling rate outside [0, 1], negative or undefined noise, or negative steps.
    """
    sigma, rate = float(mechanism.noise_multiplier), float(mechanism.sampling_rate)
    if not 0 <= rate <= 1 or not sigma >= 0 or mechanism.steps < 0:
        raise ValueError(f"not a mechanism: {mechanism}")
    if rate == 0 or mechanism.steps == 0:
        return np.zeros_like(ORDERS)
    return _one_step(rate, sigma) * mechanism.steps


def epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Epsilon at `delta` of all mechanisms together; 0 for none, infinite where one has no noise.

    For every order `rdp + log(1 - 1/alpha) - log(delta alpha) / (alpha - 1)` holds (Canonne, Kamath
    & Steinke 2020, arXiv:2004.00010, Proposition 12; Asoodeh et al. 2020, arXiv:2001.05990,
    equation 20); the smallest counts. Close to 1 the formula is not stable, hence no such order.
    Where `1 - exp(-rdp) < delta^2`, delta alone covers everything, because the total variation
    distance is at most `sqrt(1 - exp(-KL))` (Bretagnolle & Huber 1979), and KL at most `rdp`.

    Raises
    ------
    ValueError
        For a delta outside (0, 1), and as :func:`rdp`.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is a probability above 0 and below 1, not {delta}")
    if not mechanisms:
        return 0.0
    return _converted(np.sum([rdp(mechanism) for mechanism in mechanisms], axis=0), delta)


def noise_multiplier(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The smallest noise that keeps `steps` steps within (epsilon, delta).

    What it returns never costs more than `epsilon`, and less by at most 1e-4 (unless epsilon is so
    small that the bound of :func:`epsilon` jumps to 0 there).

    Raises
    ------
    ValueError
        If an argument is out of its range.
    DerminoError
        `CONFIG_INVALID` if no noise that a float holds is enough.
    """
    if not (epsilon > 0 and 0 < delta < 1 and 0 < sampling_rate <= 1) or steps < 1:
        raise ValueError(
            f"no noise for epsilon {epsilon}, delta {delta}, rate {sampling_rate}, {steps} steps"
        )

    def spent(sigma: float) -> float:
        return _converted(rdp(Mechanism(sigma, sampling_rate, steps)), delta)

    high = 1.0
    while spent(high) > epsilon:
        high *= 2
        if high > _LARGEST_NOISE:
            raise DerminoError(
                "CONFIG_INVALID",
                f"No noise keeps {steps} steps within epsilon {epsilon:g} at delta {delta:g}.",
                fix="Ask for a larger epsilon, or for fewer rounds.",
            )
    low = high / 2
    while spent(low) <= epsilon:
        low, high = low / 2, low
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        cost = spent(middle)
        if cost > epsilon:
            low = middle
            continue
        high = middle
        if epsilon - cost < 1e-5 * min(1.0, epsilon):
            break
    return high


def _converted(total: Float64, delta: float) -> float:
    """Epsilon from the Renyi divergences at :data:`ORDERS`; see :func:`epsilon`."""
    if (-np.expm1(-total) < delta**2).any():
        return 0.0
    bounds = total + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)
    return max(0.0, float(bounds.min()))


@lru_cache(maxsize=256)
def _one_step(rate: float, sigma: float) -> Float64:
    """Renyi divergence of one step at every order; not to be written to."""
    with np.errstate(divide="ignore", over="ignore"):
        plain = ORDERS / (2 * np.float64(sigma) ** 2)
    if rate == 1 or not np.isfinite(plain).all():
        return plain
    log_a = np.empty_like(ORDERS)
    log_a[_WHOLE] = _whole_orders(rate, sigma)
    if sigma < _SMALLEST_INTEGRATED:
        log_a[~_WHOLE] = _chords(log_a[_WHOLE])
    else:
        log_a[~_WHOLE] = _fractional_orders(rate, sigma)
    return np.minimum(log_a / (ORDERS - 1), plain)


def _whole_orders(rate: float, sigma: float) -> Float64:
    """log(A) by the binomial theorem (section 3.3 of Mironov, Talwar & Zhang).

    The binomial weights sum to 1, so `A - 1` is the weighted sum of
    `exp((i^2 - i) / (2 sigma^2)) - 1`, of which the terms 0 and 1 are 0.
    """
    i, alpha, starts, log_binomial = _whole_table()
    exponent = (i * i - i) / (2 * sigma**2)
    log_terms = log_binomial + i * np.log(rate) + (alpha - i) * np.log1p(-rate)
    log_terms += exponent + np.log(-np.expm1(-exponent))
    top = np.maximum.reduceat(log_terms, starts)
    scaled = np.exp(log_terms - np.repeat(top, np.diff(np.append(starts, len(i)))))
    return np.logaddexp(0, top + np.log(np.add.reduceat(scaled, starts)))


@lru_cache(maxsize=1)
def _whole_table() -> tuple[Float64, Float64, npt.NDArray[np.intp], Float64]:
    """For all whole orders one after another: i from 2 to alpha, alpha, first places, log binom."""
    orders = ORDERS[_WHOLE].astype(int)
    i = np.concatenate([np.arange(2, order + 1) for order in orders]).astype(np.float64)
    alpha = np.repeat(orders, orders - 1).astype(np.float64)
    starts = np.concatenate([[0], np.cumsum(orders - 1)[:-1]])
    log_binomial = (
        special.gammaln(alpha + 1) - special.gammaln(i + 1) - special.gammaln(alpha - i + 1)
    )
    return i, alpha, starts, log_binomial


def _fractional_orders(rate: float, sigma: float) -> Float64:
    """log(A) at the fractional orders, by the trapezoidal rule on the whole line.

    The integrand falls off like a Gaussian outside [0, alpha] and is analytic in a strip of half
    width pi sigma^2, so that the rule converges exponentially in one over the step (Trefethen &
    Weideman 2014, Theorem 5.1); a quarter of min(sigma, sigma^2) leaves a rounding error.
    """
    alphas = ORDERS[~_WHOLE][:, None]
    step = min(sigma, sigma**2) / 4
    z = np.arange(-14 * sigma, alphas.max() + 14 * sigma, step)
    exponent = (2 * z - 1) / (2 * sigma**2)
    log_density = np.log(step / sigma) - 0.5 * np.log(2 * np.pi) - (z / sigma) ** 2 / 2
    grown = np.logaddexp(np.log1p(-rate), np.log(rate) + exponent)
    u = rate * np.expm1(np.minimum(exponent, 600.0))
    log_values = log_density + _log_excess(alphas, np.where(np.abs(u) < 0.5, np.log1p(u), grown), u)
    return np.logaddexp(0, special.logsumexp(log_values, axis=1))


def _log_excess(alpha: Float64, log_base: Float64, u: Float64) -> Float64:
    """log((1 + u)^alpha - 1 - alpha u) without loss; `log_base` is log(1 + u).

    Minus infinity at u = 0. Shape [orders, points] from [orders, 1] and [points].
    """
    power = alpha * log_base
    tiny = np.clip(u, -_TAYLOR, _TAYLOR)
    with np.errstate(divide="ignore"):
        taylor = np.log(alpha * (alpha - 1) / 2 * tiny**2)
        middle = np.log(np.maximum(np.expm1(np.minimum(power, 40)) - alpha * u, 0))
    taylor += np.log1p((alpha - 2) * tiny / 3 * (1 + (alpha - 3) * tiny / 4))
    share = np.exp(np.minimum(np.log(alpha) + log_base - power, -1e-12))
    large = power + np.log1p(-share)
    return np.where(tiny == u, taylor, np.where(power < 40, middle, large))


def _chords(whole_orders: Float64) -> Float64:
    """Upper bound of log(A) at the fractional orders from the whole ones beside them.

    log(A) is convex in the order, as a cumulant generating function, and 0 at order 1.
    """
    known = np.concatenate([[1.0], ORDERS[_WHOLE]])
    return np.interp(ORDERS[~_WHOLE], known, np.concatenate([[0.0], whole_orders]))
