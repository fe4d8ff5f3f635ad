"""Options that several commands share."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence

import typer

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


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """`["label=binary"]` -> `{"label": "binary"}`: the values of `--column`.

    Raises
    ------
    typer.BadParameter
        For a pair that is not FIELD=COLUMN.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not (field and equals and column):
            raise typer.BadParameter(
                f"{pair!r} is not FIELD=COLUMN, for example label=binary.", param_hint="--column"
            )
        columns[field.strip()] = column.strip()
    return columns
