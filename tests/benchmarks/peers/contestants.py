"""Who takes part: a command each, and what it is told."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.benchmarks.machine import dermino, module

Family = Literal["dermino", "vit", "cached"]
"""`vit`: a peer that runs the frozen ViT in every epoch. `cached`: one that keeps the vectors."""

LONGER = {"rounds": 10, "rate": 5e-3}
"""Another schedule than the paper's: more rounds, a larger rate."""


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    `program` is what runs: `dermino`, or a module of this folder with its arguments. `options` go
    to `dermino simulate`, `settings` into a peer's job. `cache` is the folder of the vectors, if
    any; `after` names the row that fills it, which must have succeeded; without it the folder is
    emptied before. `network`: it listens, and gets a network of its own; `quick`: it is part of
    the quick run.
    """

    key: str
    title: str
    family: Family
    program: tuple[str, ...]
    options: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    cache: str = ""
    after: str = ""
    network: bool = False
    quick: bool = True

    def command(self, job: Path, sites: Path, backbone: str, nvflare: str) -> list[str]:
        """What to run; `job` is the contestant's job file, beside which results are written."""
        if self.family == "dermino":
            return dermino(
                *("simulate", "--sites", str(sites), "--backbone", backbone),
                *("--cache", str(job.parent.parent / self.cache)),
                *("--out", str(job.parent / "run"), *self.options),
            )
        name, *arguments = self.program
        command = module(f"peers.{name}", *arguments, str(job))
        python = nvflare if name == "nvflare_job" else sys.executable
        return [python, *command[1:]]


def _ours(
    key: str, title: str, *options: str, cache: str, after: str = "", quick: bool = True
) -> Contestant:
    program = ("dermino",)
    return Contestant(
        key, title, "dermino", program, options, cache=cache, after=after, quick=quick
    )


_RIDGE = ("--strategy", "ridge")
_LONGER_OPTIONS = ("--rounds", "10", "--set", "learning_rate=5e-3")
_MEMORY, _HERE = ("in_memory",), ("flower_app",)

PAPER, RIDGE, OURS_LONGER = OURS = ("dermino-fedavg", "dermino-ridge", "dermino-longer")
"""The rows that others are compared with."""

CONTESTANTS: tuple[Contestant, ...] = (
    _ours(PAPER, "dermino FedAvg", cache="cache-ours"),
    _ours("dermino-fedavg-warm", "dermino FedAvg, full cache", cache="cache-ours", after=PAPER),
    _ours(RIDGE, "dermino ridge", *_RIDGE, cache="cache-ridge"),
    _ours(
        "dermino-ridge-warm",
        "dermino ridge, full cache",
        *_RIDGE,
        cache="cache-ridge",
        after=RIDGE,
        quick=False,
    ),
    _ours(
        OURS_LONGER,
        "dermino FedAvg, 10 rounds at 5e-3, full cache",
        *_LONGER_OPTIONS,
        cache="cache-ours",
        after=PAPER,
    ),
    _ours(
        "dermino-fp32",
        "dermino FedAvg in fp32",
        "--precision",
        "fp32",
        cache="cache-fp32",
        quick=False,
    ),
    Contestant("memory", "in-memory FedAvg", "vit", _MEMORY),
    Contestant("flower", "Flower in one process", "vit", _HERE, quick=False),
    Contestant(
        "flower-bf16",
        "Flower in one process, bf16",
        "vit",
        _HERE,
        settings={"precision": "bf16"},
        quick=False,
    ),
    Contestant(
        "flower-ray", "Flower on Ray", "vit", ("flower_engines", "ray"), network=True, quick=False
    ),
    Contestant(
        "flower-deployed",
        "Flower, SuperLink and SuperNodes",
        "vit",
        ("flower_engines", "deployed"),
        network=True,
    ),
    Contestant(
        "nvflare-simulator",
        "NVFlare simulator",
        "vit",
        ("nvflare_job", "simulator"),
        network=True,
    ),
    Contestant("nvflare-poc", "NVFlare POC mode", "vit", ("nvflare_job", "poc"), network=True),
    Contestant("memory-cold", "in-memory FedAvg, own cache", "cached", _MEMORY, cache="vectors"),
    Contestant(
        "memory-warm",
        "in-memory FedAvg, full cache",
        "cached",
        _MEMORY,
        cache="vectors",
        after="memory-cold",
    ),
    Contestant(
        "memory-bf16-cold",
        "in-memory FedAvg, own cache, bf16",
        "cached",
        _MEMORY,
        settings={"precision": "bf16"},
        cache="vectors-bf16",
        quick=False,
    ),
    Contestant(
        "flower-cold",
        "Flower in one process, own cache",
        "cached",
        _HERE,
        cache="vectors-flower",
        quick=False,
    ),
    Contestant(
        "flower-warm",
        "Flower in one process, full cache",
        "cached",
        _HERE,
        cache="vectors-flower",
        after="flower-cold",
        quick=False,
    ),
    Contestant(
        "memory-longer",
        "in-memory FedAvg, 10 rounds at 5e-3, full cache",
        "cached",
        _MEMORY,
        settings=LONGER,
        cache="vectors",
        after="memory-cold",
    ),
    Contestant(
        "flower-longer",
        "Flower, 10 rounds at 5e-3, full cache",
        "cached",
        _HERE,
        settings=LONGER,
        cache="vectors",
        after="memory-cold",
        quick=False,
    ),
)
