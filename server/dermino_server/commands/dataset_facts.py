"""What `dermino data list` says of a data set, and the options of its reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from dermino_core.datasets import DatasetInfo
from dermino_core.datasets.synthetic_sites import SyntheticSite

if TYPE_CHECKING:
    from rich.table import Table

Described = DatasetInfo | SyntheticSite


@dataclass(frozen=True)
class ReaderOption:
    """A keyword argument of a reader that a person may give.

    `values` are those that there are; empty where any text (or number, if `is_number`) may stand.
    """

    values: tuple[str, ...]
    default: object
    is_number: bool


def reader_options(info: DatasetInfo) -> dict[str, ReaderOption]:
    """The options of a data set's reader, by name, from the types in its signature."""
    prepare = info.prepare
    # An alias of a reader is a partial of it, which has no type hints of its own.
    hints = get_type_hints(getattr(prepare, "func", prepare))
    parameters = signature(prepare).parameters
    return {name: _option(hints[name], parameters[name].default) for name in sorted(info.options)}


def overview(infos: Iterable[Described]) -> Table:
    """One line for each data set."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "task", "images", "modality"):
        table.add_column(heading, justify="right" if heading == "images" else "left")
    for info in infos:
        drawn = isinstance(info, SyntheticSite)
        modality = f"{info.style}, drawn" if drawn else info.modality
        table.add_row(info.name, info.task, f"{info.images:,}", modality)
    return table


def facts(info: Described) -> Table:
    """Everything about one data set, one fact per line."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _facts(info).items():
        if text:
            table.add_row(Text(f"  {name}"), Text(text))
    return table


def _facts(info: Described) -> dict[str, str]:
    if isinstance(info, SyntheticSite):
        return {
            "task": info.task,
            "images": f"{info.images:,} ({info.style})",
            "labels": _label_words(info.label_map),
            "prepare": f"dermino data prepare {info.name} --out FOLDER (drawn, needs no RAW)",
        }
    kind = "clinical and dermoscopy" if info.modality == "both" else info.modality
    return {
        "task": info.task,
        "images": f"{info.images:,} ({kind})",
        "labels": info.label_words or _label_words(info.label_map),
        "centres": ", ".join(f"{name} {images:,}" for name, images in info.centres.items()),
        "licence": info.licence,
        "get it at": info.where,
        "in the paper": info.paper_use,
        "options": "\n".join(
            f"--option {name}={_value_words(option)}"
            for name, option in reader_options(info).items()
        ),
        "prepare": f"dermino data prepare {info.name} RAW --out FOLDER",
        "simulate": f"dermino data sites {info.name} RAW --out sites" if info.centres else "",
    }


def _label_words(label_map: Mapping[str, str]) -> str:
    """Each class, in brackets the data set's own labels for it."""
    own: dict[str, list[str]] = {}
    for label, name in label_map.items():
        own.setdefault(name, []).extend([label] if label != name else [])
    return "; ".join(
        f"{name} ({', '.join(labels)})" if labels else name for name, labels in own.items()
    )


def _option(hint: Any, default: object) -> ReaderOption:
    values = get_args(hint) if get_origin(hint) is Literal else ()
    return ReaderOption(values, default, float in (hint, *get_args(hint)))


def _value_words(option: ReaderOption) -> str:
    if option.values:
        marked = [f"{v} (default)" if v == option.default else v for v in option.values]
        return " or ".join(marked)
    kind = "NUMBER" if option.is_number else "TEXT"
    return kind if option.default is None else f"{option.default} (default)"
