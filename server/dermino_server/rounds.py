"""The rounds of a federation, read top to bottom: train, aggregate, checkpoint; then evaluate."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flwr.app import RecordDict
from flwr.serverapp import Grid

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.results import Results, RoundRecord, Transfer
from dermino_server.checkpoint import RunState, latest_checkpoint, write_checkpoint
from dermino_server.exchange import Outcome, SiteFinder, exchange, require_quorum
from dermino_server.outcome import SITE_MODELS, build_results, save_run
from dermino_server.plan import RunPlan
from dermino_strategies.base import Arrays, SiteUpdate, Strategy, check_arrays
from dermino_strategies.protocol import (
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
    pack,
    read_arrays,
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
        grid,
        "train",
        contents,
        nodes,
        deadline=plan.deadline_seconds,
        quorum=plan.min_sites,
        group=str(round_),
        away=state.away,
    )
    sizes = {site: size_in_bytes(content) for site, content in outcome.replies.items()}
    checked = _usable(outcome, lambda content: _read_update(plan, strategy, state, content))
    for site in missing:
        outcome.reject(site, "NOT_CONNECTED")
    require_quorum(outcome, plan.min_sites, f"Round {round_} of {plan.rounds}")
    if state.records:
        scores = {s: (c.reply.auroc_before, c.reply.f1_before) for s, c in checked.items()}
        _complete(state.records[-1], scores)
    state.local_heads |= {s: c.local for s, c in checked.items() if c.local is not None}
    updates = {site: c.update for site, c in checked.items()}
    state.arrays = strategy.aggregate(state.arrays, updates)
    state.round = round_
    state.records.append(
        RoundRecord(
            round=round_,
            kind="train",
            seconds=time.monotonic() - start,
            sites=sorted(updates),
            rejected=outcome.rejected,
            transfers=_transfers(contents, sizes, {s: c.reply for s, c in checked.items()}),
            examples={site: updates[site].examples for site in sorted(updates)},
            train_loss={
                site: updates[site].metrics["train-loss"]
                for site in sorted(updates)
                if "train-loss" in updates[site].metrics
            },
        )
    )
    log.info("round %d of %d: %s", round_, plan.rounds, ", ".join(sorted(updates)))


def _sites(finder: SiteFinder, plan: RunPlan, state: RunState) -> tuple[dict[str, int], list[str]]:
    return finder.wait_for(
        plan.sites, quorum=plan.min_sites, seconds=plan.wait_seconds, away=state.away
    )


T = TypeVar("T")


def _usable(outcome: Outcome, read: Callable[[RecordDict], T]) -> dict[str, T]:
    """What the replies say. None is trusted: what cannot be read is rejected by name."""
    usable: dict[str, T] = {}
    for site, content in list(outcome.replies.items()):
        try:
            usable[site] = read(content)
            continue
        except (DerminoError, ValueError) as error:
            what = error.what if isinstance(error, DerminoError) else str(error)
        except Exception as error:
            log.exception("reading the reply of %s", site)
            what = f"reading it failed ({type(error).__name__})"
        outcome.reject(site, "REPLY_INVALID", f"Its reply is not usable: {what.rstrip('.')}.")
    return usable


@dataclass(frozen=True)
class _TrainResult:
    """A training reply that passed every check."""

    reply: TrainReply
    update: SiteUpdate
    local: Arrays | None


def _read_update(
    plan: RunPlan, strategy: Strategy, state: RunState, content: RecordDict
) -> _TrainResult:
    reply = unpack(content, TrainReply)
    _same_classes(reply.classes, plan.classes)
    update = unpack_update(content, strategy.update_like(state.arrays))
    strategy.check_update(state.arrays, update)
    if update.examples > reply.images_used:
        raise ValueError(f"trained on {update.examples} of {reply.images_used} images")
    local = None
    if "local" in content.array_records:
        local = read_arrays(content, "local", state.arrays)
        check_arrays(state.arrays, local)
    return _TrainResult(reply, update, local)


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
        grid,
        "evaluate",
        contents,
        nodes,
        deadline=plan.deadline_seconds,
        quorum=plan.min_sites,
        group="evaluate",
        away=state.away,
    )
    sizes = {site: size_in_bytes(reply) for site, reply in outcome.replies.items()}
    replies = _usable(outcome, lambda content: _read_evaluation(plan, heads, content))
    for site in missing:
        outcome.reject(site, "NOT_CONNECTED")
    require_quorum(outcome, plan.min_sites, "The final evaluation")
    final = {
        site: (r.evaluations["global"].auroc.value, r.evaluations["global"].f1.value)
        for site, r in replies.items()
    }
    _complete(state.records[-1], final)
    state.records.append(
        RoundRecord(
            round=plan.rounds + 1,
            kind="evaluate",
            seconds=time.monotonic() - start,
            sites=sorted(replies),
            rejected=outcome.rejected,
            transfers=_transfers(contents, sizes, replies),
        )
    )
    return replies


def _read_evaluation(plan: RunPlan, heads: Sequence[str], content: RecordDict) -> EvaluateReply:
    """The numbers themselves cannot be checked from here; that they fit each other can."""
    reply = unpack(content, EvaluateReply)
    _same_classes(reply.classes, plan.classes)
    if set(reply.evaluations) != SITE_MODELS or set(reply.global_minus) != SITE_MODELS - {"global"}:
        raise ValueError(f"it evaluates {sorted(reply.evaluations)}, not {sorted(SITE_MODELS)}")
    if not set(reply.cross) <= set(heads):
        raise ValueError("it evaluates heads that it was not sent")
    counts = [e.class_counts for e in reply.evaluations.values()] + [reply.train_class_counts]
    sizes = [e.n for e in reply.evaluations.values()] + [reply.n_train]
    for names, size in zip(counts, sizes, strict=True):
        if list(names) != plan.classes or min(names.values()) < 0 or sum(names.values()) != size:
            raise ValueError("its class counts do not add up")
    if set(sizes[:-1]) != {reply.n_test} or reply.n_train + reply.n_test > reply.images_used:
        raise ValueError("its numbers of images do not add up")
    return reply


def _write_metrics(folder: Path, state: RunState) -> None:
    """`metrics.jsonl`, one line per exchange; small, so it is written whole each time."""
    lines = [json.dumps(record.model_dump(), sort_keys=True) for record in state.records]
    write_atomically(folder / "metrics.jsonl", "".join(line + "\n" for line in lines))
