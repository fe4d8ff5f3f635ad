"""How often the 95 % intervals hold the truth, and how often tests find what is not there.

python -m tests.benchmarks.coverage [--trials N] [--replicates N]

Test halves are drawn again and again from a population whose AUROC is known: binormal scores of
two equally good models, correlated with each other and, where a patient has several images, within
patients. An honest 95 % interval holds the truth in 95 % of the trials; an honest test at 5 % finds
a difference in 5 % of them. The last table does the same for the expected calibration error.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from dermino_core.evaluation.calibration import calibration_measures
from dermino_core.evaluation.delong import delong_interval, delong_test
from dermino_core.evaluation.measure import FloatArray, Measure
from dermino_core.evaluation.paper_statistics import paper_interval, paper_t_test
from dermino_core.evaluation.statistics import (
    classification_measures,
    draw_units,
    paired_difference,
)
from tests.benchmarks.tables import table

INTERVALS = ("percentile", "DeLong", "paper")
TESTS = ("bootstrap", "DeLong", "paper")

_ALIKE = 0.6
"""Correlation of the two models' scores of the same image."""


@dataclass(frozen=True)
class Scenario:
    """A population of test halves.

    Attributes
    ----------
    auroc
        Of both models.
    positive, negative
        Patients of each class; with `mixed`, their images are of either class by chance.
    images
        Most images of a patient; each has 1 to so many.
    within
        Correlation of a model's scores within a patient.
    """

    name: str
    auroc: float
    positive: int
    negative: int
    images: int = 1
    within: float = 0.0
    mixed: bool = False

    def draw(self, seed: int) -> tuple[npt.NDArray[np.intp], FloatArray, list[str]]:
        """Labels [n], the models' scores [2, n], and the patient of each image."""
        rng = np.random.default_rng([seed, self.positive, self.negative, self.images])
        patients = self.positive + self.negative
        unit = np.repeat(np.arange(patients), rng.integers(1, self.images + 1, patients))
        labels = (unit < self.positive).astype(np.intp)
        if self.mixed:
            labels = rng.permutation(labels)
        mean = NormalDist().inv_cdf(self.auroc) * math.sqrt(2)
        of_patient = _alike(rng, patients)[:, unit]
        of_image = _alike(rng, len(unit))
        noise = math.sqrt(self.within) * of_patient + math.sqrt(1 - self.within) * of_image
        return labels, mean * labels + noise, [f"patient {number}" for number in unit]


def _alike(rng: np.random.Generator, count: int) -> FloatArray:
    """Standard normal [2, count]; the two rows are correlated."""
    common, own = rng.normal(size=count), rng.normal(size=(2, count))
    return math.sqrt(_ALIKE) * common + math.sqrt(1 - _ALIKE) * own


SCENARIOS = (
    Scenario("AUROC 0.76, 60 + 60 images", 0.76, 60, 60),
    Scenario("AUROC 0.76, 20 + 80 images", 0.76, 20, 80),
    Scenario("AUROC 0.95, 20 + 80 images", 0.95, 20, 80),
    Scenario("40 + 60 patients, 1-5 images of one class", 0.76, 40, 60, images=5, within=0.5),
    Scenario("100 patients, 1-5 images of both classes", 0.76, 40, 60, 5, 0.5, mixed=True),
)


@dataclass(frozen=True)
class Rates:
    """Shares of trials: intervals that hold the truth, tests that find a difference."""

    held: dict[str, float]
    found: dict[str, float]


def simulate(
    scenario: Scenario, *, by_patient: bool = True, trials: int = 1000, replicates: int = 1000
) -> Rates:
    """Trials of one scenario, by patients or as if every image were independent."""
    held, found = Counter[str](), Counter[str]()
    for trial in range(trials):
        labels, scores, patients = scenario.draw(trial)
        units = patients if by_patient else [str(place) for place in range(len(labels))]
        first, second = (
            classification_measures(
                labels,
                np.stack([-score, score], axis=1),
                units,
                method="",
                n_classes=2,
                replicates=replicates,
                seed=trial,
            )[0]
            for score in scores
        )
        for name, (low, high) in _intervals(labels, scores[0], units, first).items():
            held[name] += low <= scenario.auroc <= high
        for name, p_value in _tests(labels, scores, units, first, second).items():
            found[name] += p_value < 0.05
    return Rates(
        {name: held[name] / trials for name in INTERVALS},
        {name: found[name] / trials for name in TESTS},
    )


def _intervals(
    labels: npt.NDArray[np.intp], score: FloatArray, units: Sequence[str], first: Measure
) -> dict[str, tuple[float, float]]:
    """NaN, which holds nothing, where there is none."""
    assert first.replicates is not None
    delong = delong_interval(labels, score, units)
    pairs = [(first.low, first.high), (delong.low, delong.high), paper_interval(first.replicates)]
    return {
        name: (np.nan if low is None else low, np.nan if high is None else high)
        for name, (low, high) in zip(INTERVALS, pairs, strict=True)
    }


