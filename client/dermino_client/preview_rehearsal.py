"""A run with this site's own data and code, of which nothing leaves: what each message would hold.

The same functions answer as in a real run, in a folder that is removed afterwards. The coordinator
is played. The other sites have made-up names; in secure aggregation they add zeros, else they send
what this site sends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from flwr.app import RecordDict

from dermino_client.app import EVALUATE, TRAIN
from dermino_client.desk import Work
from dermino_client.hospital import Hospital
from dermino_client.members import pin_keys
from dermino_client.membership import own_identity
from dermino_client.secure_work import SECURE
from dermino_client.statistics import STATISTICS
from dermino_core.errors import CODES, DerminoError
from dermino_core.heads import LinearHead
from dermino_core.site_statistics import FEWEST_COUNT
from dermino_strategies.base import Additive, Arrays, Personalises
from dermino_strategies.protocol import (
    EvaluateRequest,
    Refusal,
    SecureReply,
    SecureRequest,
    StatisticsRequest,
    Task,
    Totals,
    TrainRequest,
    bound_arrays,
    named_heads,
    pack,
    read_arrays,
    unpack,
    unpack_update,
)
from dermino_strategies.registry import get_strategy
from dermino_strategies.secure_aggregation import messages
from dermino_strategies.secure_aggregation.coordinator import Coordinator
from dermino_strategies.secure_aggregation.identity import Identity, PinnedMembers
from dermino_strategies.secure_aggregation.ring import Vector
from dermino_strategies.secure_aggregation.session import Session, default_threshold, task_digest
from dermino_strategies.secure_aggregation.site import SecureSite
from dermino_strategies.secure_aggregation.store import MemoryStore
from dermino_strategies.secure_evaluation import evaluation_like, evaluation_limits

Step = Literal["train", "evaluate"]
Stage = Literal["keys", "shares", "masked", "confirm", "unmask"]
Leaving = Iterator[tuple[int, RecordDict]]
"""Round (the evaluation comes one after the last) and content of each message that leaves."""

_REPLIES: dict[str, type[messages.Reply]] = {
    "keys": messages.KeysReply,
    "shares": messages.SharesReply,
    "masked": messages.MaskedReply,
    "confirm": messages.ConfirmReply,
    "unmask": messages.UnmaskReply,
}


def first_request(name: str, task: Task, others: Sequence[str]) -> tuple[Work[Any], RecordDict]:
    """The request that a run begins with, and the work that answers it.

    Parameters
    ----------
    name, others
        This site and the other ones.
    """
    strategy = get_strategy(task.strategy, task.settings)
    arrays = strategy.for_sites(_initial_arrays(task))
    if not task.secure_aggregation:
        return TRAIN, _train_request(task, 1, arrays)
    session = _session(task, "train", 1, arrays, len(others) + 1)
    invited = messages.KeysRequest(session=session, invited=sorted([name, *others]))
    return SECURE, _secure_request(task, session, "keys", invited, {})


def rehearse(
    hospital: Hospital, task: Task, others: Sequence[str], *, statistics: bool = False
) -> Leaving:
    """Go through a whole run as the only site whose data counts.

    Parameters
    ----------
    hospital
        With a folder of its own: what a run writes is written there. Under secure aggregation the
        folder must be that of an enrolled site, or a copy.
    others
        Names of the other sites.
    statistics
        Whether the run asks for them before its first round; the message has the round 0.

    Raises
    ------
    DerminoError
        Whatever the site refuses a request for, but for the statistics: the run goes on.
    """
    if statistics:
        yield 0, _statistics(hospital, task)
    arrays = _initial_arrays(task)
    if task.secure_aggregation:
        yield from _secure_run(hospital, task, others, arrays)
    else:
        yield from _plain_run(hospital, task, others, arrays)


def _statistics(hospital: Hospital, task: Task) -> RecordDict:
    content = pack(StatisticsRequest(task=task, min_count=FEWEST_COUNT))
    try:
        return _ask(STATISTICS, content, hospital)
    except DerminoError as error:
        return pack(Refusal(code=error.code, sentence=CODES[error.code].safe_sentence))


def _initial_arrays(task: Task) -> Arrays:
    strategy = get_strategy(task.strategy, task.settings)
    return strategy.initial_arrays(len(task.classes), task.width, task.seed)


def _ask(work: Work[Any], content: RecordDict, hospital: Hospital) -> RecordDict:
    request = work.admit(content, hospital, datetime.now(UTC))
    return work.answer(request, content, hospital).content


def _train_request(task: Task, round_: int, arrays: Arrays) -> RecordDict:
    """With the question for the site's own head where a coordinator may ask for it: once."""
    asks = round_ == 1 and task.privacy is None
    return pack(TrainRequest(task=task, round=round_, send_local_head=asks), {"arrays": arrays})


def _plain_run(hospital: Hospital, task: Task, others: Sequence[str], arrays: Arrays) -> Leaving:
    strategy = get_strategy(task.strategy, task.settings)
    heads: dict[str, Arrays] = {}
    for round_ in range(1, task.rounds + 1):
        request = _train_request(task, round_, strategy.for_sites(arrays))
        content = _ask(TRAIN, request, hospital)
        yield round_, content
        if "local" in content.array_records:
            # No other site's head is here: this site's own has the same size.
            own = read_arrays(
                content, "local", LinearHead.arrays_like(len(task.classes), task.width)
            )
            heads = dict.fromkeys(sorted([hospital.name, *others]), own)
        update = unpack_update(content, strategy.update_like(arrays))
        arrays = strategy.aggregate(arrays, dict.fromkeys([hospital.name, *others], update))
    groups = {"arrays": strategy.for_sites(arrays)} | _personal(task, arrays)
    if heads:
        groups["heads"] = named_heads(heads)
    request = EvaluateRequest(task=task, heads=list(heads), totals=_totals(task, others))
    yield task.rounds + 1, _ask(EVALUATE, pack(request, groups), hospital)


