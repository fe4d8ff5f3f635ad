"""What this hospital allows, whatever the coordinator asks: `[policy]` of the site file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dermino_client.opening_hours import is_open, next_opening, parse_window, time_zone
from dermino_core.errors import DerminoError
from dermino_core.privacy.plan import PrivacyRequest

OWN_APP = "dermino"
"""In `apps`: the bundle that the installed dermino itself would build."""

_HEX = frozenset("0123456789abcdef")
_MIB = 2**20


def _different(values: list[str]) -> list[str]:
    for value in values:
        if not value:
            raise ValueError("a name is empty")
        if values.count(value) > 1:
            raise ValueError(f"'{value}' is named twice")
    return values


def _known_strategies(values: list[str]) -> list[str]:
    from dermino_strategies.registry import STRATEGIES

    if unknown := [value for value in values if value not in STRATEGIES]:
        raise ValueError(
            f"there is no strategy '{unknown[0]}'; known: {', '.join(sorted(STRATEGIES))}"
        )
    return values


def _windows(values: list[str]) -> list[str]:
    for value in values:
        parse_window(value)
    return values


def _zone(value: str) -> str:
    time_zone(value)
    return value


def _bundles(values: list[str]) -> list[str]:
    for value in values:
        if value != OWN_APP and not (len(value) == 64 and _HEX.issuperset(value)):
            raise ValueError(
                f"'{value}' is neither '{OWN_APP}' nor a SHA-256 in 64 small hexadecimal digits"
            )
    return values


_Names = Annotated[list[str], Field(min_length=1), AfterValidator(_different)]
_Epsilon = Annotated[float, Field(strict=True, gt=0, le=1000, allow_inf_nan=False)]


class PolicySection(BaseModel):
    """`[policy]`: the limits of this site, which it enforces itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_images: int = Field(
        default=10, strict=True, ge=1, description="fewest training images to take part with"
    )
    min_per_class: int = Field(
        default=2,
        strict=True,
        ge=1,
        description="fewest training images of a class that this site has any of: what is sent "
        "about a class with one image tells about that image",
    )
    tasks: _Names | None = Field(
        default=None, description="names of the tasks to take part in; default: the site's own"
    )
    strategies: Annotated[_Names, AfterValidator(_known_strategies)] | None = Field(
        default=None, description="methods that may run here; default: every one that is installed"
    )
    max_rounds: int = Field(default=1000, strict=True, ge=1, description="most rounds of one run")
    max_model_bytes: int = Field(
        default=64 * _MIB,
        strict=True,
        ge=1,
        description="most bytes of arrays that the coordinator may send for one model",
    )
    require_privacy: bool = Field(
        default=False, strict=True, description="refuse runs without differential privacy"
    )
    epsilon_per_run: _Epsilon | None = Field(
        default=None,
        description="largest epsilon of one run; runs without differential privacy are refused",
    )
    epsilon_per_year: _Epsilon | None = Field(
        default=None,
        description="largest epsilon of all runs of a year together, by the site's own ledger; "
        "runs without differential privacy are refused",
    )
    delta: float = Field(
        default=1e-5,
        strict=True,
        gt=0,
        lt=0.1,
        description="delta at which the year is summed up, and the largest that a run may ask for "
        "where privacy is required or epsilon is limited",
    )
    privacy_unit: Literal["patient", "image"] = Field(
        default="patient",
        description="whom differential privacy must protect: a patient's images together, or at "
        "least each image",
    )
    require_secure_aggregation: bool = Field(
        default=False, strict=True, description="refuse runs in which the update can be seen alone"
    )
    min_other_sites: int = Field(
        default=2,
        strict=True,
        ge=1,
        description="fewest other sites in secure aggregation, and in the sums of a run with "
        "personal models; with one other site, that site can subtract its own part from the sum",
    )
    new_members: Literal["authority", "ask"] = Field(
        default="authority",
        description="whose identity to trust in secure aggregation: any that the federation's "
        "authority vouches for, or only those that a person here has accepted",
    )
    opening_hours: Annotated[_Names, AfterValidator(_windows)] | None = Field(
        default=None,
        description="when to answer, for example ['Mon-Fri 18:00-07:00', 'Sat-Sun']; "
        "default: always",
    )
    timezone: Annotated[str, AfterValidator(_zone)] | None = Field(
        default=None,
        description="whose clock opening_hours are read from, for example 'Europe/Zurich'; "
        "default: this machine's",
    )
    apps: Annotated[_Names, AfterValidator(_bundles)] = Field(
        default=[OWN_APP],
        description="Flower app bundles that may run here: 'dermino' for the installed dermino "
        "itself, and SHA-256 of other bundles, whose code then runs with this site's rights",
    )
    share_local_head: bool = Field(
        default=True,
        strict=True,
        description="whether the coordinator gets the head that this site trains alone, for the "
        "cross-site matrix, when it asks; if not, the reply leaves it out",
    )
    allow_personal: bool = Field(
        default=True,
        strict=True,
        description="whether to take part in runs with personal models: there every site gets the "
        "sum of all sites' sums, this one's among them, for a model of its own; without "
        "differential privacy at least min_other_sites others must be in it",
    )
    share_statistics: bool = Field(
        default=True,
        strict=True,
        description="whether the coordinator gets counts, means and variances of the training "
        "images before a run that has neither privacy nor secure aggregation",
    )
    min_count: int = Field(
        default=5,
        strict=True,
        ge=2,
        description="smallest count told in these statistics; means take at least 20 images",
    )


