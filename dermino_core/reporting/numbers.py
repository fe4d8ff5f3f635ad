"""How numbers are written: one place, so that the text and every table agree."""

from __future__ import annotations

import math
import re

from dermino_core.reporting.markup import escape
from dermino_core.results import Estimate

NO_BREAK = "\u00a0"
UNDEFINED = "—"


def is_defined(value: float | None) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def decimal(value: float | None, *, signed: bool = False) -> str:
    """`0.613`, `+0.021`, `−0.021`, or a dash."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.replace("-", "−")


def two_places(value: float) -> str:
    """A cosine: `0.61`, `−0.34`."""
    return f"{value:.2f}".replace("-", "−")


def interval(estimate: Estimate, *, signed: bool = False) -> str:
    """`0.552–0.664`, or `−0.010 to +0.052` where signs would make a dash unreadable."""
    if not (is_defined(estimate.low) and is_defined(estimate.high)):
        return ""
    link = " to " if signed else "–"
    return f"{decimal(estimate.low, signed=signed)}{link}{decimal(estimate.high, signed=signed)}"


def percent(value: float) -> str:
    """A share as whole per cent, `61 %`, unbreakable."""
    return f"{100 * value:.0f}{NO_BREAK}%"


def percent_estimate(estimate: Estimate, unit: str = "") -> str:
    """`61 % of the time (95 % interval 55–66 %)`, or the reason for no number. Plain text."""
    if estimate.value is None or not math.isfinite(estimate.value):
        return f"undefined ({reason(estimate)})"
    text = percent(estimate.value) + unit
    if estimate.low is None or estimate.high is None:
        return f"{text} (no interval)"
    return f"{text} (95{NO_BREAK}% interval {percent_interval(estimate.low, estimate.high)})"


def points_estimate(difference: Estimate) -> str:
    """`-4 points, 95 % interval -8 to +1`: a difference of two shares, in percentage points."""
    if difference.value is None or difference.low is None or difference.high is None:
        return "undefined"
    value, low, high = (
        f"{100 * number:+.1f}".replace("-", "\u2212")
        for number in (difference.value, difference.low, difference.high)
    )
    return f"{value} points, 95{NO_BREAK}% interval {low} to {high}"


def percent_interval(low: float, high: float) -> str:
    """`55–66 %`."""
    return f"{100 * low:.0f}–{100 * high:.0f}{NO_BREAK}%"


def reason(estimate: Estimate) -> str:
    """Why the number is undefined, in the words of whoever computed it."""
    return (estimate.undefined_because or "no reason was recorded").rstrip(".")


def estimate_html(estimate: Estimate, *, signed: bool = False) -> str:
    """Value and interval as an HTML cell; a dash with its reason where undefined."""
    if not is_defined(estimate.value):
        return (
            f'<span class="undefined">{UNDEFINED} '
            f'<span class="why">{escape(reason(estimate))}</span></span>'
        )
    value = f'<span class="value">{decimal(estimate.value, signed=signed)}</span>'
    spread = interval(estimate, signed=signed)
    if spread:
        return f'{value} <span class="interval">{spread}</span>'
    return f'{value} <span class="interval">no interval</span>'


def amount_of_bytes(count: float) -> str:
    """Decimal units as networks count: `12 B`, `3.1 kB`, `4.5 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5 or unit == "GB":
            break
        value /= 1000
    digits = 0 if unit == "B" or abs(value) >= 100 else 1
    return f"{value:.{digits}f}{NO_BREAK}{unit}"


def duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `4 min 05 s`, `2 h 03 min`."""
    if seconds < 9.995:
        return f"{seconds:.2f}{NO_BREAK}s"
    if seconds < 59.95:
        return f"{seconds:.1f}{NO_BREAK}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{NO_BREAK}min {whole % 60:02d}{NO_BREAK}s"
    return f"{whole // 3600}{NO_BREAK}h {whole % 3600 // 60:02d}{NO_BREAK}min"


def without_zeros(text: str) -> str:
    """`4.00 s` as `4 s`, for the ticks of an axis."""
    return re.sub(r"\.0+(?=\D)", "", text)


def count(number: int) -> str:
    """An integer with thin blanks between thousands."""
    return f"{number:,}".replace(",", "\u202f")


def plural(number: int, singular: str, many: str | None = None) -> str:
    """`1 hospital`, `3 hospitals`."""
    return f"{count(number)} {singular if number == 1 else many or singular + 's'}"


def join_names(names: list[str], *, limit: int = 6) -> str:
    """`a, b and c`; the rest is counted. Plain text."""
    shown = names if len(names) <= limit else [*names[:limit], f"{len(names) - limit} more"]
    if len(shown) < 2:
        return "".join(shown)
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def headline_html(estimate: Estimate) -> str:
    """The value large, the interval under it; a dash with the reason where undefined. HTML."""
    if estimate.value is None or not math.isfinite(estimate.value):
        return (
            f'<strong>{UNDEFINED}</strong><span class="interval">{escape(reason(estimate))}</span>'
        )
    below = interval(estimate) or "no interval"
    return f'<strong>{decimal(estimate.value)}</strong><span class="interval">{below}</span>'
