"""Noisy sums: what a patient can change, how much noise there is, and what is left to learn."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_core.errors import DerminoError
from dermino_core.metrics import macro_auroc
from dermino_core.moments import Moments
from dermino_core.privacy.accounting import epsilon
from dermino_core.privacy.noise import SecureGenerator
from dermino_core.privacy.plan import Mechanism, PrivacyPlan, PrivacyRequest
from dermino_core.ridge import calibrate, solve, spread_of_features
from dermino_strategies.base import SiteData
from dermino_strategies.private_ridge import (
    PARTS,
    directions,
    private_moments,
    unheld_scores,
    usual_dimensions,
)
from dermino_strategies.ridge import Ridge, RidgeSettings

WIDTH = 12


class NoNoise(SecureGenerator):
    """Real choices of images, no noise."""

    def normal(self, shape: int | tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)


def hospital(
    n: int, seed: int, *, classes: int = 2, images: int = 1, size: float = 1.0, apart: float = 0.7
) -> SiteData:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    centres = np.random.default_rng(3).normal(size=(classes, WIDTH))
    x = size * (rng.normal(size=(n, WIDTH)) + apart * centres[y])
    groups = tuple(f"p{i // images}" for i in range(n))
    return SiteData(f"site {seed}", x.astype(np.float32), y, classes, groups=groups)


def plan(noise: float = 1.0, images_per_patient: int = 4) -> PrivacyPlan:
    request = PrivacyRequest(epsilon=1.0, images_per_patient=images_per_patient)
    return PrivacyPlan(request, 1, Mechanism(noise, 1.0, 1), 10)


def released(
    data: SiteData,
    *,
    centre: tuple[float, ...] = (),
    dimensions: int = 5,
    per_class: bool = False,
    generator: SecureGenerator | None = None,
    noise: float = 1.0,
    images_per_patient: int = 4,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts [C], sums [C, k] and products [blocks, k, k] in the coordinates of the noise."""
    moments, _ = private_moments(
        data,
        plan(noise, images_per_patient),
        centre=centre,
        dimensions=dimensions,
        seed=1,
        per_class=per_class,
        generator=generator,
    )
    basis = directions(WIDTH, dimensions, 1)
    k = basis.shape[1]
    middle = np.array(centre) if centre else np.zeros(WIDTH)
    sums = moments.sums - moments.counts[:, None] * middle
    products = []
    for block in range(len(moments.products)):
        one = Moments(moments.counts, moments.sums, moments.products[block : block + 1])
        mine = slice(block, block + 1) if per_class else slice(None)
        crossed = np.outer(sums[mine].sum(axis=0), middle)
        square = moments.counts[mine].sum() * np.outer(middle, middle)
        products.append(basis.T @ (one.matrix() - crossed - crossed.T - square) @ basis / k)
    return moments.counts, sums @ basis / np.sqrt(k), np.stack(products)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.sampled_from([1e-3, 1.0, 1e4]),
    st.booleans(),
    st.booleans(),
)
def test_one_patient_changes_what_is_released_by_one_at_most(
    seed: int, images: int, size: float, per_class: bool, centred: bool
) -> None:
    """Also with more images than may take part, of several classes, and far from the centre."""
    data = hospital(images, seed, classes=3, images=images, size=size)
    centre = tuple(np.linspace(-1, 1, WIDTH)) if centred else ()
    counts, sums, products = released(data, centre=centre, per_class=per_class, generator=NoNoise())
    upper = products[:, *np.triu_indices(5)]
    parts = (counts, sums, upper)
    length = sum((w * np.linalg.norm(part)) ** 2 for w, part in zip(PARTS, parts, strict=True))
    assert length <= 1 + 1e-6
    assert counts.sum() == pytest.approx(1)
    assert (np.square(PARTS).sum()) == pytest.approx(1)


def test_patients_add_up_and_only_so_many_images_of_each_take_part() -> None:
    data = hospital(40, 0, images=4)
    whole = released(data, generator=NoNoise())
    parts = [
        released(
            SiteData("one", data.features[i : i + 4], data.labels[i : i + 4], 2, groups=("p",) * 4),
            generator=NoNoise(),
        )
        for i in range(0, 40, 4)
    ]
    for found, several in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(found, np.sum(several, axis=0), atol=1e-9)
    picked = [
        released(data, generator=NoNoise(), images_per_patient=1)[1].tobytes() for _ in range(5)
    ]
    assert len(set(picked)) > 1


def test_short_rows_without_noise_are_the_moments_themselves() -> None:
    data = hospital(50, 1, size=0.1)
    for per_class in (False, True):
        found, _ = private_moments(
            data,
            plan(),
            centre=tuple(np.full(WIDTH, 0.02)),
            dimensions=WIDTH,
            seed=4,
            per_class=per_class,
            generator=NoNoise(),
        )
        exact = Moments.of(data.features, data.labels, 2, per_class=per_class)
        np.testing.assert_allclose(found.counts, exact.counts)
        np.testing.assert_allclose(found.sums, exact.sums, atol=1e-9)
        np.testing.assert_allclose(found.products, exact.products, atol=1e-9)


