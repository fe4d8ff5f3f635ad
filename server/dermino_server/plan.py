"""`run.json`: the resolved configuration of a run, everything needed to repeat it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import Field, ValidationError, model_validator

from dermino_core.errors import DerminoError
from dermino_core.model_folder import SiteCount
from dermino_core.privacy.plan import PrivacyRequest
from dermino_core.results import BackboneInfo
from dermino_core.site_statistics import FEWEST_COUNT
from dermino_server.plan_file import (
    PlanFile,
    check_quorum,
    first_fault,
    plan_digest,
    read_plan_file,
)
from dermino_strategies.base import Additive, Personalises, Private, Strategy, Tuning
from dermino_strategies.protocol import Task
from dermino_strategies.registry import STRATEGIES

MOST_CROSS_SITES = 30
"""Up to so many sites each one's head is tested at all others; 900 evaluations."""

FEWEST_FOR_PERSONAL = 3
TOO_FEW_FOR_PERSONAL = (
    f"personal models take at least {FEWEST_FOR_PERSONAL} sites or differential privacy, because "
    "of two each would read the other's sums in the total"
)


class RunPlan(PlanFile):
    """What a run does. Written before it starts and never changed."""

    run_id: str = Field(default_factory=lambda: uuid4().hex, pattern=r"^[0-9a-f]{32}$")
    title: str
    task: str
    classes: list[str] = Field(min_length=2)
    strategy: str = "fedavg"
    settings: dict[str, object] = Field(default={})
    rounds: int = Field(default=2, ge=1, le=10_000, description="the paper's 2")
    seed: int = Field(default=0, ge=0, lt=2**63)
    replicates: int = Field(default=1000, ge=2, le=10_000)
    sites: list[str] = Field(min_length=1, description="expected sites")
    min_sites: int = Field(ge=1, description="quorum of every exchange")
    wait_seconds: float = Field(default=120, gt=0, description="for sites to connect")
    deadline_seconds: float = Field(default=600, gt=0, description="for the replies of a round")
    cross_site: bool = Field(
        default=True, description="collect each site's own head for the cross-site matrix"
    )
    privacy: PrivacyRequest | None = None
    secure_aggregation: bool = False
    statistics: bool = Field(
        default=False, description="ask with the first round what the sites' images are like"
    )
    min_count: int = Field(
        default=FEWEST_COUNT, ge=2, description="statistics: smallest count that a site tells"
    )
    keep_sums: bool = Field(
        default=True, description="keep what each site sent, where it can leave or join by it"
    )
    extends: str | None = Field(default=None, description="the run that `earlier` took part in")
    earlier: list[SiteCount] = Field(
        default=[], description="sites that are not asked again: their sums were kept"
    )
    withdrawn: list[str] = Field(default=[], description="sites whose sums were taken out again")
    threshold: int | None = Field(
        default=None, ge=3, description="secure aggregation: sites that must stay to the end"
    )
    personal: bool = Field(
        default=False, description="every site gets the sums of all, for a model of its own"
    )
    engine: Literal["inprocess", "ray", "deployment"]
    backbone: BackboneInfo
    backbone_spec: str
    sites_folder: str | None = Field(default=None, description="simulation: the site files")
    data_digests: dict[str, str] = Field(
        default={}, description="simulation: site -> SHA-256 of its features, labels and split"
    )
    created: str
    dermino_version: str
    versions: dict[str, str] = Field(default={})

    @model_validator(mode="after")
    def _quorum_is_possible(self) -> RunPlan:
        check_quorum(self.min_sites, len(self.sites))
        if self.secure_aggregation and self.min_sites < 3:
            raise ValueError("secure aggregation needs a quorum of at least 3 sites")
        if self.cross_site and (self.secure_aggregation or self.privacy):
            raise ValueError("a site's own head does not leave it in a private or secure run")
        if self.cross_site and issubclass(STRATEGIES.get(self.strategy, (Strategy,))[0], Tuning):
            raise ValueError("a run that tunes the backbone collects no heads of single sites")
        if self.statistics and (self.secure_aggregation or self.privacy):
            raise ValueError(
                "the sites' statistics have neither noise nor mask: leave out --statistics in a "
                "private or secure run"
            )
        if self.personal and self.privacy is None and self.min_sites < FEWEST_FOR_PERSONAL:
            raise ValueError(f"the quorum is {self.min_sites}: {TOO_FEW_FOR_PERSONAL}")
        if self.earlier and not self.sums_are_kept:
            raise ValueError("a run goes on from kept sums only if it keeps sums itself")
        return self

    @property
    def sums_are_kept(self) -> bool:
        """Whether the coordinator keeps what each site sends."""
        known = STRATEGIES.get(self.strategy)
        able = known is not None and known[0].keeps_sums and not self.secure_aggregation
        return self.keep_sums and able

    @property
    def earlier_sites(self) -> list[str]:
        """Sites whose sums an earlier run has left."""
        return [site.site for site in self.earlier]

    @property
    def training_sites(self) -> list[str]:
        """Sites that are asked to train."""
        return [site for site in self.sites if site not in self.earlier_sites]

    @property
    def training_quorum(self) -> int:
        """The quorum of a training round: of all who are asked at most."""
        return min(self.min_sites, len(self.training_sites))

    def for_sites(self) -> Task:
        """The part that the sites are told."""
        return Task(
            run_id=self.run_id,
            name=self.task,
            classes=self.classes,
            backbone_fingerprint=self.backbone.fingerprint,
            width=self.backbone.width,
            strategy=self.strategy,
            settings=self.settings,
            rounds=self.rounds,
            seed=self.seed,
            replicates=self.replicates,
            privacy=self.privacy,
            secure_aggregation=self.secure_aggregation,
            personal=self.personal,
            fewest_sites=self.min_sites if self.personal else None,
        )

    def digest(self) -> str:
        """SHA-256 of what decides the numbers: checkpoints of other plans are refused."""
        earlier = [f"|from {self.extends}: {site}" for site in self.earlier_sites]
        return plan_digest(self.for_sites(), self.sites, *earlier)


