"""Methods by name."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from dermino_core.errors import DerminoError
from dermino_strategies.base import Strategy
from dermino_strategies.fedadam import FedAdam, FedAdamSettings
from dermino_strategies.fedavg import FedAvg, FedAvgSettings
from dermino_strategies.fedavgm import FedAvgM, FedAvgMSettings
from dermino_strategies.fedprox import FedProx, FedProxSettings
from dermino_strategies.fedyogi import FedYogi, FedYogiSettings
from dermino_strategies.krum import Krum, KrumSettings
from dermino_strategies.logistic import Logistic, LogisticSettings
from dermino_strategies.lora import LoRA, LoRASettings
from dermino_strategies.median import Median, MedianSettings
from dermino_strategies.qffl import QFFL, QFFLSettings
from dermino_strategies.ridge import Ridge, RidgeSettings
from dermino_strategies.trimmed_mean import TrimmedMean, TrimmedMeanSettings

STRATEGIES = {
    "fedavg": (FedAvg, FedAvgSettings),
    "fedprox": (FedProx, FedProxSettings),
    "fedavgm": (FedAvgM, FedAvgMSettings),
    "fedadam": (FedAdam, FedAdamSettings),
    "fedyogi": (FedYogi, FedYogiSettings),
    "median": (Median, MedianSettings),
    "trimmed_mean": (TrimmedMean, TrimmedMeanSettings),
    "krum": (Krum, KrumSettings),
    "qffl": (QFFL, QFFLSettings),
    "ridge": (Ridge, RidgeSettings),
    "logistic": (Logistic, LogisticSettings),
    "lora": (LoRA, LoRASettings),
}


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
