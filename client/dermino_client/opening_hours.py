"""When a site answers: weekly windows in the wall-clock time of one place.

A window is `DAYS`, `HH:MM-HH:MM` or `DAYS HH:MM-HH:MM`; `DAYS` is a day, a range of days or several
of these with commas (`Mon`, `Mon-Fri`, `Fri-Mon`, `Mon,Wed,Sat-Sun`). A window whose end is before
its start ends on the next day: `Mon-Fri 18:00-07:00` is open on Saturday morning, not on Monday
morning. What counts is the time a clock on the wall shows, so nothing has to be said about
daylight saving: an hour that a clock shows twice is open twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY_MINUTES = 24 * 60
_TIMES = re.compile(r"([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})")


@dataclass(frozen=True)
class Window:
    """Open from `start` for `length` minutes, on each of `days` (0 is Monday)."""

    days: frozenset[int]
    start: int
    length: int

    def holds(self, day: int, minute: int) -> bool:
        """Whether the window is open at this minute of this weekday."""
        if day in self.days and self.start <= minute < self.start + self.length:
            return True
        since_yesterday = minute + _DAY_MINUTES
        return (day - 1) % 7 in self.days and since_yesterday < self.start + self.length


def parse_window(text: str) -> Window:
    """Read one window.

    Raises
    ------
    ValueError
        In words that show the right form.
    """
    days, _, times = text.strip().partition(" ")
    if ":" in days and not times:
        days, times = "Mon-Sun", days
    start, length = _parse_times(times.strip(), text) if times else (0, _DAY_MINUTES)
    chosen = frozenset(day for part in days.split(",") for day in _parse_days(part, text))
    return Window(chosen, start, length)


def _parse_days(part: str, text: str) -> list[int]:
    first, _, last = part.partition("-")
    names = [name.capitalize() for name in (first, last if "-" in part else first)]
    if unknown := [name for name in names if name not in DAYS]:
        raise ValueError(
            f"'{text}': '{unknown[0]}' is not a day ({', '.join(DAYS)}); "
            "write for example 'Mon-Fri 18:00-07:00' or 'Sat-Sun'"
        )
    begin, end = (DAYS.index(name) for name in names)
    return [(begin + i) % 7 for i in range((end - begin) % 7 + 1)]


def _parse_times(times: str, text: str) -> tuple[int, int]:
    match = _TIMES.fullmatch(times)
    if match is None:
        raise ValueError(f"'{text}': '{times}' is not a range of times such as '18:00-07:00'")
    hour, minute, end_hour, end_minute = map(int, match.groups())
    start, end = hour * 60 + minute, end_hour * 60 + end_minute
    if max(minute, end_minute) > 59 or start >= _DAY_MINUTES or end > _DAY_MINUTES:
        raise ValueError(f"'{text}': times go from 00:00 to 24:00")
    if start == end:
        raise ValueError(f"'{text}' begins and ends at once; for a whole day name the day alone")
    return start, end - start if end > start else end - start + _DAY_MINUTES


def time_zone(name: str) -> tzinfo:
    """The time zone of an IANA name such as `Europe/Zurich`.

    Raises
    ------
    ValueError
        If this machine does not know it.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # Value: "../x"; OSError: "Europe" is a folder
        raise ValueError(
            f"the time zone '{name}' is not known on this machine; write for example "
            "'Europe/Zurich', and install the package tzdata if the machine has no time zones"
        ) from None


def is_open(windows: Sequence[str], now: datetime, zone: str | None = None) -> bool:
    """Whether one of the windows is open at `now`, on the clock of `zone` or of this machine.

    Raises
    ------
    ValueError
        If a window or the zone is not valid.
    """
    return _any_holds([parse_window(text) for text in windows], _local(now, zone))


def next_opening(windows: Sequence[str], now: datetime, zone: str | None = None) -> datetime | None:
    """The first full minute after `now` at which a window is open, in the time of `zone`.

    Looks 15 days ahead, in steps of real time: two weeks, because a window can fall into the hour
    that the clocks skip in spring. None if there is none.

    Raises
    ------
    ValueError
        If a window or the zone is not valid.
    """
    parsed = [parse_window(text) for text in windows]
    moment = now.astimezone(UTC).replace(second=0, microsecond=0)
    for _ in range(15 * _DAY_MINUTES):
        moment += timedelta(minutes=1)
        if _any_holds(parsed, local := _local(moment, zone)):
            return local
    return None


def _local(moment: datetime, zone: str | None) -> datetime:
    return moment.astimezone(time_zone(zone) if zone else None)


def _any_holds(windows: list[Window], local: datetime) -> bool:
    minute = local.hour * 60 + local.minute
    return any(window.holds(local.weekday(), minute) for window in windows)
