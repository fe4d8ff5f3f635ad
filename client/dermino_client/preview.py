"""What a run would take out of this building, and what the policy says to it, before it happens."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from flwr.app import RecordDict

from dermino_client.hospital import Hospital
from dermino_client.members import AUTHORITY_FILE
from dermino_client.membership import BUNDLE_FILE
from dermino_client.policy import PolicySection
from dermino_client.prepare import PreparedSite, load_prepared
from dermino_client.preview_rehearsal import first_request, rehearse
from dermino_client.site import Site
from dermino_client.spending import reserve
from dermino_core.errors import DerminoError
from dermino_core.privacy.accounting import epsilon
from dermino_core.privacy.plan import PrivacyPlan, PrivacyRequest
from dermino_strategies.base import Additive, Personalises, Private, SiteData, Strategy
from dermino_strategies.packing import parts_of
from dermino_strategies.protocol import Task, size_in_bytes
from dermino_strategies.registry import get_strategy

_REFUSALS = ("POLICY_REFUSED", "OUTSIDE_HOURS", "BUDGET_EXCEEDED")
_FEWEST_OTHERS = 2


@dataclass(frozen=True)
class Wish:
    """What a coordinator might ask for. `others` are names for the other sites."""

    strategy: str = "fedavg"
    settings: Mapping[str, object] = field(default_factory=dict)
    rounds: int = 2
    privacy: PrivacyRequest | None = None
    secure_aggregation: bool = False
    personal: bool = False
    others: Sequence[str] = ()
    statistics: bool = False
    seed: int = 0
    replicates: int = 1000


@dataclass(frozen=True)
class SentArray:
    """One array of a message, as it travels."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Sent:
    """One message that would leave. Statistics have round 0, the evaluation that after the last.

    `bytes` is the payload as `dermino_strategies.protocol.size_in_bytes` counts it, for the
    coordinator's report too.
    """

    round: int
    kind: str
    bytes: int
    arrays: tuple[SentArray, ...]
    fields: dict[str, object]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Cost:
    """What a private run costs: the plan, and epsilon of a round, the run and the year."""

    plan: PrivacyPlan
    epsilon_round: float
    epsilon_run: float
    year_delta: float
    year_before: float
    year_after: float


@dataclass(frozen=True)
class Preview:
    """The messages of a whole run, its privacy cost, and the policy's refusal if it refuses."""

    site: str
    messages: tuple[Sent, ...]
    cost: Cost | None
    refusal: DerminoError | None

    @property
    def bytes(self) -> int:
        """Payload of all messages together."""
        return sum(message.bytes for message in self.messages)


def preview(site: Site, wish: Wish) -> Preview:
    """Rehearse a run on this site's prepared data. Nothing is sent, nothing is kept.

    Where the policy refuses the run, the messages are those that would leave if it did not.

    Raises
    ------
    DerminoError
        `DATA_CHANGED` if the site is not prepared, `CONFIG_INVALID` for a method or setting that
        does not exist or a protection it cannot give, `ENROLMENT_INVALID` for secure aggregation
        before the site is enrolled.
    """
    prepared = load_prepared(site)
    strategy = get_strategy(wish.strategy, wish.settings)
    _check_protection(strategy, wish)
    others = list(wish.others) or _other_names(site, wish)
    task = _task(prepared, wish, len(others) + 1)
    with tempfile.TemporaryDirectory(prefix="dermino-preview-") as folder:
        strict = _hospital(site, prepared, site.policy, Path(folder) / "strict")
        lenient = _hospital(site, prepared, _lenient(site.policy), Path(folder) / "lenient")
        plan = _plan(strategy, prepared, task)
        refusal = _decision(strict, task, others, plan)
        cost = None if plan is None else _cost(site, lenient, task, plan)
        messages = tuple(
            _described(round_, content)
            for round_, content in rehearse(lenient, task, others, statistics=wish.statistics)
        )
    return Preview(site.name, messages, cost, refusal)


def _check_protection(strategy: Strategy, wish: Wish) -> None:
    if wish.privacy and not isinstance(strategy, Private):
        raise DerminoError("CONFIG_INVALID", f"{wish.strategy} cannot hold to a privacy budget.")
    if wish.secure_aggregation and not isinstance(strategy, Additive):
        raise DerminoError(
            "CONFIG_INVALID",
            f"{wish.strategy} needs each site's own update, which secure aggregation hides.",
        )
    if wish.personal and not isinstance(strategy, Personalises):
        raise DerminoError("CONFIG_INVALID", f"{wish.strategy} makes no personal models.")


