"""The guard in front of app bundles: real bundles, a real SuperNode's Runtime API, hostile code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from app_bundles import HOSTILE, OWN, build, evil  # in tests/server
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _pull_and_store_message

from dermino_client.app import SITE_FILE_KEY
from dermino_client.runner import serve_one
from dermino_client.runner_answer import answer
from dermino_client.runner_bundle import bundle_hash
from dermino_client.runner_flower import CLIENT_APP, Job, Runtime
from dermino_client.runner_keeper import runner_command
from dermino_client.site import Site
from dermino_strategies.protocol import NameRequest, SiteName, pack, refusal_in, unpack

MakeSite = Callable[..., Site]
PATIENT = "/data/patients/Jane-Doe-1957.png"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build(tmp_path_factory.mktemp("own") / "dermino", OWN)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


@pytest.fixture
def hostile(tmp_path: Path, marker: Path) -> bytes:
    return build(tmp_path / "hostile", HOSTILE, evil=evil(marker))


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A task's identity, no modules and no Flower folder left over from another test."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("evil", None)


# -- what is answered ------------------------------------------------------------------------------


def message_for(content: RecordDict | None = None, kind: str = "query") -> Message:
    message = Message(pack(NameRequest()) if content is None else content, 2, kind)
    message.metadata.__dict__["_message_id"] = "m"
    return message


def job_for(site: Site, bundle: bytes, **changed: object) -> Job:
    context = Context(
        run_id=1,
        node_id=2,
        node_config={SITE_FILE_KEY: str(site.file)},
        state=RecordDict(),
        run_config={},
    )
    return Job(
        **({"kind": CLIENT_APP, "message": message_for(), "context": context} | changed),
        bundle=bundle,
    )  # type: ignore[arg-type]


def code_of(reply: Message) -> str:
    refusal = refusal_in(reply.content)
    assert refusal is not None
    return refusal.code


def untouched(tmp_path: Path, marker: Path) -> None:
    assert not marker.exists()
    assert not (tmp_path / "flwr").exists()
    assert "evil" not in sys.modules


def test_dermino_s_own_answers_without_its_bundle(
    make_site: MakeSite, own: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be written to the temporary folder, so nothing is."""
    site = make_site()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    reply = answer(job_for(site, own), site.file)
    assert unpack(reply.content, SiteName).name == "clinic"
    assert not (tmp_path / "flwr").exists()


