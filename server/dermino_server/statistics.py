"""What the hospitals tell of their images with the first round, and how alike they are.

Nothing that is trained depends on it, so a site that refuses or fails does not end the run. Kept
in `RUN/statistics.json`, so that a run that is continued does not ask again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid
from pydantic import BaseModel, ConfigDict, ValidationError

from dermino_core import site_statistics as core
from dermino_core.files import write_atomically
from dermino_core.moments import class_contrast
from dermino_core.results import (
    RoundRecord,
    SiteDistance,
    SiteLikeness,
    SiteStatistics,
    Suspicion,
    Transfer,
)
from dermino_server.checkpoint import RunState
from dermino_server.exchange import Exchange, SiteFinder
from dermino_server.plan import RunPlan
from dermino_strategies.base import Arrays, check_arrays
from dermino_strategies.protocol import (
    StatisticsReply,
    StatisticsRequest,
    pack,
    read_arrays,
    size_in_bytes,
    unpack,
)
from dermino_strategies.suspicion import Outline, compare, outline_of, suspicious

log = logging.getLogger("dermino.server")

STATISTICS_FILE = "statistics.json"


class _Kept(BaseModel):
    """`statistics.json`: what was found, and the record of the exchange."""

    model_config = ConfigDict(extra="forbid")

    plan: str
    statistics: SiteStatistics
    record: RoundRecord


@dataclass(frozen=True)
class Told:
    """A site's checked reply."""

    site: core.SiteStatistics
    seconds: float


def recall_statistics(plan: RunPlan, state: RunState, folder: Path) -> None:
    """File in `state` what an interrupted run was told, so that nobody is asked again."""
    kept = _read(folder / STATISTICS_FILE, plan)
    if kept is not None:
        _file(kept, state)
    elif state.round > 0:
        log.warning("the statistics of this run are lost; training goes on without them")


@contextmanager
def statistics_beside_first_round(
    grid: Grid, finder: SiteFinder, plan: RunPlan, state: RunState, folder: Path
) -> Iterator[list[Exchange[Told]]]:
    """Ask every connected site, and file in `state` what they told when the first round is over.

    Gives the exchange to look at during that round, if there is one. A site finds the question
    before that of the round, so that it costs no waiting of its own.

    Raises
    ------
    DerminoError
        `QUORUM_LOST` if too few sites are connected for the round.
    """
    if not plan.statistics or state.statistics is not None or state.round > 0:
        yield []
        return
    asked = _Asked(grid, finder, plan, state)
    try:
        yield [asked.exchange]
    except BaseException:
        if asked.exchange.look():
            _keep(asked, plan, folder)
        raise
    asked.exchange.wait()
    _file(_keep(asked, plan, folder), state)


def _keep(asked: _Asked, plan: RunPlan, folder: Path) -> _Kept:
    statistics = likeness(asked.exchange.outcome.replies, plan.classes, plan.min_count)
    record = asked.record()
    record.suspicious = statistics.suspicious
    kept = _Kept(plan=plan.digest(), statistics=statistics, record=record)
    write_atomically(folder / STATISTICS_FILE, kept.model_dump_json(indent=1) + "\n")
    for found in statistics.suspicious:
        log.warning("statistics: %s", found.sentence)
    return kept


def _file(kept: _Kept, state: RunState) -> None:
    state.statistics = kept.statistics
    if not any(record.kind == "statistics" for record in state.records):
        state.records.insert(0, kept.record)


def _read(file: Path, plan: RunPlan) -> _Kept | None:
    try:
        kept = _Kept.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None
    return kept if kept.plan == plan.digest() else None


class _Asked:
    """The question to every connected site, and what is recorded of it."""

    def __init__(self, grid: Grid, finder: SiteFinder, plan: RunPlan, state: RunState) -> None:
        nodes, self._missing = finder.wait_for(
            plan.sites,
            quorum=plan.training_quorum,
            seconds=plan.wait_seconds,
            away=state.away.union(plan.earlier_sites),
        )
        self._content = pack(StatisticsRequest(task=plan.for_sites(), min_count=plan.min_count))
        self._nodes = nodes
        self.exchange: Exchange[Told] = Exchange(
            grid,
            "query.statistics",
            dict.fromkeys(nodes, self._content),
            nodes,
            read=lambda _, reply: read_statistics(plan, reply),
            deadline=plan.deadline_seconds,  # a site may find the question after that of the round
            quorum=0,
            group="statistics",
            away=state.away,
        )

    def record(self) -> RoundRecord:
        """Of the exchange, which is over."""
        outcome = self.exchange.outcome
        for site in self._missing:
            outcome.reject(site, "NOT_CONNECTED")
        replies = outcome.replies
        log.info("statistics: %s", ", ".join(sorted(replies)) or "none")
        return RoundRecord(
            round=0,
            kind="statistics",
            seconds=self.exchange.seconds,
            sites=sorted(replies),
            rejected=outcome.rejected,
            transfers=[
                Transfer(
                    site=site,
                    seconds=replies[site].seconds if site in replies else 0.0,
                    bytes_to_site=size_in_bytes(self._content),
                    bytes_from_site=outcome.bytes_from_site.get(site, 0),
                )
                for site in sorted(self._nodes)
            ],
        )


