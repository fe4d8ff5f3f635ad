"""What sums must have in common to be added: the study that they belong to."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dermino_core.errors import DerminoError
from dermino_server.kept_run import KeptRun
from dermino_strategies.base import Additive, Arrays
from dermino_strategies.registry import STRATEGIES, get_strategy

_LONGEST = 40
"""A refusal shows so many letters of a value, and of a longer one the first 12."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds letters that cannot be printed")
    return text


Word = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_printable)]
"""A text from another coordinator that people will see."""


class Study(BaseModel):
    """Task, features and method: sums of two studies are never added.

    `classes` in the order of the sums, `backbone` the fingerprint and `width` of the features,
    `settings` all of them, those that nobody set included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: Word
    classes: list[Word] = Field(min_length=2, max_length=1000)
    backbone: Word
    width: int = Field(ge=1, le=65536)
    strategy: Word
    settings: dict[str, object]
    rounds: int = Field(ge=1, le=10_000)
    seed: int = Field(ge=0, lt=2**63)

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, whatever the order of the settings."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def strategy_of(self) -> Additive:
        """The method.

        Raises
        ------
        DerminoError
            `CONFIG_INVALID` if it or its settings do not exist here, if it keeps no sums, or if
            its settings are not written out in full.
        """
        strategy = get_strategy(self.strategy, self.settings)
        if not (isinstance(strategy, Additive) and strategy.keeps_sums):
            raise DerminoError(
                "CONFIG_INVALID", f"sums of {self.strategy} cannot be added up after a run"
            )
        full = _all_settings(self.strategy, self.settings)
        if json.dumps(full, sort_keys=True) != json.dumps(self.settings, sort_keys=True):
            raise DerminoError(
                "CONFIG_INVALID",
                f"it does not name all settings of {self.strategy} as this version has them",
            )
        return strategy

    def start(self, strategy: Additive) -> Arrays:
        """The global arrays that a run of the study starts from."""
        return strategy.initial_arrays(len(self.classes), self.width, self.seed)

    def differences(self, other: Study) -> list[str]:
        """What differs, in words: `backbone: c095... here, 77aa... there`."""
        mine, others = self._flat(), other._flat()
        return [
            f"{key}: {_short(mine.get(key, 'none'))} here, {_short(others.get(key, 'none'))} there"
            for key in dict.fromkeys((*mine, *others))
            if mine.get(key) != others.get(key)
        ]

    def _flat(self) -> dict[str, str]:
        values = self.model_dump(mode="json", exclude={"settings"})
        values["classes"] = ", ".join(self.classes)
        settings = {f"setting {key}": json.dumps(v) for key, v in sorted(self.settings.items())}
        return {key: str(value) for key, value in values.items()} | settings


def study_of(kept: KeptRun) -> tuple[Study, Additive]:
    """The study of a run that kept its sums, and its method.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if the run was private, or its method adds nothing up.
    """
    plan = kept.plan
    if plan.privacy is not None:
        raise DerminoError(
            "CONFIG_INVALID",
            "The sums of a private run are not joined over regions: the model's card could not "
            "tell what privacy was spent in another one.",
            where=kept.folder,
            fix="Make one run of all sites with --epsilon.",
        )
    try:
        study = Study(
            task=plan.task,
            classes=plan.classes,
            backbone=plan.backbone.fingerprint,
            width=plan.backbone.width,
            strategy=plan.strategy,
            settings=_all_settings(plan.strategy, plan.settings),
            rounds=plan.rounds,
            seed=plan.seed,
        )
    except ValidationError as error:
        raise DerminoError(
            "CONFIG_INVALID",
            f"This run cannot be told to others: {error.errors()[0]['msg']}.",
            where=kept.folder,
            fix="Run again with names of task and classes that can be printed.",
        ) from error
    return study, study.strategy_of()


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:12]}..."


def _all_settings(name: str, settings: dict[str, object]) -> dict[str, object]:
    return STRATEGIES[name][1].model_validate(settings).model_dump(mode="json")
