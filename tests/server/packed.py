"""What is in a group of arrays on its way, read by safetensors itself."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from safetensors.numpy import load


def arrays_in(record: ArrayRecord) -> dict[str, np.ndarray]:
    """The arrays of one group."""
    (array,) = record.values()
    return load(array.data)


def all_arrays(content: RecordDict) -> dict[str, np.ndarray]:
    """`group/name` -> array, of all groups."""
    return {
        f"{group}/{name}": array
        for group, record in content.array_records.items()
        for name, array in arrays_in(record).items()
    }