def test_the_noise_is_as_large_as_the_plan_says() -> None:
    """Standard deviation = noise multiplier over the part's weight, every number on its own."""
    data = hospital(6, 2)
    exact = released(data, generator=NoNoise())
    draws = [released(data, noise=3.0) for _ in range(400)]
    for place, part in enumerate(PARTS):
        noise = np.stack([draw[place] for draw in draws]) - exact[place]
        if place == 2:
            np.testing.assert_allclose(noise, np.swapaxes(noise, -1, -2), atol=1e-6)
            noise = noise[:, :, *np.triu_indices(5)]
        noise = noise.reshape(400, -1)
        assert noise.std() == pytest.approx(3.0 / part, rel=0.06)
        assert np.abs(noise.mean()) < 5 * 3.0 / part / np.sqrt(noise.size)
        together = np.corrcoef(noise.T)
        assert np.abs(together - np.eye(len(together))).max() < 0.25
    _, square = private_moments(data, plan(3.0), centre=(), dimensions=5, seed=1, per_class=False)
    assert square == pytest.approx(5 * (5 * 3.0 / PARTS[2]) ** 2)


@pytest.mark.parametrize("wanted", [0.3, 1.0, 8.0])
def test_the_plan_keeps_the_promise(wanted: float) -> None:
    request = PrivacyRequest(epsilon=wanted, delta=1e-5)
    found = Ridge().privacy_plan(hospital(30, 1, images=2), request, 1)
    assert found.units == 15
    assert (found.per_round.sampling_rate, found.per_round.steps, found.rounds) == (1.0, 1, 1)
    assert epsilon([found.per_round], 1e-5) <= wanted
    # The exact delta of a Gaussian mechanism (Balle & Wang 2018, Theorem 8).
    sigma, phi = found.per_round.noise_multiplier, NormalDist().cdf
    delta = phi(0.5 / sigma - wanted * sigma) - np.exp(wanted) * phi(-0.5 / sigma - wanted * sigma)
    assert delta <= 1e-5


def test_what_is_sent_says_nothing_of_the_size_of_the_site() -> None:
    strategy = Ridge(RidgeSettings(projection=4))
    arrays = strategy.initial_arrays(2, WIDTH, 5)
    request = PrivacyRequest(epsilon=2.0)
    sent = []
    for data in (hospital(20, 1), hospital(200, 2)):
        made = strategy.privacy_plan(data, request, 1)
        update = strategy.private_site_update(data, arrays, 1, made)
        strategy.check_update(arrays, update)
        assert update.examples == 1
        assert not update.metrics
        for name in ("counts", "sums", "products"):
            assert not update.arrays[f"fold.{name}"].any()
        again = strategy.private_site_update(data, arrays, 1, made)
        assert (again.arrays["total.counts"] != update.arrays["total.counts"]).all()
        sent.append(update)
    assert sent[0].arrays["noise"] == sent[1].arrays["noise"]
    after = strategy.aggregate(arrays, {"a": sent[0], "b": sent[1]})
    assert after["noise"] == 2 * sent[0].arrays["noise"]
    assert {k: (v.shape, v.dtype) for k, v in after.items()} == {
        k: (v.shape, v.dtype) for k, v in arrays.items()
    }
    limits = strategy.summand_limits(arrays)
    assert all(np.abs(v).max() <= limits[k] for k, v in strategy.summand(sent[1]).items())


def private_run(strategy: Ridge, sites: list[SiteData], wanted: float, seed: int = 0) -> dict:
    arrays = strategy.initial_arrays(2, WIDTH, seed)
    request = PrivacyRequest(epsilon=wanted)
    updates = {
        s.site: strategy.private_site_update(s, arrays, 1, strategy.privacy_plan(s, request, 1))
        for s in sites
    }
    return strategy.aggregate(arrays, updates)


def test_the_more_budget_the_better_and_with_much_it_is_nearly_the_plain_ridge() -> None:
    sites = [hospital(1500, 10 + i, apart=0.4) for i in range(2)]
    test = hospital(2000, 99, apart=0.4)
    strategy = Ridge(RidgeSettings(projection=WIDTH))

    def auroc(wanted: float) -> float:
        found = [
            macro_auroc(
                test.labels,
                strategy.head(private_run(strategy, sites, wanted, seed)).probabilities(
                    test.features
                ),
            )[0]
            for seed in range(3)
        ]
        return float(np.mean(found))

    start = strategy.initial_arrays(2, WIDTH, 0)
    plain = strategy.aggregate(start, {s.site: strategy.site_update(s, start, 1, 0) for s in sites})
    reference = macro_auroc(test.labels, strategy.head(plain).probabilities(test.features))[0]
    aurocs = [auroc(wanted) for wanted in (0.01, 0.5, 100.0)]
    assert reference > 0.75
    assert aurocs[2] == pytest.approx(reference, abs=0.01)
    assert aurocs[0] < aurocs[1] - 0.03
    assert aurocs[1] > reference - 0.06


