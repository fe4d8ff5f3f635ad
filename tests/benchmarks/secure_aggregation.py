"""What secure aggregation costs a round: CPU seconds and bytes, beside plain FedAvg.

python -m tests.benchmarks.secure_aggregation            3, 10, 100 sites; 10^3 .. 10^7 parameters
python -m tests.benchmarks.secure_aggregation --quick    3, 10 sites; 10^3, 10^5 parameters

All sites run in this process, one after the other, through the same messages as JSON. They all
send the same vector, so that no more than three vectors are in memory; what is summed, masked and
sent is as large as if they differed. CPU seconds, because other jobs may share the machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from dermino_strategies.base import Arrays, SiteUpdate
from dermino_strategies.fedavg import FedAvg
from dermino_strategies.secure_aggregation import messages
from dermino_strategies.secure_aggregation.coordinator import Coordinator
from dermino_strategies.secure_aggregation.identity import Identity, PinnedMembers
from dermino_strategies.secure_aggregation.ring import Vector
from dermino_strategies.secure_aggregation.session import Session, default_threshold
from dermino_strategies.secure_aggregation.site import SecureSite
from dermino_strategies.secure_aggregation.store import MemoryStore
from tests.benchmarks.machine import describe, load_line
from tests.benchmarks.tables import table

STAGES = ("keys", "shares", "masked", "confirm", "unmask")
LONGEST_CELL = 300.0
"""CPU seconds; a cell that would take longer is measured on one site and not finished."""

MOST_PLAIN_VALUES = 2 * 10**8
"""More than this is summed in the clear for a tenth of the sites, and counted ten times."""

LEAST_PLAIN_SECONDS = 0.05
"""The mean in the clear is repeated for so long: a short one is below the clock's grain."""

T = TypeVar("T")


@dataclass
class Cell:
    """One federation: CPU seconds, bytes of one site, and what was left out."""

    sites: int
    parameters: int
    lost: int = 0
    site_seconds: dict[str, float] = field(default_factory=dict)
    coordinator_seconds: float = 0.0
    unmasking_seconds: float = 0.0
    up: int = 0
    down: int = 0
    plain_seconds: float = 0.0
    finished: bool = True

    @property
    def site_total(self) -> float:
        """CPU seconds of one site in all five stages."""
        return sum(self.site_seconds.values())


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """What an action returns, and its CPU seconds."""
    start = time.process_time()
    result = action()
    return result, time.process_time() - start


class Measured:
    """A federation whose sites and coordinator keep a bill."""

    def __init__(self, sites: int, parameters: int, lost: int) -> None:
        self.cell = Cell(sites, parameters, lost)
        names = [f"site-{number:03d}" for number in range(sites)]
        identities = {name: Identity.generate(name) for name in names}
        members = PinnedMembers({n: one.public_key for n, one in identities.items()})
        self.values = np.random.default_rng(0).uniform(-1, 1, parameters)
        self.like: Arrays = {"weight": np.zeros(parameters)}
        self.limits = {"weight": 1.0}
        self.sites = {name: SecureSite(identities[name], members, MemoryStore()) for name in names}
        # The last ones are lost once they have shared their keys: the dearest moment.
        self.silent = set(names[sites - lost :])
        self.session = Session(
            run="benchmark",
            round=1,
            purpose="train",
            attempt=1,
            task_digest="0" * 64,
            threshold=default_threshold(sites),
        )
        self.coordinator = Coordinator(
            self.session, names, members, limits=self.limits, like=self.like
        )

    def run(self) -> Cell:
        """All stages, and the sum held against the plain one."""
        for stage in STAGES:
            if not self._stage(stage):
                self.cell.finished = False
                return self.cell
        total, seconds = timed(self.coordinator.total)
        self.cell.coordinator_seconds += seconds
        wanted = self.values * len(self.coordinator.participants)
        np.testing.assert_allclose(total["weight"], wanted, rtol=1e-12, atol=1e-9)
        return self.cell

    def _stage(self, stage: str) -> bool:
        cell, spent, answered = self.cell, 0.0, 0
        requests, seconds = timed(self.coordinator.requests)
        cell.coordinator_seconds += seconds
        for name in list(requests):
            request = requests.pop(name)
            if stage == "masked" and name in self.silent:
                continue
            text, kind = request.model_dump_json(), type(request)
            (reply, vector), seconds = timed(lambda n=name, k=kind, t=text: self._ask(n, k, t))
            answered, spent = answered + 1, spent + seconds
            if answered == 1:
                cell.down += len(text)
                cell.up += len(reply.model_dump_json()) + (0 if vector is None else vector.nbytes)
            if answered == 1 and seconds * cell.sites > LONGEST_CELL:
                cell.site_seconds[stage] = seconds
                return False
            _, seconds = timed(lambda n=name, r=reply, v=vector: self.coordinator.receive(n, r, v))
            cell.coordinator_seconds += seconds
        _, seconds = timed(self.coordinator.advance)
        cell.coordinator_seconds += seconds
        if stage == "unmask":
            cell.unmasking_seconds = seconds
        cell.site_seconds[stage] = spent / answered
        return True

    def _ask(
        self, name: str, kind: type[messages.Request], text: str
    ) -> tuple[messages.Reply, Vector | None]:
        site, request = self.sites[name], kind.model_validate_json(text)
        if isinstance(request, messages.KeysRequest):
            return site.keys(request), None
        if isinstance(request, messages.SharesRequest):
            return site.shares(request), None
        if isinstance(request, messages.MaskedRequest):
            return site.masked(
                request,
                lambda: {"weight": self.values},
                limits=self.limits,
                like=self.like,
                task_digest=self.session.task_digest,
            )
        if isinstance(request, messages.ConfirmRequest):
            return site.confirm(request), None
        if isinstance(request, messages.UnmaskRequest):
            return site.unmask(request), None
        raise RuntimeError(f"no answer to a {kind.__name__}")


