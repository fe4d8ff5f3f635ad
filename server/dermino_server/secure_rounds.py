"""A round, or the final evaluation, as one secure sum: five exchanges instead of one.

The coordinator sees who takes part, sizes and times, and the sum over at least a threshold of
sites; see `dermino_strategies.secure_aggregation`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import RecordDict
from flwr.serverapp import Grid

from dermino_core.certificate_checks import read_certificate
from dermino_core.errors import CODES, DerminoError
from dermino_core.results import Rejection, Results, RoundRecord, SitePrivacy, Transfer
from dermino_server.checkpoint import RunState
from dermino_server.exchange import Exchange, SiteFinder
from dermino_server.outcome import build_secure_results
from dermino_server.personal import personal_arrays, totals_for
from dermino_server.plan import RunPlan
from dermino_strategies.base import Additive, Arrays, Strategy
from dermino_strategies.packing import pack_arrays
from dermino_strategies.protocol import (
    SecureReply,
    SecureRequest,
    bound_arrays,
    pack,
    read_arrays,
    size_in_bytes,
    unpack,
)
from dermino_strategies.registry import get_strategy
from dermino_strategies.secure_aggregation import messages
from dermino_strategies.secure_aggregation.coordinator import Coordinator
from dermino_strategies.secure_aggregation.session import Session, default_threshold, task_digest
from dermino_strategies.secure_evaluation import (
    evaluation_like,
    evaluation_limits,
    read_sums,
)

log = logging.getLogger("dermino.server")

ATTEMPTS = 3
"""How often a sum is begun again with the sites that are left, before one was confirmed."""

Step = Literal["train", "evaluate"]
REPLIES: dict[str, type[messages.Reply]] = {
    "keys": messages.KeysReply,
    "shares": messages.SharesReply,
    "masked": messages.MaskedReply,
    "confirm": messages.ConfirmReply,
    "unmask": messages.UnmaskReply,
}


class _AsAdvertised:
    """The coordinator needs no trust of its own: a false identity is refused by every site."""

    def identity_key(self, name: str, certificate: str) -> Ed25519PublicKey:
        """The key that the certificate holds."""
        key = read_certificate(certificate).public_key()
        if not isinstance(key, Ed25519PublicKey):
            raise DerminoError("MEMBER_UNKNOWN", f"The certificate of '{name}' is not a member's.")
        return key


@dataclass
class _Sum:
    """What a secure sum gave, and what it cost."""

    total: Arrays = field(default_factory=dict)
    sites: list[str] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    to_site: dict[str, int] = field(default_factory=dict)
    from_site: dict[str, int] = field(default_factory=dict)
    messages: Counter[str] = field(default_factory=Counter)

    def transfers(self) -> list[Transfer]:
        """Bytes per site over all stages. How long a site computed is not told."""
        return [
            Transfer(
                site=site,
                seconds=0.0,
                bytes_to_site=self.to_site[site],
                bytes_from_site=self.from_site.get(site, 0),
                messages=self.messages[site],
            )
            for site in sorted(self.to_site)
        ]


def secure_train_round(
    grid: Grid, finder: SiteFinder, plan: RunPlan, strategy: Strategy, state: RunState
) -> None:
    """One round of training; the state gets the new arrays and the round's record.

    Raises
    ------
    DerminoError
        `QUORUM_LOST`; `SECURE_ABORTED` if too few sites stayed, by name and stage.
    """
    if not isinstance(strategy, Additive):
        raise DerminoError("CONFIG_INVALID", f"{strategy.name} does not only add.")
    start = time.monotonic()
    round_ = state.round + 1
    limits, like = strategy.summand_limits(state.arrays), strategy.summand_like(state.arrays)
    result = _secure_sum(grid, finder, plan, state, "train", round_, limits, like)
    state.arrays = strategy.from_sum(state.arrays, result.total)
    state.round = round_
    if plan.privacy is not None:
        asked = plan.privacy
        promised = SitePrivacy(epsilon=asked.epsilon, delta=asked.delta, unit=asked.unit)
        state.privacy |= dict.fromkeys(result.sites, promised)
    examples = None if plan.privacy else result.total.get("examples")
    state.records.append(
        RoundRecord(
            round=round_,
            kind="train",
            seconds=time.monotonic() - start,
            sites=result.sites,
            rejected=result.rejected,
            transfers=result.transfers(),
            examples_total=None if examples is None else round(float(examples[0])),
        )
    )
    log.info("round %d of %d: the sum over %s", round_, plan.rounds, ", ".join(result.sites))


def secure_final_evaluation(
    grid: Grid, finder: SiteFinder, plan: RunPlan, state: RunState
) -> Results:
    """The means over the sites, from a secure sum of their evaluations.

    Raises
    ------
    DerminoError
        As :func:`secure_train_round`.
    """
    start = time.monotonic()
    models, classes = plan.for_sites().models, plan.classes
    limits, like = evaluation_limits(models, len(classes)), evaluation_like(models, len(classes))
    result = _secure_sum(grid, finder, plan, state, "evaluate", plan.rounds + 1, limits, like)
    state.records.append(
        RoundRecord(
            round=plan.rounds + 1,
            kind="evaluate",
            seconds=time.monotonic() - start,
            sites=result.sites,
            rejected=result.rejected,
            transfers=result.transfers(),
        )
    )
    sums = read_sums(result.total, sites=len(result.sites), models=models, classes=classes)
    return build_secure_results(plan, state, sums, result.sites)


def _secure_sum(
    grid: Grid,
    finder: SiteFinder,
    plan: RunPlan,
    state: RunState,
    step: Step,
    round_: int,
    limits: Mapping[str, float],
    like: Arrays,
) -> _Sum:
    """Try until there is a sum, or a site was asked to confirm one."""
    result = _Sum()
    length = sum(array.size for array in like.values())
    away = set(state.away)
    for attempt in range(1, ATTEMPTS + 1):
        nodes, missing = finder.wait_for(
            plan.sites, quorum=plan.min_sites, seconds=plan.wait_seconds, away=away
        )
        if attempt == 1:
            result.rejected += [_not_connected(site) for site in missing]
        invited = {site: node for site, node in nodes.items() if site not in away or attempt == 1}
        if len(invited) < plan.min_sites:
            invited = nodes
        session = _session(plan, state, step, round_, attempt, len(invited))
        coordinator = Coordinator(session, invited, _AsAdvertised(), limits=limits, like=like)
        try:
            _stages(grid, plan, state, coordinator, invited, step, round_, length, result)
        except DerminoError as error:
            if error.code != "SECURE_ABORTED" or not coordinator.repeatable or attempt == ATTEMPTS:
                raise
            log.warning("%s Beginning again with those that are left.", error.what)
            away |= set(coordinator.lost)
            continue
        result.total, result.sites = coordinator.total(), coordinator.participants
        return result
    raise DerminoError("SECURE_ABORTED", f"No sum came of {ATTEMPTS} attempts.")


def _not_connected(site: str) -> Rejection:
    return Rejection(site=site, code="NOT_CONNECTED", sentence=CODES["NOT_CONNECTED"].safe_sentence)


def _session(
    plan: RunPlan, state: RunState, step: Step, round_: int, attempt: int, sites: int
) -> Session:
    return Session(
        run=plan.run_id,
        round=round_,
        purpose=step,
        # Seconds, so that it is later than any attempt before an interruption.
        attempt=int(time.time()) + attempt,
        task_digest=task_digest(
            plan.for_sites().model_dump_json(),
            bound_arrays(_sent(plan, state), _personal(plan, state, step)),
        ),
        threshold=plan.threshold or default_threshold(sites),
    )


def _sent(plan: RunPlan, state: RunState) -> Arrays:
    return get_strategy(plan.strategy, plan.settings).for_sites(state.arrays)


def _personal(plan: RunPlan, state: RunState, step: Step) -> Arrays:
    """What the sites are sent for models of their own: with the evaluation only."""
    strategy = get_strategy(plan.strategy, plan.settings)
    return personal_arrays(plan, strategy, state) if step == "evaluate" else {}


def _stages(
    grid: Grid,
    plan: RunPlan,
    state: RunState,
    coordinator: Coordinator,
    nodes: Mapping[str, int],
    step: Step,
    round_: int,
    length: int,
    result: _Sum,
) -> None:
    arrays = pack_arrays(_sent(plan, state))
    given = _personal(plan, state, step)
    personal = pack_arrays(given) if given else None
    while (stage := coordinator.stage) not in ("done", "aborted"):
        contents: dict[str, RecordDict] = {}
        for site, request in coordinator.requests().items():
            told = stage == "masked" and personal is not None
            contents[site] = pack(
                SecureRequest(
                    task=plan.for_sites(),
                    round=round_,
                    step=step,
                    stage=stage,
                    request=request.model_dump_json(),
                    totals=totals_for(plan, state, site) if told else None,
                )
            )
            if stage == "masked":
                contents[site]["arrays"] = arrays
                if personal is not None:
                    contents[site]["personal"] = personal
            sent = result.to_site.get(site, 0) + size_in_bytes(contents[site])
            result.to_site[site] = sent
            result.messages[site] += 1
        outcome = Exchange(
            grid,
            "train.secure",
            contents,
            {site: nodes[site] for site in contents},
            read=lambda site, content: _receive(coordinator, length, site, content),
            deadline=plan.deadline_seconds,
            quorum=coordinator.session.threshold,
            group=f"{step}-{round_}-{stage}",
        ).wait()
        result.rejected += outcome.rejected
        for site, size in outcome.bytes_from_site.items():
            result.from_site[site] = result.from_site.get(site, 0) + size
        coordinator.advance()
        if stage == "masked" and len(coordinator.participants) < plan.min_sites:
            raise DerminoError(
                "QUORUM_LOST",
                f"{len(coordinator.participants)} sites sent a usable part, at least "
                f"{plan.min_sites} are needed; nothing was unmasked.",
                fix="Ask the others to come back, then continue with --resume.",
            )


def _receive(coordinator: Coordinator, length: int, site: str, content: RecordDict) -> None:
    stage = coordinator.stage
    if stage in ("done", "aborted"):
        raise ValueError("it answers though nobody waits for it")
    body = unpack(content, SecureReply)
    if body.stage != stage:
        raise ValueError(f"it answers the stage '{body.stage}', not '{stage}'")
    reply = REPLIES[stage].model_validate_json(body.reply)
    vector = None
    if isinstance(reply, messages.MaskedReply):
        like = {"vector": np.zeros(length, np.uint64)}
        vector = read_arrays(content, "masked", like)["vector"]
    coordinator.receive(site, reply, vector)
