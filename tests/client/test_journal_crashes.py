"""The journal through crashes, power cuts, full disks and many writers: nothing told is lost."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dermino_client import journal as module
from dermino_client.journal import Journal
from dermino_core.errors import DerminoError

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not on a disk, where there is a choice: these tests flush thousands of times."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name) / "journal"


def fill(folder: Path, count: int, rotate: int = 500) -> Journal:
    journal = Journal(folder, rotate_bytes=rotate)
    for number in range(count):
        journal.append({"number": number})
    return journal


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("journal-*"))


def numbers(journal: Journal) -> list[object]:
    return [entry.record["number"] for entry in journal.entries()]


def refused(step: Callable[[], object], code: str = "AUDIT_INVALID") -> str:
    with pytest.raises(DerminoError) as caught:
        step()
    assert caught.value.code == code
    return str(caught.value)


def damaged(journal: Journal) -> None:
    for step in (journal.verify, lambda: list(journal.entries()), lambda: journal.append({})):
        refused(step)


def test_every_unfinished_write_heals(folder: Path) -> None:
    """The line cut off at every byte, the head not yet written; also as the first of a file."""
    for rotate in (10**6, 1):
        shutil.rmtree(folder, ignore_errors=True)
        journal = fill(folder, 2, rotate)
        head = (folder / "head.json").read_bytes()
        before = {file: file.read_bytes() for file in files_of(folder)}
        journal.append({"number": 2})
        last = files_of(folder)[-1]
        whole, old = last.read_bytes(), before.get(last, b"")
        for size in range(len(old), len(whole)):
            last.write_bytes(whole[:size])
            (folder / "head.json").write_bytes(head)
            verified = journal.verify()
            assert verified.entries == 2
            assert verified.interrupted is (size > len(old) or rotate == 1)
            assert numbers(journal) == [0, 1]
            assert journal.append({"number": 9}).seq == 3
            assert numbers(journal) == [0, 1, 9]
            assert journal.verify().interrupted is False
            for file in files_of(folder):
                file.write_bytes(before.get(file, b""))
        last.write_bytes(whole)
        (folder / "head.json").write_bytes(head)
        assert journal.verify().interrupted is True
        assert numbers(journal) == [0, 1, 2]
        journal.append({"number": 3})
        assert numbers(journal) == [0, 1, 2, 3]


def test_an_unfinished_line_before_a_new_file_is_cut_off(folder: Path) -> None:
    journal = fill(folder, 1, rotate=10)
    (file,) = files_of(folder)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"hash":"')
    assert journal.append({"number": 1}).seq == 2
    assert file.read_bytes() == whole
    assert journal.verify().files == 2


def test_an_unfinished_large_line_in_a_new_file(folder: Path) -> None:
    """The next line is short and goes into the file before; the new file goes away."""
    for rest in (b"", b'{"hash":"' + b"x" * 5000):
        shutil.rmtree(folder, ignore_errors=True)
        journal = fill(folder, 2, rotate=10**6)
        (folder / "journal-000002.jsonl").write_bytes(rest)
        assert journal.verify().interrupted is True
        journal.append({"number": 2})
        verified = journal.verify()
        assert (verified.entries, verified.files, verified.interrupted) == (3, 1, False)


@pytest.mark.parametrize("rest", [b"\0" * 5000, b"\0" * 4096 + b'"}\n'])
def test_pages_that_never_reached_the_disk(folder: Path, rest: bytes) -> None:
    """After a power cut a file may have its length but zeros in it, and its last page whole."""
    journal = fill(folder, 2, rotate=10**6)
    (file,) = files_of(folder)
    whole = file.read_bytes()
    file.write_bytes(whole + rest)
    assert journal.verify().interrupted is True
    journal.append({"number": 2})
    assert numbers(journal) == [0, 1, 2]
    assert journal.verify().interrupted is False
    file.write_bytes(whole + rest)  # now where an acknowledged line was
    damaged(journal)


def test_garbage_after_the_end_is_no_crash(folder: Path) -> None:
    journal = fill(folder, 3, rotate=10**6)
    (file,) = files_of(folder)
    whole = file.read_bytes()
    first = whole.splitlines(keepends=True)[0]
    for rest in (b"garbage\n", b"\n", first, b"{}\n", b"\0\n\0", b'{"a":1}\n{"hash":"'):
        file.write_bytes(whole + rest)
        damaged(journal)


class PowerCut:
    """A disk that has only what was flushed: files by `fsync`, names by `fsync` of their folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.contents: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        self.moments: list[tuple[dict[str, bytes], int]] = []
        self.acknowledged = 0
        if folder.exists():
            for path in (folder, *folder.iterdir()):
                self._flushed(path)
        for name in ("fsync", "replace", "open", "write", "truncate", "ftruncate", "unlink"):
            self._watch(monkeypatch, name)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(os, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            result = real(*arguments, **named)
            if name == "fsync":
                self._flushed(Path(os.readlink(f"/proc/self/fd/{arguments[0]}")))
            self._cut()
            return result

        monkeypatch.setattr(os, name, watched)

    def _flushed(self, path: Path) -> None:
        if path == self.folder:
            self.names = {file.name: file.stat().st_ino for file in path.iterdir()}
        elif path.is_file():
            self.contents[path.stat().st_ino] = path.read_bytes()

    def _cut(self) -> None:
        """What may be left: what was flushed, also with one more change of a name."""
        if not self.folder.exists():
            return
        now = {file.name: file.stat().st_ino for file in self.folder.iterdir()}
        for changed in (None, *sorted(name for name, _ in self.names.items() ^ now.items())):
            names = dict(self.names)
            if changed:
                names.pop(changed, None)
                names |= {name: inode for name, inode in now.items() if name == changed}
            held = {name: self.contents.get(inode, b"") for name, inode in names.items()}
            if (held, self.acknowledged) not in self.moments:
                self.moments.append((held, self.acknowledged))

    def told(self, count: int) -> None:
        self.acknowledged = count
        self._cut()

    def check(self, rotate: int) -> None:
        """Nothing acknowledged is missing, and the journal goes on, whenever the power went."""
        for moment, (held, acknowledged) in enumerate(self.moments):
            left = self.folder.with_name(f"left{moment}")
            left.mkdir()
            for name, content in held.items():
                (left / name).write_bytes(content)
            after = Journal(left, rotate_bytes=rotate)
            assert numbers(after)[:acknowledged] == list(range(acknowledged))
            before = after.verify().entries
            after.append({"number": "new"})
            assert after.verify().entries == before + 1


@pytest.mark.parametrize("rotate", [1, 400, 10**6])
def test_a_power_cut_at_any_moment(
    folder: Path, rotate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        disk = PowerCut(patch, folder)
        journal = Journal(folder, rotate_bytes=rotate)
        for number in range(5):
            journal.append({"number": number})
            disk.told(number + 1)
    assert len(disk.moments) > 25
    disk.check(rotate)


@pytest.mark.parametrize("cut", [0, 5])
@pytest.mark.parametrize("rotate", [1, 600, 10**6])
def test_a_power_cut_after_a_kill(
    folder: Path, rotate: int, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that a killed writer left in memory only, taken in or cut off by the next one."""
    journal = fill(folder, 2, rotate)
    head = (folder / "head.json").read_bytes()
    flushed = {file: file.read_bytes() for file in files_of(folder)}
    journal.append({"number": 2})
    (folder / "head.json").write_bytes(head)
    last = files_of(folder)[-1]
    os.truncate(last, last.stat().st_size - cut)
    with monkeypatch.context() as patch:
        disk = PowerCut(patch, folder)
        disk.contents[last.stat().st_ino] = flushed.get(last, b"")
        if last not in flushed:
            del disk.names[last.name]
        disk.told(2)
        number = 2 if cut else 3
        journal.append({"number": number})
        disk.told(number + 1)
        journal.append({"number": number + 1})
        disk.told(number + 2)
    disk.check(rotate)


def test_an_append_flushes_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = fill(folder, 3, rotate=10**6)
    flushed: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (flushed.append(handle), real(handle))[1])
    journal.append({})
    assert len(flushed) == 2


# Many writers, and disks that do not take it.


def append_many(folder: Path, writer: int, count: int) -> None:
    journal = Journal(folder, rotate_bytes=2000)
    for number in range(count):
        journal.append({"writer": writer, "number": number})


def test_many_processes_at_once(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=append_many, args=(folder, w, 40)) for w in range(4)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        assert Journal(folder).verify().interrupted is False
    assert [process.exitcode for process in processes] == [0] * 4
    found = list(Journal(folder).entries())
    assert [entry.seq for entry in found] == list(range(1, 161))
    for writer in range(4):
        mine = [entry.record["number"] for entry in found if entry.record["writer"] == writer]
        assert mine == list(range(40))
    assert Journal(folder).verify().files > 5


def test_a_transaction_is_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    journal = fill(folder, 1)
    with journal.transaction() as transaction:
        transaction.append({"number": 1})
        assert [entry.seq for entry in transaction.entries()] == [1, 2]
        refused(journal.verify, "JOURNAL_UNWRITABLE")
        assert "another process" in refused(lambda: journal.append({}), "JOURNAL_UNWRITABLE")
        transaction.append({"number": 2})
    refused(lambda: transaction.append({}), "JOURNAL_UNWRITABLE")
    assert numbers(journal) == [0, 1, 2]
    with pytest.raises(FileNotFoundError), journal.transaction():
        raise FileNotFoundError("of the caller, not of the journal")


def test_a_transaction_ends_with_its_first_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = fill(folder, 1)
    with journal.transaction() as transaction:
        with monkeypatch.context() as patch:
            failing(patch, "replace", 0)
            refused(lambda: transaction.append({}), "JOURNAL_UNWRITABLE")
        refused(lambda: transaction.append({}), "JOURNAL_UNWRITABLE")
    assert journal.verify().entries == 1


def append_until_full(journal: Journal) -> int:
    """How many appends returned before one was refused."""
    done = 0

    def append_all() -> None:
        nonlocal done
        for done in range(10_000):
            journal.append({"number": done, "text": "x" * 999})

    assert "Free disk space" in refused(append_all, "JOURNAL_UNWRITABLE")
    return done


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs the right to mount: {done.stderr.splitlines()[0]}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("rotate", [8 * 2**20, 5000])
def test_a_full_disk(tmp_path: Path, rotate: int) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        journal = Journal(disk / "journal", rotate_bytes=rotate)
        reserve = disk / "reserve"
        reserve.write_bytes(b"x" * 20_000)
        done = append_until_full(journal)
        assert done > 10
        assert journal.verify().entries == done
        assert append_until_full(journal) == 0
        assert numbers(journal) == list(range(done))
        reserve.unlink()
        assert journal.append({"number": done}).seq == done + 1
        assert journal.verify().entries == done + 1
        assert journal.verify().interrupted is False


def test_a_disk_full_before_the_first_line(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16k") as disk:
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        journal = Journal(disk / "journal")
        assert append_until_full(journal) == 0
        assert journal.verify().entries == 0
        filler.unlink()
        assert journal.append({}).seq == 1
        assert journal.verify().entries == 1


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        journal = fill(disk / "journal", 2)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert "ead-only" in refused(lambda: journal.append({}), "JOURNAL_UNWRITABLE")
        refused(lambda: Journal(disk / "other").append({}), "JOURNAL_UNWRITABLE")
        assert numbers(journal) == [0, 1]
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        journal.append({"number": 2})
        assert numbers(journal) == [0, 1, 2]


def too_large_a_file(folder: Path, limit: int) -> None:
    """In a process of its own: files cannot grow beyond `limit`, lines are written in part."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    journal = Journal(folder)
    done = append_until_full(journal)
    assert done == 3
    assert (folder / "journal-000001.jsonl").stat().st_size < limit - 500
    assert journal.verify().entries == done
    assert journal.verify().interrupted is False
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert journal.append({"number": done}).seq == done + 1
    assert numbers(journal) == list(range(done + 1))


def test_a_line_that_could_be_written_only_in_part(folder: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=too_large_a_file, args=(folder, 4500)
    )
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("also", [None, "ftruncate"])
@pytest.mark.parametrize("name", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("rotate", [1, 10**6])
def test_a_failure_in_any_step_leaves_the_journal_as_it_was(
    folder: Path, name: str, rotate: int, also: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of the operating system fails; also if cutting the line off fails as well."""
    for nth in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        journal = fill(folder, 2, rotate)
        with monkeypatch.context() as patch:
            failing(patch, name, nth)
            if also:
                failing(patch, also, 0)
            appended = does_append(journal)
        assert numbers(journal)[:2] == [0, 1]
        if not also or appended:
            assert journal.verify().entries == 2 + appended
            assert journal.verify().interrupted is False
        journal.append({"number": 9})
        assert numbers(journal)[-1] == 9
        assert journal.verify().interrupted is False
        if appended:
            assert nth > 0
            return
    pytest.fail("more calls than expected")


def does_append(journal: Journal) -> bool:
    try:
        journal.append({"number": 2})
    except DerminoError as error:
        return error.code != "JOURNAL_UNWRITABLE" or "Input/output error" not in str(error)
    return True


def failing(patch: pytest.MonkeyPatch, name: str, nth: int) -> None:
    """Let the `nth` call fail, from 0."""
    real, calls = getattr(os, name), 0

    def sometimes(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth + 1:
            raise OSError(5, "Input/output error")
        return real(*arguments, **named)

    patch.setattr(os, name, sometimes)


def test_what_is_no_journal(folder: Path) -> None:
    folder.write_text("a file")
    refused(lambda: Journal(folder).append({}), "JOURNAL_UNWRITABLE")
    folder.unlink()
    (folder / "journal-000001.jsonl").mkdir(parents=True)
    head = '{"count":1,"end":9,"file":1,"hash":"' + "0" * 64 + '","start":0}\n'
    (folder / "head.json").write_text(head)
    refused(Journal(folder).verify, "JOURNAL_UNWRITABLE")
    refused(lambda: Journal(folder).append({}), "JOURNAL_UNWRITABLE")
