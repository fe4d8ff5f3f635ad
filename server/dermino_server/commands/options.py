"""Options that several commands share."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import click
import typer
from click.core import ParameterSource
from pydantic import ValidationError

from dermino_core.errors import DerminoError
from dermino_core.privacy.plan import PrivacyRequest
from dermino_core.site_statistics import ASK_STATISTICS

StrategyOption = Annotated[str, typer.Option(help="Federated method.")]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; repeatable."),
]
RoundsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Global rounds.", show_default="the method's: 2 of fedavg"),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
StatisticsOption = Annotated[
    bool | None,
    typer.Option(
        "--statistics/--no-statistics",
        help="Ask first how many images of which class each site has, and how alike they are.",
        show_default=f"{'yes' if ASK_STATISTICS else 'no'}, but never in a private or secure run",
    ),
]
KeepOption = Annotated[
    bool,
    typer.Option(
        "--keep-sums/--no-keep-sums",
        help="Keep what each site sends in RUN/sums, where the method allows (ridge), so that a "
        "site can leave later (dermino withdraw) and others can join (--extend).",
    ),
]
ExtendOption = Annotated[
    Path | None,
    typer.Option(
        "--extend",
        metavar="RUN",
        help="Let new sites join this finished run of a method that keeps sums; it decides the "
        "method, its settings, seed and protection.",
    ),
]
ResumeOption = Annotated[
    Path | None, typer.Option(help="Continue the run in this folder; options are its own.")
]
ReportOption = Annotated[bool, typer.Option(help="Write report.html.")]
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


PersonalOption = Annotated[
    bool,
    typer.Option(
        "--personal",
        help="Every site makes a model of its own and learns what joining gives it; for that each "
        "gets the sums of all sites together (ridge; at least three sites, or with --epsilon).",
    ),
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


def refuse_beside_extend(*allowed: str) -> None:
    """Refuse options that the run behind `--extend` has decided, where they are given.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` naming them.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in allowed
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    if given:
        raise DerminoError(
            "CONFIG_INVALID",
            f"{', '.join(given)}: the run behind --extend has decided that.",
            fix="Leave it out, or start a run of all sites without --extend.",
        )


def asks_statistics(
    wish: bool | None, privacy: PrivacyRequest | None, *, secure_aggregation: bool
) -> bool:
    """What `--statistics` means for a run; a wish that cannot be met is for the plan to refuse."""
    if wish is None:
        return ASK_STATISTICS and privacy is None and not secure_aggregation
    return wish


class Engine(enum.StrEnum):
    """How a simulation runs the apps."""

    INPROCESS = "inprocess"
    RAY = "ray"


class Precision(enum.StrEnum):
    """Arithmetic of the backbone."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


PrecisionOption = Annotated[Precision | None, typer.Option(help="Arithmetic of the backbone.")]


def new_run(kind: str) -> Path:
    """Where a run of this kind and moment goes if `--out` does not say."""
    return Path("runs") / datetime.now(UTC).strftime(f"{kind}-%Y%m%d-%H%M%S")


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
