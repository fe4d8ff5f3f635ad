"""Labels to targets: what is known of an image, and what is not."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermino_core.errors import DerminoError
from dermino_core.label_names import canonical_name
from dermino_core.pretraining.vocabulary import Vocabulary, split_labels

CSV = """source_label,dataset,images,normalised,merged_into,similarity
mel,ham,3,melanoma,melanoma,1.000
Melanoma,ph2,3,melanoma,melanoma,1.000
non_melanoma,isic,9,non melanoma,!melanoma,
akiec,ham,2,x,actinic keratosis|bowen disease,
common_nevus,ph2,1,common nevus,Melanocytic-nevus,
odd,ph2,1,odd,,
"""


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    path = tmp_path / "labels.csv"
    path.write_text(CSV, encoding="utf-8")
    return Vocabulary.from_csv(path)


def encoded(
    vocabulary: Vocabulary, labels: list[str], known: object = None
) -> dict[str, int | None]:
    """Name -> 1, 0, or None where it is not available."""
    targets, available = vocabulary.encode(labels, known)  # type: ignore[arg-type]
    assert targets.dtype == available.dtype == np.float32
    assert targets.shape == available.shape == (len(vocabulary),)
    assert not (targets * (1 - available)).any()
    pairs = zip(vocabulary.names, targets, available, strict=True)
    return {name: int(y) if n else None for name, y, n in pairs}


def test_names_of_a_reviewed_table(vocabulary: Vocabulary) -> None:
    assert vocabulary.names == (
        "actinic keratosis",
        "bowen disease",
        "melanocytic nevus",
        "melanoma",
    )
    assert vocabulary.meaning("MEL") == vocabulary.meaning("melanoma") == ("melanoma",)
    assert vocabulary.meaning("Common Nevus") == ("melanocytic nevus",)
    assert vocabulary.meaning("!mel") == ("!melanoma",)
    assert vocabulary.meaning("!akiec") == vocabulary.meaning("!non_melanoma") == ()
    assert vocabulary.meaning("odd") == vocabulary.meaning("unknown") == ()
    assert vocabulary.meaning("psoriasis") is None
    assert vocabulary.meaning("!psoriasis") is None
    assert vocabulary.unmapped(["psoriasis", "mel", "odd", "psoriasis"]) == ("psoriasis",)
    assert vocabulary.names_of(["mel", "non_melanoma", "odd", "?"]) == {"melanoma"}
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary


def test_every_name_not_given_is_absent(vocabulary: Vocabulary) -> None:
    assert encoded(vocabulary, ["mel"]) == {
        "actinic keratosis": 0,
        "bowen disease": 0,
        "melanocytic nevus": 0,
        "melanoma": 1,
    }


def test_a_source_tells_only_of_names_it_uses(vocabulary: Vocabulary) -> None:
    known = vocabulary.names_of(["Melanoma", "common_nevus"])
    answer = {"actinic keratosis": None, "bowen disease": None}
    assert encoded(vocabulary, ["Melanoma"], known) == {
        **answer,
        "melanocytic nevus": 0,
        "melanoma": 1,
    }
    assert encoded(vocabulary, ["akiec"], known) == {
        "actinic keratosis": 1,
        "bowen disease": 1,
        "melanocytic nevus": 0,
        "melanoma": 0,
    }


def test_exclusions_tell_of_one_name(vocabulary: Vocabulary) -> None:
    nothing = dict.fromkeys(vocabulary.names)
    assert encoded(vocabulary, ["non_melanoma"]) == {**nothing, "melanoma": 0}
    assert encoded(vocabulary, ["common_nevus", "non_melanoma"], ()) == {
        **nothing,
        "melanocytic nevus": 1,
        "melanoma": 0,
    }
    assert encoded(vocabulary, ["mel", "non_melanoma"], ()) == nothing


@pytest.mark.parametrize("labels", [[], ["odd"], ["psoriasis"], ["unknown"], ["!psoriasis"]])
def test_without_a_label_nothing_is_known(vocabulary: Vocabulary, labels: list[str]) -> None:
    assert encoded(vocabulary, labels) == dict.fromkeys(vocabulary.names)


def test_labels_as_they_are_written() -> None:
    labels = ["mel", "Melanoma", "non_melanoma", "non specific rash", "BCC", "other", "!SCC", "?"]
    vocabulary = Vocabulary.from_labels(labels)
    assert vocabulary.names == (
        "basal cell carcinoma",
        "melanoma",
        "non specific rash",
        "squamous cell carcinoma",
    )
    assert vocabulary.meaning("non-melanoma") == ("!melanoma",)
    assert vocabulary.meaning("other") == vocabulary.meaning("?") == ()
    assert vocabulary.meaning("SCC") == ("squamous cell carcinoma",)
    assert encoded(vocabulary, ["!SCC"])["squamous cell carcinoma"] == 0
    assert Vocabulary.from_labels(reversed(labels)).names == vocabulary.names


def test_spellings_that_disagree_are_taken_as_written(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("source_label,merged_into\nNV,nevus\nnv,mole\n", encoding="utf-8")
    vocabulary = Vocabulary.from_csv(path)
    assert vocabulary.meaning("NV") == ("nevus",)
    assert vocabulary.meaning("nv") == ("mole",)


def test_no_labels_at_all() -> None:
    vocabulary = Vocabulary.from_labels([])
    assert len(vocabulary) == 0
    targets, available = vocabulary.encode(["mel"], None)
    assert targets.shape == available.shape == (0,)


def test_wrong_tables_say_where(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("source_label,merged_into\na,b|\n", encoding="utf-8")
    with pytest.raises(DerminoError, match="row 2"):
        Vocabulary.from_csv(path)


@given(st.lists(st.text(max_size=12), max_size=8), st.text(max_size=20))
def test_wild_labels(labels: list[str], cell: str) -> None:
    vocabulary = Vocabulary.from_labels(labels)
    assert list(vocabulary.names) == sorted(set(vocabulary.names))
    assert not vocabulary.unmapped(labels)
    for label in labels:
        encoded(vocabulary, [label])
        if label and not label.startswith("!") and canonical_name(label) in vocabulary.names:
            assert vocabulary.names_of([label])
    for label in split_labels(cell):
        vocabulary.meaning(label)