def _tests(
    labels: npt.NDArray[np.intp],
    scores: FloatArray,
    units: Sequence[str],
    first: Measure,
    second: Measure,
) -> dict[str, float]:
    assert first.replicates is not None
    assert second.replicates is not None
    p_values = (
        paired_difference(first, second).p_value,
        delong_test(labels, scores[0], scores[1], units).p_value,
        paper_t_test(first.replicates, second.replicates),
    )
    return dict(zip(TESTS, p_values, strict=True))


@dataclass(frozen=True)
class CalibrationRates:
    """Of the expected calibration error: its true value and mean, and shares of trials.

    `beyond_chance`: `ece` lies above the range of a calibrated model, 2.5 % for such a model.
    """

    truth: float
    mean: float
    percentile: float
    corrected: float
    beyond_chance: float


def simulate_calibration(
    steepness: float, images: int, *, trials: int = 1000, replicates: int = 1000
) -> CalibrationRates:
    """Forecasts whose log odds are `steepness` times the right ones."""
    many = 2_000_000
    outcome, forecast = _forecasts(np.random.default_rng(0), steepness, many)
    truth = float(_plain_errors(outcome, forecast, np.ones((1, many)))[0])
    units = [str(place) for place in range(images)]
    total = np.zeros(4)
    for trial in range(trials):
        outcome, forecast = _forecasts(np.random.default_rng([trial, 1]), steepness, images)
        measures, _ = calibration_measures(
            outcome.astype(np.intp),
            np.stack([1 - forecast, forecast], axis=1),
            units,
            method="",
            replicates=replicates,
            seed=trial,
        )
        named = {measure.metric: measure for measure in measures}
        plain, corrected, chance = (
            named[metric] for metric in ("ece", "ece_corrected", "ece_by_chance")
        )
        assert plain.value is not None
        assert corrected.low is not None
        assert corrected.high is not None
        assert chance.high is not None
        drawn = draw_units(units, replicates=replicates, seed=trial).astype(np.float64)
        low, high = np.percentile(_plain_errors(outcome, forecast, drawn), [2.5, 97.5])
        total += (
            plain.value,
            low <= truth <= high,
            corrected.low <= truth <= corrected.high,
            plain.value > chance.high,
        )
    return CalibrationRates(truth, *(total / trials))


def _forecasts(
    rng: np.random.Generator, steepness: float, images: int
) -> tuple[npt.NDArray[np.bool_], FloatArray]:
    odds = 1.5 * rng.normal(size=images)
    outcome = rng.random(images) < 1 / (1 + np.exp(-odds))
    return outcome, 1 / (1 + np.exp(-steepness * odds))


def _plain_errors(
    outcome: npt.NDArray[np.bool_], forecast: FloatArray, drawn: FloatArray
) -> FloatArray:
    """Of every row of draws [b, n], in ten bins."""
    place = np.minimum((forecast * 10).astype(np.intp), 9)
    gaps = drawn @ (np.eye(10)[place] * (forecast - outcome)[:, None])
    return np.abs(gaps).sum(axis=1) / drawn.sum(axis=1)


def _percent(shares: dict[str, float]) -> list[str]:
    return [f"{100 * share:.1f} %" for share in shares.values()]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.coverage")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=1000)
    wanted = parser.parse_args()
    size = {"trials": wanted.trials, "replicates": wanted.replicates}
    start = time.process_time()
    rows = []
    for scenario in SCENARIOS:
        rates = simulate(scenario, **size)
        rows.append([scenario.name, *_percent(rates.held), *_percent(rates.found)])
        if scenario.images > 1:
            rates = simulate(scenario, by_patient=False, **size)
            naive = "  the same, images taken as independent"
            rows.append([naive, *_percent(rates.held), *_percent(rates.found)])
    error = 100 * math.sqrt(0.95 * 0.05 / wanted.trials)
    print(
        f"{wanted.trials} trials, {wanted.replicates} replicates; standard error "
        f"{error:.1f} points at 95 % and at 5 %.\n"
        "AUROC: 95 % intervals that hold the truth (wanted 95 %), and tests at 5 % that find a\n"
        "difference between two equally good models (wanted 5 %)."
    )
    print(table(["", *(f"held: {n}" for n in INTERVALS), *(f"found: {n}" for n in TESTS)], rows))
    print("  paper: mean +- variance of the replicates, and the t-test over replicates")
    rows = []
    for steepness, what in (
        (1.0, "calibrated"),
        (1.5, "overconfident"),
        (3.0, "very overconfident"),
    ):
        for images in (100, 400):
            found = simulate_calibration(steepness, images, **size)
            shares = (found.percentile, found.corrected, found.beyond_chance)
            cells = [f"{found.truth:.3f}", f"{found.mean:.3f}"]
            cells += [f"{100 * share:.1f} %" for share in shares]
            rows.append([f"{what}, {images} images", *cells])
    print(
        "\nExpected calibration error: intervals that hold the truth (wanted 95 %), and `ece`\n"
        "above the range by chance (wanted 2.5 % of a calibrated model, 100 % of the others)."
    )
    header = ["", "truth", "mean of ece", "held: percentile", "held: corrected", "beyond chance"]
    print(table(header, rows))
    print(f"  {time.process_time() - start:.0f} s of processor time")


if __name__ == "__main__":
    main()