@dataclass(frozen=True)
class RequestFacts:
    """What the policy looks at: plain values, filled from a message and from this site.

    `images_per_class` are this site's training images, class name -> number; `model_bytes` is the
    size of the arrays of one model; `other_sites` is None where a request does not tell, and
    `personal_others` are those that will be in the sums that every site gets.
    """

    task: str
    classes: tuple[str, ...]
    strategy: str
    rounds: int
    model_bytes: int
    images_per_class: Mapping[str, int]
    privacy: PrivacyRequest | None = None
    secure_aggregation: bool = False
    other_sites: int | None = None
    personal: bool = False
    personal_others: int | None = None


def check_policy(policy: PolicySection, facts: RequestFacts, now: datetime) -> None:
    """Refuse what this site does not allow.

    The error's `what` names every rule that was broken, what was asked and what is allowed; it is
    for this site's own log. The privacy ledger holds the sum of a year, not this function.

    Raises
    ------
    DerminoError
        `POLICY_REFUSED`, or `OUTSIDE_HOURS` if nothing but the time of day is wrong.
    """
    if broken := broken_rules(policy, facts):
        raise DerminoError(
            "POLICY_REFUSED",
            "The request does not fit this site's policy: " + "; ".join(broken) + ".",
            where="[policy] of the site file",
            fix="Nothing, if the policy is meant so: the coordinator was told no. Else change the "
            "keys named above and start the client again.",
        )
    hours = policy.opening_hours
    if hours is not None and not is_open(hours, now, policy.timezone):
        later = next_opening(hours, now, policy.timezone)
        shown = "" if later is None else f"; it opens at {later:%a %Y-%m-%d %H:%M %Z}"
        raise DerminoError(
            "OUTSIDE_HOURS",
            f"A request came outside opening_hours = {hours}{shown}.",
            where="[policy] opening_hours",
            fix="Nothing, if the hours are meant so; the coordinator may ask again.",
        )


def broken_rules(policy: PolicySection, facts: RequestFacts) -> list[str]:
    """Every rule that a request breaks at any time of day, in words; empty if none."""
    return [
        *_about_run(policy, facts),
        *_about_images(policy, facts),
        *_about_privacy(policy, facts),
        *_about_others(policy, facts),
        *_about_personal(policy, facts),
    ]


def _about_run(policy: PolicySection, facts: RequestFacts) -> list[str]:
    broken = []
    if policy.tasks is not None and facts.task not in policy.tasks:
        broken.append(f"tasks: it is about '{facts.task}', allowed is {_any_of(policy.tasks)}")
    if policy.strategies is not None and facts.strategy not in policy.strategies:
        broken.append(
            f"strategies: it asks for '{facts.strategy}', allowed is {_any_of(policy.strategies)}"
        )
    if facts.rounds > policy.max_rounds:
        broken.append(f"max_rounds: it has {facts.rounds} rounds, allowed are {policy.max_rounds}")
    if facts.model_bytes > policy.max_model_bytes:
        broken.append(
            f"max_model_bytes: its model has {facts.model_bytes} bytes, allowed are "
            f"{policy.max_model_bytes}"
        )
    return broken


def _about_images(policy: PolicySection, facts: RequestFacts) -> list[str]:
    broken = []
    counts = {name: facts.images_per_class.get(name, 0) for name in facts.classes}
    if (total := sum(counts.values())) < policy.min_images:
        broken.append(
            f"min_images: this site has {total} training images, needed are {policy.min_images}"
        )
    for name, count in counts.items():
        if 0 < count < policy.min_per_class:
            broken.append(
                f"min_per_class: this site has {count} training images of '{name}', needed are "
                f"{policy.min_per_class} or none"
            )
    return broken


def _about_privacy(policy: PolicySection, facts: RequestFacts) -> list[str]:
    limits = {
        "epsilon_per_run": policy.epsilon_per_run,
        "epsilon_per_year": policy.epsilon_per_year,
    }
    wanted = ["require_privacy"] if policy.require_privacy else []
    wanted += [name for name, allowed in limits.items() if allowed is not None]
    asked = facts.privacy
    if asked is None:
        return [f"{' and '.join(wanted)}: it has no differential privacy"] if wanted else []
    broken = []
    if policy.privacy_unit == "patient" and asked.unit == "image":
        broken.append("privacy_unit: it protects single images, asked for is 'patient'")
    broken += [
        f"{name}: it asks for epsilon {asked.epsilon:g}, allowed is {allowed:g}"
        for name, allowed in limits.items()
        if allowed is not None and asked.epsilon > allowed
    ]
    # A limit on epsilon says nothing at a delta so large that it lets a patient's data through.
    if wanted and asked.delta > policy.delta:
        broken.append(f"delta: it asks for delta {asked.delta:g}, allowed is {policy.delta:g}")
    return broken


def _about_others(policy: PolicySection, facts: RequestFacts) -> list[str]:
    if not facts.secure_aggregation:
        if policy.require_secure_aggregation:
            return ["require_secure_aggregation: it would see this site's update alone"]
        return []
    if facts.other_sites is None or facts.other_sites < policy.min_other_sites:
        given = "it does not say how many" if facts.other_sites is None else f"{facts.other_sites}"
        return [
            f"min_other_sites: {given} other sites take part in secure aggregation, needed are "
            f"{policy.min_other_sites}"
        ]
    return []


def _about_personal(policy: PolicySection, facts: RequestFacts) -> list[str]:
    if not facts.personal:
        return []
    broken = []
    if not policy.allow_personal:
        broken.append("allow_personal: every site would get the sum of all sites' sums")
    others = facts.personal_others
    if facts.privacy is None and (others is None or others < policy.min_other_sites):
        given = "it does not say how many" if others is None else f"{others}"
        broken.append(
            f"min_other_sites: {given} other sites are in the sums that every site gets, needed "
            f"are {policy.min_other_sites}"
        )
    return broken


def _any_of(names: list[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)
