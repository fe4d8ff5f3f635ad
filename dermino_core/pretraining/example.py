"""A configuration file that shows every field, its default and what it means."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from dermino_core.pretraining.config import PretrainConfig, SourceSection

HEADER = """\
# A pretraining run of dermino. Every field is shown with its default (preset "recommended");
# what is left out keeps it. Fractions are of the whole run. A field that is commented out has no
# value by default."""


def example_toml() -> str:
    """The text of the file."""
    lines = [HEADER, ""]
    fields = PretrainConfig.model_fields
    sections = {
        name: field.default
        for name, field in fields.items()
        if isinstance(field.default, BaseModel)
    }
    for name, field in fields.items():
        if name not in sections:
            lines.append(_line(name, field.default, field.description))
    for name, section in sections.items():
        lines += ["", f"[{name}]"]
        for key, field in type(section).model_fields.items():
            if key != "sources":
                lines.append(_line(key, getattr(section, key), field.description))
        if name == "data":
            lines += ["", "[[data.sources]]", 'name = "isic"', 'manifest = "isic/manifest.csv"']
            for key, field in SourceSection.model_fields.items():
                if key not in ("name", "manifest"):
                    lines.append("# " + _line(key, field.default, field.description).lstrip("# "))
    return "\n".join(lines)


def _line(name: str, value: Any, description: str | None) -> str:
    note = f"  # {description}" if description else ""
    if value is None:
        return f"# {name} ={note}"
    return f"{name} = {_toml(value)}{note}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)
