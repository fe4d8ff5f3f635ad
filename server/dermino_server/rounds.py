"""The rounds of a federation, read top to bottom: train, aggregate, checkpoint; then evaluate."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import RecordDict
from flwr.serverapp import Grid

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.results import Results, RoundRecord, Transfer
from dermino_server.checkpoint import RunState, latest_checkpoint, write_checkpoint
from dermino_server.exchange import Outcome, SiteFinder, exchange, require_quorum
from dermino_server.outcome import build_results, save_run
from dermino_server.plan import RunPlan
from dermino_strategies.base import SiteUpdate, Strategy
from dermino_strategies.protocol import (
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
    arrays_of,
    pack,
    size_in_bytes,
    unpack,
    unpack_update,
)
from dermino_strategies.registry import get_strategy

log = logging.getLogger("dermino.server")


def run_rounds(grid: Grid, plan: RunPlan, folder: Path, *, resume: bool = False) -> Results:
    """Run a plan to its end and write its run folder.

    With `resume` the run goes on after its newest checkpoint; what comes out is bit for bit what
    an uninterrupted run gives, because a round depends on nothing but the plan, its number and
    the arrays it starts from.

    Raises
    ------
    DerminoError
        `QUORUM_LOST` naming the sites that are missing; `CHECKPOINT_INVALID`; `CONFIG_INVALID`.
    """
    strategy = get_strategy(plan.strategy, plan.settings)
    state = (latest_checkpoint(folder, plan.digest()) if resume else None) or RunState(
        strategy.initial_arrays(len(plan.classes), plan.backbone.width, plan.seed)
    )
    if resume:
        log.info("continuing after round %d of %d", state.round, plan.rounds)
    finder = SiteFinder(grid, ask_names=plan.engine == "ray")
    while state.round < plan.rounds:
        _train_round(grid, finder, plan, strategy, state)
        write_checkpoint(folder, plan.digest(), state)
        _write_metrics(folder, state)
    replies = _final_evaluation(grid, finder, plan, state)
    _write_metrics(folder, state)
    results = build_results(plan, state, replies)
    save_run(folder, plan, results, strategy.head(state.arrays))
    return results


def _train_round(
    grid: Grid, finder: SiteFinder, plan: RunPlan, strategy: Strategy, state: RunState
) -> None:
    start = time.monotonic()
    round_ = state.round + 1
    nodes, missing = _sites(finder, plan, state)
    contents = {}
    for site in nodes:
        ask_head = plan.cross_site and site not in state.local_heads
        body = TrainRequest(task=plan.for_sites(), round=round_, send_local_head=ask_head)
        contents[site] = pack(body, {"arrays": state.arrays})
    outcome = exchange(
        grid, "train", contents, nodes, deadline=plan.deadline_seconds, group=str(round_)
    )
    sizes = {site: size_in_bytes(content) for site, content in outcome.replies.items()}
    replies, updates = _checked_updates(plan, strategy, state, outcome)
    _note_missing(outcome, missing)
    require_quorum(outcome, plan.min_sites, f"Round {round_} of {plan.rounds}")
    if state.records:
        _complete(state.records[-1], {s: (r.auroc_before, r.f1_before) for s, r in replies.items()})
    state.arrays = strategy.aggregate(state.arrays, updates)
    state.round = round_
    state.records.append(
        RoundRecord(
            round=round_,
            kind="train",
            seconds=time.monotonic() - start,
            sites=sorted(updates),
            rejected=outcome.rejected,
            transfers=_transfers(contents, sizes, replies),
            train_loss={
                site: update.metrics["train-loss"]
                for site, update in sorted(updates.items())
                if "train-loss" in update.metrics
            },
        )
    )
    log.info("round %d of %d: %s", round_, plan.rounds, ", ".join(sorted(updates)))


def _sites(finder: SiteFinder, plan: RunPlan, state: RunState) -> tuple[dict[str, int], list[str]]:
    """Who takes part now. Whoever was missing before is welcome, but not waited for again."""
    gone = {r.site for r in state.records[-1].rejected} if state.records else set()
    waited_for = [site for site in plan.sites if site not in gone]
    nodes, missing = finder.wait_for(
        waited_for,
        quorum=min(plan.min_sites, len(waited_for) or plan.min_sites),
        seconds=plan.wait_seconds,
    )
    here = finder.connected()
    nodes |= {site: here[site] for site in gone if site in here}
    return nodes, missing + sorted(site for site in gone if site not in here)


def _note_missing(outcome: Outcome, missing: list[str]) -> None:
    for site in missing:
        outcome.reject(site, "NOT_CONNECTED")


def _checked_updates(
    plan: RunPlan, strategy: Strategy, state: RunState, outcome: Outcome
) -> tuple[dict[str, TrainReply], dict[str, SiteUpdate]]:
    """Keep the replies that may enter the model; reject the others by name."""
    replies: dict[str, TrainReply] = {}
    updates: dict[str, SiteUpdate] = {}
    for site, content in list(outcome.replies.items()):
        try:
            reply, update = unpack(content, TrainReply), unpack_update(content)
            _same_classes(reply.classes, plan.classes)
            strategy.check_update(state.arrays, update)
            if local := arrays_of(content, "local"):
                strategy.check_update(state.arrays, SiteUpdate(local, examples=1))
                state.local_heads[site] = local
        except (DerminoError, ValueError) as error:
            what = error.what if isinstance(error, DerminoError) else str(error)
            outcome.reject(site, "REPLY_INVALID", f"Its reply is not usable: {what}.")
            continue
        replies[site], updates[site] = reply, update
    return replies, updates


def _same_classes(of_site: list[str], of_plan: list[str]) -> None:
    if of_site != of_plan:
        raise ValueError(f"its classes are {of_site}, not {of_plan}")


def _transfers(
    contents: Mapping[str, RecordDict],
    sizes: Mapping[str, int],
    replies: Mapping[str, TrainReply | EvaluateReply],
) -> list[Transfer]:
    """What each site was sent and sent back; a reply that was rejected left its building too."""
    return [
        Transfer(
            site=site,
            seconds=replies[site].seconds if site in replies else 0.0,
            bytes_to_site=size_in_bytes(contents[site]),
            bytes_from_site=sizes.get(site, 0),
        )
        for site in sorted(contents)
    ]


def _complete(record: RoundRecord, scores: Mapping[str, tuple[float | None, float | None]]) -> None:
    """The model after a round is evaluated in the next exchange: file it where it belongs."""
    record.auroc = {site: auroc for site, (auroc, _) in sorted(scores.items())}
    record.f1 = {site: f1 for site, (_, f1) in sorted(scores.items())}


def _final_evaluation(
    grid: Grid, finder: SiteFinder, plan: RunPlan, state: RunState
) -> dict[str, EvaluateReply]:
    start = time.monotonic()
    nodes, missing = _sites(finder, plan, state)
    heads = sorted(state.local_heads)
    content = pack(
        EvaluateRequest(task=plan.for_sites(), heads=heads),
        {"arrays": state.arrays} | {f"head.{site}": state.local_heads[site] for site in heads},
    )
    contents = dict.fromkeys(nodes, content)
    outcome = exchange(
        grid, "evaluate", contents, nodes, deadline=plan.deadline_seconds, group="evaluate"
    )
    sizes = {site: size_in_bytes(reply) for site, reply in outcome.replies.items()}
    replies: dict[str, EvaluateReply] = {}
    for site, reply in list(outcome.replies.items()):
        try:
            body = unpack(reply, EvaluateReply)
            _same_classes(body.classes, plan.classes)
            replies[site] = body
        except (DerminoError, ValueError) as error:
            what = error.what if isinstance(error, DerminoError) else str(error)
            outcome.reject(site, "REPLY_INVALID", f"Its evaluation is not usable: {what}.")
    _note_missing(outcome, missing)
    require_quorum(outcome, plan.min_sites, "The final evaluation")
    final = {
        site: (r.evaluations["global"].auroc.value, r.evaluations["global"].f1.value)
        for site, r in replies.items()
    }
    _complete(state.records[-1], final)
    record = RoundRecord(
        round=plan.rounds + 1,
        kind="evaluate",
        seconds=time.monotonic() - start,
        sites=sorted(replies),
        rejected=outcome.rejected,
        transfers=_transfers(contents, sizes, replies),
    )
    state.records.append(record)
    return replies


def _write_metrics(folder: Path, state: RunState) -> None:
    """`metrics.jsonl`, one line per exchange; small, so it is written whole each time."""
    lines = [json.dumps(record.model_dump(), sort_keys=True) for record in state.records]
    write_atomically(folder / "metrics.jsonl", "".join(line + "\n" for line in lines))
