"""The table: rows, goals and notes, as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.benchmarks.peers.contestants import OURS, PAPER, RIDGE
from tests.benchmarks.peers.judge import MEAN
from tests.benchmarks.peers.traffic import Bytes, largest
from tests.benchmarks.tables import goal

WANTED_RATIO = 10.0
OTHERS_SHARE = 0.1
"""CPU seconds a second that others may use before the note warns."""


@dataclass
class Row:
    """What a contestant cost and reached, or why there is nothing to say.

    `job_seconds`: the job alone, where services had to be started before it.
    """

    key: str
    title: str
    family: str
    failed: str = ""
    seconds: float = 0.0
    job_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0
    processes: int = 0
    loopback_bytes: int | None = None
    traffic: dict[str, Bytes] = field(default_factory=dict)
    auroc: dict[str, dict[str, float | None]] = field(default_factory=dict)
    minus: dict[str, dict[str, float | None]] = field(default_factory=dict)
    others_seconds: float = 0.0

    @property
    def bytes_of_site(self) -> int:
        """Up and down of the site with most."""
        return largest(self.traffic)

    @property
    def mean_auroc(self) -> float | None:
        """Over the sites, equally weighted."""
        return self.auroc.get(MEAN, {}).get("value")

    @property
    def verdict(self) -> str:
        """Whether it failed, or was never started."""
        return "left out" if self.failed.startswith("left out") else "failed"

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self) | {"bytes_of_site": self.bytes_of_site}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Row:
        """Back from :meth:`as_json`."""
        return cls(**{name: v for name, v in content.items() if name != "bytes_of_site"})


def score(found: dict[str, float | None] | None, *, sign: bool = False) -> str:
    """A number with its interval."""
    if not found or found["value"] is None:
        return "–"
    form = "+.3f" if sign else ".3f"
    if found["low"] is None or found["high"] is None:
        return format(found["value"], form)
    return f"{found['value']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def size(count: int) -> str:
    """Bytes, short."""
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.2f} MB"


def markdown(rows: Sequence[Row]) -> str:
    """The table of those that ended, and a list of those that did not."""
    sites = next((list(row.auroc) for row in rows if row.auroc), [MEAN])
    sites = [site for site in sites if site != MEAN]
    base = next((row.seconds for row in rows if row.key == PAPER and not row.failed), None)
    header = [
        "",
        "seconds",
        "of it the job",
        "x dermino",
        "CPU s",
        "peak MiB",
        "up",
        "down",
        "of it rounds",
    ]
    header += [*sites, "mean AUROC", "minus dermino FedAvg", "minus dermino ridge"]
    lines = [_line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    for row in rows:
        if row.failed:
            lines.append(_line([row.title, row.verdict, *["–"] * (len(header) - 2)]))
            continue
        most = max(row.traffic.values(), key=lambda b: b["up"] + b["down"], default={})
        cells = [row.title, f"{row.seconds:.1f}", f"{row.job_seconds:.1f}"]
        cells += [f"{row.job_seconds / base:.2f}" if base else "–", f"{row.cpu_seconds:.1f}"]
        cells += [f"{row.peak_mib:.0f}", size(most.get("up", 0)), size(most.get("down", 0))]
        cells += [size(most.get("rounds", 0))]
        cells += [score(_value_only(row.auroc.get(site))) for site in sites]
        cells += [score(row.auroc.get(MEAN))]
        cells += [score(row.minus.get(other), sign=True) for other in (PAPER, RIDGE)]
        lines.append(_line(cells))
    failures = [f"- {row.title}: {row.failed}" for row in rows if row.failed]
    if failures:
        lines += ["", "Left out or failed:", "", *failures]
    return "\n".join(lines)


def _value_only(found: dict[str, float | None] | None) -> dict[str, float | None] | None:
    return found and {"value": found["value"], "low": None, "high": None}


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def goals(rows: Sequence[Row]) -> list[str]:
    """Each goal of the project with what was measured, reached or not."""
    done = {row.key: row for row in rows if not row.failed}
    return [*_speed(done), *_bytes(done)]


def _speed(done: dict[str, Row]) -> list[str]:
    if PAPER not in done:
        return ["  goal: speed: not measured, because dermino failed"]
    base = done[PAPER].seconds
    found = []
    for family, ending in (("vit", " that runs the frozen ViT each epoch"), ("cached", "")):
        peers = [row for row in done.values() if row.family == family]
        peers = [row for row in peers if family == "vit" or row.key.endswith("-cold")]
        if not peers:
            continue
        fastest = min(peers, key=lambda row: row.job_seconds)
        ratio = fastest.job_seconds / base
        measured = f"{ratio:.1f} times, {fastest.title}"
        if family == "vit":
            text = f"{WANTED_RATIO:g} times faster than the fastest peer{ending}"
            found.append(goal(text, measured, reached=ratio >= WANTED_RATIO))
        else:
            found.append(f"  beside the fastest peer that caches features itself: {measured}")
    return found


def _bytes(done: dict[str, Row]) -> list[str]:
    """Each of our methods against every peer whose AUROC is not lower beyond chance."""
    found = []
    for key in OURS:
        if key not in done:
            continue
        ours, text = done[key], "fewer bytes of a site than any peer whose AUROC is not lower"
        peers = [row for row in done.values() if row.family != "dermino" and key in row.minus]
        by_chance = _least([p for p in peers if _at_least_zero(p.minus[key], "high")])
        by_value = _least([p for p in peers if _at_least_zero(p.minus[key], "value")])
        measured = f"{size(ours.bytes_of_site)}; least of peers not lower beyond chance "
        measured += f"{_named(by_chance)}; not lower in value {_named(by_value)}"
        reached = by_chance is None or ours.bytes_of_site < by_chance.bytes_of_site
        found.append(goal(f"{ours.title}: {text}", measured, reached=reached))
    return found


def _at_least_zero(found: dict[str, float | None], end: str) -> bool:
    """Whether that end of a difference is 0 or more; an undefined one is no proof against it."""
    number = found[end] if found[end] is not None else found["value"]
    return number is None or number >= 0


def _least(rows: Sequence[Row]) -> Row | None:
    return min(rows, key=lambda row: row.bytes_of_site, default=None)


def _named(row: Row | None) -> str:
    return "none" if row is None else f"{size(row.bytes_of_site)} ({row.title})"


def notes(rows: Sequence[Row], whole_model: int) -> str:
    """How to read the table."""
    lines = [
        "- Seconds: from the start of the first process to the end of the last, with imports and "
        "loading the ViT. 'Of it the job': without starting and stopping services, where there "
        "are any; ratios divide this by all of dermino's seconds.",
        "- dermino: `dermino simulate` as one types it; it also makes the local and pooled "
        "baselines, intervals and the report, and runs in bf16 where the processor has it. "
        "Peers run plain torch in fp32 where the row does not say bf16.",
        "- Same images, halves, ViT, preprocessing, initial head, 2 rounds of 2 local epochs where "
        "the row does not say otherwise; peers test the final model once at every site.",
        "- CPU: of all processes. Peak: the largest sum of proportional set sizes of all of them, "
        "sampled every quarter of a second: shared pages count once.",
        "- Up, down: the site with most; arrays as .npy files, 8 bytes a number beside them, texts "
        "by their characters; no frames, no TLS. In-memory FedAvg sends nothing; what would "
        "travel is counted. 'Of it rounds': both ways, without the test of the model, which brings "
        "dermino curves and counts; its rounds also bring each site's own head, for the cross-site "
        "table. Peers send the head only, which their examples do not: the whole model would be "
        f"{size(whole_model)} of a site.",
        "- AUROC: one judge for all, on plain timm's fp32 vectors of the test halves; differences "
        "are paired, 95 % intervals from 1,000 bootstrap replicates of patients or lesions.",
    ]
    loopback = [f"{row.title} {size(row.loopback_bytes)}" for row in rows if row.loopback_bytes]
    if loopback:
        lines.append(f"- All TCP on loopback, of all processes: {'; '.join(loopback)}.")
    disturbed = [
        f"{row.title} ({row.others_seconds:.0f} s)"
        for row in rows
        if row.others_seconds > max(2.0, OTHERS_SHARE * row.seconds)
    ]
    if disturbed:
        text = "- WARNING: the rest of the machine used CPU meanwhile: "
        lines.append(text + ", ".join(disturbed) + ".")
    return "\n".join(lines)
