"""What a site remembers: private, whole, once, and no longer than it must."""

from __future__ import annotations

import base64
import multiprocessing
import os
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from in_process import Federation

from dermino_core.errors import DerminoError
from dermino_strategies.secure_aggregation import messages, records
from dermino_strategies.secure_aggregation.messages import ConfirmRequest
from dermino_strategies.secure_aggregation.session import Session
from dermino_strategies.secure_aggregation.store import (
    ABANDONED_SECONDS,
    TOMBSTONE_SECONDS,
    FileStore,
    MemoryStore,
    SessionStore,
)

A, B, C, D = (f"site-{i:02d}" for i in range(1, 5))
DAY = 86_400.0


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """Four sites with files; three needed."""
    return Federation(4, store=lambda name: FileStore(tmp_path / name / "secure"))


def record_file(store: SessionStore, session: Session) -> Path:
    assert isinstance(store, FileStore)
    return store.folder / f"{session.round_key}.json"


def spellings(secret: bytes) -> list[bytes]:
    """A secret in every form in which it could lie in a file."""
    return [
        secret,
        secret.hex().encode(),
        base64.b64encode(secret).rstrip(b"="),
        base64.urlsafe_b64encode(secret).rstrip(b"="),
    ]


def contains(folder: Path, secret: bytes) -> bool:
    found = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    return any(spelling in found for spelling in spellings(secret))


def state_of(store: SessionStore, session: Session) -> Any:
    with store.locked(session.round_key) as slot:
        record = slot.read()
    return None if record is None else record.state


def test_files_give_the_same_sum(federation: Federation) -> None:
    coordinator = federation.until("done", silent={"masked": [D]})
    wanted = federation.expected([A, B, C])
    for key, array in coordinator.total().items():
        assert abs(array - wanted[key]).max() < 1e-8


def test_only_the_owner_can_read(federation: Federation, tmp_path: Path) -> None:
    folder = tmp_path / A / "secure"
    folder.mkdir(parents=True, mode=0o755)
    before = os.umask(0)
    try:
        federation.until("done")
    finally:
        os.umask(before)
    for name in (A, B):
        for path in [tmp_path / name / "secure", *(tmp_path / name / "secure").iterdir()]:
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_secrets_go_when_they_are_used(federation: Federation, tmp_path: Path) -> None:
    """Own secrets when the vector is masked; shares of what was not asked for at the end."""
    coordinator = federation.until("masked")
    session, store, folder = coordinator.session, federation.stores[A], tmp_path / A
    shared = state_of(store, session)
    assert isinstance(shared, records.Shared)
    own = [
        shared.secrets.sharing_private,
        shared.secrets.masking_private,
        shared.secrets.seed,
    ]
    assert all(contains(folder, secret) for secret in own)
    federation.stage(coordinator, silent=[D])
    assert not any(contains(folder, secret) for secret in own)

    federation.stage(coordinator)
    confirmed = state_of(store, session)
    assert isinstance(confirmed, records.Confirmed)
    assert set(confirmed.shares) == {A, B, C, D}
    federation.stage(coordinator)
    for name, pair in confirmed.shares.items():
        # Given to the coordinator, and kept to answer the same again; the other one is gone.
        given, kept = pair.seed, pair.masking_private
        if name == D:
            given, kept = kept, given
        assert contains(folder, given)
        assert not contains(folder, kept)
    assert coordinator.stage == "done"
    assert not list(folder.rglob(".*"))


def test_an_abandoned_session_is_erased_but_not_forgotten(
    federation: Federation, tmp_path: Path
) -> None:
    coordinator = federation.until("confirm")
    session, store = coordinator.session, federation.stores[A]
    shares = state_of(store, session).shares
    now = time.time()
    store.prune(now + ABANDONED_SECONDS - DAY / 2)
    assert state_of(store, session) is not None
    store.prune(now + ABANDONED_SECONDS + DAY)
    assert state_of(store, session) is None
    assert not any(contains(tmp_path / A, pair.seed) for pair in shares.values())
    assert record_file(store, session).exists()
    request = messages.KeysRequest(session=session, invited=federation.names)
    federation.fails("SECURE_REFUSED", lambda: federation.answer(A, request))
    again = messages.KeysRequest(session=session.next_attempt(), invited=federation.names)
    federation.answer(A, again)


@pytest.mark.parametrize("memory", [True, False])
def test_a_confirmed_sum_is_remembered_for_400_days(
    federation: Federation, tmp_path: Path, memory: bool
) -> None:
    if memory:
        federation = Federation(4)
    session = federation.until("done").session
    store = federation.stores[A]
    again = messages.KeysRequest(session=session.next_attempt(), invited=federation.names)
    now = time.time()
    for days in (8, 399):
        store.prune(now + days * DAY)
        assert state_of(store, session) is None
        with store.locked(session.round_key) as slot:
            record = slot.read()
        assert record is not None
        assert record.confirmed is not None
        federation.fails("SECURE_REFUSED", lambda: federation.answer(A, again))
    store.prune(now + TOMBSTONE_SECONDS + DAY)
    with store.locked(session.round_key) as slot:
        assert slot.read() is None
    if not memory:
        assert sorted(p.name for p in (tmp_path / A / "secure").iterdir()) == ["lock", "pruned"]


def test_pruning_once_a_day_is_enough(federation: Federation, tmp_path: Path) -> None:
    federation.until("masked")
    store, folder = federation.stores[A], tmp_path / A / "secure"
    half_written = folder / ".record.json.x1"
    half_written.write_bytes(b"secret")
    now = time.time()
    store.prune(now + DAY / 2)
    assert half_written.exists()
    store.prune(now + 2 * DAY)
    assert not half_written.exists()
    # A clock that was set back does not stop it.
    half_written.write_bytes(b"secret")
    store.prune(now)
    assert not half_written.exists()


