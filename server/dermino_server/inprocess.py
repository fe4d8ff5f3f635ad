"""A Flower grid inside one process: the real apps, every message through Flower's own wire form.

No SuperLink, no SuperNodes, no Ray: a message is serialised, given to the site's ClientApp, and
its reply is serialised back, so what does not survive the wire does not survive here either.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


class InProcessGrid(Grid):
    """A grid whose nodes are ClientApps by site name."""

    def __init__(self, clients: Mapping[str, ClientApp]) -> None:
        # Messages read the identity of the task that makes them from this global.
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self._names = dict(enumerate(sorted(clients), start=2))
        self._clients = dict(clients)
        self._contexts = {
            number: Context(
                run_id=1, node_id=number, node_config={}, state=RecordDict(), run_config={}
            )
            for number in self._names
        }
        self._asked: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """There is one run only."""

    @property
    def run(self) -> Run:
        """The one run."""
        return Run.create_empty(1)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Every site."""
        return list(self._names)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Every site with its name."""
        return [NodeInfo(node_id=number, name=name) for number, name in self._names.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; a site works on one when its reply is fetched."""
        identifiers = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = identifier = uuid4().hex
            self._asked[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def _ask(self, number: int, message: Message) -> Message:
        try:
            return self._clients[self._names[number]](message, self._contexts[number])
        except Exception as error:  # noqa: BLE001 - a SuperNode answers any crash with an error
            reason = type(error).__name__
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages, one by one, so that they are never all held at once."""
        for identifier in list(message_ids):
            message = self._asked.pop(identifier, None)
            if message is not None:
                number = message.metadata.dst_node_id
                yield _over_the_wire(self._ask(number, _over_the_wire(message)))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver and collect."""
        end = None if timeout is None else time.monotonic() + timeout
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            new = list(self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in new}
            replies += new
        return replies


def _over_the_wire(message: Message) -> Message:
    wire = message_to_proto(message).SerializeToString()
    return message_from_proto(ProtoMessage.FromString(wire))
