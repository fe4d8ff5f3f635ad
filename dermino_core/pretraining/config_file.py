"""From a TOML file, a preset and `--set` to a checked configuration."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dermino_core.errors import DerminoError
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.presets import PRESETS

_OTHER_LENGTH = {"run.steps": "epochs", "run.epochs": "steps"}


def read_config(file: Path, settings: Sequence[str] = ()) -> PretrainConfig:
    """Read a configuration; paths in it are relative to its folder.

    Parameters
    ----------
    file
        TOML, as :class:`~dermino_core.pretraining.config.PretrainConfig`.
    settings
        `section.field=value`, values as in TOML; bare words are text. They go last; `run.steps`
        takes the place of the file's `run.epochs`, and the other way round.

    Raises
    ------
    DerminoError
        CONFIG_NOT_FOUND, or CONFIG_INVALID naming the field.
    """
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DerminoError(
            "CONFIG_NOT_FOUND",
            "There is no such configuration file.",
            where=file,
            fix="Give the TOML file of a pretraining run; `dermino pretrain --example` prints one.",
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DerminoError(
            "CONFIG_INVALID", f"The configuration cannot be read: {error}.", where=file
        ) from error
    for setting in settings:
        _set(values, setting)
    return resolve_config(values, base=file.resolve().parent, where=file)


def resolve_config(
    values: Mapping[str, Any], *, base: Path | None = None, where: object = None
) -> PretrainConfig:
    """Lay `values` over their preset and check them.

    Parameters
    ----------
    values
        Nested as the TOML file. Without a length of the run it has the preset's or the default.
    base
        What relative paths are relative to; None leaves them as they are.

    Raises
    ------
    DerminoError
        CONFIG_INVALID naming every wrong field.
    """
    preset = values.get("preset", "recommended")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise DerminoError(
            "CONFIG_INVALID",
            f"There is no preset {preset!r}.",
            where=where,
            fix=f"The presets are {', '.join(PRESETS)}.",
        )
    merged = _merge(PRESETS[preset], values)
    run = values.get("run", {})
    if isinstance(run, Mapping):
        below = {"epochs": PretrainConfig().run.epochs, **PRESETS[preset].get("run", {})}
        if run.get("steps") is not None:
            del below["epochs"]
        merged["run"] = {**below, **run}
    try:
        config = PretrainConfig.model_validate(merged)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'configuration'}: {item['msg']}"
            for item in error.errors()
        )
        raise DerminoError(
            "CONFIG_INVALID",
            f"The pretraining configuration is not valid: {problems}.",
            where=where,
            fix="Correct these fields; `dermino pretrain --example` prints every field.",
        ) from error
    return config if base is None else _anchored(config, base)


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merge(below, value) if both else value  # pyright: ignore[reportArgumentType]
    return merged


def _set(values: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise DerminoError(
            "CONFIG_INVALID",
            f"{setting!r} is no setting.",
            fix="Write section.field=value, for example --set run.steps=200.",
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise DerminoError("CONFIG_INVALID", f"{setting!r}: {key} is no section.")
    values[keys[-1]] = value
    other = _OTHER_LENGTH.get(".".join(keys))
    if other is not None:
        values.pop(other, None)


def _anchored(config: PretrainConfig, base: Path) -> PretrainConfig:
    def at(path: Path | None) -> Path | None:
        return None if path is None else base / path.expanduser()

    start = config.model.start
    if start not in ("pretrained", "random") and "@" not in start:
        start = str(at(Path(start)))
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"start": start}),
            "prototypes": config.prototypes.model_copy(
                update={
                    "labels": at(config.prototypes.labels),
                    "embeddings": at(config.prototypes.embeddings),
                }
            ),
            "data": config.data.model_copy(
                update={
                    "sources": tuple(
                        source.model_copy(
                            update={
                                name: at(getattr(source, name))
                                for name in ("manifest", "images", "shards")
                            }
                        )
                        for source in config.data.sources
                    )
                }
            ),
            "monitor": config.monitor.model_copy(
                update={
                    "manifest": at(config.monitor.manifest),
                    "images": at(config.monitor.images),
                }
            ),
        }
    )