def _task(prepared: PreparedSite, wish: Wish, sites: int) -> Task:
    return Task(
        run_id=uuid4().hex,
        name=prepared.task,
        classes=prepared.classes,
        backbone_fingerprint=prepared.backbone_fingerprint,
        width=prepared.width,
        strategy=wish.strategy,
        settings=dict(wish.settings),
        rounds=wish.rounds,
        seed=wish.seed,
        replicates=wish.replicates,
        privacy=wish.privacy,
        secure_aggregation=wish.secure_aggregation,
        personal=wish.personal,
        fewest_sites=sites if wish.personal else None,
    )


def _other_names(site: Site, wish: Wish) -> list[str]:
    """As many as sums over sites need; else none, as only their number could matter."""
    if not (wish.secure_aggregation or wish.personal):
        return []
    number = max(_FEWEST_OTHERS, site.policy.min_other_sites)
    return [f"other-site-{i + 1}" for i in range(number)]


def _lenient(policy: PolicySection) -> PolicySection:
    """A policy that refuses nothing, and is the same in what it keeps back."""
    return PolicySection(
        min_images=1,
        min_per_class=1,
        max_rounds=2**31,
        max_model_bytes=2**62,
        delta=policy.delta,
        min_other_sites=1,
        share_local_head=policy.share_local_head,
        share_statistics=policy.share_statistics,
        min_count=policy.min_count,
    )


def _hospital(site: Site, prepared: PreparedSite, policy: PolicySection, folder: Path) -> Hospital:
    """The site on a folder of its own, with a copy of its ledger and of its membership.

    The keys are not copied: a link leads to them. Whom the site has met before is left out, as
    the other sites are made up.
    """
    folder.mkdir(mode=0o700)
    for name in (BUNDLE_FILE, AUTHORITY_FILE):
        if (site.folder / name).is_file():
            shutil.copyfile(site.folder / name, folder / name)
    if (site.folder / "ledger").is_dir():
        shutil.copytree(site.folder / "ledger", folder / "ledger")
    (folder / "keys").symlink_to(site.folder / "keys")
    return Hospital(site.name, policy, folder, lambda: prepared)


def _plan(strategy: Strategy, prepared: PreparedSite, task: Task) -> PrivacyPlan | None:
    if task.privacy is None or not isinstance(strategy, Private):
        return None
    features, labels, groups = prepared.half("train")
    data = SiteData(prepared.name, features, labels, len(prepared.classes), groups=tuple(groups))
    return strategy.privacy_plan(data, task.privacy, task.rounds)


def _decision(
    hospital: Hospital, task: Task, others: list[str], plan: PrivacyPlan | None
) -> DerminoError | None:
    """What the site would refuse the first request for; None if it would answer."""
    work, content = first_request(hospital.name, task, others)
    try:
        work.admit(content, hospital, datetime.now(UTC))
        if plan is not None:
            reserve(hospital, task, plan)
    except DerminoError as error:
        if error.code not in _REFUSALS:
            raise
        return error
    return None


def _cost(site: Site, hospital: Hospital, task: Task, plan: PrivacyPlan) -> Cost:
    """Reserve the run in the copy of the ledger and read it."""
    delta, now = site.policy.delta, datetime.now(UTC)
    before = hospital.ledger.spent(now, delta)
    run = reserve(hospital, task, plan)
    return Cost(
        plan=plan,
        epsilon_round=epsilon([plan.per_round], plan.request.delta),
        epsilon_run=run.epsilon,
        year_delta=delta,
        year_before=before,
        year_after=hospital.ledger.spent(datetime.now(UTC), delta),
    )


def _described(round_: int, content: RecordDict) -> Sent:
    body = content.config_records["body"]
    arrays = tuple(
        SentArray(f"{group}/{part.name}", part.dtype, part.shape, len(part.data))
        for group, record in content.array_records.items()
        for part in parts_of(record)
    )
    metrics = {
        name: float(value)  # type: ignore[arg-type]
        for record in content.metric_records.values()
        for name, value in record.items()
    }
    return Sent(
        round=round_,
        kind=str(body["kind"]),
        bytes=size_in_bytes(content),
        arrays=arrays,
        fields=json.loads(str(body["json"])),
        metrics=metrics,
    )
