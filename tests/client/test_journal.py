"""The journal: what it writes, and that any change of it is found. Crashes: see beside it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_client.journal import GENESIS, Journal
from dermino_core.errors import DerminoError

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not on a disk, where there is a choice: these tests flush thousands of times."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name) / "journal"


def fill(folder: Path, count: int = 6, rotate: int = 500) -> Journal:
    journal = Journal(folder, rotate_bytes=rotate)
    for number in range(count):
        journal.append({"number": number, "text": "ä\n\0 " * number})
    return journal


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("journal-*"))


def numbers(journal: Journal) -> list[int]:
    return [entry.record["number"] for entry in journal.entries()]


def refused(journal: Journal, *steps: Callable[[], object], code: str = "AUDIT_INVALID") -> str:
    """All steps, by default reading and checking, must raise; the words of the last one."""
    words = ""
    for step in steps or (lambda: list(journal.entries()), journal.verify):
        with pytest.raises(DerminoError) as caught:
            step()
        assert caught.value.code == code
        words = str(caught.value)
    return words


def test_what_is_written_can_be_checked_without_this_code(folder: Path) -> None:
    """Another reading of the chain, from its description."""
    journal = fill(folder)
    previous = "0" * 64
    lines = [line for file in files_of(folder) for line in file.read_bytes().splitlines()]
    assert len(lines) == 6
    for number, line in enumerate(lines):
        content = json.loads(line)
        claimed = content.pop("hash")
        assert content["prev"] == previous
        assert content["seq"] == number + 1
        assert content["record"] == {"number": number, "text": "ä\n\0 " * number}
        text = json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n"
        previous = hashlib.sha256(text.encode()).hexdigest()
        assert claimed == previous
    head = json.loads((folder / "head.json").read_bytes())
    assert (head["count"], head["hash"]) == (6, previous)
    verified = journal.verify()
    assert (verified.entries, verified.files, verified.head) == (6, 4, previous)
    assert verified.interrupted is False
    names = [file.name for file in files_of(folder)]
    assert names == [f"journal-00000{n}.jsonl" for n in (1, 2, 3, 4)]
    assert all(file.stat().st_size <= 500 for file in files_of(folder))


def test_private_to_its_user(folder: Path) -> None:
    before = os.umask(0)
    try:
        fill(folder / "of" / "a" / "site")
    finally:
        os.umask(before)
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    (folder / "of" / "a" / "site").chmod(0o755)
    Journal(folder / "of" / "a" / "site").append({})
    assert (folder / "of" / "a" / "site").stat().st_mode & 0o777 == 0o700


def test_reading_makes_nothing(folder: Path) -> None:
    journal = Journal(folder)
    assert list(journal.entries()) == []
    verified = journal.verify()
    assert (verified.entries, verified.files, verified.head) == (0, 0, GENESIS)
    assert not folder.exists()
    fill(folder)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    (copy / "lock").unlink()
    assert Journal(copy).verify() == journal.verify()
    assert not (copy / "lock").exists()


def test_a_reader_sees_what_was_there_when_it_began(folder: Path) -> None:
    journal = fill(folder, 3)
    reading = journal.entries()
    assert next(reading).seq == 1
    journal.append({"number": 3})
    assert [entry.seq for entry in reading] == [2, 3]


def test_only_plain_records(folder: Path) -> None:
    journal = fill(folder, 1)
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    bad: list[dict[Any, Any]] = [{"a": float("nan")}, {"a": {1}}, {1: 1, "1": 2}, deep]
    for record in bad:
        with pytest.raises(ValueError, match="not plain JSON"):
            journal.append(record)
    assert journal.append({"a": (1, 2)}).record == {"a": [1, 2]}
    assert journal.verify().entries == 2


# What was changed is found.


def test_every_byte_counts(folder: Path) -> None:
    """Any bit of any byte of the log and of its head."""
    journal = fill(folder, 4, rotate=300)
    assert len(files_of(folder)) == 4
    for file in (*files_of(folder), folder / "head.json"):
        content = file.read_bytes()
        for place in range(len(content)):
            changed = bytearray(content)
            changed[place] ^= 1 << (place % 8)
            file.write_bytes(changed)
            refused(journal)
        file.write_bytes(content)
    assert journal.verify().entries == 4


def test_every_cut_of_the_tail_is_found(folder: Path) -> None:
    journal = fill(folder, 4)
    last = files_of(folder)[-1]
    content = last.read_bytes()
    for size in range(len(content)):
        os.truncate(last, size)
        assert "head.json counts 4 entries" in refused(journal)
        refused(journal, lambda: journal.append({}))
        last.write_bytes(content)
    for file in (*files_of(folder), folder / "head.json"):
        content = file.read_bytes()
        file.unlink()
        refused(journal)
        file.write_bytes(content)
    assert numbers(journal) == [0, 1, 2, 3]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)  # fmt: skip
RECORDS = st.lists(st.dictionaries(st.text(max_size=9), JSON, max_size=4), min_size=1, max_size=9)


@settings(max_examples=30, deadline=None)
@given(records=RECORDS, rotate=st.integers(1, 1500), data=st.data())
def test_any_change_is_found(records: list[dict[str, Any]], rotate: int, data: Any) -> None:
    damage_is_found(records, rotate, data)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(records=RECORDS, rotate=st.integers(1, 1500), data=st.data())
def test_any_of_many_changes_is_found(
    records: list[dict[str, Any]], rotate: int, data: Any
) -> None:
    damage_is_found(records, rotate, data)


def damage_is_found(records: list[dict[str, Any]], rotate: int, data: Any) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name)
        journal = Journal(folder, rotate_bytes=rotate)
        hashes = [journal.append(record).hash for record in records]
        assert [entry.record for entry in journal.entries()] == records
        assert journal.verify().head == hashes[-1]
        files = [*files_of(folder), folder / "head.json"]
        assert journal.verify().files == len(files) - 1
        before = {file: file.read_bytes() for file in files}
        damage = data.draw(st.sampled_from([change_byte, remove_line, cut_tail, swap_lines, add]))
        damage(folder, data.draw)
        if {file: file.read_bytes() for file in files if file.exists()} != before:
            refused(journal)
        if damage is cut_tail:
            refused(journal, lambda: journal.append({}))


Draw = Callable[[st.SearchStrategy[Any]], Any]


def lines_of(folder: Path) -> list[tuple[Path, int]]:
    return [
        (file, number)
        for file in files_of(folder)
        for number in range(len(file.read_bytes().splitlines()))
    ]


def replace(file: Path, number: int, old: bytes, new: bytes) -> None:
    rewrite(file, lambda lines: lines.__setitem__(number, lines[number].replace(old, new)))


def rewrite(file: Path, change: Callable[[list[bytes]], object]) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    change(lines)
    file.write_bytes(b"".join(lines))


def change_byte(folder: Path, draw: Draw) -> None:
    file = draw(st.sampled_from([*files_of(folder), folder / "head.json"]))
    content = bytearray(file.read_bytes())
    place = draw(st.integers(0, len(content) - 1))
    content[place] = draw(st.integers(0, 255))
    file.write_bytes(content)


def remove_line(folder: Path, draw: Draw) -> None:
    file, number = draw(st.sampled_from(lines_of(folder)))
    rewrite(file, lambda lines: lines.pop(number))
    if not file.read_bytes() and draw(st.booleans()):
        file.unlink()


def cut_tail(folder: Path, draw: Draw) -> None:
    left = draw(st.integers(1, sum(file.stat().st_size for file in files_of(folder))))
    for file in reversed(files_of(folder)):
        here = min(left, file.stat().st_size)
        left -= here
        os.truncate(file, file.stat().st_size - here)
        if file.stat().st_size == 0 and draw(st.booleans()):
            file.unlink()
        if left == 0:
            return


def swap_lines(folder: Path, draw: Draw) -> None:
    places = st.sampled_from(lines_of(folder))
    (file, number), (other, other_number) = draw(places), draw(places)
    line = file.read_bytes().splitlines(keepends=True)[number]
    other_line = other.read_bytes().splitlines(keepends=True)[other_number]
    rewrite(file, lambda lines: lines.__setitem__(number, other_line))
    rewrite(other, lambda lines: lines.__setitem__(other_number, line))


def add(folder: Path, draw: Draw) -> None:
    """A line that is no entry, or an entry once more, at any place."""
    file, number = draw(st.sampled_from(lines_of(folder)))
    other, other_number = draw(st.sampled_from(lines_of(folder)))
    copy = other.read_bytes().splitlines(keepends=True)[other_number]
    line = draw(st.sampled_from([copy, b"\n", b"{}\n", b"[1]\n", b"\xff\n", b"[" * 9999 + b"\n"]))
    rewrite(file, lambda lines: lines.insert(number + draw(st.integers(0, 1)), line))


def test_the_error_names_file_and_line_and_what_to_do(folder: Path) -> None:
    journal = fill(folder, 6)
    second = files_of(folder)[1]
    content = second.read_bytes()
    replace(second, 1, b'"number":', b'"numbex":')
    words = refused(journal)
    assert "Line 2 of journal-000002.jsonl was changed" in words
    assert f"[{second}, line 2]" in words
    assert "from a backup" in words
    second.write_bytes(content)
    rewrite(second, lambda lines: lines.pop(0))
    assert "Line 1 of journal-000002.jsonl does not follow" in refused(journal)
    second.unlink()
    assert "journal-000002.jsonl is missing" in refused(journal)
    second.write_bytes(content)
    (folder / "journal-000004.jsonl.bak").touch()
    assert "journal-000004.jsonl.bak does not belong" in refused(journal)
    assert journal.folder == folder


def test_a_damaged_end_is_refused_and_appending_reads_no_history(folder: Path) -> None:
    journal = fill(folder, 6)
    first, last = files_of(folder)[0], files_of(folder)[-1]
    content = last.read_bytes()
    replace(last, -1, b'"number":5', b'"number":6')
    assert "was changed" in refused(journal, lambda: journal.append({}))
    last.write_bytes(content)
    head = folder / "head.json"
    known = head.read_bytes()
    other = fill(folder.with_name("other"), 6)
    other.append({})
    for wrong in (b"", b"[]\n", b"{}\n", b"\xff", (other.folder / "head.json").read_bytes()):
        head.write_bytes(wrong)
        refused(journal)
        refused(journal, lambda: journal.append({}))
    head.write_bytes(known)
    first.write_bytes(b"what is not read is not checked here\n")
    assert journal.append({}).seq == 7
    refused(journal)


def test_a_forged_line_breaks_the_chain(folder: Path) -> None:
    """Its own hash is right, and so is what it says of the line before."""
    journal = fill(folder, 6)
    for file in files_of(folder):
        content = file.read_bytes()
        line = json.loads(content.splitlines()[-1])
        line["record"]["number"] = 7
        del line["hash"]
        text = json.dumps(line, sort_keys=True, separators=(",", ":"))
        line["hash"] = hashlib.sha256(f"{text}\n".encode()).hexdigest()
        text = json.dumps(line, sort_keys=True, separators=(",", ":"))
        rewrite(file, lambda lines, text=text: lines.__setitem__(-1, f"{text}\n".encode()))
        words = refused(journal)
        assert "does not follow the line before" in words or "head.json names" in words
        file.write_bytes(content)
    assert journal.verify().entries == 6


def test_an_entry_that_is_there_twice(folder: Path) -> None:
    """The last one, also at the end of the file before: read in order it would come too early."""
    journal = fill(folder, 3, rotate=1)
    second, third = files_of(folder)[1:]
    second.write_bytes(second.read_bytes() + third.read_bytes())
    refused(journal)


def test_head_of_a_shorter_log_is_not_believed(folder: Path) -> None:
    """A head whose numbers point at another entry than its hash."""
    journal = fill(folder, 3, rotate=10**6)
    file = folder / "head.json"
    head = json.loads(file.read_bytes())
    for key, value in (
        ("count", 2),
        ("count", True),
        ("end", 10**6),
        ("end", 10**30),
        ("start", 0),
        ("file", 2),
        ("file", 0),
    ):
        wrong = json.dumps({**head, key: value}, sort_keys=True, separators=(",", ":")) + "\n"
        file.write_text(wrong)
        refused(journal)
        refused(journal, lambda: journal.append({}))


def test_code_of_the_owner(folder: Path) -> None:
    journal = fill(folder)
    files_of(folder)[0].unlink()
    ledger = Journal(folder, invalid="LEDGER_INVALID")
    refused(ledger, ledger.verify, lambda: ledger.append({}), code="LEDGER_INVALID")
    assert journal.folder.exists()
