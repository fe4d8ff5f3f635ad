"""Was this image trained on? Three attacks on what a run gives out.

The attacker holds the image and its label, knows the method and its settings, and has images like
the hospital's: it trains hundreds of shadow runs on random halves of the same pool, in which it
knows who took part.

- Loss threshold: the image's loss on the head is below the mean loss of members (Yeom et al. 2018,
  "Privacy Risk in Machine Learning", section 3.2).
- LiRA, online: how likely the image's logit-scaled confidence is among shadow heads with it and
  among those without it, as normal distributions (Carlini et al. 2022, "Membership Inference
  Attacks From First Principles", Algorithm 1; several observations of one image jointly, VI.C).
- Decoding: a head is close to a linear function of who took part, so a ridge regression over the
  shadow runs from all its numbers back to one image's membership reads more than a confidence
  does (linear reconstruction, Dinur & Nissim 2003; on sums, Homer et al. 2008). Its estimate,
  left-one-out on the shadows, joins the confidences in a likelihood ratio as above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dermino_core.heads import LinearHead

Floats = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]

_PENALTIES = np.geomspace(1e-6, 1e2, 9)
_IMAGES_TO_CHOOSE_BY = 64


def confidence(head: LinearHead, features: Floats, labels: npt.NDArray[np.integer]) -> Floats:
    """Log odds of the true class of each image, [n]: log(p_y / (1 - p_y))."""
    logits = features.astype(np.float64, copy=False) @ head.weight.T.astype(np.float64)
    logits += head.bias
    rows = np.arange(len(labels))
    own = logits[rows, labels]
    logits[rows, labels] = -np.inf
    largest = logits.max(axis=1)
    return own - largest - np.log(np.exp(logits - largest[:, None]).sum(axis=1))


def loss_threshold(shadow: Floats, member: Flags, target: Floats) -> Floats:
    """How far an image's loss is below the mean loss of members of shadow runs, [T, n].

    Parameters
    ----------
    shadow, target
        Confidences on the heads, [K, n] and [T, n].
    member
        Who took part in the shadow runs, [K, n].
    """
    return float(np.logaddexp(0, -shadow)[member].mean()) - np.logaddexp(0, -target)


def likelihood_ratio(shadow: Floats, member: Flags, target: Floats) -> Floats:
    """Log of the density with the image over that without it, [T, n], normal in each image.

    Parameters
    ----------
    shadow, target
        Observations of each image in each run, [K, n, q] and [T, n, q].
    member
        Who took part in the shadow runs, [K, n].
    """
    return _log_density(shadow, member, target) - _log_density(shadow, ~member, target)


def _log_density(shadow: Floats, chosen: Flags, target: Floats) -> Floats:
    weight = chosen[:, :, None] / chosen.sum(axis=0)[None, :, None]
    mean = (shadow * weight).sum(axis=0)
    away = shadow - mean
    covariance = np.einsum("kni,knj->nij", away * weight, away)
    size = np.trace(covariance, axis1=1, axis2=2) + np.finfo(float).tiny
    covariance += 1e-9 * size[:, None, None] * np.eye(shadow.shape[2])
    off = target - mean
    square = np.einsum("tni,nij,tnj->tn", off, np.linalg.inv(covariance), off)
    return -0.5 * (square + np.linalg.slogdet(covariance)[1])


def decode(shadow: Floats, wanted: npt.NDArray, target: Floats) -> tuple[Floats, Floats]:
    """Estimates of what is wanted: of the shadow runs left one out, [K, n], and of targets, [T, n].

    The penalty with the smallest left-out error is chosen for all columns together. What is wanted
    is 1/2 on average by design, and not made so from the runs: a run's own value would pull the
    mean of the others the other way, and the left-one-out estimates would betray it.

    Parameters
    ----------
    shadow, target
        Everything seen of each run, [K, p] and [T, p].
    wanted
        Of each shadow run, [K, n]: memberships, or another number with mean 1/2.
    """
    mean, scale = shadow.mean(axis=0), shadow.std(axis=0)
    scale[scale == 0] = 1
    seen, asked = (shadow - mean) / scale, (target - mean) / scale
    away = wanted - 0.5
    left, values, right = _thin_svd(seen)
    turned = left.T @ away
    few = slice(None, None, -(-away.shape[1] // _IMAGES_TO_CHOOSE_BY))

    def left_out(penalty: float, columns: slice) -> Floats:
        shrink = values**2 / (values**2 + penalty)
        of_itself = (left**2 @ shrink)[:, None]
        fitted = (left * shrink) @ turned[:, columns]
        return away[:, columns] - (away[:, columns] - fitted) / (1 - of_itself)

    penalties = _PENALTIES * values[0] ** 2
    errors = [float(np.mean((left_out(p, few) - away[:, few]) ** 2)) for p in penalties]
    best = penalties[int(np.argmin(errors))]
    back = (asked @ right) * (values / (values**2 + best))
    return left_out(best, slice(None)) + 0.5, back @ turned + 0.5


def _thin_svd(matrix: Floats) -> tuple[Floats, Floats, Floats]:
    """Left vectors [K, r], values [r] and right vectors [p, r], by the smaller Gram matrix."""
    tall = matrix.shape[0] >= matrix.shape[1]
    squares, vectors = np.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)
    kept = squares > 1e-10 * squares[-1]
    values, vectors = np.sqrt(squares[kept][::-1]), vectors[:, kept][:, ::-1]
    if tall:
        return matrix @ vectors / values, values, vectors
    return vectors, values, matrix.T @ vectors / values


def decoded_ratio(
    shadow: Floats, member: Flags, target: Floats, confidences: tuple[Floats, Floats]
) -> Floats:
    """Log likelihood ratios of the decoded membership and the confidences jointly, [T, n].

    Parameters
    ----------
    shadow, member, target
        As of :func:`decode`.
    confidences
        Observations of the shadow runs [K, n, q] and of the targets [T, n, q].
    """
    decoded = decode(shadow, member, target)
    of_shadow, of_target = (
        np.concatenate([one[:, :, None], more], axis=2)
        for one, more in zip(decoded, confidences, strict=True)
    )
    return likelihood_ratio(of_shadow, member, of_target)
