"""Comparisons between backbones, and the tables that mark them."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from dermino_core.evaluation.comparisons import Found, compare, too_few_replicates
from dermino_core.evaluation.measure import Outcome
from dermino_core.evaluation.results import EvaluationResults, Score
from dermino_core.evaluation.statistics import classification_measures
from dermino_core.evaluation.tables import as_csv, as_latex, as_markdown, as_text, score_tables
from dermino_core.reporting.evaluation_text import answer, headline

N = 300


def scores_of(strength: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (rng.random(N) < 0.4).astype(np.int64)
    noise = np.random.default_rng(seed).normal(size=N)
    positive = 1 / (1 + np.exp(-(strength * (labels - 0.5) + noise)))
    return labels, np.stack([1 - positive, positive], axis=1)


def found(
    backbone: str, strength: float, seed: int, dataset: str = "ph2", replicates: int = 400
) -> Found:
    labels, scores = scores_of(strength, seed)
    units = tuple(map(str, range(N)))
    measures = classification_measures(
        labels, scores, units, method="linear probe", n_classes=2, replicates=replicates
    )
    outcome = Outcome(measures, {"linear probe": scores})
    return Found(dataset, "classification", backbone, outcome, labels, units)


def results(several: list[Found]) -> EvaluationResults:
    rows = [
        Score(
            dataset=one.dataset,
            task=one.task,
            backbone=one.backbone,
            method=m.method,
            metric=m.metric,
            group=m.group,
            setting=m.setting,
            value=m.value,
            low=m.low,
            high=m.high,
            n=m.n,
        )
        for one in several
        for m in one.outcome.measures
    ]
    return EvaluationResults(
        dermino_version="0",
        created="2026-01-01T00:00:00+00:00",
        title="a_b & c",
        seed=0,
        replicates=400,
        statistics="percentile",
        machine="",
        backbones=[],
        datasets=[],
        scores=rows,
        comparisons=compare(several),
    )


def test_a_large_difference_is_beyond_chance_by_both_tests():
    rows = compare([found("good", 4.0, 1), found("poor", 0.5, 2)])
    auroc = {row.test: row for row in rows if row.metric == "auroc"}
    assert set(auroc) == {"paired bootstrap", "DeLong"}
    for row in auroc.values():
        assert row.difference > 0.2
        assert row.low > 0
        assert row.beyond_chance
    assert auroc["DeLong"].difference == pytest.approx(auroc["paired bootstrap"].difference)
    assert auroc["DeLong"].low == pytest.approx(auroc["paired bootstrap"].low, abs=0.02)


def test_equally_good_ones_are_not():
    rows = compare([found("one", 1.0, 3), found("other", 1.0, 4)])
    assert not any(row.beyond_chance for row in rows)
    assert all(row.low <= 0 <= row.high for row in rows)


def test_p_values_are_adjusted_within_a_question():
    names = [
        found(name, strength, seed)
        for name, strength, seed in (("a", 2.0, 1), ("b", 1.6, 2), ("c", 1.2, 3))
    ]
    rows = [row for row in compare(names) if row.test == "DeLong"]
    assert len(rows) == 3
    ordered = sorted(rows, key=lambda row: row.p_value)
    # Holm by hand: times 3, 2, 1, never below the one before.
    expected = 0.0
    for factor, row in zip((3, 2, 1), ordered, strict=True):
        expected = max(expected, min(1.0, factor * row.p_value))
        assert row.p_adjusted == pytest.approx(expected)


def test_paper_mode_has_its_own_test():
    rows = compare([found("one", 1.0, 1), found("other", 1.1, 2)], "paper")
    assert {row.test for row in rows} == {"t-test on replicates"}


def test_too_few_replicates_are_noticed():
    pair = [found("good", 3.0, 1, replicates=20), found("poor", 0.5, 2, replicates=20)]
    rows = compare(pair)
    needed = too_few_replicates(rows, 20)
    assert needed is not None
    assert 2 / (needed + 1) <= 0.05 < 2 / 21
    assert too_few_replicates(rows, needed) is None


def test_other_test_images_are_not_compared():
    whole = found("one", 1.0, 1)
    measures = classification_measures(
        whole.test_labels[:200],
        whole.outcome.predictions["linear probe"][:200],
        whole.test_units[:200],
        method="linear probe",
        n_classes=2,
        replicates=400,
    )
    assert not compare([whole, Found("ph2", "classification", "other", Outcome(measures))])


def test_tables_mark_the_best_and_what_is_beyond_chance():
    several = [
        found("good", 4.0, 1),
        found("poor_1", 0.5, 2),
        found("good", 1.0, 3, dataset="isic"),
        found("poor_1", 1.0, 4, dataset="isic"),
    ]
    table = next(t for t in score_tables(results(several)) if t.metric == "auroc")
    assert table.datasets == ("ph2", "isic")
    assert ("good", "ph2") in table.best
    assert table.beyond == {("good", "ph2")}
    assert len([cell for cell in table.best if cell[1] == "isic"]) == 1


def test_the_only_backbone_of_a_data_set_is_not_marked():
    several = [found("a", 4.0, 1), found("b", 0.5, 2), found("a", 1.0, 3, dataset="alone")]
    table = next(t for t in score_tables(results(several)) if t.metric == "auroc")
    assert not {cell for cell in table.best | table.beyond if cell[1] == "alone"}


def test_the_answer_names_who_is_not_ranked():
    several = [found("poor", 0.5, 2), found("PanDerm", 4.0, 1), found("poor", 1.0, 3, dataset="d")]
    whole = results(several)
    table = headline(whole)
    assert table is not None
    said = " ".join(answer(whole, table))
    assert "Not ranked, for want of a number: PanDerm." in said


def test_the_answer_says_what_may_be_chance():
    whole = results([found("one", 1.0, 3), found("PanDerm", 1.05, 4)])
    table = headline(whole)
    assert table is not None
    said = " ".join(answer(whole, table))
    assert "may be chance on the data set" in said
    ahead = results([found("one", 0.5, 2), found("PanDerm", 4.0, 1)])
    table = headline(ahead)
    assert table is not None
    assert "Against one it is beyond chance better on ph2." in " ".join(answer(ahead, table))


def test_every_format_has_every_number():
    several = [found("good", 4.0, 1), found("poor_1", 0.5, 2)]
    whole = results(several)
    lines = list(csv.DictReader(io.StringIO(as_csv(whole.scores))))
    assert len(lines) == 8
    assert float(lines[0]["value"]) == whole.scores[0].value
    value = f"{whole.scores[0].value:.3f}"
    assert f"**{value}** †" in as_markdown(whole)
    assert r"poor\_1" in as_markdown(whole)
    assert rf"\textbf{{{value}}}$^\dagger$" in as_latex(whole)
    assert r"\_1" in as_latex(whole)
    assert value in as_text(whole)


def test_an_undefined_number_is_a_dash_and_an_empty_cell():
    one = found("only", 1.0, 1)
    whole = results([one])
    undefined = whole.scores[0].model_copy(update={"value": None, "low": None, "high": None})
    whole.scores[0] = undefined
    assert next(csv.DictReader(io.StringIO(as_csv(whole.scores))))["value"] == ""
    assert "| only | – |" in as_markdown(whole)