def test_noise_that_swamps_the_counts_still_gives_a_head() -> None:
    strategy = Ridge(RidgeSettings(standardise=True, class_weight="balanced"))
    for seed in range(8):
        arrays = private_run(strategy, [hospital(6, seed)], 0.05, seed)
        assert (arrays["total.counts"] >= 0).all()
        probabilities = strategy.head(arrays).probabilities(hospital(40, 50).features)
        assert np.isfinite(probabilities).all()


def test_the_penalty_is_the_size_of_the_noise_and_features_keep_their_scales() -> None:
    strategy, other = Ridge(), Ridge(RidgeSettings(standardise=True))
    sites = [hospital(100, 1), hospital(80, 2)]
    start = strategy.initial_arrays(2, WIDTH, 0)
    request = PrivacyRequest(epsilon=4.0)
    updates = {
        s.site: strategy.private_site_update(s, start, 1, strategy.privacy_plan(s, request, 1))
        for s in sites
    }
    arrays, same = strategy.aggregate(start, updates), other.aggregate(start, updates)
    np.testing.assert_array_equal(arrays["weight"], same["weight"])
    total = Moments.from_arrays(arrays, "total.")
    scale = spread_of_features(total, standardise=False)
    assert (scale == scale[0]).all()
    size = float(arrays["penalty"][0]) * total.images * scale[0] ** 2
    sigma = strategy.privacy_plan(sites[0], request, 1).per_round.noise_multiplier
    entry = np.sqrt(2) * WIDTH * sigma / PARTS[2]  # two sites, k = 12 directions
    assert size == pytest.approx(np.sqrt(WIDTH) * entry)
    # Nothing can be taken out of noisy sums, whatever one says.
    first, second = (strategy.personal(sites[0], arrays, took_part=t) for t in (True, False))
    np.testing.assert_array_equal(first.scores.weight, second.scores.weight)


def test_scores_are_taken_at_their_word_where_nothing_is_held_out() -> None:
    data = hospital(400, 1, apart=0.3)
    moments = Moments.of(data.features, data.labels, 2, per_class=False)
    scores = solve(moments, 1.0)
    probabilities = calibrate(scores, unheld_scores(moments)).probabilities(data.features)[:, 1]
    near = np.abs(scores.of(data.features)[:, 1] - data.labels.mean()) < 0.1
    np.testing.assert_allclose(probabilities[near], scores.of(data.features)[near, 1], atol=0.02)
    lone = Moments(np.array([0.0, 5.0]), moments.sums, moments.products)
    assert calibrate(scores, unheld_scores(lone)).probabilities(data.features)[0, 1] > 0.99


def test_a_personal_model_after_a_private_run_is_no_worse_than_alone() -> None:
    from dermino_core.heads import fit_converged

    strategy = Ridge()
    lost = []
    for seed in range(4):
        own, test = hospital(150, seed, apart=0.3), hospital(800, 100 + seed, apart=0.3)
        arrays = private_run(strategy, [own, hospital(100, 50 + seed)], 0.5, seed)
        found = strategy.personal(own, arrays)
        alone = fit_converged(own.features, own.labels, 2, penalty=0.1)
        aurocs = [
            macro_auroc(test.labels, head.probabilities(test.features))[0]
            for head in (alone, found.head)
        ]
        lost.append(aurocs[0] - aurocs[1])
    assert np.mean(lost) < 0.02


def test_what_cannot_be_private_is_refused() -> None:
    strategy, request = Ridge(), PrivacyRequest(epsilon=1.0)
    with pytest.raises(DerminoError, match="has 1 patients"):
        strategy.privacy_plan(hospital(5, 1, images=5), request, 1)
    with pytest.raises(DerminoError, match="one round, not 2"):
        strategy.privacy_plan(hospital(20, 1), request, 2)
    off = Ridge(RidgeSettings(centre=(1.0, 2.0)))
    with pytest.raises(DerminoError, match="centre has 2 numbers"):
        off.privacy_plan(hospital(20, 1), request, 1)
    bad = SiteData("a", np.full((4, WIDTH), np.nan, np.float32), np.array([0, 1, 0, 1]), 2)
    with pytest.raises(ValueError, match="NaN"):
        strategy.private_site_update(bad, strategy.initial_arrays(2, WIDTH, 0), 1, plan())
    arrays = strategy.initial_arrays(2, WIDTH, 0)
    update = strategy.site_update(hospital(20, 1), arrays, 1, 0)
    update.arrays["noise"] = np.array([-1.0])
    with pytest.raises(ValueError, match="noise is below 0"):
        strategy.check_update(arrays, update)


def test_directions_are_public_and_the_runs_own() -> None:
    one = directions(40, 8, 3)
    np.testing.assert_allclose(one.T @ one, np.eye(8), atol=1e-12)
    np.testing.assert_array_equal(one, directions(40, 8, 3))
    assert (one != directions(40, 8, 4)).all()
    assert directions(5, 8, 3).shape == (5, 5)
    assert usual_dimensions(1.0) < usual_dimensions(8.0)
