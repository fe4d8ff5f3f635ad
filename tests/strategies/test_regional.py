"""Sums of sums: the same bits however the sites are divided, and the refusals that keep it so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dermino_core.errors import DerminoError
from dermino_strategies.base import Additive, Arrays, SiteData, SiteUpdate
from dermino_strategies.fedavg import FedAvg
from dermino_strategies.regional import MOST_SITES, Region, RegionalSum, _units, digest_of
from dermino_strategies.ridge import Ridge
from dermino_strategies.running_sum import RunningSum

RUN = "0123456789abcdef" * 2
LIMIT = 1000.0
LIKE: Arrays = {"x": np.zeros(1)}


def region(name: str, *, members: list[str] | None = None, **changed: object) -> Region:
    given_ = {"run_id": RUN, "round_": 1, "like": LIKE, "limits": {"x": LIMIT}} | changed
    return Region(name, members=members, **given_)  # type: ignore[arg-type]


def value(number: float) -> Arrays:
    return {"x": np.array([number])}


def bits(arrays: Arrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def flat(numbers: list[float]) -> Region:
    top = region("flat")
    for place, number in enumerate(numbers):
        top.add(f"site-{place}", value(number))
    return top


def tree(numbers: list[float], places: list[int], random: np.random.Generator) -> Region:
    """Sites in `places` of a tree of three levels, everything in a random order."""
    leaves = {name: region(f"leaf-{name}") for name in range(6)}
    middles = {name: region(f"middle-{name}") for name in range(3)}
    top = region("top")
    for place in random.permutation(len(numbers)):
        node = [*leaves.values(), *middles.values(), top][places[place]]
        node.add(f"site-{place}", value(numbers[place]))
    for below, above in ((leaves, middles), (middles, {0: top})):
        for name in random.permutation(len(below)):
            if below[name].sites:
                above[name % len(above)].add_region(below[name].sum())
    return top


exponents = st.integers(-70, 9)
wild = st.builds(math.ldexp, st.floats(-1, 1), exponents)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(wild, st.integers(0, 9)), min_size=1, max_size=40), st.integers(0, 99))
@example([(900.0, 0), (1e-13, 4), (-900.0, 9)], 0)
@example([(0.1, 0), (0.2, 1), (0.3, 0), (-0.6, 8)], 1)
def test_every_tree_gives_the_bits_of_the_flat_sum(sites: list[tuple[float, int]], seed: int):
    numbers = [number for number, _ in sites]
    top = tree(numbers, [place for _, place in sites], np.random.default_rng(seed))
    assert bits(top.total()) == bits(flat(numbers).total())
    assert top.sites == sorted(f"site-{place}" for place in range(len(numbers)))
    exact = math.fsum(numbers)
    dropped = len(numbers) * LIMIT * 2.0**-101
    assert abs(top.total()["x"][0] - exact) <= np.spacing(abs(exact)) + dropped


def test_a_sum_of_sums_in_floating_point_would_differ():
    """What the grids are for: the same nine numbers, added flat and by threes."""
    numbers = [0.1 * k for k in range(1, 10)]
    by_threes = sum(sum(numbers[i : i + 3]) for i in (0, 3, 6))
    running = RunningSum([str(k) for k in range(9)])
    for place, number in enumerate(numbers):
        running.add(str(place), value(number))
    added = running.total()["x"][0]
    assert by_threes != added
    ours = flat(numbers).total()["x"][0]
    assert ours == math.fsum(numbers)
    assert added == pytest.approx(ours, rel=1e-15)


def test_the_total_is_rounded_once():
    """Half a unit in the last place of 512, and a little more: rounded up, not to even."""
    numbers = [512.0, 2.0**-44, 2.0**-90]
    assert flat(numbers).total()["x"][0] == math.fsum(numbers) == 512.0 + 2.0**-43


@pytest.mark.parametrize("limit", [1.0, 1000.0, 2.0**32, 2.0**48, 3e-5])
def test_no_sum_over_all_sites_can_be_rounded(limit: float):
    first, second, third = _units(limit)
    whole = 2.0**53
    assert MOST_SITES * (limit + first / 2) <= whole * first * (1 + 1e-9)
    assert MOST_SITES * first / 2 <= whole * second
    assert MOST_SITES * second / 2 <= whole * third
    assert third / 2 <= limit * 2.0**-101


def hospitals(count: int) -> list[SiteData]:
    found = []
    for number in range(count):
        rng = np.random.default_rng(number)
        labels = np.arange(12) % 3
        features = (rng.normal(size=(12, 5)) + labels[:, None]).astype(np.float32)
        found.append(SiteData(f"site-{number:02d}", features, labels, 3))
    return found


@pytest.mark.parametrize("strategy", [Ridge(), FedAvg()], ids=lambda s: s.name)
def test_the_model_of_a_tree_is_that_of_the_flat_run(strategy: Additive):
    arrays = strategy.initial_arrays(3, 5, 0)
    updates: dict[str, SiteUpdate] = {
        data.site: strategy.site_update(data, arrays, 1, 0) for data in hospitals(20)
    }
    everyone = Region.of("flat", strategy, arrays, run_id=RUN, round_=1)
    for site, update in updates.items():
        everyone.add(site, strategy.summand(update))
    models = []
    for regions in (3, 7):
        parts = [
            Region.of(f"region-{n}", strategy, arrays, run_id=RUN, round_=1) for n in range(regions)
        ]
        for place, site in enumerate(reversed(updates)):
            parts[place % regions].add(site, strategy.summand(updates[site]))
        top = Region.of("top", strategy, arrays, run_id=RUN, round_=1, members=list(updates))
        for part in parts:
            sent = wired(part.sum().pack())
            top.add_region(RegionalSum.unpack(sent, strategy.summand_like(arrays)))
        assert bits(top.total()) == bits(everyone.total())
        models.append(strategy.from_sum(arrays, top.total()))
    assert bits(models[0]) == bits(models[1])
    usual = strategy.aggregate(arrays, updates)
    for name, array in usual.items():
        np.testing.assert_allclose(models[0][name], array, rtol=1e-5, atol=1e-7)


def wired(content):
    """Through Flower's bytes, as between two machines."""
    return recorddict_from_proto(
        ProtoRecordDict.FromString(recorddict_to_proto(content).SerializeToString())
    )


