"""Every part of flwr that the runner needs and that flwr does not promise to keep.

It is the SuperNode's Runtime API as `flower-superexec` and `flwr-clientapp` use it: claim a task,
pull its input, push the reply. Should a newer flwr lack any of it, importing this module fails, and
so the site answers nothing, rather than without its guard.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dermino_core.errors import DerminoError

try:
    import httpx
    from flwr import __version__ as flwr_version
    from flwr.app import Context, Error, Message
    from flwr.cli.install import install_from_fab
    from flwr.clientapp import ClientApp
    from flwr.clientapp.client_app import LoadClientAppError
    from flwr.common.config import get_project_config
    from flwr.common.constant import ErrorCode, SubStatus
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.constant import TaskType
    from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
    from flwr.supercore.interceptors import (
        RuntimeTokenHttpInterceptor,
        RuntimeVersionHttpInterceptor,
        SuperExecAuthHttpInterceptor,
    )
    from flwr.supercore.object_ref import load_app
    from flwr.supercore.retry import make_simple_http_retry_invoker
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supernode.runtime.run_clientapp import (
        pull_task_input,
        push_message,
        push_task_output,
    )
except ImportError as error:
    import flwr

    raise DerminoError(
        "DEPENDENCY_MISSING",
        f"flwr {flwr.__version__} lacks a part that dermino's guard of app bundles needs: {error}.",
        where="[policy] apps",
        fix="Install the flwr that this dermino asks for (pip install dermino does). Without the "
        "guard this site answers nothing.",
    ) from error

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_TRIES = 5
PULL_SECONDS = 60.0
"""How long a claimed message may take from the SuperNode, which is on this machine."""
CLIENT_APP = TaskType.CLIENT_APP.value
"""The one kind of task that a hospital works on; the others are refused."""


log = logging.getLogger("dermino.client")


def _give_up() -> None:
    """End this process; the next one takes the next message."""
    log.warning("a message did not come within %g s: its run has ended", PULL_SECONDS)
    os._exit(1)


@dataclass(frozen=True)
class Job:
    """One message to answer, and the bundle that came with it; nothing of it was used yet."""

    kind: str
    message: Message
    context: Context
    bundle: bytes


class Runtime:
    """The Runtime API of this machine's SuperNode.

    Parameters
    ----------
    address
        HOST:PORT on this machine.
    secret
        What `flower-supernode --superexec-auth-secret-file` was given, so that no other user of
        this machine can take a hospital's messages.
    """

    def __init__(self, address: str, secret: bytes) -> None:
        self._address = address
        signer = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[_ACQUIRE])
        versions = RuntimeVersionHttpInterceptor(component_name="SuperExec")
        self._client = RuntimeHttpClient.from_server_address(
            address, insecure=True, root_certificates=None, interceptors=[versions, signer]
        )

    def acquire(self) -> tuple[str, str] | None:
        """Claim the oldest waiting task: its kind and its token. None without a task.

        All kinds are claimed: a SuperNode waits for ever for a task that nobody takes.

        Raises
        ------
        ConnectionError
            If the SuperNode does not answer, for example because it is still starting.
        """
        wanted = AcquireTaskRequest(supported_task_types=[kind.value for kind in TaskType])
        try:
            answer = self._client.AcquireTask(wanted)
        except httpx.TransportError as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        if not answer.HasField("task") or not answer.token:
            return None
        return answer.task.type, answer.token

    @contextmanager
    def job(self, kind: str, token: str) -> Iterator[tuple[Job, Connection]]:
        """The input of a claimed task, and the way to answer it. Heartbeats go out meanwhile."""
        retries = make_simple_http_retry_invoker()
        retries.max_tries = _TRIES
        client = RuntimeHttpClient.from_server_address(
            self._address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
                RuntimeTokenHttpInterceptor(token),
            ],
            retry_invoker=retries,
        )
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        heartbeat.start()
        # A SuperNode offers a task before it has all of the message. If the run ends in between,
        # the rest never comes, and flwr would wait for it for ever.
        impatience = threading.Timer(PULL_SECONDS, _give_up)
        impatience.daemon = True
        impatience.start()
        try:
            message, context, _, fab = pull_task_input(client)
            impatience.cancel()
            yield Job(kind, message, context, fab.content), Connection(client, context)
        finally:
            impatience.cancel()
            heartbeat.stop()
            client.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()


class Connection:
    """How the answer to one task goes back.

    Without an answer the heartbeats end, and the SuperNode answers in this site's place that the
    app stopped responding.
    """

    def __init__(self, client: RuntimeHttpClient, context: Context) -> None:
        self._client = client
        self._context = context

    def answer(self, reply: Message) -> None:
        """Hand the reply to the SuperNode, which sends it to the coordinator."""
        push_message(self._client, reply, self._context)
        push_task_output(self._client, self._context, SubStatus.COMPLETED, "")


def error_reply(message: Message, sentence: str, *, bundle: bool) -> Message:
    """A Flower error for a message that is not dermino's: about its bundle, or about the app."""
    code = ErrorCode.INVALID_FAB if bundle else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    return Message(Error(code, sentence), reply_to=message)


def run_listed(bundle: bytes, message: Message, context: Context) -> Message:
    """Install a bundle that the policy names by its hash, and let its code answer.

    It is installed in a new folder that nobody else can write to, and that is gone afterwards:
    Flower's own folder keeps apps under a part of their hash and uses what is there already.
    Dependencies of the bundle are not installed.
    """
    with tempfile.TemporaryDirectory(prefix="dermino-app-") as folder:
        place = install_from_fab(bundle, install_dir=Path(folder), skip_prompt=True)
        reference = get_project_config(place)["tool"]["flwr"]["app"]["components"]["clientapp"]
        app = load_app(reference, LoadClientAppError, place)
        if not isinstance(app, ClientApp):
            raise LoadClientAppError(f"{reference} is not a ClientApp")
        return app(message=message, context=context)


__all__ = [
    "CLIENT_APP",
    "Connection",
    "Job",
    "Runtime",
    "error_reply",
    "flwr_version",
    "run_listed",
]
