"""A run with this site's own data and code, of which nothing leaves: what each message would hold.

The same functions answer as in a real run, in a folder that is removed afterwards. The coordinator
is played; the other sites of secure aggregation have made-up names and add zeros.
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
from dermino_core.errors import DerminoError
from dermino_core.heads import LinearHead
from dermino_strategies.base import Additive, Arrays
from dermino_strategies.protocol import (
    EvaluateRequest,
    SecureReply,
    SecureRequest,
    Task,
    TrainRequest,
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
    arrays = _initial_arrays(task)
    if not task.secure_aggregation:
        return TRAIN, _train_request(task, 1, arrays)
    session = _session(task, "train", 1, arrays, len(others) + 1)
    invited = messages.KeysRequest(session=session, invited=sorted([name, *others]))
    return SECURE, _secure_request(task, session, "keys", invited, {})


def rehearse(hospital: Hospital, task: Task, others: Sequence[str]) -> Leaving:
    """Go through a whole run as the only site whose data counts.

    Parameters
    ----------
    hospital
        With a folder of its own: what a run writes is written there. Under secure aggregation the
        folder must be that of an enrolled site, or a copy.
    others
        Names of the other sites.

    Raises
    ------
    DerminoError
        Whatever the site refuses a request for.
    """
    arrays = _initial_arrays(task)
    if task.secure_aggregation:
        yield from _secure_run(hospital, task, others, arrays)
    else:
        yield from _plain_run(hospital, task, others, arrays)


def _initial_arrays(task: Task) -> Arrays:
    strategy = get_strategy(task.strategy, task.settings)
    return strategy.for_sites(strategy.initial_arrays(len(task.classes), task.width, task.seed))


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
        content = _ask(TRAIN, _train_request(task, round_, arrays), hospital)
        yield round_, content
        if "local" in content.array_records:
            # No other site's head is here: this site's own has the same size.
            own = read_arrays(
                content, "local", LinearHead.arrays_like(len(task.classes), task.width)
            )
            heads = dict.fromkeys(sorted([hospital.name, *others]), own)
        update = unpack_update(content, strategy.update_like(arrays))
        arrays = strategy.aggregate(arrays, {hospital.name: update})
    named = {f"head.{name}": head for name, head in heads.items()}
    request = EvaluateRequest(task=task, heads=list(heads))
    yield task.rounds + 1, _ask(EVALUATE, pack(request, {"arrays": arrays} | named), hospital)


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
    task: Task, session: Session, stage: Stage, request: messages.Request, arrays: Arrays
) -> RecordDict:
    body = SecureRequest(
        task=task,
        round=session.round,
        step=session.purpose,
        stage=stage,
        request=request.model_dump_json(),
    )
    return pack(body, {"arrays": arrays} if stage == "masked" else None)


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
        session = _session(task, step, round_, arrays, len(names))
        coordinator = Coordinator(session, names, self.members, limits=self.limits, like=self.like)
        while (stage := coordinator.stage) not in ("done", "aborted"):
            for name, request in coordinator.requests().items():
                if name != hospital.name:
                    coordinator.receive(name, *self._made_up(name, request))
                    continue
                content = _ask(
                    SECURE, _secure_request(task, session, stage, request, arrays), hospital
                )
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