def test_a_message_that_is_no_sum_or_of_other_shapes():
    content = flat([1.0]).sum().pack()
    with pytest.raises(ValueError, match="has shape"):
        RegionalSum.unpack(content, {"x": np.zeros(2)})
    del content["body"]
    with pytest.raises(DerminoError, match="Expected a RegionalHeader"):
        RegionalSum.unpack(content, LIKE)


def north() -> Region:
    found = region("north")
    for site in ("a", "b"):
        found.add(site, value(1.5))
    return found


def changed_header(name: str, new: object) -> Callable[[RegionalSum], RegionalSum]:
    return lambda s: replace(s, header=s.header.model_copy(update={name: new}))


def changed_parts(edit: Callable[[np.ndarray], np.ndarray]) -> Callable[[RegionalSum], RegionalSum]:
    return lambda s: replace(s, parts={name: edit(parts) for name, parts in s.parts.items()})


DIGEST = digest_of(value(1.5))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            changed_header("run_id", "f" * 32),
            "round 1 of the run ffffffff, not round 1 of 01234567",
        ),
        (changed_header("round", 2), "sent round 2 of the run 01234567, not round 1"),
        (changed_header("region", "top"), "region top is counted twice"),
        (changed_header("region", "east"), "region east is counted twice"),
        (changed_header("digests", {}), "a sum of no sites"),
        (changed_header("digests", {"a": DIGEST, "c": DIGEST}), "c: counted twice, in east and in"),
        (changed_header("digests", {"d": DIGEST}), "d: counted twice, in top and in north"),
        (changed_header("digests", {"z": DIGEST}), "z: no member of the region top"),
        (changed_parts(lambda p: p[:2]), "region north array 'x' has shape"),
        (changed_parts(lambda p: p.astype(np.float32)), "region north array 'x' has shape"),
        (changed_parts(lambda p: p * np.nan), "region north array 'x' holds NaN"),
        (changed_parts(lambda p: p + 2.0**-40), "'x' is no sum of 2 summands within 1000"),
        (changed_parts(lambda p: p * 2000), "'x' is no sum of 2 summands within 1000"),
        (changed_parts(lambda p: p[::-1]), "'x' is no sum of 2 summands within 1000"),
        (lambda s: replace(s, parts={"y": s.parts["x"]}), "sent the arrays"),
    ],
)
def test_sums_of_regions_that_are_refused(damage, said):
    top = region("top", members=["a", "b", "c", "d"])
    east = region("east")
    east.add("c", value(4.0))
    top.add_region(east.sum())
    top.add("d", value(0.25))
    before = bits(top.total()), top.sites
    with pytest.raises(ValueError, match=said):
        top.add_region(damage(north().sum()))
    assert (bits(top.total()), top.sites) == before
    top.add_region(north().sum())
    assert top.total()["x"][0] == 7.25
    assert top.sum().header.digests == {
        "a": DIGEST,
        "b": DIGEST,
        "c": digest_of(value(4.0)),
        "d": digest_of(value(0.25)),
    }


@pytest.mark.parametrize(
    ("site", "summand", "said"),
    [
        ("a", value(1.0), "a: counted twice, in north and in north"),
        ("z", value(1.0), "z: no member of the region north"),
        ("c", {"x": np.zeros(2)}, "c array 'x' has shape"),
        ("c", {"x": np.zeros(1, np.float32)}, "c array 'x' has shape"),
        ("c", value(np.inf), "c array 'x' holds NaN or infinite"),
        ("c", value(1000.5), "c: array 'x' exceeds 1000"),
        ("c", {}, "c sent the arrays"),
    ],
)
def test_summands_that_are_refused(site, summand, said):
    found = region("north", members=["a", "b", "c"])
    found.add("a", value(1.5))
    with pytest.raises(ValueError, match=said):
        found.add(site, summand)
    assert found.sites == ["a"]
    assert found.total()["x"][0] == 1.5


def test_what_was_sent_does_not_change_afterwards():
    found = north()
    sent = found.sum()
    found.add("c", value(3.0))
    assert sent.sites == ["a", "b"]
    assert sent.parts["x"].sum() == 3.0
    with pytest.raises(ValueError, match="no site of the region empty"):
        region("empty").sum()


def test_a_digest_tells_values_names_and_shapes_apart():
    same = [digest_of({"x": np.arange(4.0)}), digest_of({"x": np.arange(4.0, dtype=np.float32)})]
    assert same[0] == same[1]
    others = [{"x": np.arange(4.0) + 1}, {"y": np.arange(4.0)}, {"x": np.arange(4.0).reshape(2, 2)}]
    assert len({same[0], *map(digest_of, others)}) == 4
