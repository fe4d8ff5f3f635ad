"""The sites as the SuperLink knows them: register, look up, unregister.

By Flower's own commands. `flwr supernode list --format json` of 1.41 gives each node's id and
status but neither name nor key, and a key that was ever registered can never be registered again,
not even after it was unregistered. A node's id therefore belongs into the roster; where it is
missing there, the Control API is asked by key.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dermino_core.errors import DerminoError
from dermino_core.public_keys import node_key
from dermino_server.flower_cli import FlowerCallError, call_flwr

UNREGISTERED = "unregistered"


def register_node(connection: str, name: str, public_key: Path) -> str:
    """Register a site's public key under its name, and return the id of its node.

    A key that is registered already stays as it is.

    Raises
    ------
    DerminoError
        `CONNECTION_FAILED` if the SuperLink does not answer or refuses the key;
        `ENROLMENT_INVALID` if it was unregistered there before.
    """
    try:
        answer = call_flwr("supernode", "register", str(public_key), connection, "--name", name)
        return str(int(answer["node-id"]))
    except FlowerCallError as refusal:
        if "Public key already in use" not in refusal.reason:
            raise _failed(connection, f"could not register {name}: {refusal.reason}") from refusal
    line = public_key.read_text(encoding="utf-8").split()
    node_id, status = find_node(connection, " ".join(line[:2]))
    if status == UNREGISTERED:
        raise DerminoError(
            "ENROLMENT_INVALID",
            f"the node key of {name} was unregistered at the SuperLink, which takes no key twice",
            where=f"connection {connection}",
            fix="the hospital makes a new one with `dermino-client enrol --renew --new-node-key` "
            "and sends its new request; or, if it was revoked, enrols with new keys",
        )
    return node_id


def node_statuses(connection: str) -> dict[str, str]:
    """Node id -> `registered`, `online`, `offline` or `unregistered`.

    Raises
    ------
    DerminoError
        `CONNECTION_FAILED` if the SuperLink does not answer.
    """
    try:
        nodes = call_flwr("supernode", "list", connection)["nodes"]
    except FlowerCallError as refusal:
        raise _failed(connection, f"could not list the sites: {refusal.reason}") from refusal
    return {str(node["node-id"]): str(node["status"]) for node in nodes}


def unregister_node(connection: str, node_id: str) -> bool:
    """Unregister a node; False if the SuperLink does not have it or did that before.

    Its next message is refused, which ends the hospital's client.

    Raises
    ------
    DerminoError
        `CONNECTION_FAILED` if the SuperLink does not answer.
    """
    if node_statuses(connection).get(node_id, UNREGISTERED) == UNREGISTERED:
        return False
    try:
        call_flwr("supernode", "unregister", node_id, connection)
    except FlowerCallError as refusal:
        raise _failed(connection, f"could not unregister {node_id}: {refusal.reason}") from refusal
    return True


def find_node(connection: str, public_key: str) -> tuple[str, str]:
    """Id and status of the node with that OpenSSH key; `("", "unregistered")` if there is none.

    Raises
    ------
    DerminoError
        `CONNECTION_FAILED` if the SuperLink does not answer.
    """
    from click import ClickException
    from flwr.cli.flower_config import read_superlink_connection
    from flwr.cli.utils import flwr_cli_exc_handler, init_http_client_from_connection
    from flwr.proto.control_pb2 import ListNodesRequest

    key = node_key(public_key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    client: Any = None
    try:
        with contextlib.redirect_stdout(io.StringIO()), flwr_cli_exc_handler():
            client = init_http_client_from_connection(read_superlink_connection(connection))
            nodes = client.ListNodes(ListNodesRequest()).nodes_info
    except ClickException as refusal:
        raise _failed(connection, f"could not list the sites: {refusal.message}") from refusal
    finally:
        if client is not None:
            client.close()
    return next(
        ((str(node.node_id), node.status) for node in nodes if node.public_key == key),
        ("", UNREGISTERED),
    )


def _failed(connection: str, what: str) -> DerminoError:
    return DerminoError(
        "CONNECTION_FAILED",
        what,
        where=f"connection {connection}",
        fix="check that flower-superlink runs here (`dermino health` asks it), and that the "
        "connection in Flower's config.toml has its address and this federation's ca.crt",
    )
