"""Options that several commands share."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence

from dermino_core.errors import DerminoError


class Engine(enum.StrEnum):
    """How a simulation runs the apps."""

    INPROCESS = "inprocess"
    RAY = "ray"


class Precision(enum.StrEnum):
    """Arithmetic of the backbone."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


def parse_settings(pairs: Sequence[str]) -> dict[str, object]:
    """`["learning_rate=5e-3"]` -> `{"learning_rate": 0.005}`; values are JSON, else text.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for a pair without `=`.
    """
    settings: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise DerminoError(
                "CONFIG_INVALID",
                f"--set {pair}: this is not KEY=VALUE.",
                fix="For example: --set learning_rate=5e-3",
            )
        try:
            settings[key] = json.loads(value)
        except (ValueError, RecursionError):  # not JSON, or not within Python's limits
            settings[key] = value
    return settings