def plain_seconds(sites: int, parameters: int) -> float:
    """CPU seconds of FedAvg's own mean of float32 arrays, as the server computes it."""
    many = sites * parameters > MOST_PLAIN_VALUES
    counted = max(1, sites // 10) if many else sites
    start: Arrays = {"weight": np.zeros(parameters, np.float32)}
    update = SiteUpdate({"weight": np.ones(parameters, np.float32)}, examples=100)
    updates = {f"site-{number:03d}": update for number in range(counted)}
    strategy = FedAvg()
    strategy.aggregate(start, {"import": update})
    spent, times = 0.0, 0
    while spent < LEAST_PLAIN_SECONDS:
        spent += timed(lambda: strategy.aggregate(start, updates))[1]
        times += 1
    return spent / times * sites / counted


def measure(grid: Sequence[tuple[int, int, int]]) -> list[Cell]:
    """(sites, parameters, lost) -> what it costs."""
    cells = []
    for sites, parameters, lost in grid:
        cell = Measured(sites, parameters, lost).run()
        cell.plain_seconds = plain_seconds(sites, parameters)
        cells.append(cell)
        print(f"  measured {_title(cell)}: {cell.site_total:.3f} s a site", flush=True)
    return cells


def _title(cell: Cell) -> str:
    lost = f", {cell.lost} lost" if cell.lost else ""
    return f"{cell.sites} sites, 10^{round(np.log10(cell.parameters))}{lost}"


def _time(seconds: float) -> str:
    return f"{seconds:.4f}" if seconds < 1 else f"{seconds:.2f}"


def _size(count: float) -> str:
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.2f} MB"


def seconds_table(cells: Sequence[Cell]) -> str:
    """CPU seconds: one site by stage, the coordinator, FedAvg in the clear."""
    rows = []
    for cell in cells:
        by_stage = [_time(cell.site_seconds[s]) if s in cell.site_seconds else "-" for s in STAGES]
        done = cell.finished
        rows.append(
            [
                _title(cell),
                *by_stage,
                _time(cell.site_total),
                _time(cell.coordinator_seconds) if done else "-",
                _time(cell.unmasking_seconds) if done else "-",
                _time(cell.plain_seconds),
                f"{cell.coordinator_seconds / cell.plain_seconds:.1f} x" if done else "-",
            ]
        )
    header = ["", *STAGES, "one site", "coordinator", "of it unmask", "plain mean", "ratio"]
    return table(header, rows)


def bytes_table(cells: Sequence[Cell]) -> str:
    """Bytes of one site that stays, without the global arrays that go out either way."""
    rows = []
    for cell in cells:
        if not cell.finished:
            continue
        plain = 4 * cell.parameters
        rows.append(
            [
                _title(cell),
                _size(cell.up),
                _size(cell.up - 8 * cell.parameters),
                _size(cell.down),
                _size(plain),
                f"{cell.up / plain:.2f} x",
            ]
        )
    header = ["", "up", "of it protocol", "down", "plain up", "ratio up"]
    return table(header, rows)


def wanted_grid(*, quick: bool) -> list[tuple[int, int, int]]:
    """(sites, parameters, lost): all sizes without losses, and as many losses as are borne."""
    counts = (3, 10) if quick else (3, 10, 100)
    sizes = (10**3, 10**5) if quick else (10**3, 10**4, 10**5, 10**6, 10**7)
    grid = [(sites, size, 0) for sites in counts for size in sizes]
    middle = 10**5 if quick else 10**6
    borne = [(n, middle, n - default_threshold(n)) for n in counts]
    return grid + [one for one in borne if one[2]]


def main() -> None:
    """Measure the grid and print it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.secure_aggregation")
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    wanted = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in describe().items()))
    print(f"  {load_line()}", flush=True)
    cells = measure(wanted_grid(quick=wanted.quick))
    print("\nCPU seconds of a round; 'one site' is the sum of its five stages")
    print(seconds_table(cells))
    print("  The site's seconds are beside its training; the coordinator's are for all sites.")
    for cell in cells:
        if not cell.finished:
            print(
                f"  {_title(cell)}: measured on one site only; all of them would take more than "
                f"{LONGEST_CELL:.0f} s here."
            )
        if cell.sites * cell.parameters > MOST_PLAIN_VALUES:
            print(f"  {_title(cell)}: plain mean of a tenth of the sites, times ten.")
    print("\nbytes of one site that stays, without the global arrays")
    print(bytes_table(cells))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n  peak memory of all sites and the coordinator together: {peak:.2f} GiB")
    if wanted.out:
        numbers = {"peak_gib": peak, "cells": [asdict(cell) for cell in cells], **describe()}
        wanted.out.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