def read_statistics(plan: RunPlan, content: RecordDict) -> Told:
    """A site's reply, which is not trusted.

    Raises
    ------
    DerminoError, ValueError
        If it does not fit its schema, the plan or itself.
    """
    reply = unpack(content, StatisticsReply)
    if reply.classes != plan.classes or list(reply.class_counts) != plan.classes:
        raise ValueError(f"its classes are {reply.classes}, not {plan.classes}")
    counts = [count for count in reply.class_counts.values() if count is not None]
    whole = len(counts) == len(plan.classes)
    if min(counts, default=0) < 0 or sum(counts) > reply.images:
        raise ValueError("its class counts do not add up")
    if whole and sum(counts) != reply.images:
        raise ValueError("its class counts do not add up")
    if any(reply.class_counts.get(name, 0) is not None for name in reply.few):
        raise ValueError("it calls a class small whose count it tells")
    width, classes = plan.backbone.width, len(plan.classes)
    summary = None
    if reply.design_effect is not None and reply.effective_features is not None:
        like: Arrays = {name: np.zeros(width, np.float32) for name in ("mean", "variance")}
        arrays = _arrays(content, "features", like)
        if (arrays["variance"] < 0).any():
            raise ValueError("a variance is below 0")
        means = None
        if "classes" in content.array_records:
            means = _arrays(content, "classes", {"means": np.zeros((classes, width), np.float32)})
        summary = core.FeatureSummary(
            mean=arrays["mean"],
            variance=arrays["variance"],
            design_effect=reply.design_effect,
            effective_features=min(reply.effective_features, float(width)),
            class_means=None if means is None else means["means"],
        )
    told = core.ToldCounts(dict(reply.class_counts), tuple(reply.few))
    site = core.SiteStatistics(reply.images, told, summary, reply.images_per_group)
    return Told(site, reply.seconds)


def _arrays(content: RecordDict, group: str, like: Arrays) -> Arrays:
    arrays = read_arrays(content, group, like)
    check_arrays(like, arrays)
    return arrays


def likeness(told: Mapping[str, Told], classes: list[str], min_count: int) -> SiteStatistics:
    """How the sites lie to each other; only derived numbers, no features."""
    sites = {name: one.site for name, one in told.items()}
    drifts, shares = core.drift(sites), core.class_shares(sites)
    contrasts = _contrasts(sites)
    compared = compare(contrasts)
    return SiteStatistics(
        min_count=min_count,
        sites=[
            SiteLikeness(
                site=name,
                images=site.images,
                class_counts=site.counts.counts,
                few=list(site.counts.few),
                drift=_plain(drifts.get(name)),
                class_shares=_plain(shares.get(name)),
                contrast=compared[name].cosine if name in compared else None,
            )
            for name, site in sorted(sites.items())
        ],
        suspicious=[
            Suspicion(**asdict(replace(found, sentence=_sentence(found.site, found.value))))
            for found in suspicious(contrasts)
            if found.reason == "direction"
        ],
    )


def _plain(distance: core.Distance | None) -> SiteDistance | None:
    return SiteDistance(**asdict(distance)) if distance else None


def _contrasts(sites: Mapping[str, core.SiteStatistics]) -> dict[str, Outline]:
    """How the classes differ at each site that told their means."""
    found = {}
    for name, site in sites.items():
        if site.features is not None and site.features.class_means is not None:
            means = site.features.class_means.astype(np.float64)
            contrast = class_contrast(np.ones(len(means)), means)
            if contrast is not None:
                found[name] = outline_of(contrast.ravel())
    return found


def _sentence(site: str, cosine: float) -> str:
    return (
        f"{site}: its classes differ in the opposite direction to the other hospitals' (cosine "
        f"{cosine:.2f}). Are its labels the right way round?"
    )