def test_a_damaged_record_refuses_its_round_and_stays(federation: Federation) -> None:
    coordinator = federation.until("confirm")
    session, store = coordinator.session, federation.stores[A]
    file = record_file(store, session)
    for content in (b"", b"{}", b"\xff\xfe", file.read_bytes()[:-9]):
        file.write_bytes(content)
        federation.fails("SECURE_REFUSED", lambda: federation.answer(A, coordinator.requests()[A]))
        again = messages.KeysRequest(session=session.next_attempt(), invited=federation.names)
        federation.fails("SECURE_REFUSED", lambda again=again: federation.answer(A, again))
        store.prune(time.time() + 2 * TOMBSTONE_SECONDS)
        assert file.read_bytes() == content


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    federation = Federation(3, store=lambda name: FileStore(tmp_path / "file" / name))
    request = federation.coordinator().requests()[A]
    federation.fails("JOURNAL_UNWRITABLE", lambda: federation.answer(A, request))


def test_a_failed_write_leaves_the_record_and_sends_nothing(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = federation.until("confirm")
    file = record_file(federation.stores[A], coordinator.session)
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        federation.fails(
            "JOURNAL_UNWRITABLE", lambda: federation.answer(A, coordinator.requests()[A])
        )
    assert file.read_bytes() == before
    assert not list(file.parent.glob(".*"))
    federation.answer(A, coordinator.requests()[A])


def test_another_process_that_does_not_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dermino_strategies.secure_aggregation.store.LOCK_SECONDS", 0.05)
    store = FileStore(tmp_path)
    with store.locked("a"):
        Federation.fails("JOURNAL_UNWRITABLE", lambda: store.locked("b").__enter__())
    with store.locked("b") as slot:
        assert slot.read() is None


def outcomes(federation: Federation, requests: list[messages.Request]) -> list[Any]:
    """Many requests to one site at once, from threads; the answers, None for a refusal."""
    gate = threading.Barrier(len(requests))

    def ask(request: messages.Request) -> Any:
        gate.wait()
        try:
            return federation.answer(A, request)[0]
        except DerminoError as error:
            if error.code != "SECURE_REFUSED":
                raise
            return None

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(ask, requests))


@pytest.mark.parametrize("memory", [True, False])
def test_threads_do_not_act_on_the_same_state(federation: Federation, memory: bool) -> None:
    if memory:
        federation = Federation(4)
    session = federation.session()
    coordinator = federation.coordinator(session)
    first = coordinator.requests()[A]
    while coordinator.stage != "confirm":
        request = coordinator.requests()[A]
        answers = [one for one in outcomes(federation, [request] * 6) if one is not None]
        assert len(answers) == 1
        if coordinator.stage == "masked":
            break
        coordinator.receive(A, answers[0])
        for name in (B, C, D):
            coordinator.receive(name, *federation.answer(name, coordinator.requests()[name]))
        coordinator.advance()
    lists = [[A, B, C], [A, B, D], [A, C, D], [A, B, C, D]] * 2
    asked: list[messages.Request] = [ConfirmRequest(session=session, survivors=s) for s in lists]
    found = outcomes(federation, asked)
    signed = [survivors for survivors, reply in zip(lists, found, strict=True) if reply]
    assert len(signed) == 2
    assert signed[0] == signed[1]
    assert outcomes(federation, [first] * 4) == [None] * 4


def _confirm_in_a_process(
    federation: Federation, survivors: list[str], gate: Any, results: Any
) -> None:
    request = ConfirmRequest(session=federation.session(), survivors=survivors)
    gate.wait()
    try:
        federation.answer(A, request)
    except DerminoError:
        return
    results.put(survivors)


def test_processes_confirm_one_list(federation: Federation) -> None:
    federation.until("confirm")
    context = multiprocessing.get_context("fork")
    lists = [[A, B, C], [A, B, D], [A, C, D], [A, B, C, D]]
    gate, results = context.Barrier(len(lists)), context.Queue()
    workers = [
        context.Process(target=_confirm_in_a_process, args=(federation, survivors, gate, results))
        for survivors in lists
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert results.get(timeout=5) in lists
    assert results.empty()


def test_a_slot_is_alone() -> None:
    """Read, pause, write from many threads: no count is lost."""

    def count(store: SessionStore, session: Session) -> None:
        with store.locked(session.round_key) as slot:
            record = slot.read()
            time.sleep(0.001)
            attempt = record.attempt if record else 0
            slot.write(
                records.Record(
                    run="r", round=1, purpose="train", attempt=attempt + 1, touched=time.time()
                )
            )

    check_counts(MemoryStore, count)


def test_a_slot_of_files_is_alone(tmp_path: Path) -> None:
    def count(store: SessionStore, session: Session) -> None:
        with store.locked(session.round_key) as slot:
            record = slot.read()
            attempt = record.attempt if record else 0
            slot.write(
                records.Record(
                    run="r", round=1, purpose="train", attempt=attempt + 1, touched=time.time()
                )
            )

    check_counts(lambda: FileStore(tmp_path), count)


def check_counts(
    make: Callable[[], SessionStore], count: Callable[[SessionStore, Session], None]
) -> None:
    session, store, times = Federation(3).session(), make(), 24
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: count(store, session), range(times)))
    with store.locked(session.round_key) as slot:
        record = slot.read()
    assert record is not None
    assert record.attempt == times