def _personal(task: Task, arrays: Arrays) -> dict[str, Arrays]:
    """The group of arrays for models of the sites' own; none where the run makes none."""
    strategy = get_strategy(task.strategy, task.settings)
    if not (task.personal and isinstance(strategy, Personalises)):
        return {}
    return {"personal": strategy.for_personal(arrays)}


def _totals(task: Task, others: Sequence[str]) -> Totals | None:
    return Totals(sites=len(others) + 1, with_yours=True) if task.personal else None


def _session(task: Task, step: Step, round_: int, arrays: Arrays, sites: int) -> Session:
    return Session(
        run=task.run_id,
        round=round_,
        purpose=step,
        attempt=int(time.time()),
        task_digest=task_digest(task.model_dump_json(), arrays),
        threshold=default_threshold(sites),
    )


def _secure_request(
    task: Task,
    session: Session,
    stage: Stage,
    request: messages.Request,
    groups: dict[str, Arrays],
    totals: Totals | None = None,
) -> RecordDict:
    body = SecureRequest(
        task=task,
        round=session.round,
        step=session.purpose,
        stage=stage,
        request=request.model_dump_json(),
        totals=totals if stage == "masked" else None,
    )
    return pack(body, groups if stage == "masked" else None)


def _secure_run(hospital: Hospital, task: Task, others: Sequence[str], arrays: Arrays) -> Leaving:
    strategy = get_strategy(task.strategy, task.settings)
    if not isinstance(strategy, Additive):
        raise DerminoError(
            "REQUEST_MISMATCH", f"{task.strategy} does not work under secure aggregation."
        )
    key, _ = own_identity(hospital.folder)
    identities = {name: Identity.generate(name) for name in others}
    public = {name: identity.public_key for name, identity in identities.items()}
    pin_keys(hospital.folder, public)
    members = PinnedMembers(public | {hospital.name: key.public_key()})
    sites = {n: SecureSite(i, members, MemoryStore()) for n, i in identities.items()}
    for round_ in range(1, task.rounds + 1):
        sum_ = _Sum(strategy.summand_limits(arrays), strategy.summand_like(arrays), members, sites)
        yield from sum_.stages(hospital, task, "train", round_, arrays)
        arrays = strategy.from_sum(arrays, sum_.total)
    models, classes = task.models, len(task.classes)
    limits, like = evaluation_limits(models, classes), evaluation_like(models, classes)
    last = _Sum(limits, like, members, sites)
    yield from last.stages(hospital, task, "evaluate", task.rounds + 1, arrays)


@dataclass
class _Sum:
    """One secure sum of this site's real half and of made-up sites that add zeros."""

    limits: Mapping[str, float]
    like: Arrays
    members: PinnedMembers
    sites: Mapping[str, SecureSite]
    total: Arrays = field(default_factory=dict)

    def stages(
        self, hospital: Hospital, task: Task, step: Step, round_: int, arrays: Arrays
    ) -> Leaving:
        """What this site sends at each stage; afterwards `total` is the sum."""
        names = sorted([hospital.name, *self.sites])
        strategy = get_strategy(task.strategy, task.settings)
        sent = {"arrays": strategy.for_sites(arrays)}
        sent |= _personal(task, arrays) if step == "evaluate" else {}
        bound = bound_arrays(sent["arrays"], sent.get("personal", {}))
        session = _session(task, step, round_, bound, len(names))
        coordinator = Coordinator(session, names, self.members, limits=self.limits, like=self.like)
        while (stage := coordinator.stage) not in ("done", "aborted"):
            for name, request in coordinator.requests().items():
                if name != hospital.name:
                    coordinator.receive(name, *self._made_up(name, request))
                    continue
                totals = _totals(task, list(self.sites)) if "personal" in sent else None
                asked = _secure_request(task, session, stage, request, sent, totals)
                content = _ask(SECURE, asked, hospital)
                yield round_, content
                coordinator.receive(name, *self._received(content))
            coordinator.advance()
        self.total = coordinator.total()

    def _received(self, content: RecordDict) -> tuple[messages.Reply, Vector | None]:
        body = unpack(content, SecureReply)
        reply = _REPLIES[body.stage].model_validate_json(body.reply)
        if not isinstance(reply, messages.MaskedReply):
            return reply, None
        like = {"vector": np.zeros(sum(array.size for array in self.like.values()), np.uint64)}
        return reply, read_arrays(content, "masked", like)["vector"]

    def _made_up(
        self, name: str, request: messages.Request
    ) -> tuple[messages.Reply, Vector | None]:
        site = self.sites[name]
        if isinstance(request, messages.KeysRequest):
            return site.keys(request), None
        if isinstance(request, messages.SharesRequest):
            return site.shares(request), None
        if isinstance(request, messages.ConfirmRequest):
            return site.confirm(request), None
        if isinstance(request, messages.UnmaskRequest):
            return site.unmask(request), None
        if not isinstance(request, messages.MaskedRequest):
            raise TypeError(f"not a stage of secure aggregation: {type(request).__name__}")
        return site.masked(
            request,
            lambda: self.like,
            limits=self.limits,
            like=self.like,
            task_digest=request.session.task_digest,
        )
