"""Methods by name."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from dermino_core.errors import DerminoError
from dermino_strategies.base import Strategy
from dermino_strategies.fedavg import FedAvg, FedAvgSettings

STRATEGIES = {"fedavg": (FedAvg, FedAvgSettings)}


def get_strategy(name: str, settings: Mapping[str, object] | None = None) -> Strategy:
    """Make a method from its name and settings.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` naming the known methods, or the setting that is wrong.
    """
    if name not in STRATEGIES:
        known = ", ".join(sorted(STRATEGIES))
        raise DerminoError(
            "CONFIG_INVALID", f"There is no strategy '{name}'.", fix=f"Known: {known}."
        )
    make, settings_type = STRATEGIES[name]
    try:
        return make(settings_type.model_validate(dict(settings or {})))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DerminoError(
            "CONFIG_INVALID",
            f"Setting '{key}' of strategy '{name}' is wrong: {first['msg']}.",
            where=f"given: {first['input']!r}",
            fix=f"Its settings: {', '.join(settings_type.model_fields)}.",
        ) from None
