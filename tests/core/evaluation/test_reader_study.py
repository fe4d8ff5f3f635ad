"""A reader study against slow loops over answers, and its tables' errors row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dermino_core.errors import DerminoError
from dermino_core.evaluation.measure import Measure, measured
from dermino_core.evaluation.reader_shares import accuracy_by_share
from dermino_core.evaluation.reader_study import (
    DEPARTS,
    ERRED,
    FOLLOWS,
    GAIN,
    reader_study,
)
from dermino_core.evaluation.reader_tables import (
    Answer,
    Item,
    items_of_predictions,
    read_answers,
    read_items,
)
from dermino_core.metrics import bootstrap_weights

CLASSES = ("nevus", "melanoma", "carcinoma")
REPLICATES = 60


def write(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def study(seed: int = 0, readers: int = 6, n: int = 40) -> tuple[list[Answer], list[Item]]:
    """Readers who follow the model, some answers missing."""
    rng = np.random.default_rng(seed)
    items = []
    for i in range(n):
        truth = CLASSES[rng.integers(3)]
        model = truth if rng.random() < 0.7 else CLASSES[rng.integers(3)]
        items.append(Item(f"i{i}", truth, model, CLASSES, f"p{i // 2}", f"d{i % 2}"))
    answers = []
    for r in range(readers):
        for item in items:
            for assisted in (False, True):
                if rng.random() < 0.15:
                    continue
                said = item.truth if rng.random() < 0.5 else CLASSES[rng.integers(3)]
                said = item.prediction if assisted and rng.random() < 0.5 else said
                level = "senior" if r < 2 else "junior"
                answers.append(
                    Answer(f"r{r}", item.name, said, assisted, level, rng.random(), rng.random())
                )
    return answers, items


def find(measures: Sequence[Measure], method: str, metric: str, **where: str) -> Measure:
    where = {"group": "all", "setting": "unassisted"} | where
    (one,) = [
        m
        for m in measures
        if (m.method, m.metric) == (method, metric)
        and (m.group, m.setting) == (where["group"], where["setting"])
    ]
    return one


Told = Callable[[Answer, Item], float | None]
"""What one answer counts as; None where it does not count at all."""


def mean_of_readers(
    answers: Sequence[Answer], items: Sequence[Item], told: Told, *, assisted: bool
) -> float:
    """Loop over readers and their answers."""
    by_name = {item.name: item for item in items}
    rates = []
    for reader in sorted({a.reader for a in answers}):
        counted = [
            value
            for a in answers
            if a.reader == reader and a.assisted == assisted
            if (value := told(a, by_name[a.item])) is not None
        ]
        if counted:
            rates.append(np.mean(counted))
    return float(np.mean(rates))


TOLD: dict[str, Told] = {
    "accuracy": lambda a, i: a.answer == i.truth,
    FOLLOWS: lambda a, i: None if i.prediction == i.truth else a.answer == i.prediction,
    ERRED: lambda a, i: None if i.prediction == i.truth else a.answer == i.truth,
    DEPARTS: lambda a, i: a.answer != i.prediction if i.prediction == i.truth else None,
}


@pytest.mark.parametrize("metric", TOLD)
def test_means_over_readers_are_those_of_a_loop(metric: str) -> None:
    answers, items = study()
    measures = reader_study(answers, items, replicates=5).measures
    seniors = [a for a in answers if a.experience == "senior"]
    first = {item.name for item in items if item.dataset == "d1"}
    groups = {
        "all": answers,
        "experience=senior": seniors,
        "dataset=d1": [a for a in answers if a.item in first],
    }
    for group, these in groups.items():
        for setting, assisted in (("unassisted", False), ("assisted", True)):
            slow = mean_of_readers(these, items, TOLD[metric], assisted=assisted)
            ours = find(measures, "readers", metric, group=group, setting=setting)
            assert ours.value == pytest.approx(slow, abs=1e-12)
        pairs = {(a.reader, a.item) for a in these if a.assisted} & {
            (a.reader, a.item) for a in these if not a.assisted
        }
        paired = [a for a in these if (a.reader, a.item) in pairs]
        gain = mean_of_readers(paired, items, TOLD[metric], assisted=True) - mean_of_readers(
            paired, items, TOLD[metric], assisted=False
        )
        ours = find(measures, "readers", metric, group=group, setting=GAIN)
        assert ours.value == pytest.approx(gain, abs=1e-12)


def test_replicates_draw_readers_and_items() -> None:
    answers, items = study(seed=1)
    measures = reader_study(answers, items, replicates=REPLICATES, seed=3).measures
    readers = sorted({a.reader for a in answers})
    item_draws = bootstrap_weights(
        len(items),
        groups=[f"group {item.group}" for item in items],
        replicates=REPLICATES,
        seed=3,
    )
    reader_draws = bootstrap_weights(len(readers), replicates=REPLICATES, seed=4)
    truth = {item.name: (place, item) for place, item in enumerate(items)}
    slow, alone, against = [], [], []
    for of_items, of_readers in zip(item_draws, reader_draws, strict=True):
        rates, gaps = [], []
        for reader in readers:
            own = [truth[a.item] + (a,) for a in answers if a.reader == reader and not a.assisted]
            weight = [of_items[place] for place, _, _ in own]
            right = np.average([a.answer == i.truth for _, i, a in own], weights=weight)
            model = np.average([i.prediction == i.truth for _, i, _ in own], weights=weight)
            rates.append(right)
            gaps.append(model - right)
        slow.append(np.average(rates, weights=of_readers))
        against.append(np.average(gaps, weights=of_readers))
        alone.append(rates[2])
    mean = find(measures, "readers", "accuracy")
    assert mean.replicates is not None
    np.testing.assert_allclose(mean.replicates, slow, atol=1e-12)
    assert [mean.low, mean.high] == pytest.approx(np.percentile(slow, [2.5, 97.5]))
    gap = find(measures, "model - readers", "accuracy difference")
    assert gap.replicates is not None
    np.testing.assert_allclose(gap.replicates, against, atol=1e-12)
    one = find(measures, "readers", "accuracy", group=f"reader={readers[2]}")
    assert one.replicates is not None
    np.testing.assert_allclose(one.replicates, alone, atol=1e-12)


def test_the_model_is_compared_on_what_a_reader_answered() -> None:
    answers, items = study(seed=2)
    measures = reader_study(answers, items, replicates=5).measures
    by_name = {item.name: item for item in items}
    below = []
    for reader in sorted({a.reader for a in answers}):
        own = [a for a in answers if a.reader == reader and not a.assisted]
        right = np.mean([a.answer == by_name[a.item].truth for a in own])
        model = np.mean([by_name[a.item].prediction == by_name[a.item].truth for a in own])
        gap = find(measures, "model - readers", "accuracy difference", group=f"reader={reader}")
        assert gap.value == pytest.approx(model - right)
        assert gap.n == len(own)
        below.append(right < model)
    assert find(measures, "model", "share of readers below the model").value == np.mean(below)
    accuracy = np.mean([item.prediction == item.truth for item in items])
    assert find(measures, "model", "accuracy", setting="").value == pytest.approx(accuracy)


def test_a_reader_who_equals_the_model_is_not_below_it() -> None:
    items = [Item(f"i{k}", "nevus", CLASSES[k % 2], CLASSES) for k in range(7)]
    answers = [Answer("r", item.name, item.prediction) for item in items]
    answers += [Answer("s", item.name, "carcinoma") for item in items]
    measures = reader_study(answers, items, replicates=5).measures
    assert find(measures, "model", "share of readers below the model").value == 0.5


def test_confidence_and_order_are_read() -> None:
    answers, items = study(seed=4)
    measures = reader_study(answers, items, replicates=5).measures
    sure = mean_of_readers(
        answers,
        items,
        lambda a, i: a.confidence if a.answer == i.truth else None,
        assisted=False,
    )
    assert find(measures, "readers", "confidence in right answers").value == pytest.approx(sure)
    gaps = []
    for reader in sorted({a.reader for a in answers}):
        own = sorted(
            (a for a in answers if a.reader == reader and a.assisted), key=lambda a: a.order or 0
        )
        truths = {item.name: item.truth for item in items}
        right = [a.answer == truths[a.item] for a in own]
        middle = (len(own) + 1) // 2
        gaps.append(np.mean(right[middle:]) - np.mean(right[:middle]))
    late = find(measures, "readers", "accuracy late - early", setting="assisted")
    assert late.value == pytest.approx(np.mean(gaps))


def test_a_model_that_never_errs_leaves_following_undefined() -> None:
    items = [Item(f"i{k}", "nevus", "nevus", CLASSES) for k in range(4)]
    items += [Item("unread", "nevus", "melanoma", CLASSES)]
    answers = [Answer("r", f"i{k}", "nevus", assisted) for k in range(4) for assisted in (0, 1)]
    outcome = reader_study(answers, items, replicates=5)
    follows = find(outcome.measures, "readers", FOLLOWS, setting="assisted")
    assert follows.value is None
    assert follows.undefined_because == "no reader answered such an item"
    assert find(outcome.measures, "model", "accuracy", setting="").value == 1.0
    assert list(outcome.notes) == [
        "1 of 5 items were answered by no reader and are left out.",
        "1 readers are too few to say how other readers would do: the intervals over readers are "
        "not to be relied on.",
    ]


def test_following_is_said_in_a_note() -> None:
    items = [Item(f"i{k}", "nevus", "melanoma", CLASSES) for k in range(4)]
    answers = [Answer(r, f"i{k}", "melanoma", assisted=True) for k in range(4) for r in "abcde"]
    answers += [Answer(r, "i0", "melanoma") for r in "abcde"]
    answers += [Answer(r, f"i{k}", "nevus") for k in range(1, 4) for r in "abcde"]
    assert list(reader_study(answers, items, replicates=5).notes) == [
        "Where the model errs (4 items), 100% of the assisted answers are its wrong answer, "
        "25% of the unassisted ones."
    ]


def test_tables_are_read(tmp_path: Path) -> None:
    items = read_items(
        write(
            tmp_path / "items.csv",
            "Item,truth,prediction,group,dataset",
            "a/1.jpg,Nevus,melanoma,p1,MPL5",
            "a/2.jpg,Melanoma,nevus,p1,MPL5",
            "b/3.png,SCC,BCC,,SID2",
        )
    )
    assert items[0] == Item(
        "a/1.jpg", "Nevus", "Melanoma", ("Melanoma", "Nevus"), "p1", "MPL5"
    ) or (items[0].choices == ("Nevus", "melanoma"))
    assert items[2].choices == ("BCC", "SCC")
    assert items[2].group is None
    answers, notes = read_answers(
        write(
            tmp_path / "readers.csv",
            "reader;item;answer;assisted;experience;order;confidence",
            "r1;1;NEVUS;no;junior;1;0.5",
            "r1;a/1.jpg;nevus;Yes;junior;2;",
            "r1;3.png;bcc;;junior;3;1",
            "r1;2;;no;junior;4;",
        ),
        items,
    )
    assert answers == [
        Answer("r1", "a/1.jpg", "Nevus", experience="junior", order=1.0, confidence=0.5),
        Answer("r1", "a/1.jpg", "Nevus", assisted=True, experience="junior", order=2.0),
        Answer("r1", "b/3.png", "BCC", experience="junior", order=3.0, confidence=1.0),
    ]
    assert notes == ["1 of 4 answers are empty and left out."]


def test_probabilities_become_predictions(tmp_path: Path) -> None:
    file = write(tmp_path / "i.csv", "item,truth,probability", "a,benign,0.5", "b,malignant,0.49")
    items = read_items(file, classes=("benign", "malignant"))
    assert [item.prediction for item in items] == ["malignant", "benign"]
    with pytest.raises(DerminoError, match="only be read with two classes, not 0"):
        read_items(file)


def test_items_come_from_predictions() -> None:
    scores = np.array([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    items = items_of_predictions(["x", "y"], np.array([0, 1]), scores, CLASSES, ("p", "q"))
    assert items[0] == Item("x", "nevus", "carcinoma", CLASSES, "p")
    assert items[1] == Item("y", "melanoma", "nevus", CLASSES, "q")
    with pytest.raises(ValueError, match="2 images, 1 labels"):
        items_of_predictions(["x", "y"], np.array([0]), scores, CLASSES)


ITEMS = [Item("a", "nevus", "nevus", CLASSES), Item("b", "melanoma", "nevus", CLASSES)]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["r,c,nevus,"], "Row 2: the item 'c' is not among those with a truth and a prediction."),
        (
            ["r,a,nevus,", "s,a,nevus,", "r,a,melanoma,no"],
            "Row 4: reader 'r' answers the item 'a' without assistance, and in row 2 already.",
        ),
        (["r,a,nevus,", "r,b,wart,"], "Row 3: the answer 'wart' is none of the classes."),
        (["r,a,nevus,perhaps"], "Row 2: assisted is 'perhaps', not yes or no."),
        ([",a,nevus,"], "Row 2: reader is empty."),
    ],
)
def test_a_wrong_answer_is_named_with_its_row(
    tmp_path: Path, lines: list[str], sentence: str
) -> None:
    file = write(tmp_path / "r.csv", "reader,item,answer,assisted", *lines)
    with pytest.raises(DerminoError) as caught:
        read_answers(file, ITEMS)
    assert caught.value.code == "MANIFEST_INVALID"
    assert caught.value.what == sentence


def test_a_reader_has_one_experience(tmp_path: Path) -> None:
    file = write(tmp_path / "r.csv", "reader,item,answer,experience", "r,a,nevus,x", "r,b,nevus,y")
    with pytest.raises(DerminoError, match="Row 3: reader 'r' has the experience 'y', and 'x'"):
        read_answers(file, ITEMS)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["item,truth,prediction", "a,x,x", "a,x,x"], "Row 3: the item 'a' is also in row 2."),
        (["item,truth", "a,x"], "There is no column prediction and no column probability."),
        (["item,prediction", "a,x"], "There is no column truth; the columns found are"),
        (["item,truth,truth,prediction", "a,x,x,x"], "Two columns are called truth."),
        (["item,truth,prediction", "a,,x"], "Row 2: truth is empty."),
        (["item,truth,prediction"], "The table has no rows."),
        (["item,truth,probability", "a,x,1.5"], "Row 2: probability is 1.5, not from 0 to 1."),
        (["item,truth,probability", "a,x,high"], "Row 2: probability is 'high', not a number."),
        (["item,truth,prediction", "a,z,x"], "Row 2: the truth 'z' is none of the classes."),
    ],
)
def test_wrong_items_are_named(tmp_path: Path, lines: list[str], sentence: str) -> None:
    with pytest.raises(DerminoError) as caught:
        read_items(write(tmp_path / "i.csv", *lines), classes=("x", "y"))
    assert caught.value.what.startswith(sentence)


def test_answers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DerminoError, match="No reader answered an item"):
        reader_study([], ITEMS)
    for wrong, message in (
        ([Answer("r", "c", "nevus")], "'c', which is no item"),
        ([Answer("r", "a", "nevus")] * 2, "answers 'a' twice"),
        ([Answer("r", "a", "wart")], "'wart' is no choice of 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            reader_study(wrong, ITEMS)


def test_shares_of_training_data_are_held_against_readers() -> None:
    answers, items = study(seed=5)
    readers = reader_study(answers, items, replicates=400).measures
    rng = np.random.default_rng(0)
    mean = find(readers, "readers", "accuracy").value or 0.0
    efficiency = [
        measured(
            "probe", "accuracy", value, rng.normal(value, 0.02, 400), n=99, setting=f"share={s}"
        )
        for s, value in ((1.0, mean + 0.1), (0.05, mean - 0.1), (0.5, mean), (0.2, mean - 0.01))
    ]
    outcome = accuracy_by_share(readers, efficiency)
    ours = [m for m in outcome.measures if m.group == "all"]
    assert [m.setting for m in ours] == ["share=0.05", "share=0.2", "share=0.5", "share=1.0"]
    assert [m.value for m in ours] == pytest.approx([-0.1, -0.01, 0.0, 0.1])
    # Independent draws: variances add.
    spread = find(readers, "readers", "accuracy").standard_error or 0.0
    assert ours[0].standard_error == pytest.approx(np.hypot(spread, 0.02), rel=0.1)
    assert (
        "probe is at least as accurate as the readers from share=0.5 of the training half on."
        in (outcome.notes)
    )
    with pytest.raises(DerminoError, match="no accuracy by share"):
        accuracy_by_share(readers, [])
