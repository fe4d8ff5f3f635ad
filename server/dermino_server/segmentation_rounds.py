"""The rounds of a segmentation federation: train, average, checkpoint; then score."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict
from flwr.serverapp import Grid

from dermino_core.segmentation_results import SegmentationResults
from dermino_server.checkpoint import RunState, latest_checkpoint, write_checkpoint
from dermino_server.exchange import Exchange, SiteFinder
from dermino_server.round_records import (
    close_exchange,
    new_record,
    score_last_round,
    write_metrics,
)
from dermino_server.segmentation_outcome import build_segmentation_results, save_segmentation_run
from dermino_server.segmentation_plan import SegmentationPlan
from dermino_strategies.base import Arrays, SiteUpdate
from dermino_strategies.protocol import pack, read_arrays, unpack
from dermino_strategies.segmentation import aggregate, check_update, initial_arrays
from dermino_strategies.segmentation_messages import (
    SEGMENTATION_MODELS,
    SegmentationEvaluateReply,
    SegmentationEvaluateRequest,
    SegmentationTrainReply,
    SegmentationTrainRequest,
)

log = logging.getLogger("dermino.server")


def run_segmentation(
    grid: Grid, plan: SegmentationPlan, folder: Path, *, resume: bool = False
) -> SegmentationResults:
    """Run a plan to its end and write its run folder.

    With `resume` the run goes on after its newest checkpoint; what comes out is bit for bit what
    an uninterrupted run gives.

    Raises
    ------
    DerminoError
        `QUORUM_LOST` naming the sites that are missing; `CHECKPOINT_INVALID`.
    """
    initial = initial_arrays(plan.method, plan.backbone.width, plan.seed)
    state = (latest_checkpoint(folder, plan.digest()) if resume else None) or RunState(initial)
    if resume:
        log.info("continuing after round %d of %d", state.round, plan.rounds)
    finder = SiteFinder(grid)
    while state.round < plan.rounds:
        _train_round(grid, finder, plan, initial, state)
        write_checkpoint(folder, plan.digest(), state)
        write_metrics(folder, state)
    replies = _final_scores(grid, finder, plan, state)
    write_metrics(folder, state)
    results = build_segmentation_results(plan, state, replies)
    save_segmentation_run(folder, plan, results, state.arrays)
    return results


@dataclass(frozen=True)
class _Trained:
    """A training reply that passed every check."""

    reply: SegmentationTrainReply
    update: SiteUpdate

    @property
    def seconds(self) -> float:
        """Computing at the site."""
        return self.reply.seconds


def _train_round(
    grid: Grid, finder: SiteFinder, plan: SegmentationPlan, like: Arrays, state: RunState
) -> None:
    start = time.monotonic()
    round_ = state.round + 1
    nodes, missing = _find(finder, plan, state)
    request = SegmentationTrainRequest(task=plan.for_sites(), round=round_)
    contents = {site: pack(request, {"arrays": state.arrays}) for site in nodes}
    outcome = Exchange(
        grid,
        "train.segmentation",
        contents,
        nodes,
        read=lambda _, content: _read_update(like, content),
        deadline=plan.deadline_seconds,
        quorum=plan.min_sites,
        group=str(round_),
        away=state.away,
    ).wait()
    close_exchange(outcome, missing, plan.min_sites, f"Round {round_} of {plan.rounds}")
    found = {site: outcome.replies[site] for site in sorted(outcome.replies)}
    if state.records:
        score_last_round(state, dice={s: one.reply.dice_before for s, one in found.items()})
    state.arrays = aggregate({site: one.update for site, one in found.items()})
    state.round = round_
    record = new_record(round_, "train", start, contents, outcome)
    record.examples = {site: one.update.examples for site, one in found.items()}
    record.train_loss = {site: one.reply.train_loss for site, one in found.items()}
    state.records.append(record)
    log.info("round %d of %d: %s", round_, plan.rounds, ", ".join(found))


def _read_update(like: Arrays, content: RecordDict) -> _Trained:
    reply = unpack(content, SegmentationTrainReply)
    arrays = read_arrays(content, "arrays", like)
    update = SiteUpdate(arrays, reply.n_train, {"train-loss": reply.train_loss})
    check_update(like, update)
    return _Trained(reply, update)


def _final_scores(
    grid: Grid, finder: SiteFinder, plan: SegmentationPlan, state: RunState
) -> dict[str, SegmentationEvaluateReply]:
    start = time.monotonic()
    nodes, missing = _find(finder, plan, state)
    request = SegmentationEvaluateRequest(task=plan.for_sites())
    contents = {site: pack(request, {"arrays": state.arrays}) for site in nodes}
    outcome = Exchange(
        grid,
        "evaluate.segmentation",
        contents,
        nodes,
        read=lambda _, content: _read_scores(content),
        deadline=plan.deadline_seconds,
        quorum=plan.min_sites,
        group="evaluate",
        away=state.away,
    ).wait()
    close_exchange(outcome, missing, plan.min_sites, "Final evaluation")
    found = {site: outcome.replies[site] for site in sorted(outcome.replies)}
    dice = {site: reply.scores["global"].dice.value for site, reply in found.items()}
    score_last_round(state, dice=dice)
    state.records.append(new_record(plan.rounds + 1, "evaluate", start, contents, outcome))
    return found


def _read_scores(content: RecordDict) -> SegmentationEvaluateReply:
    """The numbers themselves cannot be checked from here; that they are all there can."""
    reply = unpack(content, SegmentationEvaluateReply)
    models = set(SEGMENTATION_MODELS)
    if set(reply.scores) != models or set(reply.global_minus) != models - {"global"}:
        raise ValueError(f"it scores {sorted(reply.scores)}, not {sorted(models)}")
    scored = [e for one in reply.scores.values() for e in (one.dice, one.jaccard)]
    if any(e.value is None or e.value < 0 for e in scored):
        raise ValueError("a score is missing or negative")
    if reply.units_test > reply.n_test:
        raise ValueError("its numbers of images do not add up")
    return reply


def _find(
    finder: SiteFinder, plan: SegmentationPlan, state: RunState
) -> tuple[dict[str, int], list[str]]:
    return finder.wait_for(
        plan.sites, quorum=plan.min_sites, seconds=plan.wait_seconds, away=state.away
    )
