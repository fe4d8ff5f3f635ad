"""The site's policy: every rule both ways, and opening hours against a walk minute by minute."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_client.opening_hours import DAYS, is_open, next_opening, parse_window
from dermino_client.policy import PolicySection, RequestFacts, broken_rules, check_policy
from dermino_client.site import read_site
from dermino_core.errors import DerminoError
from dermino_core.privacy.plan import PrivacyRequest

NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)  # a Wednesday
FACTS = RequestFacts(
    task="malignancy",
    classes=("benign", "malignant"),
    strategy="fedavg",
    rounds=20,
    model_bytes=4096,
    images_per_class={"benign": 30, "malignant": 12},
)


def asked(epsilon: float, delta: float = 1e-5) -> PrivacyRequest:
    return PrivacyRequest(epsilon=epsilon, delta=delta)


# key of the policy, its value, a request that it allows, one that it refuses, words of the refusal
RULES: list[tuple[str, Any, dict[str, Any], dict[str, Any], str]] = [
    ("min_images", 42, {}, {"images_per_class": {"benign": 30, "malignant": 11}}, "41.*42"),
    (
        "min_images",
        42,
        {},
        {"images_per_class": {"benign": 20, "malignant": 12, "other": 500}},
        "32.*42",
    ),
    (
        "min_per_class",
        12,
        {},
        {"images_per_class": {"benign": 30, "malignant": 11}},
        "11 .*'malignant'.*12",
    ),
    (
        "min_per_class",
        31,
        {"images_per_class": {"malignant": 31}},
        {"images_per_class": {"benign": 1, "malignant": 31}},
        "1 .*'benign'.*31 or none",
    ),
    ("tasks", ["malignancy"], {}, {"task": "wounds"}, "'wounds'.*'malignancy'"),
    ("strategies", ["fedavg"], {}, {"strategy": "fedsgd"}, "'fedsgd'.*'fedavg'"),
    ("max_rounds", 20, {}, {"rounds": 21}, "21.*20"),
    ("max_model_bytes", 4096, {}, {"model_bytes": 4097}, "4097.*4096"),
    ("require_privacy", True, {"privacy": asked(900)}, {}, "no differential privacy"),
    (
        "require_privacy",
        True,
        {"privacy": asked(1)},
        {"privacy": asked(1, 1e-2)},
        "delta: .*0.01.*1e-05",
    ),
    (
        "privacy_unit",
        "patient",
        {"privacy": asked(1)},
        {"privacy": asked(1).model_copy(update={"unit": "image"})},
        "privacy_unit: it protects single images",
    ),
    ("epsilon_per_run", 2.0, {"privacy": asked(2.0)}, {"privacy": asked(2.1)}, "2.1.*2"),
    ("epsilon_per_run", 2.0, {"privacy": asked(2.0)}, {}, "no differential privacy"),
    (
        "epsilon_per_run",
        2,
        {"privacy": asked(2, 1e-5)},
        {"privacy": asked(2, 2e-5)},
        "delta: .*2e-05.*1e-05",
    ),
    ("epsilon_per_year", 8, {"privacy": asked(8)}, {"privacy": asked(8.5)}, "8.5.*8"),
    ("epsilon_per_year", 8, {"privacy": asked(8)}, {}, "no differential privacy"),
    (
        "require_secure_aggregation",
        True,
        {"secure_aggregation": True, "other_sites": 2},
        {},
        "update alone",
    ),
    (
        "min_other_sites",
        3,
        {"secure_aggregation": True, "other_sites": 3},
        {"secure_aggregation": True, "other_sites": 2},
        "2 other sites.*3",
    ),
    (
        "min_other_sites",
        1,
        {"other_sites": None},
        {"secure_aggregation": True, "other_sites": None},
        "does not say how many",
    ),
]


@pytest.mark.parametrize(
    ("key", "value", "allowed", "refused", "words"), RULES, ids=[rule[0] for rule in RULES]
)
def test_each_rule_both_ways(
    key: str, value: Any, allowed: dict[str, Any], refused: dict[str, Any], words: str
) -> None:
    policy = PolicySection(**{key: value})
    check_policy(policy, replace(FACTS, **allowed), NOON)
    bad = replace(FACTS, **refused)
    with pytest.raises(DerminoError, match=words) as caught:
        check_policy(policy, bad, NOON)
    assert (caught.value.code, caught.value.exit_code) == ("POLICY_REFUSED", 9)
    assert caught.value.safe_sentence == "The site's policy does not allow this request."
    assert caught.value.fix
    broken = broken_rules(policy, bad)
    assert len(broken) == 1
    named = broken[0].split(":")[0]
    assert named == key or (key, named) in {
        ("require_privacy", "delta"),
        ("epsilon_per_run", "delta"),
    }


def test_defaults() -> None:
    """Safe, and not in the way of an ordinary run."""
    check_policy(PolicySection(), FACTS, NOON)
    check_policy(PolicySection(), replace(FACTS, privacy=asked(900, 0.09)), NOON)
    refused = [
        {"images_per_class": {"benign": 29, "malignant": 1}},
        {"images_per_class": {"benign": 5, "malignant": 4}},
        {"images_per_class": {}},
        {"secure_aggregation": True, "other_sites": 1},
        {"model_bytes": 64 * 2**20 + 1},
        {"rounds": 1001},
    ]
    for change in refused:
        assert len(broken_rules(PolicySection(), replace(FACTS, **change))) == 1, change


def test_every_broken_rule_is_named_at_once() -> None:
    policy = PolicySection(max_rounds=5, min_images=100, opening_hours=["Sun"], timezone="UTC")
    with pytest.raises(DerminoError) as caught:
        check_policy(policy, FACTS, NOON)
    assert caught.value.code == "POLICY_REFUSED"
    assert "max_rounds" in caught.value.what
    assert "min_images" in caught.value.what


def test_outside_hours() -> None:
    policy = PolicySection(opening_hours=["Wed 18:00-20:00"], timezone="Europe/Zurich")
    check_policy(policy, FACTS, NOON.replace(hour=17))
    with pytest.raises(DerminoError, match="opens at Wed 2026-03-04 18:00 CET") as caught:
        check_policy(policy, FACTS, NOON)
    assert (caught.value.code, caught.value.exit_code) == ("OUTSIDE_HOURS", 9)


WRONG: list[tuple[str, Any, str]] = [
    ("min_image", 5, "known keys.*min_images"),
    ("min_images", 0, "greater than or equal to 1"),
    ("min_images", "5", "valid integer"),
    ("min_images", True, "valid integer"),
    ("min_per_class", -1, "greater than or equal to 1"),
    ("strategies", ["fedavgg"], "no strategy 'fedavgg'; known: .*fedavg"),
    ("strategies", [], "at least 1 item"),
    ("strategies", "fedavg", "valid list"),
    ("strategies", ["fedavg", "fedavg"], "named twice"),
    ("tasks", [""], "a name is empty"),
    ("max_rounds", 1.5, "valid integer"),
    ("max_model_bytes", 0, "greater than or equal to 1"),
    ("epsilon_per_run", 0, "greater than 0"),
    ("epsilon_per_run", float("nan"), "(greater than 0|finite)"),
    ("epsilon_per_year", float("inf"), "(less than or equal|finite)"),
    ("epsilon_per_year", "8", "valid number"),
    ("delta", 0.5, "less than 0.1"),
    ("require_privacy", "yes", "valid boolean"),
    ("require_secure_aggregation", 1, "valid boolean"),
    ("min_other_sites", 0, "greater than or equal to 1"),
    ("new_members", "all", "'authority' or 'ask'"),
    ("opening_hours", ["Mon-Fry 18:00-07:00"], "'Fry' is not a day"),
    ("opening_hours", ["Mon 18-20"], "'18-20' is not a range of times"),
    ("opening_hours", ["Mon 25:00-26:00"], "from 00:00 to 24:00"),
    ("opening_hours", ["Mon 08:60-09:00"], "from 00:00 to 24:00"),
    ("opening_hours", ["Mon 08:00-08:00"], "begins and ends at once"),
    ("opening_hours", ["Mon -Fri"], "is not a range of times"),
    ("opening_hours", ["Mon-Tue-Wed"], "is not a day"),
    ("opening_hours", ["  "], "is not a day"),
    ("opening_hours", "Mon-Fri", "valid list"),
    ("timezone", "Europe/Zuerich", "'Europe/Zuerich' is not known"),
    ("timezone", "Europe", "is not known"),
    ("timezone", "../../etc/passwd", "is not known"),
    ("timezone", "", "is not known"),
    ("apps", ["dermino", "cafe"], "neither 'dermino' nor a SHA-256"),
    ("apps", ["AB" * 32], "neither 'dermino' nor a SHA-256"),
    ("apps", [], "at least 1 item"),
    ("share_local_head", "no", "valid boolean"),
    ("share_statistics", "no", "valid boolean"),
    ("min_count", 1, "greater than or equal to 2"),
]


@pytest.mark.parametrize(("key", "value", "words"), WRONG)
def test_a_typo_is_one_clear_error(tmp_path: Path, key: str, value: Any, words: str) -> None:
    file = tmp_path / "ward.toml"
    content = {
        "site": {"name": "ward"},
        "data": {"manifest": "table.csv"},
        "labels": {"mole": "benign"},
        "policy": {key: value},
    }
    file.write_text(tomli_w.dumps(content))
    with pytest.raises(DerminoError, match=f"(?s){words}") as caught:
        read_site(file)
    assert caught.value.code == "CONFIG_INVALID"
    assert f"policy.{key}" in caught.value.what
    assert str(file) in str(caught.value)


def test_a_full_section_is_read(tmp_path: Path) -> None:
    policy = {
        "min_images": 50,
        "strategies": ["fedavg"],
        "opening_hours": ["Mon-Fri 18:00-07:00", "Sat-Sun"],
        "timezone": "Europe/Zurich",
        "apps": ["dermino", "0f" * 32],
        "epsilon_per_year": 8,
        "new_members": "ask",
    }
    file = tmp_path / "ward.toml"
    content = {"site": {"name": "ward"}, "data": {"manifest": "t"}, "labels": {}, "policy": policy}
    file.write_text(tomli_w.dumps(content))
    read = read_site(file).policy
    assert read.model_dump(include=set(policy)) == policy
    for name, field in PolicySection.model_fields.items():
        assert field.description, name


# -- opening hours ---------------------------------------------------------------------------------

WEEK = 7 * 24 * 60


@st.composite
def windows(draw: st.DrawFn) -> tuple[str, set[int]]:
    """A window as a person writes it, and the minutes of the week at which it is open."""
    days: list[int] = []
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        first, last = draw(st.integers(0, 6)), draw(st.integers(0, 6))
        parts.append(DAYS[first] if first == last else f"{DAYS[first]}-{DAYS[last]}")
        while True:
            days.append(first)
            if first == last:
                break
            first = (first + 1) % 7
    start = draw(st.integers(0, 24 * 60 - 1))
    end = draw(st.integers(0, 24 * 60).filter(lambda end: end != start))
    text = ",".join(parts)
    if draw(st.booleans()):
        text += f" {start // 60:02d}:{start % 60:02d}-{end // 60}:{end % 60:02d}"
    else:
        start, end = 0, 24 * 60
    minutes = set()
    for day in days:
        moment, clock = day * 24 * 60 + start, start
        while clock != end:
            minutes.add(moment % WEEK)
            moment += 1
            clock += 1
            if clock == 24 * 60 and end < start:
                clock = 0
    return text, minutes


@settings(max_examples=60, deadline=None)
@given(
    drawn=st.lists(windows(), min_size=1, max_size=3),
    zone=st.sampled_from(["UTC", "Europe/Zurich", "America/New_York", "Asia/Kathmandu"]),
    hours=st.lists(st.integers(0, 24 * 366), min_size=5, max_size=5),
)
def test_hours_against_a_walk_through_the_week(
    drawn: list[tuple[str, set[int]]], zone: str, hours: list[int]
) -> None:
    texts = [text for text, _ in drawn]
    expected = set().union(*(minutes for _, minutes in drawn))
    for hour in hours:
        for minute in (0, 17, 59):
            now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hour, minutes=minute)
            wall = now.astimezone(ZoneInfo(zone))
            here = (wall.weekday() * 24 + wall.hour) * 60 + wall.minute
            assert is_open(texts, now, zone) == (here in expected), (texts, wall)


@settings(max_examples=25, deadline=None)
@given(drawn=windows(), minute=st.integers(0, 366 * 24 * 60))
def test_next_opening_is_the_first(drawn: tuple[str, set[int]], minute: int) -> None:
    now = datetime(2026, 1, 1, 0, 0, 30, tzinfo=UTC) + timedelta(minutes=minute)
    opens = next_opening([drawn[0]], now, "Europe/Zurich")
    assert opens is not None
    moment = now.replace(second=0) + timedelta(minutes=1)
    while not is_open([drawn[0]], moment, "Europe/Zurich"):
        moment += timedelta(minutes=1)
    assert opens == moment


def test_every_minute_of_a_week() -> None:
    """Sunday's night shift ends on Monday morning, Friday's is not on Friday morning."""
    monday = datetime(2026, 6, 1, tzinfo=UTC)
    opened = [
        is_open(["Fri,Sun 22:00-06:00"], monday + timedelta(minutes=m), "UTC") for m in range(WEEK)
    ]
    friday, night = 4 * 24 * 60 + 22 * 60, 8 * 60
    expected = (
        set(range(6 * 60)) | set(range(friday, friday + night)) | set(range(WEEK - 2 * 60, WEEK))
    )
    assert {m for m in range(WEEK) if opened[m]} == expected


@pytest.mark.parametrize(
    ("hour", "minute", "opened"),
    [(23, 59, False), (0, 0, True), (0, 59, True), (1, 0, True), (1, 59, True), (2, 0, False)],
)
def test_the_hour_that_clocks_show_twice_is_open_twice(
    hour: int, minute: int, opened: bool
) -> None:
    day = 24 if hour == 23 else 25
    now = datetime(2026, 10, day, hour, minute, tzinfo=UTC)
    assert is_open(["Sun 02:00-03:00"], now, "Europe/Zurich") is opened


def test_the_hour_that_clocks_skip_is_never_open() -> None:
    windows = ["Sun 02:00-03:00"]
    day = datetime(2026, 3, 28, 23, 0, tzinfo=UTC)
    for minute in range(24 * 60):
        assert not is_open(windows, day + timedelta(minutes=minute), "Europe/Zurich")
    following = datetime(2026, 4, 5, 0, 0, tzinfo=UTC)
    assert next_opening(windows, day - timedelta(days=1), "Europe/Zurich") == following
    # A night shift over it is not cut short.
    for hour in range(17, 29):
        now = datetime(2026, 3, 28, tzinfo=UTC) + timedelta(hours=hour)
        assert is_open(["Sat 18:00-07:00"], now, "Europe/Zurich")
    assert not is_open(
        ["Sat 18:00-07:00"], datetime(2026, 3, 29, 5, 0, tzinfo=UTC), "Europe/Zurich"
    )


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_without_a_zone_the_machine_s_clock_counts() -> None:
    window = ["Thu 02:00-03:00"]  # 17:00-18:00 UTC on Wednesday
    assert is_open(window, datetime(2026, 3, 4, 17, 30, tzinfo=UTC))
    assert not is_open(window, datetime(2026, 3, 4, 18, 0, tzinfo=UTC))
    assert is_open(window, datetime(2026, 3, 5, 2, 30))


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("mon-fri 8:00-9:30", "Mon,Tue,Wed,Thu,Fri 08:00-09:30"),
        ("18:00-07:00", "Mon-Sun 18:00-07:00"),
        ("Fri-Mon", "Sat,Sun,Mon,Fri 00:00-24:00"),
        (" Sat  10:00-11:00 ", "SAT 10:00-11:00"),
    ],
)
def test_ways_to_write_a_window(text: str, same_as: str) -> None:
    assert parse_window(text) == parse_window(same_as)


def test_no_window_ever_opens() -> None:
    assert next_opening([], NOON, "UTC") is None
    assert not is_open([], NOON, "UTC")
