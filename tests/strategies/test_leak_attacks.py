"""The attacks of `tests.benchmarks.leaks` find a leak where there is one, and none where not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm
from sklearn.metrics import roc_auc_score

from dermino_core.heads import LinearHead
from dermino_strategies.base import SiteData
from dermino_strategies.fedavg import FedAvg, FedAvgSettings
from tests.benchmarks.leaks import attribute
from tests.benchmarks.leaks.__main__ import main
from tests.benchmarks.leaks.exposure import HEAD, SUMS, UPLOADS, attack, moves, observe, scores_of
from tests.benchmarks.leaks.membership import (
    confidence,
    decode,
    decoded_ratio,
    likelihood_ratio,
    loss_threshold,
)
from tests.benchmarks.leaks.reconstruction import Gradient, Round, invert, measure_return
from tests.benchmarks.leaks.scores import Measured, bound, mean_of, measure, resampled
from tests.benchmarks.leaks.victims import (
    Converged,
    Federation,
    Hospital,
    Trace,
    drawn_hospitals,
)

NORMAL: Any = multivariate_normal  # scipy's own signature takes a covariance for an integer
ONE = drawn_hospitals({"a": 60}, width=128)
THREE = drawn_hospitals({"a": 60, "b": 40, "c": 20}, width=16)


def chance(measured: Measured, value: float = 0.5) -> bool:
    """Whether the interval, twice as wide, holds what guessing gives."""
    low, high = measured.interval
    return low - (high - low) / 2 <= value <= high + (high - low) / 2


# --- figures ---------------------------------------------------------------------------------


def test_figures_are_those_of_slow_references() -> None:
    rng = np.random.default_rng(0)
    member = rng.random((5, 300)) < 0.5
    scores = np.round(rng.normal(size=(5, 300)) + member, 1)
    found = measure(scores, member, np.arange(300).astype(str))
    truth, flat = member.ravel(), scores.ravel()
    assert found.auc.value == pytest.approx(roc_auc_score(truth, flat))
    allowed = [t for t in np.unique(flat) if (flat[~truth] >= t).mean() <= 0.01]
    assert found.hits.value == pytest.approx(np.mean(flat[truth] >= min(allowed)))
    right = (np.mean(flat[truth] > 0) + np.mean(flat[~truth] <= 0)) / 2
    assert found.accuracy.value == pytest.approx(right)


def test_replicates_draw_runs_and_patients_as_wholes() -> None:
    member = np.array([[True, True, False, False], [False, False, True, True]])
    perfect = np.where(member, 1.0, -1.0)
    groups = np.array(["x", "x", "y", "y"])
    found = measure(perfect, member, groups, replicates=400)
    of_x = np.isnan(found.auc.replicates).mean()
    # One run and one patient drawn twice: members or strangers only, with probability 1/4.
    assert of_x == pytest.approx(0.25, abs=0.1)


def test_intervals_hold_the_truth_for_dependent_scores() -> None:
    """Scores that depend on run and patient alike: binomial intervals would be far too narrow."""
    held = 0
    for trial in range(40):
        rng = np.random.default_rng([trial, 7])
        member = rng.random((8, 60)) < 0.5
        of_run, of_image = 2 * rng.normal(size=(8, 1)), 2 * rng.normal(size=(1, 60))
        scores = of_run + of_image + rng.normal(size=(8, 60)) + member
        low, high = measure(scores, member, np.arange(60).astype(str), replicates=100).auc.interval
        # A pair of two runs differs by N(1, 18), one of the same run by N(1, 10).
        truth = (7 * norm.cdf(18**-0.5) + norm.cdf(10**-0.5)) / 8
        held += low <= truth <= high
    assert held >= 34


def test_bounds_are_those_of_randomised_response_and_of_numerical_integration() -> None:
    assert bound(1.0, 0.0).accuracy == pytest.approx(np.e / (1 + np.e))
    for epsilon, delta in ((0.5, 0.0), (1.0, 1e-5), (3.0, 1e-2), (8.0, 1e-5)):
        alarms = np.linspace(0, 1, 200_001)
        missed = np.maximum(
            0,
            np.maximum(
                1 - delta - np.exp(epsilon) * alarms, (1 - delta - alarms) / np.exp(epsilon)
            ),
        )
        found = bound(epsilon, delta)
        assert found.auc == pytest.approx(1 - np.trapezoid(missed, alarms), abs=1e-6)
        assert found.accuracy == pytest.approx(1 - ((alarms + missed) / 2).min(), abs=1e-5)
        assert found.hits == pytest.approx(1 - missed[2000], abs=1e-9)


def test_means_over_hospitals_and_trials() -> None:
    one = measure(np.array([[1.0, -1.0]] * 3), np.array([[True, False]] * 3), np.array(["x", "y"]))
    two = measure(np.array([[-1.0, 1.0]] * 3), np.array([[True, False]] * 3), np.array(["x", "y"]))
    assert mean_of([one, two]).auc.value == 0.5
    values = np.array([0.0, 1.0, 1.0, 1.0])
    found = resampled(values, replicates=4000)
    assert found.value == 0.75
    assert found.replicates.std() == pytest.approx(values.std() / 2, rel=0.1)


# --- membership ------------------------------------------------------------------------------


def test_confidence_is_the_log_odds_of_the_true_class() -> None:
    rng = np.random.default_rng(1)
    head = LinearHead(rng.normal(size=(3, 5)).astype(np.float32), np.zeros(3, np.float32))
    x, y = rng.normal(size=(9, 5)).astype(np.float32), rng.integers(0, 3, 9)
    p = head.probabilities(x)[np.arange(9), y]
    np.testing.assert_allclose(confidence(head, x, y), np.log(p / (1 - p)), rtol=1e-6)
    assert np.isfinite(confidence(head, 1000 * x, y)).all()


def test_likelihood_ratio_is_that_of_two_normal_densities() -> None:
    rng = np.random.default_rng(2)
    shadow, member = rng.normal(size=(80, 3, 2)), rng.random((80, 3)) < 0.4
    shadow[:, :, 1] += 0.5 * shadow[:, :, 0] + member
    target = rng.normal(size=(4, 3, 2))
    found = likelihood_ratio(shadow, member, target)
    for image in range(3):
        with_it, without = (shadow[f, image] for f in (member[:, image], ~member[:, image]))
        densities = []
        for part in (with_it, without):
            mean, covariance = part.mean(axis=0), np.cov(part.T, bias=True)
            densities.append(NORMAL.logpdf(target[:, image], mean, covariance))
        np.testing.assert_allclose(found[:, image], densities[0] - densities[1], atol=1e-4)


def test_loss_threshold_is_the_mean_loss_of_members() -> None:
    losses = np.array([[0.1, 0.9], [0.3, 0.5]])
    confidences = -np.log(np.expm1(losses))
    member = np.array([[True, False], [True, True]])
    found = loss_threshold(confidences, member, confidences)
    np.testing.assert_allclose(found, 0.3 - losses, atol=1e-12)


def test_decoding_leaves_out_the_run_it_estimates() -> None:
    """Left-one-out by the hat matrix, against fits that never saw the run; tall and wide."""
    rng = np.random.default_rng(3)
    for width in (5, 40):
        member = rng.random((30, 4)) < 0.5
        seen = rng.normal(size=(30, width)) + member @ rng.normal(size=(4, width))
        of_shadow, _ = decode(seen, member, seen[:1])
        # The penalty is chosen inside: one of the grid's must agree with brute-force refits.
        scaled = (seen - seen.mean(axis=0)) / seen.std(axis=0)
        top = np.linalg.norm(scaled, 2) ** 2
        gaps = []
        for penalty in np.geomspace(1e-6, 1e2, 9) * top:
            refits = []
            for run in range(30):
                kept = np.arange(30) != run
                x, y = scaled[kept], member[kept] - 0.5
                back = np.linalg.solve(x.T @ x + penalty * np.eye(width), x.T @ y)
                refits.append(scaled[run] @ back + 0.5)
            gaps.append(np.abs(np.array(refits) - of_shadow).max())
        assert min(gaps) < 1e-6


def test_decoding_reads_a_plain_sum_without_error_and_pure_noise_not_at_all() -> None:
    rng = np.random.default_rng(4)
    member = rng.random((220, 40)) < 0.5
    vectors = rng.normal(size=(40, 50))
    for seen, right in ((member @ vectors, True), (rng.normal(size=(220, 50)), False)):
        nothing = (np.zeros((200, 40, 0)), np.zeros((20, 40, 0)))
        scores = decoded_ratio(seen[:200], member[:200], seen[200:], nothing)
        found = measure(scores, member[200:], np.arange(40).astype(str))
        assert found.auc.value == 1 if right else chance(found.auc)


def test_numbers_that_say_nothing_do_not_spoil_what_confidences_say() -> None:
    """Left-one-out estimates must not know the run they leave out, not even by its mean."""
    rng = np.random.default_rng(12)
    member = rng.random((332, 40)) < 0.5
    confidences = rng.normal(size=(332, 40, 1)) + member[:, :, None]
    noise = rng.normal(size=(332, 20))
    known, asked = slice(None, 300), slice(300, None)
    alone = likelihood_ratio(confidences[known], member[known], confidences[asked])
    joint = decoded_ratio(
        noise[known], member[known], noise[asked], (confidences[known], confidences[asked])
    )
    groups = np.arange(40).astype(str)
    expected = measure(alone, member[asked], groups).auc.value
    assert expected == pytest.approx(norm.cdf(0.5**0.5), abs=0.03)
    assert measure(joint, member[asked], groups).auc.value > expected - 0.02


def test_an_overfitted_head_gives_its_images_away_and_fresh_images_do_not_show() -> None:
    shadows, targets = 40, 8
    observed = observe(Converged(penalty=1e-3), ONE, shadows, targets)
    member, groups = observed.member["a"], ONE[0].groups
    for where in (HEAD, UPLOADS):
        scores = scores_of(observed.places["a", where], member[:shadows], shadows)
        found = {name: measure(s, member[shadows:], groups) for name, s in scores.items()}
        assert found["loss threshold"].auc.value > 0.9
        assert found["LiRA"].auc.value > 0.95
        assert found["LiRA"].hits.value > 0.3
        assert found["LiRA"].accuracy.value > 0.85
    fresh = drawn_hospitals({"fresh": 60}, width=128, seed=9)[0]
    said = np.array([fresh.draw(np.random.default_rng(run)) for run in range(shadows + targets)])
    heads = observed.places["a", HEAD].numbers
    logits = heads[:, :-1] @ fresh.features.T + heads[:, -1:]
    seen = (logits * (2 * fresh.labels - 1))[:, :, None]
    scores = likelihood_ratio(seen[:shadows], said[:shadows], seen[shadows:])
    assert chance(measure(scores, said[shadows:], groups).auc)


def test_decoding_reads_more_of_an_upload_than_confidences_do() -> None:
    """With features as uneven as real ones: few directions hold most of what varies."""
    uneven = replace(ONE[0], features=ONE[0].features * np.geomspace(5, 0.05, 128, dtype="f4"))
    federation = Federation("x", FedAvg(FedAvgSettings(learning_rate=5e-3)), 2)
    exposures = attack(federation, [uneven], shadows=300, targets=12)
    assert [one.place for one in exposures] == [HEAD, SUMS, UPLOADS]
    found = {name: by["a"].auc.value for name, by in exposures[-1].attacks.items()}
    assert found["decoding"] > 0.8
    assert found["decoding"] > found["LiRA"] + 0.05
    assert found["LiRA"] > found["loss threshold"]


# --- runs ------------------------------------------------------------------------------------


def test_a_run_gives_out_what_the_method_says() -> None:
    strategy = FedAvg(FedAvgSettings(batch_size=4))
    federation = Federation("x", strategy, 2)
    sites = [one.data(np.arange(10 + i)) for i, one in enumerate(THREE)]
    trace = federation.play(sites, seed=3)
    assert len(trace.sent) == len(trace.uploads) == len(trace.sums) == 2
    for sent, uploads, after in zip(trace.sent, trace.uploads, trace.sums, strict=True):
        for site in sites:
            round_ = 1 if sent is trace.sent[0] else 2
            again = strategy.site_update(site, sent, round_, 3)
            np.testing.assert_array_equal(uploads[site.site]["weight"], again.arrays["weight"])
        mean = np.average([uploads[n]["weight"] for n in "abc"], axis=0, weights=[10, 11, 12])
        np.testing.assert_allclose(after["weight"], mean, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(trace.sent[1]["weight"], trace.sums[0]["weight"])
    np.testing.assert_array_equal(trace.head.weight, trace.sums[1]["weight"])


def test_a_patient_is_in_with_all_images_or_out_with_all_half_of_the_time() -> None:
    groups = np.repeat([f"p{i}" for i in range(30)], 3)
    features = np.zeros((90, 2), np.float32)
    hospital = Hospital("a", features, np.zeros(90, np.int64), groups, np.zeros(90))
    rng = np.random.default_rng(6)
    drawn = np.array([hospital.draw(rng) for _ in range(400)]).reshape(400, 30, 3)
    assert (drawn.all(axis=2) == drawn.any(axis=2)).all()
    assert drawn.mean() == pytest.approx(0.5, abs=0.03)
    together = np.corrcoef(drawn[:, 0, 0], drawn[:, 1, 0])[0, 1]
    assert abs(together) < 0.2
    assert set(hospital.data(drawn[0].ravel()).groups) == set(groups[drawn[0].ravel()])


# --- properties ------------------------------------------------------------------------------


def upload_of(federation: Federation) -> attribute.Upload:
    def upload(hospital: Hospital, rows: np.ndarray, seed: int) -> np.ndarray:
        trace: Trace = federation.play([hospital.data(rows)], seed)
        return moves(trace.sent, [one[hospital.name] for one in trace.uploads])

    return upload


def test_shares_show_in_an_upload_where_features_tell_them() -> None:
    sizes = attribute.Sizes(splits=3, shadows=100, targets=40, images=30)
    upload = upload_of(Federation("x", FedAvg(FedAvgSettings(learning_rate=5e-3)), 1))
    plain = drawn_hospitals({"a": 400}, width=8, signal=2.0)[0]
    error, guess = attribute.malignant(plain, upload, sizes)
    assert error.interval[1] < 0.8 * guess.interval[0]
    assert guess.value == pytest.approx(0.2, abs=0.03)

    def mean(hospital: Hospital, rows: np.ndarray, seed: int) -> np.ndarray:
        del seed
        return hospital.features[rows].mean(axis=0)

    assert attribute.women(plain, mean, sizes).value > 0.95
    none = drawn_hospitals({"a": 400}, width=8, signal=0.0)[0]
    assert chance(attribute.women(none, mean, sizes))


def test_attacked_sites_are_made_of_other_patients() -> None:
    seen: list[np.ndarray] = []

    def spy(hospital: Hospital, rows: np.ndarray, seed: int) -> np.ndarray:
        del hospital, seed
        seen.append(rows)
        return rows[:3].astype(float)

    sizes = attribute.Sizes(splits=1, shadows=20, targets=10, images=20)
    attribute.women(drawn_hospitals({"a": 200})[0], spy, sizes)
    assert not set(np.concatenate(seen[:20])) & set(np.concatenate(seen[20:]))
    assert all(len(set(rows)) == 20 for rows in seen)


# --- reconstruction --------------------------------------------------------------------------


def numerical_gradient(head: LinearHead, x: np.ndarray, label: int) -> dict[str, np.ndarray]:
    """Central differences of the cross-entropy of one image, in float64."""

    def loss(weight: np.ndarray, bias: np.ndarray) -> float:
        logits = weight @ x + bias
        return float(np.log(np.exp(logits).sum()) - logits[label])

    start = {"weight": head.weight.astype(float), "bias": head.bias.astype(float)}
    gradient = {name: np.zeros_like(array) for name, array in start.items()}
    for name, array in start.items():
        for place in np.ndindex(array.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = {key: value.copy() for key, value in start.items()}
                moved[name][place] += step
                ends.append(loss(**moved))
            gradient[name][place] = (ends[0] - ends[1]) / 2e-5
    return gradient


def test_the_gradient_of_one_image_is_that_image() -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(size=7).astype(np.float32)
    head = LinearHead.initial(3, 7, seed=0)
    for row in invert(numerical_gradient(head, x, 1)):
        np.testing.assert_allclose(row, x, rtol=1e-5, atol=1e-6)
    site = SiteData("a", x[None], np.array([1]), 3)
    for row in invert(Gradient().move([site], 0)):
        np.testing.assert_allclose(row, x, rtol=1e-5, atol=1e-6)
    numerical = numerical_gradient(LinearHead.initial(3, 7, seed=4), x, 1)
    other = rng.normal(size=7).astype(np.float32)
    second = numerical_gradient(LinearHead.initial(3, 7, seed=4), other, 0)
    pair = SiteData("a", np.stack([x, other]), np.array([1, 0]), 3)
    for name, step in Gradient().move([pair], 4).items():
        np.testing.assert_allclose(step, -(numerical[name] + second[name]) / 2, atol=1e-8)
    assert (invert({"weight": np.ones((2, 3)), "bias": np.zeros(2)}) == 0).all()


def test_one_step_of_adam_leaves_signs_only() -> None:
    x = np.array([0.5, -3.0, 0.01, 7.0], np.float32)
    site = SiteData("a", x[None], np.array([1]), 2)
    one_step = Federation("x", FedAvg(FedAvgSettings(local_epochs=1, batch_size=1)), 1)
    for row in invert(Round(one_step).move([site], 0)):
        np.testing.assert_allclose(row, np.sign(x), rtol=1e-2)


def test_single_images_come_back_and_large_sites_do_not() -> None:
    hospital = drawn_hospitals({"a": 200}, width=32)[0]
    alone = measure_return(hospital, Gradient(), images=1, trials=20)
    assert alone.cosine.value == pytest.approx(1, abs=1e-6)
    assert alone.named.value == 1
    assert alone.guess.value < 0.6
    assert alone.chance == 1 / 200
    many = measure_return(hospital, Gradient(), images=100, trials=40)
    assert many.cosine.value < 0.8
    summed = measure_return(hospital, Gradient(), images=1, sites=10, trials=20)
    assert summed.cosine.value < 0.9
    assert summed.chance == 0.05


def test_sum_over_sites_is_the_gradient_of_all_their_images() -> None:
    hospital = THREE[0]
    parts = [hospital.data(np.arange(i, i + 4)) for i in (0, 4, 8)]
    together = Gradient().move([hospital.data(np.arange(12))], 0)
    for name, array in Gradient().move(parts, 0).items():
        np.testing.assert_allclose(array, together[name], atol=1e-12)


# --- command ---------------------------------------------------------------------------------


def test_the_command_writes_a_table(tmp_path: Path) -> None:
    out = tmp_path / "leaks.md"
    assert main(["--quick", "--only", "sums", "reconstruction", "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "plain gradient of 1 image | 1.00 [1.00, 1.00]" in text
    assert "DRAWN FEATURES" in text
    assert "### Membership inference on heads" not in text
