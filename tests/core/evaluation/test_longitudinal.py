"""Pairs of dated images, and whether a change is found, against scikit-learn and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from dermino_core.errors import DerminoError
from dermino_core.evaluation.longitudinal import longitudinal, pair_features
from dermino_core.evaluation.measure import Measure, Outcome
from dermino_core.evaluation.visits import Pairs, Visit, pair_visits, read_visits
from dermino_core.manifest import Record

HEADER = "image,lesion,date,changed"


def write(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_each_image_is_paired_with_the_next_of_its_lesion(tmp_path: Path) -> None:
    file = write(
        tmp_path / "m.csv",
        HEADER,
        "a3.png,A,2021-06-01,yes",
        "b1.png,B,2020-01-01,",
        "a1.png,A,01.03.2020,",
        "c1.png,C,2021-01-01,no",
        "a2.png,A,2021-05-31T23:59,unchanged",
        "d1.png,D,2021-01-01,",
        "d2.png,D,2022-01-01,",
    )
    pairs = pair_visits(read_visits(file))
    assert list(zip(pairs.before, pairs.after, pairs.labels, strict=True)) == [(2, 4, 0), (4, 0, 1)]
    assert pairs.units == ("A", "A")
    assert pairs.notes == (
        "2 lesions have one image and are left out: B, C.",
        "1 pairs do not say whether the lesion changed and are left out, the first in row 8.",
    )


def test_lesions_of_two_patients_may_share_a_name(tmp_path: Path) -> None:
    file = write(
        tmp_path / "m.csv",
        "image,group,lesion,day,label",
        "1.png,p,1,0,",
        "2.png,q,1,0,",
        "3.png,p,1,90,changed",
        "4.png,q,1,30.5,unchanged",
        "5.png,q,2,31,",
        "6.png,q,2,40,changed",
    )
    pairs = pair_visits(read_visits(file))
    assert list(zip(pairs.before, pairs.after, pairs.labels, strict=True)) == [
        (0, 2, 1),
        (1, 3, 0),
        (4, 5, 1),
    ]
    assert pairs.units == ("p", "q", "q")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([HEADER, "a,A,03/04/2021,"], "Row 2: the date '03/04/2021' cannot be read."),
        ([HEADER, "a,A,2021-02-30,"], "Row 2: the date '2021-02-30' cannot be read."),
        ([HEADER, "a,A,2021-01-01,", "b,A,,no"], "Row 3: date is empty."),
        ([HEADER, "a,A,2021-01-01,maybe"], "Row 2: changed is 'maybe', not yes or no."),
        (
            [HEADER, "a,A,2021-01-01,", "x,B,2021-01-01,", "b,A,01.01.2021,no"],
            "Row 4: the lesion 'A' has another image of the same date in row 2.",
        ),
        (["image,date,changed", "a,2021-01-01,"], "There is no column lesion and no column group."),
        (["image,lesion,changed", "a,A,"], "There is no column date and no column day."),
        (
            ["image,lesion,date", "a,A,2021-01-01"],
            "There is no column changed and no column label.",
        ),
        (["image,lesion,day,changed", "a,A,soon,"], "Row 2: day is 'soon', not a number."),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, lines: list[str], sentence: str) -> None:
    with pytest.raises(DerminoError) as caught:
        read_visits(write(tmp_path / "m.csv", *lines))
    assert caught.value.code == "MANIFEST_INVALID"
    assert caught.value.what == sentence


def visit(
    lesion: str, day: float, *, changed: bool | None = None, split: str | None = None
) -> Visit:
    return Visit(Record(f"{lesion}{day}", split=split), lesion, lesion, day, changed, int(day) + 2)


def test_pairs_that_cannot_be_are_named() -> None:
    with pytest.raises(DerminoError, match="Rows 2 and 3 show the lesion 'A' but differ in their"):
        pair_visits([visit("A", 0, split="train"), visit("A", 1, changed=True, split="test")])
    with pytest.raises(DerminoError, match="No lesion has two dated images"):
        pair_visits([visit("A", 0), visit("B", 1), visit("B", 2)])
    many = [visit(f"L{k:02}", 0) for k in range(12)] + [visit("A", 0), visit("A", 1, changed=True)]
    assert pair_visits(many).notes[0].endswith("L08, L09 and 2 more.")


def followed(lesions: int, seed: int = 0, *, width: int = 16) -> tuple[np.ndarray, Pairs]:
    """Three images a lesion, two lesions a patient; a change moves features where it matters."""
    rng = np.random.default_rng(seed)
    features, visits = [], []
    for lesion in range(lesions):
        look = rng.normal(size=width)
        for day in range(3):
            changed = bool(rng.random() < 0.4)
            # Light and framing move the first half of the features, a change the second.
            look[: width // 2] = rng.normal(size=width // 2)
            if changed:
                look[width // 2 :] += rng.choice([-1, 1], width - width // 2)
            features.append(look + 0.1 * rng.normal(size=width))
            record = Record(f"{lesion}-{day}", group=f"p{lesion // 2}")
            visits.append(Visit(record, str(lesion), f"p{lesion // 2}", day, changed, 0))
    return np.array(features, np.float32), pair_visits(visits)


def find(outcome: Outcome, method: str, metric: str) -> Measure:
    (one,) = [m for m in outcome.measures if (m.method, m.metric) == (method, metric)]
    return one


def test_pair_features_are_difference_absolute_difference_and_product() -> None:
    ours = pair_features(np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]]))
    assert ours.tolist() == [[2.0, -3.0, 2.0, 3.0, 3.0, -2.0]]


def test_a_change_is_learned_and_scored_as_by_hand() -> None:
    features, pairs = followed(60)
    # The table's own halves, so that the reference knows them.
    halves = ["test" if int(unit[1:]) % 2 else "train" for unit in pairs.units]
    own = Pairs(pairs.before, pairs.after, pairs.labels, pairs.units, tuple(halves))
    outcome = longitudinal(features, own, strength=0.1, replicates=50)
    test = np.array(halves) == "test"
    one, two = features[pairs.before].astype(float), features[pairs.after].astype(float)
    x = np.hstack([two - one, abs(two - one), one * two])
    scaler = StandardScaler().fit(x[~test])
    model = LogisticRegression(C=0.1, max_iter=5000).fit(
        scaler.transform(x[~test]), pairs.labels[~test]
    )
    reference = roc_auc_score(
        pairs.labels[test], model.predict_proba(scaler.transform(x[test]))[:, 1]
    )
    learned = find(outcome, "logistic regression", "auroc")
    assert learned.value == pytest.approx(reference, abs=1e-9)
    assert learned.n == test.sum()
    assert learned.low is not None
    apart = [
        1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(one[test], two[test], strict=True)
    ]
    distance = find(outcome, "distance", "auroc")
    assert distance.value == pytest.approx(roc_auc_score(pairs.labels[test], apart), abs=1e-6)
    assert learned.value is not None
    assert distance.value is not None
    assert learned.value > 0.85 > distance.value
    assert [m.metric for m in outcome.measures if m.method == "distance"] == ["auroc"]
    assert outcome.rocs.keys() == outcome.calibrations.keys() == {"logistic regression"}
    assert not outcome.predictions


def test_labels_that_mean_nothing_are_not_learned() -> None:
    features, pairs = followed(120, seed=1)
    shuffled = np.random.default_rng(0).permutation(pairs.labels)
    noise = Pairs(pairs.before, pairs.after, shuffled, pairs.units, pairs.splits)
    auroc = find(longitudinal(features, noise, replicates=20), "logistic regression", "auroc")
    assert auroc.value == pytest.approx(0.5, abs=0.12)


def test_halves_share_no_patient() -> None:
    features, pairs = followed(40)
    from dermino_core.evaluation import longitudinal as module

    halves = module._halves(
        pairs, np.arange(len(pairs)), pairs.labels, pairs.units, seed=0, notes=[]
    )
    sides = {
        unit: {halves[i] for i, u in enumerate(pairs.units) if u == unit} for unit in pairs.units
    }
    assert all(len(side) == 1 for side in sides.values())
    assert 0.35 < np.mean(halves == "train") < 0.65
    outcome = longitudinal(features, pairs, replicates=5)
    assert outcome.notes[-1].startswith(f"{(halves == 'train').sum()} training pairs (")


def test_unreadable_images_take_their_pairs_along() -> None:
    features, pairs = followed(40)
    features[1] = np.nan  # the middle image of the first lesion: both its pairs
    outcome = longitudinal(features, pairs, replicates=5)
    assert outcome.notes[0] == "2 pairs have an image that cannot be read and are left out."
    whole = longitudinal(*followed(40), replicates=5)
    counts = [
        [int(word) for word in one.notes[-1].split() if word.isdigit()] for one in (whole, outcome)
    ]
    assert sum(counts[0]) == 80
    assert sum(counts[1]) == 78


def test_own_halves_that_share_a_patient_flatter() -> None:
    features, pairs = followed(40)
    splits = tuple("test" if i % 2 else "train" for i in range(len(pairs)))
    torn = Pairs(pairs.before, pairs.after, pairs.labels, pairs.units, splits)
    outcome = longitudinal(features, torn, replicates=5)
    assert outcome.notes[0] == (
        "The data set's own split puts 20 patients or lesions into both halves: its numbers "
        "flatter."
    )


def test_what_cannot_be_analysed_is_named() -> None:
    features, pairs = followed(10)
    same = Pairs(pairs.before, pairs.after, np.ones_like(pairs.labels), pairs.units, pairs.splits)
    with pytest.raises(DerminoError, match="The training half has no pair of images of a lesion"):
        longitudinal(features, same)
    with pytest.raises(ValueError, match="do not cover the visits"):
        longitudinal(features[:5], pairs)
    with pytest.raises(ValueError, match="strength must be above 0"):
        longitudinal(features, pairs, strength=0)
