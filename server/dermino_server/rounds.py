"""The rounds of a federation, read top to bottom: train, aggregate, checkpoint; then evaluate."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict
from flwr.serverapp import Grid

from dermino_core.heads import LinearHead
from dermino_core.results import Results
from dermino_server.checkpoint import RunState, latest_checkpoint, write_checkpoint
from dermino_server.exchange import Exchange, SiteFinder, find_sites
from dermino_server.gathering import Gathering
from dermino_server.kept_sums import KeptSums
from dermino_server.outcome import build_results, save_run
from dermino_server.personal import check_joining, personal_arrays, totals_for
from dermino_server.plan import RunPlan, check_protection
from dermino_server.round_records import (
    close_exchange,
    new_record,
    score_last_round,
    write_metrics,
)
from dermino_server.secure_rounds import secure_final_evaluation, secure_train_round
from dermino_server.statistics import recall_statistics, statistics_beside_first_round
from dermino_server.tuned import write_run_backbone
from dermino_strategies.base import Arrays, Strategy, check_arrays
from dermino_strategies.packing import pack_arrays
from dermino_strategies.protocol import (
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
    named_heads,
    pack,
    read_arrays,
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
    check_protection(
        strategy,
        plan.privacy,
        secure_aggregation=plan.secure_aggregation,
        personal=plan.personal,
    )
    state = (latest_checkpoint(folder, plan.digest()) if resume else None) or RunState(
        strategy.initial_arrays(len(plan.classes), plan.backbone.width, plan.seed)
    )
    if resume:
        log.info("continuing after round %d of %d", state.round, plan.rounds)
    finder = SiteFinder(grid, ask_names=plan.engine == "ray")
    if plan.statistics:
        recall_statistics(plan, state, folder)
    kept = KeptSums(folder) if plan.sums_are_kept else None
    while state.round < plan.rounds:
        if plan.secure_aggregation:
            secure_train_round(grid, finder, plan, strategy, state)
        else:
            with statistics_beside_first_round(grid, finder, plan, state, folder) as beside:
                _train_round(grid, finder, plan, strategy, state, kept, beside)
        write_checkpoint(folder, plan.digest(), state)
        write_metrics(folder, state)
    if plan.secure_aggregation:
        results = secure_final_evaluation(grid, finder, plan, state)
    else:
        results = build_results(plan, state, _final_evaluation(grid, finder, plan, strategy, state))
    write_metrics(folder, state)
    tuned = write_run_backbone(folder, plan, strategy, state.arrays)
    save_run(folder, plan, results, strategy.head(state.arrays), tuned)
    return results


def _train_round(
    grid: Grid,
    finder: SiteFinder,
    plan: RunPlan,
    strategy: Strategy,
    state: RunState,
    kept: KeptSums | None,
    beside: Sequence[Exchange],
) -> None:
    start = time.monotonic()
    round_, quorum = state.round + 1, plan.training_quorum
    nodes, missing = finder.wait_for(
        plan.training_sites, quorum=quorum, seconds=plan.wait_seconds, away=state.away
    )
    arrays = pack_arrays(strategy.for_sites(state.arrays))
    contents = {}
    for site in nodes:
        ask_head = plan.cross_site and site not in state.local_heads
        body = TrainRequest(task=plan.for_sites(), round=round_, send_local_head=ask_head)
        contents[site] = pack(body)
        contents[site]["arrays"] = arrays
    gathering = Gathering(
        strategy,
        state.arrays,
        nodes,
        outlines=plan.privacy is None,
        kept=kept,
        earlier=plan.earlier_sites,
    )
    asked = Exchange(
        grid,
        "train",
        contents,
        nodes,
        read=lambda site, content: _read_update(plan, strategy, state, gathering, site, content),
        deadline=plan.deadline_seconds,
        quorum=quorum,
        group=str(round_),
        away=state.away,
    )
    outcome = asked.wait(*beside)
    close_exchange(outcome, missing, quorum, f"Round {round_} of {plan.rounds}")
    checked = outcome.replies
    if state.records and state.records[-1].kind == "train":
        score_last_round(
            state,
            auroc={site: one.reply.auroc_before for site, one in checked.items()},
            f1={site: one.reply.f1_before for site, one in checked.items()},
        )
    state.local_heads |= {s: c.local for s, c in checked.items() if c.local is not None}
    state.privacy |= {s: c.reply.privacy for s, c in checked.items() if c.reply.privacy is not None}
    state.arrays = gathering.aggregate()
    if kept is not None:
        earlier = plan.earlier_sites
        state.privacy |= kept.close_round(plan.run_id, checked, earlier, state.privacy)
    state.round = round_
    record = new_record(round_, "train", start, contents, outcome)
    record.kept = sorted(plan.earlier_sites)
    record.examples = {site: checked[site].examples for site in sorted(checked)}
    record.train_loss = {
        site: checked[site].metrics["train-loss"]
        for site in sorted(checked)
        if "train-loss" in checked[site].metrics
    }
    state.records.append(record)
    gathering.compare(record)
    log.info("round %d of %d: %s", round_, plan.rounds, ", ".join(sorted(checked)))


@dataclass(frozen=True)
class _TrainResult:
    """A training reply that passed every check, without the update: that is gathered."""

    reply: TrainReply
    examples: int
    metrics: dict[str, float]
    local: Arrays | None

    @property
    def seconds(self) -> float:
        """Computing at the site."""
        return self.reply.seconds


def _read_update(
    plan: RunPlan,
    strategy: Strategy,
    state: RunState,
    gathering: Gathering,
    site: str,
    content: RecordDict,
) -> _TrainResult:
    reply = unpack(content, TrainReply)
    _same_classes(reply.classes, plan.classes)
    update = unpack_update(content, strategy.update_like(state.arrays))
    strategy.check_update(state.arrays, update)
    if update.examples > reply.images_used:
        raise ValueError(f"trained on {update.examples} of {reply.images_used} images")
    local = None
    if "local" in content.array_records:
        like = LinearHead.arrays_like(len(plan.classes), plan.backbone.width)
        local = read_arrays(content, "local", like)
        check_arrays(like, local)
    gathering.add(site, update)
    return _TrainResult(reply, update.examples, update.metrics, local)


def _same_classes(of_site: list[str], of_plan: list[str]) -> None:
    if of_site != of_plan:
        raise ValueError(f"its classes are {of_site}, not {of_plan}")


def _final_evaluation(
    grid: Grid, finder: SiteFinder, plan: RunPlan, strategy: Strategy, state: RunState
) -> dict[str, EvaluateReply]:
    start = time.monotonic()
    nodes, missing = find_sites(finder, plan, state)
    heads = sorted(state.local_heads)
    groups = {"arrays": strategy.for_sites(state.arrays)}
    if heads:
        groups["heads"] = named_heads(state.local_heads)
    if personal := personal_arrays(plan, strategy, state):
        groups["personal"] = personal
    records = {name: pack_arrays(arrays) for name, arrays in groups.items()}
    contents = {}
    for site in nodes:
        totals = totals_for(plan, state, site)
        contents[site] = pack(EvaluateRequest(task=plan.for_sites(), heads=heads, totals=totals))
        for name, record in records.items():
            contents[site][name] = record
    outcome = Exchange(
        grid,
        "evaluate",
        contents,
        nodes,
        read=lambda _, content: _read_evaluation(plan, heads, content),
        deadline=plan.deadline_seconds,
        quorum=plan.min_sites,
        group="evaluate",
        away=state.away,
    ).wait()
    close_exchange(outcome, missing, plan.min_sites, "The final evaluation")
    replies = outcome.replies
    final = {site: reply.evaluations["global"] for site, reply in replies.items()}
    score_last_round(
        state,
        auroc={site: one.auroc.value for site, one in final.items()},
        f1={site: one.f1.value for site, one in final.items()},
    )
    state.records.append(new_record(plan.rounds + 1, "evaluate", start, contents, outcome))
    return replies


def _read_evaluation(plan: RunPlan, heads: Sequence[str], content: RecordDict) -> EvaluateReply:
    """The numbers themselves cannot be checked from here; that they fit each other can."""
    reply = unpack(content, EvaluateReply)
    _same_classes(reply.classes, plan.classes)
    models = set(plan.for_sites().models)
    if set(reply.evaluations) != models or set(reply.global_minus) != models - {"global"}:
        raise ValueError(f"it evaluates {sorted(reply.evaluations)}, not {sorted(models)}")
    if not set(reply.cross) <= set(heads):
        raise ValueError("it evaluates heads that it was not sent")
    counts = [e.class_counts for e in reply.evaluations.values()] + [reply.train_class_counts]
    sizes = [e.n for e in reply.evaluations.values()] + [reply.n_train]
    for names, size in zip(counts, sizes, strict=True):
        if list(names) != plan.classes or min(names.values()) < 0 or sum(names.values()) != size:
            raise ValueError("its class counts do not add up")
    if set(sizes[:-1]) != {reply.n_test} or reply.n_train + reply.n_test > reply.images_used:
        raise ValueError("its numbers of images do not add up")
    if plan.for_sites().tells_joining != (reply.joining is not None):
        raise ValueError("a joining curve is there and not asked for, or the other way about")
    if reply.joining is not None:
        check_joining(reply.joining, n_train=reply.n_train, n_test=reply.n_test)
    return reply