def make_plan(**values: Any) -> RunPlan:
    """A plan from options.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` naming the option that is wrong.
    """
    try:
        return RunPlan(**values)
    except ValidationError as error:
        raise DerminoError("CONFIG_INVALID", first_fault(error, "the run")) from None


def collects_heads(
    strategy: Strategy, sites: int, privacy: PrivacyRequest | None, *, secure_aggregation: bool
) -> bool:
    """Whether a run collects each site's own head for the cross-site matrix, unless told not to.

    Not where none may leave, nor where there is none; and not for many sites, because every site
    evaluates the heads of all others.
    """
    hidden = secure_aggregation or privacy is not None or isinstance(strategy, Tuning)
    return not hidden and sites <= MOST_CROSS_SITES


def check_protection(
    strategy: Strategy,
    privacy: PrivacyRequest | None,
    *,
    secure_aggregation: bool,
    personal: bool = False,
    sites: int | None = None,
) -> None:
    """Refuse a protection that the method cannot give, before anything starts.

    Parameters
    ----------
    personal, sites
        Whether personal models are asked for, and how many sites take part, where that is known.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID`.
    """
    advice = "`dermino strategies` lists what works with which method."
    if secure_aggregation and not isinstance(strategy, Additive):
        raise DerminoError(
            "CONFIG_INVALID",
            f"{strategy.name} needs each site's own update, which secure aggregation hides.",
            fix=advice,
        )
    if privacy and not isinstance(strategy, Private):
        raise DerminoError(
            "CONFIG_INVALID", f"{strategy.name} cannot hold to a privacy budget.", fix=advice
        )
    if personal and not isinstance(strategy, Personalises):
        able = [name for name, (make, _) in STRATEGIES.items() if issubclass(make, Personalises)]
        raise DerminoError(
            "CONFIG_INVALID",
            f"{strategy.name} makes no personal models.",
            fix=f"--strategy with one that does: {', '.join(sorted(able))}.",
        )
    if personal and privacy is None and sites is not None and sites < FEWEST_FOR_PERSONAL:
        raise DerminoError("CONFIG_INVALID", f"There are {sites} sites: {TOO_FEW_FOR_PERSONAL}.")


def with_public_centre(
    strategy: str,
    settings: Mapping[str, object],
    privacy: PrivacyRequest | None,
    *,
    backbone: str,
    cache: Path,
) -> dict[str, object]:
    """The settings of a run, with a `centre` where the method takes one and the run is private.

    A private run learns more around a public point among the features: the mean feature of
    images that are drawn here, of no patient. A centre that was given stays.

    Raises
    ------
    DerminoError
        If the backbone cannot be loaded.
    """
    wanted = "centre" in STRATEGIES[strategy][1].model_fields and "centre" not in settings
    if privacy is None or not wanted:
        return dict(settings)
    from dermino_core.privacy.sgd import drawn_centre

    return dict(settings) | {"centre": list(drawn_centre(backbone, cache=cache))}


def read_plan(folder: Path) -> RunPlan:
    """Read the plan of a run folder.

    Raises
    ------
    DerminoError
        `CHECKPOINT_INVALID` if it is missing or damaged.
    """
    return read_plan_file(RunPlan, folder, holds="a run folder", began="the run")


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    from importlib.metadata import version

    names = ("flwr", "numpy", "scikit-learn", "timm", "torch")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def new_run_folder(out: Path) -> Path:
    """Make a run folder, or accept an empty one.

    Raises
    ------
    DerminoError
        `OUTPUT_EXISTS` if it holds anything.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DerminoError(
            "OUTPUT_EXISTS",
            "The output folder is not empty.",
            where=out,
            fix="Choose another --out, or continue the run that is there with --resume.",
        )
    out.mkdir(parents=True, exist_ok=True)
    return out.absolute()
