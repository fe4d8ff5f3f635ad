"""What an exchange leaves in the run folder, in every kind of run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from flwr.app import RecordDict

from dermino_core.files import write_atomically
from dermino_core.results import RoundRecord, Transfer
from dermino_server.checkpoint import RunState
from dermino_server.exchange import Outcome, require_quorum
from dermino_strategies.protocol import size_in_bytes


class _Reply(Protocol):
    @property
    def seconds(self) -> float:
        """Computing at the site."""
        ...


T = TypeVar("T")
R = TypeVar("R", bound=_Reply)


def close_exchange(outcome: Outcome[T], missing: Iterable[str], quorum: int, what: str) -> None:
    """Count out the sites that were never connected, and look whether enough are left.

    Raises
    ------
    DerminoError
        `QUORUM_LOST` naming who is missing and why; `what` was to be done.
    """
    for site in missing:
        outcome.reject(site, "NOT_CONNECTED")
    require_quorum(outcome, quorum, what)


def new_record(
    round_: int,
    kind: Literal["train", "evaluate"],
    start: float,
    contents: Mapping[str, RecordDict],
    outcome: Outcome[R],
) -> RoundRecord:
    """Who took part, for how long and how much was sent.

    Parameters
    ----------
    start
        `time.monotonic()` when it began.
    contents
        What each site was sent.
    """
    return RoundRecord(
        round=round_,
        kind=kind,
        seconds=time.monotonic() - start,
        sites=sorted(outcome.replies),
        rejected=outcome.rejected,
        transfers=_transfers(contents, outcome),
    )


def _transfers(contents: Mapping[str, RecordDict], outcome: Outcome[R]) -> list[Transfer]:
    """What each site was sent and sent back; a reply that was rejected left its building too."""
    return [
        Transfer(
            site=site,
            seconds=outcome.replies[site].seconds if site in outcome.replies else 0.0,
            bytes_to_site=size_in_bytes(contents[site]),
            bytes_from_site=outcome.bytes_from_site.get(site, 0),
        )
        for site in sorted(contents)
    ]


def score_last_round(state: RunState, **measures: Mapping[str, float | None]) -> None:
    """The model after a round is evaluated in the next exchange: file it where it belongs.

    Parameters
    ----------
    measures
        Field of the record -> site -> what the model of that round gives there.
    """
    for measure, values in measures.items():
        setattr(state.records[-1], measure, dict(sorted(values.items())))


def write_metrics(folder: Path, state: RunState) -> None:
    """`metrics.jsonl`, one line per exchange; small, so it is written whole each time."""
    lines = [json.dumps(record.model_dump(), sort_keys=True) for record in state.records]
    write_atomically(folder / "metrics.jsonl", "".join(line + "\n" for line in lines))
