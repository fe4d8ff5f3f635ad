"""Grouped, stratified, seeded halves."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_core.errors import DerminoError
from dermino_core.manifest import Record, read_manifest
from dermino_core.splits import independent_units, split_records

SHARES = st.sampled_from([0.2, 0.5, 0.7])
SEEDS = st.integers(0, 1000)
PURE_GROUPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 6)), min_size=1, max_size=40
)
MIXED = st.lists(
    st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 8))), max_size=60
)


def _pure(groups: list[tuple[str, int]]) -> tuple[list[Record], list[str]]:
    records, labels = [], []
    for number, (label, size) in enumerate(groups):
        for image in range(size):
            # A group of one is a record without a group.
            group = f"p{number}" if size > 1 else None
            records.append(Record(f"{number}_{image}.jpg", label, group=group))
            labels.append(label)
    return records, labels


@given(groups=PURE_GROUPS, seed=SEEDS, share=SHARES)
@settings(max_examples=150, deadline=None)
def test_classes_are_on_both_sides_in_their_share(
    groups: list[tuple[str, int]], seed: int, share: float
) -> None:
    records, labels = _pure(groups)
    splits = split_records(records, labels, seed=seed, train_share=share)
    by_class: dict[str, Counter[str]] = defaultdict(Counter)
    for label, split in zip(labels, splits, strict=True):
        by_class[label][split] += 1
    for label, sides in by_class.items():
        sizes = sorted((size for name, size in groups if name == label), reverse=True)
        if len(sizes) > 1:
            assert set(sides) == {"train", "test"}
        assert abs(sides["train"] - share * sum(sizes)) <= sum(sizes[:2])


@given(rows=MIXED, seed=SEEDS, share=SHARES)
@settings(max_examples=150, deadline=None)
def test_no_group_straddles_and_the_order_of_rows_does_not_matter(
    rows: list[tuple[str, int | None]], seed: int, share: float
) -> None:
    records = [
        Record(f"{index}.jpg", group=None if group is None else f"p{group}")
        for index, (_, group) in enumerate(rows)
    ]
    labels = [label for label, _ in rows]
    splits = split_records(records, labels, seed=seed, train_share=share)
    assert set(splits) <= {"train", "test"}
    sides: dict[str, set[str]] = defaultdict(set)
    for record, split in zip(records, splits, strict=True):
        sides[record.group or record.image].add(split)
    assert all(len(found) == 1 for found in sides.values())
    backwards = split_records(records[::-1], labels[::-1], seed=seed, train_share=share)
    assert backwards[::-1] == splits


def test_images_of_their_own_are_halved_exactly() -> None:
    records = [Record(f"{index}.jpg") for index in range(203)]
    labels = ["a"] * 101 + ["b"] * 82 + ["c"] * 20
    splits = split_records(records, labels, seed=3)
    train = Counter(label for label, split in zip(labels, splits, strict=True) if split == "train")
    assert train["a"] in {50, 51}
    assert train["b"] == 41
    assert train["c"] == 10


@pytest.mark.parametrize("seed", range(20))
def test_small_groups_make_up_for_large_ones(seed: int) -> None:
    records = [
        Record(f"{size}_{index}.jpg", group=f"p{size}")
        for size in (9, 5, 3)
        for index in range(size)
    ]
    records += [Record(f"{index}.jpg") for index in range(7)]
    assert split_records(records, ["a"] * 24, seed=seed).count("train") == 12


def test_odd_classes_do_not_all_round_to_the_same_side() -> None:
    labels = [f"class {index}" for index in range(30) for _ in range(3)]
    records = [Record(f"{index}.jpg") for index in range(90)]
    assert split_records(records, labels).count("train") == 45


def test_seeds_differ_and_repeat() -> None:
    records = [Record(f"{index}.jpg") for index in range(40)]
    labels = ["a", "b"] * 20
    found = {tuple(split_records(records, labels, seed=seed)) for seed in range(5)}
    assert len(found) == 5
    assert tuple(split_records(records, labels, seed=0)) in found


def test_the_split_of_today_is_the_split_of_tomorrow() -> None:
    splits = split_records([Record(f"{index}.jpg") for index in range(12)], ["a"] * 12, seed=7)
    assert [index for index, split in enumerate(splits) if split == "train"] == [1, 2, 3, 4, 5, 9]


def test_a_group_named_like_an_image_is_not_that_image() -> None:
    records = [Record("x.jpg"), Record("y.jpg", group="x.jpg")]
    assert set(split_records(records, ["a", "a"])) == {"train", "test"}


def test_the_tables_own_split_wins() -> None:
    records = [Record("0.jpg", split="val"), Record("1.jpg", split="train")]
    assert split_records(records, ["a", "a"]) == ["val", "train"]


def test_a_partial_split_is_an_error() -> None:
    records = [Record("0.jpg", split="test"), Record("1.jpg"), Record("2.jpg")]
    with pytest.raises(DerminoError, match="2 of 3 rows have no split") as caught:
        split_records(records, ["a"] * 3)
    assert caught.value.code == "MANIFEST_INVALID"


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="1 records but 0 labels"):
        split_records([Record("0.jpg")], [])
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="train_share"):
            split_records([Record("0.jpg")], ["a"], train_share=share)
    assert split_records([], []) == []


def test_lesions_of_ham10000_stay_together(shared_data: Path) -> None:
    file = shared_data / "ham10000" / "labels.csv"
    records = read_manifest(file, columns={"label": "binary", "group": "lesion_id"}).records
    splits = split_records(records, [record.label or "" for record in records])
    sides: dict[str | None, set[str]] = defaultdict(set)
    for record, split in zip(records, splits, strict=True):
        sides[record.group].add(split)
    assert all(len(found) == 1 for found in sides.values())
    malignant = [s for r, s in zip(records, splits, strict=True) if r.label == "malignant"]
    assert abs(malignant.count("train") - len(malignant) / 2) <= 2
    assert abs(splits.count("train") - len(splits) / 2) <= 2


def test_units_join_groups_that_share_an_image() -> None:
    records = [
        _plain("a.jpg", "p1"),
        _plain("b.jpg", "p1"),
        _plain("c.jpg", "p2"),
        _plain("d.jpg", None),
        _plain("e.jpg", None),
        _plain("f.jpg", None),
    ]
    units = independent_units(records, ["1", "2", "2", "3", "3", None])
    assert units[0] == units[1] == units[2]
    assert units[3] == units[4]
    assert len(set(units)) == 3
    backwards = independent_units(records[::-1], [None, "3", "3", "2", "2", "1"])[::-1]
    assert backwards == units


def _plain(image: str, group: str | None) -> Record:
    return Record(
        image=image,
        label="x",
        split=None,
        group=group,
        skin_type=None,
        sex=None,
        age=None,
        mask=None,
        caption=None,
    )
