"""Groups out of messy cells; numbers and gaps against scikit-learn, fairlearn and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from dermino_core.errors import DerminoError
from dermino_core.evaluation.fairness import fairness
from dermino_core.evaluation.fairness_groups import age_bands, groupings, sex_group, skin_group
from dermino_core.evaluation.measure import Measure, Outcome
from dermino_core.manifest import Record
from dermino_core.metrics import bootstrap_weights

REPLICATES = 40


@pytest.mark.parametrize(
    ("cells", "group"),
    [
        (("1", "2", "I", "ii", "12", "1.0", "I-II", "1 - 2", "Type II", "FST I/II"), "I-II"),
        (("3", "4", "iv", "34", "fitzpatrick III", "III–IV", "skin type: 4", "Ⅳ"), "III-IV"),
        (("5", "6", "VI", "56", "Fitzpatrick skin type V", "phototype_6", "v to vi"), "V-VI"),
        ((None, "", "-1", "0", "7", "unknown", "2-3", "1-6", "brown", "MST 5", "13", "IX"), None),
    ],
)
def test_skin_types_are_understood_as_people_write_them(
    cells: tuple[str | None, ...], group: str | None
) -> None:
    assert {cell: skin_group(cell) for cell in cells} == dict.fromkeys(cells, group)


def test_sexes_are_understood_as_people_write_them() -> None:
    words = {"F": "female", "Female ": "female", "woman": "female", "m": "male", "MALE": "male"}
    words |= {"männlich": "male", "intersex": "other", "unknown": None, "": None, "1": None}
    assert {word: sex_group(word) for word in words} == words


@given(st.text(max_size=12))
def test_any_text_has_a_group_or_none(text: str) -> None:
    assert skin_group(text) in {"I-II", "III-IV", "V-VI", None}
    assert sex_group(text) in {"female", "male", "other", None}


def test_age_bands_meet_at_their_edges() -> None:
    assert age_bands((40, 60)) == ["below 40", "40-59", "60+"]
    records = [Record("a", age=age) for age in (0.0, 39.9, 40.0, 59.5, 60.0, 99.0, None)]
    (ages,) = groupings(records)
    assert [[int(i) for i in np.flatnonzero(mask)] for mask in ages.members.values()] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]
    assert ages.note == "1 of 7 images have no age."
    with pytest.raises(ValueError, match="must rise"):
        age_bands((60, 40))


def test_what_is_not_understood_is_said_apart_from_what_is_unknown() -> None:
    records = [Record("a", sex=sex) for sex in ("f", "unknown", "xx\n", None)]
    assert groupings(records)[0].note == (
        "3 of 4 images have no sex (1 of them one that is not understood, the first 'xx\\\\n')."
    )


def people(n: int, classes: int, seed: int = 0) -> tuple[list[Record], np.ndarray, np.ndarray]:
    """Records with all three attributes (some missing), labels, and scores that say something."""
    rng = np.random.default_rng(seed)
    records = [
        Record(
            f"{i}.png",
            skin_type=rng.choice(["1", "II", "34", "V", "VI", "unknown"]),
            sex=rng.choice(["female", "M", ""]),
            age=float(rng.integers(10, 90)) if rng.random() < 0.9 else None,
        )
        for i in range(n)
    ]
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return records, labels, scores


def find(outcome: Outcome, metric: str, group: str) -> Measure:
    (one,) = [m for m in outcome.measures if (m.metric, m.group) == (metric, group)]
    return one


def test_every_group_scores_as_its_slice_alone() -> None:
    records, labels, scores = people(600, 3)
    units = [f"p{i // 2}" for i in range(600)]
    outcome = fairness(
        labels, scores, units, records, method="m", n_classes=3, replicates=REPLICATES
    )
    female = np.array([r.sex == "female" for r in records])
    old = np.array([r.age is not None and r.age >= 60 for r in records])
    dark = np.array([r.skin_type in {"V", "VI"} for r in records])
    slices = {
        "sex=female": female,
        "skin_type=V-VI": dark,
        "sex=female & age=60+": female & old,
        "skin_type=V-VI & age=60+": dark & old,
    }
    for group, rows in slices.items():
        auroc = roc_auc_score(labels[rows], scores[rows], multi_class="ovr")
        f1 = f1_score(labels[rows], scores[rows].argmax(1), average="macro")
        assert find(outcome, "auroc", group).value == pytest.approx(auroc, abs=1e-12)
        assert find(outcome, "f1", group).value == pytest.approx(f1, abs=1e-12)
        assert find(outcome, "auroc", group).n == rows.sum()
    assert not any("rate" in m.metric for m in outcome.measures)


def test_binary_rates_and_odds_are_those_of_fairlearn() -> None:
    theirs = pytest.importorskip("fairlearn.metrics")
    records, labels, scores = people(500, 2, seed=1)
    units = [str(i) for i in range(500)]
    outcome = fairness(
        labels, scores, units, records, method="m", n_classes=2, replicates=REPLICATES
    )
    groups = np.array([skin_group(record.skin_type) or "" for record in records])
    known = groups != ""
    y, called, skin = labels[known], scores[known].argmax(1), groups[known]
    frame = theirs.MetricFrame(
        metrics={"tpr": theirs.true_positive_rate, "fpr": theirs.false_positive_rate},
        y_true=y,
        y_pred=called,
        sensitive_features=skin,
    )
    for group in ("I-II", "III-IV", "V-VI"):
        for metric, column in (("true positive rate", "tpr"), ("false positive rate", "fpr")):
            ours = find(outcome, metric, f"skin_type={group}").value
            assert ours == pytest.approx(frame.by_group[column][group], abs=1e-12)
    widest = "skin_type: largest - smallest"
    assert find(outcome, "true positive rate gap", widest).value == pytest.approx(
        theirs.equal_opportunity_difference(y, called, sensitive_features=skin), abs=1e-12
    )
    assert find(outcome, "equalised odds difference", widest).value == pytest.approx(
        theirs.equalized_odds_difference(y, called, sensitive_features=skin), abs=1e-12
    )


def test_gaps_are_paired_draw_by_draw() -> None:
    records, labels, scores = people(300, 2, seed=2)
    units = [f"p{i // 3}" for i in range(300)]
    outcome = fairness(
        labels, scores, units, records, method="m", n_classes=2, replicates=REPLICATES, seed=5
    )
    weights = bootstrap_weights(300, groups=units, replicates=REPLICATES, seed=5)
    sexes = [sex_group(record.sex) for record in records]
    female, male = (np.array([s == sex for s in sexes]) for sex in ("female", "male"))
    auroc, tpr, odds = [], [], []
    for draw in weights:
        both, rates = [], []
        for of in (female, male):
            images = np.repeat(np.flatnonzero(of), draw[of])
            y, called = labels[images], scores[images].argmax(1)
            both.append(roc_auc_score(y, scores[images, 1]))
            rates.append((called[y == 1].mean(), called[y == 0].mean()))
        auroc.append(both[0] - both[1])
        tpr.append(rates[0][0] - rates[1][0])
        odds.append(np.abs(np.subtract(*rates)).max())
    pair = "sex: female - male"
    for metric, group, slow in (
        ("auroc gap", pair, auroc),
        ("true positive rate gap", pair, tpr),
        ("equalised odds difference", "sex: largest - smallest", odds),
    ):
        gap = find(outcome, metric, group)
        assert gap.replicates is not None
        np.testing.assert_allclose(gap.replicates, slow, atol=1e-6)
        assert [gap.low, gap.high] == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=1e-6)
    ones = [find(outcome, "auroc", f"sex={sex}").value or 0 for sex in ("female", "male")]
    assert find(outcome, "auroc gap", pair).value == pytest.approx(ones[0] - ones[1])


def test_the_widest_gap_says_between_whom() -> None:
    records, labels, scores = people(600, 2, seed=3)
    units = [str(i) for i in range(600)]
    outcome = fairness(
        labels, scores, units, records, method="m", n_classes=2, replicates=REPLICATES
    )
    values = {
        m.group.removeprefix("skin_type="): m.value or 0.0
        for m in outcome.measures
        if m.metric == "auroc" and m.group.startswith("skin_type=") and "&" not in m.group
    }
    widest = find(outcome, "auroc gap", "skin_type: largest - smallest")
    assert len(values) == 3
    assert widest.value == pytest.approx(max(values.values()) - min(values.values()))
    assert widest.setting == f"{max(values, key=values.__getitem__)} - " + min(
        values, key=values.__getitem__
    )
    pairs = [
        m for m in outcome.measures if m.metric == "auroc gap" and m.group.startswith("skin_type: ")
    ]
    assert len(pairs) == 4
    crossed = [m for m in outcome.measures if m.metric == "auroc gap" and "&" in m.group]
    assert [m.group for m in crossed] == [
        "skin_type & sex: largest - smallest",
        "skin_type & age: largest - smallest",
        "sex & age: largest - smallest",
    ]


def test_small_groups_are_named_and_not_scored() -> None:
    labels = np.array([0, 1] * 10 + [0] * 16 + [1] * 4 + [0, 1] * 9)
    sexes = ["f"] * 20 + ["m"] * 20 + ["other"] * 18
    records = [Record("a", sex=sex) for sex in sexes]
    scores = np.tile([0.4, 0.6], (58, 1))
    units = [str(i) for i in range(58)]
    outcome = fairness(labels, scores, units, records, method="m", n_classes=2, replicates=5)
    assert {m.group for m in outcome.measures} == {"sex=female"}
    assert outcome.notes == [
        "Too few to be scored (20 images, 5 of each class are needed): "
        "sex=male (20 images, 4 of the rarest class), sex=other (18 images, 9 of the rarest class)."
    ]


def test_wrong_input_is_named() -> None:
    labels, scores = np.array([0, 1]), np.full((2, 2), 0.5)
    nobody = [Record("a"), Record("b", sex="unknown")]
    with pytest.raises(DerminoError, match="No test image has a skin type, a sex or an age"):
        fairness(labels, scores, "ab", nobody, method="m", n_classes=2)
    known = [Record("a", sex="f")] * 2
    for broken, message in (
        ((labels, scores, "a", known), "2 labels, 2 scores, 1 units, 2 records"),
        ((labels, scores[:, :1], "ab", known), r"scores must be \[n, 2\], not \[2, 1\]"),
        ((labels + 1, scores, "ab", known), "labels must be from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            fairness(*broken, method="m", n_classes=2)


def test_scores_that_are_no_numbers_leave_everything_undefined() -> None:
    records, labels, scores = people(200, 2)
    scores[3] = np.nan
    units = [str(i) for i in range(200)]
    outcome = fairness(labels, scores, units, records, method="m", n_classes=2, replicates=5)
    assert len(outcome.measures) > 10
    assert {m.value for m in outcome.measures} == {None}
    assert all(m.undefined_because for m in outcome.measures)
