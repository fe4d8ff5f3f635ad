"""Bytes of one site, up and down, by one rule for all.

A message counts its arrays as `.npy` files, 8 bytes for every number beside them, and texts by
their characters; frames, TLS, polling and heartbeats do not count. dermino's own account follows
this rule (`dermino_strategies.protocol.size_in_bytes`); peers note theirs (`task.log_traffic`).
"""

from __future__ import annotations

import json
from pathlib import Path

from dermino_core.results import Results, read_results

Bytes = dict[str, int]
"""`down` to a site, and `up` from it; `rounds`: of both, what is not the test of the model."""


def _nothing() -> Bytes:
    return {"down": 0, "up": 0, "rounds": 0}


def of_dermino(results: Results) -> dict[str, Bytes]:
    """Site -> bytes of all exchanges of a run."""
    found: dict[str, Bytes] = {}
    for record in results.rounds:
        for transfer in record.transfers:
            total = found.setdefault(transfer.site, _nothing())
            total["down"] += transfer.bytes_to_site
            total["up"] += transfer.bytes_from_site
            if record.kind == "train":
                total["rounds"] += transfer.bytes_to_site + transfer.bytes_from_site
    return found


def of_peer(folder: Path) -> dict[str, Bytes]:
    """Site -> bytes of all exchanges that a peer noted."""
    found: dict[str, Bytes] = {}
    for file in sorted(folder.glob("traffic-*.jsonl")):
        total = found.setdefault(file.stem.removeprefix("traffic-"), _nothing())
        for line in file.read_text(encoding="utf-8").splitlines():
            noted = json.loads(line)
            total["down"] += noted["down"]
            total["up"] += noted["up"]
            if not noted["test"]:
                total["rounds"] += noted["down"] + noted["up"]
    return found


def collect(folder: Path) -> dict[str, Bytes]:
    """Of whoever wrote into this folder."""
    run = folder / "run"
    return of_dermino(read_results(run)) if run.exists() else of_peer(folder)


def largest(by_site: dict[str, Bytes]) -> int:
    """Up and down of the site with most."""
    return max((one["down"] + one["up"] for one in by_site.values()), default=0)


def whole_model(backbone: Path, head: int, exchanges: int) -> int:
    """Bytes if the whole model travelled and not its head: what examples of peers send.

    Parameters
    ----------
    backbone
        Its weights; a `.safetensors` file is its arrays and a short header.
    head
        Bytes of the head.
    exchanges
        How often the model goes one way.
    """
    return (backbone.stat().st_size + head) * exchanges
