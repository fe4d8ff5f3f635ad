"""The messages between coordinator and hospital: everything that crosses the network.

Three exchanges, each a Flower message:

- `train`: global arrays and a :class:`TrainRequest` go out; a site's update comes back, with the
  evaluation of the arrays it was sent, so that a round costs one exchange and not two.
- `evaluate`: the final arrays and the heads to compare go out; evaluations come back.
- `query`: a site tells its name (only simulation engines without named nodes ask).

A site that cannot or will not answer sends a :class:`Refusal`: a code and a sentence from a fixed
table, never the text of an exception.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from pydantic import BaseModel, ConfigDict, ValidationError

from dermino_core.errors import CODES, DerminoError
from dermino_core.results import Estimate, Evaluation
from dermino_strategies.base import Arrays, SiteUpdate

PROTOCOL_VERSION = 1

T = TypeVar("T", bound="_Body")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Task(_Body):
    """What is learned, on which features. A site refuses what does not fit its own."""

    protocol: int = PROTOCOL_VERSION
    name: str
    classes: list[str]
    backbone_fingerprint: str
    width: int
    strategy: str
    settings: dict[str, object]
    rounds: int
    seed: int
    replicates: int


class TrainRequest(_Body):
    """Coordinator to site: one round of training."""

    task: Task
    round: int
    send_local_head: bool


class TrainReply(_Body):
    """Site to coordinator, beside the arrays of its update."""

    classes: list[str]
    images_total: int
    images_used: int
    seconds: float
    auroc_before: float | None
    f1_before: float | None


class EvaluateRequest(_Body):
    """Coordinator to site: final evaluation. Heads travel as arrays `head.<site>`."""

    task: Task
    heads: list[str]


class CrossEvaluation(_Body):
    """The head of another site on this site's test images."""

    auroc: float | None
    f1: float | None


class EvaluateReply(_Body):
    """Site to coordinator: numbers about its test images, no scores of single images."""

    classes: list[str]
    images_total: int
    images_used: int
    seconds: float
    unreadable: int
    n_train: int
    n_test: int
    train_class_counts: dict[str, int]
    evaluations: dict[str, Evaluation]
    global_minus_local: dict[str, Estimate]
    cross: dict[str, CrossEvaluation]


class SiteName(_Body):
    """Site to coordinator, in simulation: which site answers for this node."""

    name: str


class Refusal(_Body):
    """A site's 'no': one of the codes of `dermino_core.errors` and its sentence."""

    code: str
    sentence: str


def pack(body: BaseModel, arrays: dict[str, Arrays] | None = None) -> RecordDict:
    """One JSON body under `body` and any number of named groups of arrays."""
    records: dict[str, ArrayRecord | ConfigRecord] = {
        "body": ConfigRecord({"kind": type(body).__name__, "json": body.model_dump_json()})
    }
    for group, members in (arrays or {}).items():
        records[group] = record_of(members)
    return RecordDict(records)  # type: ignore[arg-type]


def unpack(content: RecordDict, body_type: type[T]) -> T:
    """Read the body of a message.

    Raises
    ------
    DerminoError
        `REQUEST_INVALID` if it is missing, of another kind or does not fit its schema.
    """
    body = content.config_records.get("body")
    kind = body.get("kind") if body else None
    if body is None or kind != body_type.__name__:
        raise DerminoError("REQUEST_INVALID", f"Expected a {body_type.__name__}, got {kind}.")
    try:
        return body_type.model_validate_json(str(body.get("json")))
    except ValidationError as error:
        raise DerminoError(
            "REQUEST_INVALID",
            f"A {body_type.__name__} does not fit protocol version {PROTOCOL_VERSION}: "
            f"{error.errors()[0]['msg']}",
            fix="Use the same version of dermino at the coordinator and at every site.",
        ) from error


def record_of(arrays: Arrays) -> ArrayRecord:
    """Arrays as Flower carries them."""
    return ArrayRecord({name: Array(np.ascontiguousarray(a)) for name, a in arrays.items()})


def arrays_of(content: RecordDict, group: str) -> Arrays:
    """A named group of arrays, or an empty one."""
    record = content.array_records.get(group)
    return {} if record is None else {name: array.numpy() for name, array in record.items()}


def pack_update(body: TrainReply, update: SiteUpdate, local: Arrays | None) -> RecordDict:
    """A site's reply to a training request."""
    groups = {"arrays": update.arrays} | ({"local": local} if local else {})
    content = pack(body, groups)
    metrics = MetricRecord({name: float(value) for name, value in update.metrics.items()})
    metrics["num-examples"] = update.examples
    content["metrics"] = metrics
    return content


def unpack_update(content: RecordDict) -> SiteUpdate:
    """The update in a site's reply; unchecked beyond its outer form.

    Raises
    ------
    DerminoError
        `REQUEST_INVALID` if there is no number of examples.
    """
    metrics = dict(content.metric_records.get("metrics") or {})
    examples = metrics.pop("num-examples", None)
    if not isinstance(examples, int):
        raise DerminoError("REQUEST_INVALID", "A reply lacks the number of its examples.")
    scalars = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float | np.number)}
    return SiteUpdate(arrays_of(content, "arrays"), examples, scalars)


def refuse(message: Message, code: str) -> Message:
    """A reply that carries a code and its fixed sentence, and nothing else."""
    body = Refusal(code=code, sentence=CODES[code].safe_sentence)
    return Message(pack(body), reply_to=message)


def refusal_in(content: RecordDict) -> Refusal | None:
    """The refusal in a reply, if it is one. Unknown codes become `INTERNAL`."""
    body = content.config_records.get("body")
    if body is None or body.get("kind") != "Refusal":
        return None
    refusal = unpack(content, Refusal)
    known = refusal.code if refusal.code in CODES else "INTERNAL"
    return Refusal(code=known, sentence=CODES[known].safe_sentence)


def size_in_bytes(content: RecordDict) -> int:
    """Payload of a message: serialised arrays, configuration and metrics, in bytes."""
    arrays = sum(
        len(array.data) for record in content.array_records.values() for array in record.values()
    )
    configs = sum(
        len(str(value)) for record in content.config_records.values() for value in record.values()
    )
    metrics = sum(8 * len(record) for record in content.metric_records.values())
    return arrays + configs + metrics
