"""The Flower ClientApp of a hospital.

Receives a message, loads the prepared site, calls the work, sends the reply. Whatever goes wrong,
only a code and a fixed sentence leave the building; the details go to this machine's log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from dermino_client.prepare import PreparedSite, load_prepared
from dermino_client.site import read_site
from dermino_client.work import evaluate_heads, expected_arrays, train
from dermino_core.errors import DerminoError
from dermino_strategies.base import Arrays
from dermino_strategies.protocol import (
    EvaluateRequest,
    SiteName,
    TrainRequest,
    pack,
    pack_update,
    read_arrays,
    refuse,
    unpack,
)

log = logging.getLogger("dermino.client")

SITE_FILE_KEY = "site-file"
"""Key of the node configuration that holds the path of the site file."""


def make_client_app(load: Callable[[Context], PreparedSite]) -> ClientApp:
    """A ClientApp that answers for the site that `load` finds for a context."""
    client_app = ClientApp()

    @client_app.train()
    def _train(message: Message, context: Context) -> Message:
        return _answer(message, context, load, _train_reply)

    @client_app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        return _answer(message, context, load, _evaluate_reply)

    @client_app.query()
    def _query(message: Message, context: Context) -> Message:
        return _answer(message, context, load, _name_reply)

    return client_app


def _train_reply(message: Message, site: PreparedSite) -> Message:
    request = unpack(message.content, TrainRequest)
    arrays = _arrays(message, "arrays", expected_arrays(site, request.task))
    reply, update, local = train(site, request, arrays)
    return Message(pack_update(reply, update, local), reply_to=message)


def _evaluate_reply(message: Message, site: PreparedSite) -> Message:
    request = unpack(message.content, EvaluateRequest)
    like = expected_arrays(site, request.task)
    heads = {name: _arrays(message, f"head.{name}", like) for name in request.heads}
    reply = evaluate_heads(site, request, _arrays(message, "arrays", like), heads)
    return Message(pack(reply), reply_to=message)


def _arrays(message: Message, group: str, like: Arrays) -> Arrays:
    try:
        return read_arrays(message.content, group, like)
    except ValueError as error:
        raise DerminoError(
            "REQUEST_INVALID", f"The coordinator's arrays are not usable: {error}."
        ) from None


def _name_reply(message: Message, site: PreparedSite) -> Message:
    return Message(pack(SiteName(name=site.name)), reply_to=message)


def _answer(
    message: Message,
    context: Context,
    load: Callable[[Context], PreparedSite],
    work: Callable[[Message, PreparedSite], Message],
) -> Message:
    try:
        return work(message, load(context))
    except DerminoError as error:
        log.error("refused: %s: %s", error.code, error)
        return refuse(message, error.code)
    except Exception:
        log.exception("unexpected error while answering a %s", message.metadata.message_type)
        return refuse(message, "INTERNAL")


def load_from_node_config(context: Context) -> PreparedSite:
    """The site whose file `dermino-client` put into the node configuration."""
    file = context.node_config.get(SITE_FILE_KEY)
    if not isinstance(file, str):
        raise DerminoError(
            "CONFIG_NOT_FOUND",
            f"The node configuration has no '{SITE_FILE_KEY}'.",
            fix="Start this node with dermino-client, not with flower-supernode.",
        )
    return load_prepared(read_site(Path(file)))


app = make_client_app(load_from_node_config)
