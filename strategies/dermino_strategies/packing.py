"""How arrays travel: each named group of them as one safetensors file.

Flower moves every array of a record as two objects, each with a request of its own to the
coordinator. A group as one array is two objects however many arrays are in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from dermino_strategies.base import Arrays

FORMAT = "safetensors"
"""Name of the one array of a record, and its `stype`."""

_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "U64": "uint64",
    "U32": "uint32",
    "U8": "uint8",
    "BOOL": "bool",
}
"""What safetensors calls a type -> what numpy calls it."""


@dataclass(frozen=True)
class Part:
    """One array of a group, or what travelled in its place."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def pack_arrays(arrays: Arrays) -> ArrayRecord:
    """A group of arrays as Flower carries it."""
    data = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    return ArrayRecord({FORMAT: Array(dtype="uint8", shape=(len(data),), stype=FORMAT, data=data)})


def unpack_arrays(record: ArrayRecord | None, like: Arrays) -> Arrays:
    """The group in a record from the other side, which is not trusted.

    Names, shapes and types are held to `like`. No pickle is ever read, and no array is larger than
    the bytes that came for it.

    Raises
    ------
    ValueError
        In words that name no path.
    """
    file = None if record is None else record.get(FORMAT)
    if record is None or file is None or set(record) != {FORMAT} or file.stype != FORMAT:
        raise ValueError(f"sent no group of arrays where {sorted(like)} were expected")
    found = {part.name: part for part in _parts(file.data)}
    if set(found) != set(like):
        raise ValueError(f"sent the arrays {sorted(found)}, not {sorted(like)}")
    return {name: _array(found[name], expected) for name, expected in like.items()}


def parts_of(record: ArrayRecord) -> list[Part]:
    """What a record carries, for its description: of any other form, Flower's arrays as they are.

    Nothing of it is checked.
    """
    if set(record) == {FORMAT}:
        try:
            return _parts(record[FORMAT].data)
        except ValueError:
            pass
    return [Part(name, a.dtype, tuple(a.shape), a.data) for name, a in record.items()]


def _parts(data: bytes) -> list[Part]:
    try:
        found: list[tuple[str, dict[str, Any]]] = deserialize(data)
    except SafetensorError as error:
        raise ValueError(f"sent arrays that cannot be read: {error}") from None
    return [
        Part(name, _numpy_type(v["dtype"]), tuple(v["shape"]), v["data"])
        for name, v in sorted(found, key=lambda item: item[0])
    ]


def _numpy_type(name: str) -> str:
    return _TYPES.get(name, name)


def _array(part: Part, expected: npt.NDArray) -> npt.NDArray:
    if part.shape != expected.shape or part.dtype != expected.dtype.name:
        raise ValueError(
            f"array '{part.name}' has shape {part.shape} and type {part.dtype}, "
            f"not {expected.shape} and {expected.dtype}"
        )
    return np.frombuffer(part.data, expected.dtype).reshape(expected.shape)
