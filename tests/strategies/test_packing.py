"""Groups of arrays on their way: back as they were, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dermino_strategies.packing import FORMAT, pack_arrays, parts_of, unpack_arrays
from dermino_strategies.protocol import largest_model, named_heads

TYPES = ("float64", "float32", "float16", "uint64", "int64", "uint8", "bool")
LIKE = {"weight": np.zeros((2, 8), np.float32), "bias": np.zeros(2)}

some_array = st.sampled_from(TYPES).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), some_array, max_size=5))
def test_what_is_packed_comes_back_bit_for_bit(group: dict[str, np.ndarray]) -> None:
    record = pack_arrays(group)
    found = unpack_arrays(record, {name: np.zeros_like(array) for name, array in group.items()})
    assert set(found) == set(group)
    for name, array in group.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
    described = {part.name: part for part in parts_of(record)}
    assert {name: (p.dtype, p.shape, bytes(p.data)) for name, p in described.items()} == {
        name: (array.dtype.name, array.shape, array.tobytes()) for name, array in group.items()
    }
    again = pack_arrays(dict(reversed(group.items())))
    assert again[FORMAT].data == record[FORMAT].data, "the order does not matter"


def test_views_are_packed_as_what_they_show() -> None:
    wide = np.arange(24.0).reshape(4, 6)
    found = unpack_arrays(pack_arrays({"x": wide.T[::2]}), {"x": np.zeros((3, 4))})
    np.testing.assert_array_equal(found["x"], wide.T[::2])


def test_a_group_is_three_objects_however_many_arrays_it_has() -> None:
    group = {str(i): np.full(3, i) for i in range(50)}
    assert len(get_all_nested_objects(pack_arrays(group))) == 3
    plain = ArrayRecord({name: Array(array) for name, array in group.items()})
    assert len(get_all_nested_objects(plain)) == 101


def file_of(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], *offsets: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


BIAS = entry("F64", [2], 64, 80)
WEIGHT = entry("F32", [2, 8], 0, 64)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04 not an archive", "cannot be read"),
        (file_of(b"{" * 100_000, b""), "cannot be read"),
        (file_of({"weight": entry("F32", [10**13], 0, 4 * 10**13)}, b""), "cannot be read"),
        (file_of({"weight": WEIGHT, "bias": BIAS}, bytes(79)), "cannot be read"),
        (file_of({"weight": WEIGHT, "bias": BIAS}, bytes(81)), "cannot be read"),
        (file_of({"weight": WEIGHT, "bias": entry("F64", [2], 0, 16)}, bytes(64)), "cannot be"),
        (file_of({"weight": WEIGHT}, bytes(64)), r"sent the arrays \['weight'\], not"),
        (file_of({"weight": WEIGHT, "bias": BIAS} | {"x": entry("U8", [0], 80, 80)}, bytes(80)),
         r"sent the arrays \['bias', 'weight', 'x'\]"),
        (file_of({"weight": entry("F32", [8, 2], 0, 64), "bias": BIAS}, bytes(80)), "has shape"),
        (file_of({"weight": WEIGHT, "bias": entry("I64", [2], 64, 80)}, bytes(80)), "type int64"),
        (file_of({"weight": WEIGHT, "bias": entry("BF16", [8], 64, 80)}, bytes(80)), "type BF16"),
    ],
)  # fmt: skip
def test_what_is_not_as_expected_is_refused(data: bytes, words: str) -> None:
    file = Array(dtype="uint8", shape=(len(data),), stype=FORMAT, data=data)
    with pytest.raises(ValueError, match=words):
        unpack_arrays(ArrayRecord({FORMAT: file}), LIKE)


def test_a_good_file_made_by_hand_is_read() -> None:
    weight, bias = np.arange(16, dtype=np.float32).reshape(2, 8), np.array([3.0, -1.0])
    data = file_of({"weight": WEIGHT, "bias": BIAS}, weight.tobytes() + bias.tobytes())
    file = Array(dtype="uint8", shape=(len(data),), stype=FORMAT, data=data)
    found = unpack_arrays(ArrayRecord({FORMAT: file}), LIKE)
    np.testing.assert_array_equal(found["weight"], weight)
    np.testing.assert_array_equal(found["bias"], bias)


@pytest.mark.parametrize(
    "record",
    [
        None,
        ArrayRecord(),
        ArrayRecord({name: Array(array) for name, array in LIKE.items()}),
        ArrayRecord({FORMAT: Array(np.zeros(3, np.uint8))}),
        ArrayRecord(dict(pack_arrays(LIKE)) | {"more": Array(np.zeros(1))}),
    ],
)
def test_another_form_is_refused(record: ArrayRecord | None) -> None:
    with pytest.raises(ValueError, match="sent no group of arrays"):
        unpack_arrays(record, LIKE)


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda _: b""])
def test_what_cannot_be_read_is_described_as_it_came(spoil: Callable[[bytes], bytes]) -> None:
    data = spoil(pack_arrays(LIKE)[FORMAT].data)
    record = ArrayRecord(
        {FORMAT: Array(dtype="uint8", shape=(len(data),), stype=FORMAT, data=data)}
    )
    (part,) = parts_of(record)
    assert (part.name, part.dtype, part.shape, part.data) == (FORMAT, "uint8", (len(data),), data)


def test_each_of_several_heads_is_a_model() -> None:
    heads = named_heads({"alpha": LIKE, "beta": LIKE, "gamma": LIKE})
    one = sum(array.nbytes for array in LIKE.values())
    assert largest_model(RecordDict({"heads": pack_arrays(heads)})) == one
    large = {"weight": np.zeros((20, 8)), "bias": np.zeros(20)}
    both = RecordDict({"heads": pack_arrays(heads), "arrays": pack_arrays(large)})
    assert largest_model(both) == 20 * 9 * 8
    assert largest_model(RecordDict()) == 0
