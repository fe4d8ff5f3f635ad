"""Whose updates stood out: names, sentences, and what can and cannot be told from it. HTML."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from dermino_core.reporting.markup import escape, table
from dermino_core.reporting.numbers import UNDEFINED, join_names, two_places
from dermino_core.results import Results, RoundRecord, Suspicion

FEWEST_SITES = 3


def standing_out(results: Results) -> list[str]:
    """The section's parts; none where updates were not compared and nothing hindered it."""
    records = [record for record in results.rounds if record.kind == "train"]
    if not records:
        return []
    if results.secure_aggregation:
        return [_paragraph(SECURE)]
    if results.privacy:
        return [_paragraph(PRIVATE)]
    if not any(record.update_length for record in records):
        return []
    if not any(record.update_cosine for record in records):
        return [_paragraph(TOO_FEW)]
    found = [(record.round, one) for record in records for one in record.suspicious]
    parts = [_findings(found), _paragraph(MEANING)] if found else [_paragraph(NOTHING)]
    return [*parts, _comparison(records)]


SECURE = (
    "Under secure aggregation the coordinator sees no single update, so nobody can be named. What "
    "holds instead: before it masks its part, each hospital’s own program refuses numbers that "
    "are not finite or larger than the method’s limits, so that a mistake cannot spoil the sum. "
    "A hospital whose program was changed can skip that check, and a reversed update, swapped "
    "labels or a change within the limits is seen by nobody."
)
PRIVATE = (
    "Updates were not compared: in a private run the noise decides how long an update is and where "
    "it points, the more so the fewer images a hospital has."
)
TOO_FEW = (
    "Updates were not compared: with fewer than three hospitals each is all that the other could "
    "be compared with."
)
NOTHING = (
    "Each update was compared with those of the other hospitals, in length and in direction. None "
    "stood out. That rules out gross mistakes, and not small or agreed ones."
)
MEANING = (
    "A reason to ask, not a proof. Look first at the label map of that hospital (are the classes "
    "the right way round?), then at its images and its version of the software. An honest hospital "
    "with other patients or with reversed shares of the classes can stand out too, and a small lie "
    "stays unseen. Its updates were used nevertheless; the methods median, trimmed_mean and krum "
    "lose less to one bad hospital."
)


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _findings(found: list[tuple[int, Suspicion]]) -> str:
    """One item per hospital and reason: its rounds, and the sentence of its worst one."""
    grouped: dict[tuple[str, str], list[tuple[int, Suspicion]]] = {}
    for round_, one in found:
        grouped.setdefault((one.site, one.reason), []).append((round_, one))
    items = []
    for group in grouped.values():
        worst = max(group, key=lambda pair: abs(pair[1].score))
        rounds = join_names([str(round_) for round_, _ in group], limit=12)
        word = "round" if len(group) == 1 else "rounds"
        note = f" (the sentence is of round {worst[0]})" if len(group) > 1 else ""
        items.append(
            f"<li>{escape(worst[1].sentence)} "
            f'<span class="note">{escape(f"In {word} {rounds}{note}.")}</span></li>'
        )
    return f'<ul class="compared">{"".join(items)}</ul>'


def _comparison(records: list[RoundRecord]) -> str:
    """Every hospital's lengths and cosines over the rounds, lowest to highest."""
    ratios: dict[str, list[float]] = {}
    cosines: dict[str, list[float]] = {}
    for record in records:
        for site, length in record.update_length.items():
            others = [value for name, value in record.update_length.items() if name != site]
            middle = statistics.median(others) if others else 0.0
            if middle > 0:
                ratios.setdefault(site, []).append(length / middle)
        for site, cosine in record.update_cosine.items():
            cosines.setdefault(site, []).append(cosine)
    named = {one.site for record in records for one in record.suspicious}
    rows = [
        [
            f"<bdi>{escape(site)}</bdi>"
            + (' <span class="why">stands out</span>' if site in named else ""),
            _span(ratios.get(site, ()), factor=True),
            _span(values, factor=False),
        ]
        for site, values in sorted(cosines.items())
    ]
    head = ["Hospital", "Length beside the others’", "Direction: cosine with the others’"]
    return table(head, rows, label="Length and direction of the hospitals’ updates")


def _span(values: Iterable[float], *, factor: bool) -> str:
    """`0.9 to 1.3 times`, or `0.31 to 0.80`, over the rounds."""
    ordered = sorted(values)
    if not ordered:
        return UNDEFINED
    low, high = (f"{v:,.2g}" if factor else two_places(v) for v in (ordered[0], ordered[-1]))
    text = low if low == high else f"{low} to {high}"
    return f"{text} times" if factor else text
