"""`dermino strategies`: the federated methods, what leaves a hospital, what can be set."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from dermino_core.console import say
from dermino_core.errors import DerminoError
from dermino_strategies.base import Settings
from dermino_strategies.facts import (
    ATTACKS,
    Leaving,
    facts_of,
    leaving,
    works_with_privacy,
    works_with_secure_aggregation,
)
from dermino_strategies.registry import STRATEGIES, get_strategy

EXAMPLE = (
    "Example: dermino strategies; dermino strategies krum --width 384; dermino strategies --json"
)


@dataclass(frozen=True)
class Setting:
    """One `--set`: what it is without one, and what it may be."""

    name: str
    default: Any
    allowed: str
    description: str


@dataclass(frozen=True)
class Row:
    """One method. Bytes are those of the arrays of one site in one round."""

    name: str
    title: str
    citation: str
    note: str
    rounds: int
    leaves: str
    leaving: list[Leaving]
    bytes_from_site: int
    secure_aggregation: bool
    differential_privacy: bool
    keeps_sums: bool
    survives: list[str]
    settings: list[Setting]


def strategies(
    name: Annotated[
        str | None, typer.Argument(help="One method, with its settings. Without: all of them.")
    ] = None,
    width: Annotated[
        int, typer.Option(min=1, max=65536, help="Width of the backbone's features.")
    ] = 768,
    classes: Annotated[int, typer.Option(min=2, max=1000, help="Classes of the task.")] = 2,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON instead of a table, with all that is known.")
    ] = False,
) -> None:
    """List the federated methods: what leaves a hospital, and what each can be combined with.

    The arrays are asked of the method itself, for features of the given width.
    """
    if name is not None and name not in STRATEGIES:
        known = ", ".join(sorted(STRATEGIES))
        raise DerminoError(
            "CONFIG_INVALID", f"There is no strategy '{name}'.", fix=f"Known: {known}."
        )
    rows = [_row(each, classes, width) for each in ([name] if name else sorted(STRATEGIES))]
    if as_json:
        say(json.dumps([asdict(row) for row in rows], indent=1))
    elif name:
        _show_one(rows[0], classes, width)
    else:
        _show(rows)
        say("")
        say(f"Bytes: one site's arrays, one round, {classes} classes, features of width {width}.")
        say("Rounds: near its best on real dermoscopy with a local learning rate of 1e-3.")
        say("Survives: what one bad site of five may send at little cost, where that was tested;")
        say("  every method refuses numbers that are not finite. More: dermino strategies NAME")


def _row(name: str, classes: int, width: int) -> Row:
    strategy, facts = get_strategy(name), facts_of(name)
    sent = leaving(strategy, classes, width)
    return Row(
        name=name,
        title=facts.title,
        citation=facts.citation,
        note=facts.note,
        rounds=facts.rounds,
        leaves=facts.leaves,
        leaving=sent,
        bytes_from_site=sum(array.nbytes for array in sent),
        secure_aggregation=works_with_secure_aggregation(name),
        differential_privacy=works_with_privacy(name),
        keeps_sums=strategy.keeps_sums,
        survives=list(facts.survives),
        settings=_settings(STRATEGIES[name][1]),
    )


def _settings(kind: type[Settings]) -> list[Setting]:
    schema = kind.model_json_schema()["properties"]
    defaults = kind().model_dump(mode="json")
    return [
        Setting(key, defaults[key], _allowed(described), str(described.get("description", "")))
        for key, described in schema.items()
    ]


_LIMITS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "exclusiveMaximum": "below",
}


def _allowed(described: dict[str, Any]) -> str:
    """Choices or limits of a setting, in words."""
    if "enum" in described:
        return " or ".join(str(choice) for choice in described["enum"])
    return " ".join(
        f"{word} {described[key]:g}" for key, word in _LIMITS.items() if key in described
    )


def _show(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "what", "rounds", "bytes", "secure", "private", "survives"):
        table.add_column(heading, justify="right" if heading in ("rounds", "bytes") else "left")
    for row in rows:
        more = [attack for attack in row.survives if attack not in ("nan", "inf")]
        cells = (
            row.name,
            row.title,
            str(row.rounds),
            f"{row.bytes_from_site:,}",
            "yes" if row.secure_aggregation else "no",
            "yes" if row.differential_privacy else "no",
            ", ".join(more),
        )
        table.add_row(*(Text(cell) for cell in cells))
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    console.print(table)


def _show_one(row: Row, classes: int, width: int) -> None:
    say(f"{row.name}: {row.title}")
    say(f"  {row.citation}")
    if row.note:
        say(f"  {row.note}")
    say(f"leaves the building each round: {row.leaves}")
    for array in row.leaving:
        say(f"  {array.name}  {list(array.shape)}  {array.dtype}  {array.nbytes:,} bytes")
    say(f"  {row.bytes_from_site:,} bytes for {classes} classes and features of width {width}")
    say(f"rounds: {row.rounds}")
    say(f"secure aggregation: {'yes' if row.secure_aggregation else 'no'}")
    say(f"differential privacy: {'yes' if row.differential_privacy else 'no'}")
    say(f"a site can leave or join after the run: {'yes' if row.keeps_sums else 'no'}")
    say("one bad site of five may send:")
    for attack in row.survives:
        say(f"  {attack}: {ATTACKS[attack]}")
    say("settings (--set KEY=VALUE):")
    for setting in row.settings:
        words = "; ".join(part for part in (setting.allowed, setting.description) if part)
        say(f"  {setting.name} = {json.dumps(setting.default)}{f'  ({words})' if words else ''}")