def test_a_hostile_bundle_leaves_no_trace(
    make_site: MakeSite,
    hostile: bytes,
    tmp_path: Path,
    marker: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = make_site()
    reply = answer(job_for(site, hostile), site.file)
    assert code_of(reply) == "APP_REFUSED"
    untouched(tmp_path, marker)
    assert bundle_hash(hostile) in caplog.text
    sent = str(reply.content["body"])
    assert bundle_hash(hostile) not in sent
    assert str(site.file) not in sent


def test_the_same_bundle_runs_once_its_hash_is_allowed(
    make_site: MakeSite, hostile: bytes, tmp_path: Path, marker: Path
) -> None:
    """So that the marker of the test before proves something."""
    site = make_site(policy={"apps": ["dermino", bundle_hash(hostile)]})
    before = set(Path("/tmp").glob("dermino-app-*"))
    reply = answer(job_for(site, hostile), site.file)
    assert reply.content.config_records["stolen"]["x"] == "everything"
    assert marker.read_text() == "imported"
    assert not (tmp_path / "flwr").exists()
    assert set(Path("/tmp").glob("dermino-app-*")) == before


def test_an_installed_app_of_the_same_short_hash_is_not_used(
    make_site: MakeSite, hostile: bytes, tmp_path: Path, marker: Path
) -> None:
    """Flower names installed apps by 8 digits of their hash and uses what is there already."""
    site = make_site(policy={"apps": [bundle_hash(hostile)]})
    planted = tmp_path / "flwr" / "apps" / f"dermino.dermino.0.1.0.{bundle_hash(hostile)[:8]}"
    planted.mkdir(parents=True)
    (planted / "pyproject.toml").write_text(HOSTILE)
    (planted / "evil.py").write_text("raise SystemExit('planted code ran')")
    reply = answer(job_for(site, hostile), site.file)
    assert "stolen" in reply.content
    assert marker.exists()


def test_what_an_allowed_app_raises_stays_here(
    make_site: MakeSite, tmp_path: Path, marker: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = evil(marker, statement=f"raise ValueError({PATIENT!r})")
    bundle = build(tmp_path / "app", HOSTILE, evil=code)
    site = make_site(policy={"apps": [bundle_hash(bundle)]})
    ours = answer(job_for(site, bundle), site.file)
    assert code_of(ours) == "INTERNAL"
    sys.modules.pop("evil")
    theirs = message_for(RecordDict({"request": ConfigRecord({"a": 1})}))
    reply = answer(job_for(site, bundle, message=theirs), site.file)
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert PATIENT in caplog.text
    assert PATIENT not in f"{reply.error.reason} {ours.content}"


@pytest.mark.parametrize(
    ("content", "ours"),
    [
        (RecordDict({"body": ConfigRecord({"kind": "TrainRequest", "json": "{"})}), True),
        (RecordDict({"body": ConfigRecord({"kind": "TrainRequest"})}), False),
        (RecordDict({"body": ConfigRecord({"kind": "a", "json": "b", "more": "c"})}), False),
        (RecordDict({"config": ConfigRecord({"lr": 0.1})}), False),
        (RecordDict(), False),
    ],
)
def test_each_sender_gets_a_refusal_that_it_understands(
    make_site: MakeSite, hostile: bytes, content: RecordDict, ours: bool
) -> None:
    site = make_site()
    reply = answer(job_for(site, hostile, message=message_for(content)), site.file)
    if ours:
        assert code_of(reply) == "APP_REFUSED"
    else:
        assert reply.error.code == ErrorCode.INVALID_FAB
        assert reply.error.reason == "The site does not run this app bundle."


def test_an_unknown_kind_of_message_is_answered(make_site: MakeSite, own: bytes) -> None:
    site = make_site()
    reply = answer(job_for(site, own, message=message_for(kind="train.backdoor")), site.file)
    assert code_of(reply) == "INTERNAL"


@pytest.mark.parametrize("kind", [kind.value for kind in TaskType if kind.value != CLIENT_APP])
def test_a_hospital_runs_client_apps_only(
    make_site: MakeSite, hostile: bytes, own: bytes, tmp_path: Path, marker: Path, kind: str
) -> None:
    site = make_site(policy={"apps": ["dermino", bundle_hash(hostile)]})
    for bundle in (hostile, own):
        assert code_of(answer(job_for(site, bundle, kind=kind), site.file)) == "APP_REFUSED"
    untouched(tmp_path, marker)


def test_without_a_policy_nothing_runs(
    make_site: MakeSite, hostile: bytes, tmp_path: Path, marker: Path
) -> None:
    site = make_site(policy={"apps": [bundle_hash(hostile)]})
    job = job_for(site, hostile)
    site.file.write_text(site.file.read_text().replace("apps", "app"))
    assert code_of(answer(job, site.file)) == "CONFIG_INVALID"
    site.file.unlink()
    assert code_of(answer(job, site.file)) == "CONFIG_NOT_FOUND"
    untouched(tmp_path, marker)


def test_an_error_of_the_guard_itself_refuses(
    make_site: MakeSite,
    hostile: bytes,
    tmp_path: Path,
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = make_site(policy={"apps": [bundle_hash(hostile)]})

    def broken(*_: object) -> None:
        raise OSError(PATIENT)

    monkeypatch.setattr("dermino_client.runner_answer.judge", broken)
    reply = answer(job_for(site, hostile), site.file)
    assert code_of(reply) == "APP_REFUSED"
    untouched(tmp_path, marker)


# -- with a SuperNode ------------------------------------------------------------------------------

SECRET = b"a secret of this test"


@dataclass
class SuperNode:
    """Flower's own Runtime API and message handling; only the SuperLink is played."""

    address: str
    factory: NodeStateFactory
    _runs: int = field(default=0)

    def receive(self, message: Message, bundle: bytes, *, hash_: str = "", kind: str = "") -> None:
        """As if the SuperLink had sent a message of a run with this bundle."""
        self._runs += 1
        run = Run.create_empty(self._runs)
        run.series_id = self._runs
        run.fab_hash = hash_ or bundle_hash(bundle)
        run.primary_task_type = kind or TaskType.SERVER_APP
        message.metadata.__dict__.update(_run_id=run.run_id, _dst_node_id=7, _src_node_id=1)
        message.metadata.__dict__["_message_id"] = message.object_id
        contents = {k: v.deflate() for k, v in get_all_nested_objects(message).items()}
        tree = get_object_tree(message)
        state = self.factory.state()
        stored = _pull_and_store_message(
            state=state,
            object_store=state.object_store,
            node_config={},
            receive=lambda: (remove_content_from_message(message), tree),
            get_run=lambda _: run,
            get_fab=lambda *_: Fab(hash_, bundle, {}),
            pull_object=lambda _, name: contents[name],
            confirm_message_received=lambda *_: None,
            trusted_entities=None,
        )
        assert stored == run.run_id

    def reply(self) -> Message:
        """What would go to the SuperLink now."""
        state = self.factory.state()
        (message,) = state.get_messages_legacy(is_reply=True)
        tree = state.object_store.get_object_tree(message.metadata.message_id)

        def names(node: object) -> Iterator[str]:
            yield node.object_id  # type: ignore[attr-defined]
            for child in node.children:  # type: ignore[attr-defined]
                yield from names(child)

        contents = {name: state.object_store.get(name) or b"" for name in names(tree)}
        inflated = inflate_object_from_contents(tree.object_id, contents)
        assert isinstance(inflated, Message)
        return inflated


@pytest.fixture
def supernode() -> Iterator[SuperNode]:
    factory = NodeStateFactory(ObjectStoreFactory())
    factory.state().set_node_id(7)
    app = create_app(state_factory=factory, superexec_auth_secret=SECRET)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield SuperNode(f"127.0.0.1:{port}", factory)
    server.should_exit = True
    thread.join(timeout=10)


def test_a_message_through_the_supernode(
    make_site: MakeSite, own: bytes, supernode: SuperNode
) -> None:
    site = make_site()
    runtime = Runtime(supernode.address, SECRET)
    assert runtime.acquire() is None
    message = message_for(RecordDict({"body": ConfigRecord({"kind": "Strange", "json": "{}"})}))
    supernode.receive(message, own)
    serve_one(runtime, site.file)
    runtime.close()
    # Without the SuperNode's own configuration the app does not know which site it is.
    assert code_of(supernode.reply()) == "CONFIG_NOT_FOUND"


@pytest.mark.parametrize("kind", ["", TaskType.AGENT_APP])
def test_a_hostile_bundle_through_the_supernode(
    make_site: MakeSite,
    hostile: bytes,
    supernode: SuperNode,
    tmp_path: Path,
    marker: Path,
    kind: str,
) -> None:
    """Also as an agent app, for which a SuperNode has another command: it must not wait for it."""
    runtime = Runtime(supernode.address, SECRET)
    supernode.receive(message_for(), hostile, kind=kind)
    serve_one(runtime, make_site().file)
    runtime.close()
    assert code_of(supernode.reply()) == "APP_REFUSED"
    untouched(tmp_path, marker)


def test_a_false_hash_does_not_come_in(own: bytes, hostile: bytes, supernode: SuperNode) -> None:
    """The SuperNode itself compares an announced hash; the runner never looks at one."""
    with pytest.raises(ValueError, match="hash mismatch"):
        supernode.receive(message_for(), hostile, hash_=bundle_hash(own))


def test_only_who_knows_the_secret_gets_messages(own: bytes, supernode: SuperNode) -> None:
    supernode.receive(message_for(), own)
    stranger = Runtime(supernode.address, b"another secret")
    with pytest.raises(Exception, match="401"):
        stranger.acquire()
    stranger.close()
    runtime = Runtime(supernode.address, SECRET)
    assert runtime.acquire() is not None
    runtime.close()


def test_a_supernode_that_is_not_there_yet(supernode: SuperNode) -> None:
    host, _, port = supernode.address.partition(":")
    runtime = Runtime(f"{host}:{int(port) % 60000 + 1000}", SECRET)
    with pytest.raises(ConnectionError):
        runtime.acquire()
    runtime.close()


# -- the process -----------------------------------------------------------------------------------


def runner_process(site: Site, address: str, tmp_path: Path, before: str = "") -> subprocess.Popen:
    """The runner as `dermino-client` starts it, after some lines of Python."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    module, *arguments = runner_command(site.file, int(address.split(":")[1]), secret)[2:]
    start = f"{before}\nimport runpy, sys\nsys.argv[1:] = {arguments!r}\n"
    start += f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return subprocess.Popen(
        [sys.executable, "-c", start],
        env=os.environ | {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_runner_s_process(
    make_site: MakeSite, hostile: bytes, supernode: SuperNode, tmp_path: Path, marker: Path
) -> None:
    """Each message a new copy of it, and no proxy between it and the SuperNode."""
    process = runner_process(make_site(), supernode.address, tmp_path)
    copies = [next_copy_of(process, None)]
    for _ in range(2):
        supernode.receive(message_for(), hostile)
        copies.append(next_copy_of(process, copies[-1]))
        assert code_of(supernode.reply()) == "APP_REFUSED"
        untouched(tmp_path, marker)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM, errors
    assert errors.count("refused: APP_REFUSED") == 2
    assert bundle_hash(hostile) in errors
    assert len(set(copies)) == 3
    assert wait_for(lambda: not any(_alive(pid) for pid in copies))


def next_copy_of(original: subprocess.Popen, before: int | None) -> int:
    """The process that the runner makes of itself after that one, of which there is one at a time.

    The last one has handed over its reply before it ends.
    """
    file = Path(f"/proc/{original.pid}/task/{original.pid}/children")

    def copies() -> list[int]:
        return [int(pid) for pid in file.read_text().split() if int(pid) != before]

    assert wait_for(lambda: bool(copies()))
    (copy,) = copies()
    return copy


def test_without_the_parts_of_flwr_it_needs_it_fails_closed(
    make_site: MakeSite, supernode: SuperNode, tmp_path: Path
) -> None:
    missing = "import flwr.supernode.runtime.run_clientapp as m\ndel m.pull_task_input"
    process = runner_process(make_site(), supernode.address, tmp_path, missing)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "error DEPENDENCY_MISSING" in errors
    assert "pull_task_input" in errors


def wait_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_the_runner_ends_with_its_parent(
    make_site: MakeSite, supernode: SuperNode, tmp_path: Path
) -> None:
    """Even if the parent is killed without a word."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    command = runner_command(make_site().file, int(supernode.address.split(":")[1]), secret)[:-1]
    code = (
        "import json, os, subprocess, sys\n"
        f"child = subprocess.Popen({command!r} + [str(os.getpid())])\n"
        "print(child.pid, flush=True)\nchild.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    ended = wait_for(lambda: not _alive(child))
    if not ended:
        os.kill(child, signal.SIGKILL)
    assert ended


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
