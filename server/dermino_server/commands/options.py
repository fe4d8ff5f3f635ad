"""Options that several commands share."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from typing import Annotated

import typer
from pydantic import ValidationError

from dermino_core.errors import DerminoError
from dermino_core.privacy.plan import PrivacyRequest

RoundsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Global rounds.", show_default="the method's: 2 of fedavg"),
]
SecureOption = Annotated[
    bool,
    typer.Option(
        "--secure-aggregation",
        help="The coordinator sees only sums over at least three sites, never one site's part.",
    ),
]
ThresholdOption = Annotated[
    int | None,
    typer.Option(
        min=3, help="Secure aggregation: sites that must stay to the end.", show_default="2n/3 + 1"
    ),
]
EpsilonOption = Annotated[
    float | None,
    typer.Option(
        "--epsilon", min=1e-6, help="Differential privacy of the whole run, kept at each site."
    ),
]
DeltaOption = Annotated[float, typer.Option(help="The delta that belongs to --epsilon.")]
ClipOption = Annotated[
    float, typer.Option(help="Privacy: largest L2 norm of one patient's contribution.")
]


class Unit(enum.StrEnum):
    """Whom differential privacy protects."""

    PATIENT = "patient"
    IMAGE = "image"


UnitOption = Annotated[
    Unit, typer.Option("--privacy-unit", help="Privacy: a patient's images together, or each.")
]
ImagesOption = Annotated[
    int, typer.Option("--images-per-patient", min=1, help="Privacy: images used of one patient.")
]


def privacy_request(
    epsilon: float | None, delta: float, clip: float, unit: Unit, images_per_patient: int
) -> PrivacyRequest | None:
    """What the options ask for; None without an epsilon.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` naming the number that is out of its range.
    """
    if epsilon is None:
        return None
    try:
        return PrivacyRequest(
            epsilon=epsilon,
            delta=delta,
            clip=clip,
            unit=unit.value,
            images_per_patient=images_per_patient,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise DerminoError("CONFIG_INVALID", f"{first['loc'][0]}: {first['msg']}.") from None


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
