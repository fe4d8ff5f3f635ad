"""The messages between coordinator and hospital: everything that crosses the network.

Three exchanges, each a Flower message:

- `train`: global arrays and a :class:`TrainRequest` go out; a site's update comes back, with the
  evaluation of the arrays it was sent, so that a round costs one exchange and not two.
- `evaluate`: the final arrays and the heads to compare go out, in a run with personal models also
  the sums of all sites; evaluations come back.
- `query`: a site tells its name (only simulation engines without named nodes ask).
- `query.statistics`: a site tells what its training images are like, with the first round.

A site that cannot or will not answer sends a :class:`Refusal`: a code and a sentence from a fixed
table, never the text of an exception.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Literal, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dermino_core.errors import CODES, DerminoError
from dermino_core.privacy.plan import PrivacyRequest
from dermino_core.results import Difference, Evaluation, JoiningCurve, SitePrivacy
from dermino_strategies.base import Arrays, SiteUpdate, Tuning
from dermino_strategies.packing import pack_arrays, parts_of, unpack_arrays

PROTOCOL_VERSION = 4

SITE_MODELS = ("global", "local", "local_converged")
"""What every site evaluates by itself."""

T = TypeVar("T", bound="Body")


class Body(BaseModel):
    """The body of a message: no field that is not of its schema, no NaN and no infinity."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Task(Body):
    """What is learned, on which features. A site refuses what does not fit its own."""

    protocol: int = PROTOCOL_VERSION
    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    name: str
    classes: list[str] = Field(min_length=2, max_length=1000)
    backbone_fingerprint: str
    width: int = Field(ge=1, le=65536)
    strategy: str
    settings: dict[str, object]
    rounds: int = Field(ge=1, le=10_000)
    seed: int = Field(ge=0, lt=2**63)
    replicates: int = Field(ge=2, le=10_000)
    privacy: PrivacyRequest | None = None
    secure_aggregation: bool = False
    personal: bool = Field(
        default=False, description="every site gets the sums of all, for a model of its own"
    )
    fewest_sites: int | None = Field(
        default=None, ge=1, description="sites in those sums, at least"
    )

    @property
    def models(self) -> tuple[str, ...]:
        """The models whose evaluation leaves a site.

        In a private run only the federated one: what a site trained without noise stays there. A
        run that tunes the backbone is not repeated for each site alone: that is hours.
        """
        if self.privacy:
            return ("global",)
        if self.tunes_backbone:
            return ("global", "local_converged")
        return (*SITE_MODELS, "personal") if self.personal else SITE_MODELS

    @property
    def tunes_backbone(self) -> bool:
        """Whether the method changes the backbone, and so trains on images."""
        from dermino_strategies.registry import STRATEGIES

        return self.strategy in STRATEGIES and issubclass(STRATEGIES[self.strategy][0], Tuning)

    @property
    def tells_joining(self) -> bool:
        """Whether a site's joining curve leaves it: in the clear, as its other test results."""
        return self.personal and not (self.privacy or self.secure_aggregation)

    def digest(self) -> str:
        """SHA-256 of the task: what a site binds its part in secure aggregation to."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class TrainRequest(Body):
    """Coordinator to site: one round of training."""

    task: Task
    round: int = Field(ge=1)
    send_local_head: bool


class TrainReply(Body):
    """Site to coordinator, beside the arrays of its update."""

    classes: list[str]
    precision: str
    images_total: int = Field(ge=0)
    images_used: int = Field(ge=0)
    seconds: float = Field(ge=0)
    auroc_before: float | None = Field(ge=0, le=1)
    f1_before: float | None = Field(ge=0, le=1)
    privacy: SitePrivacy | None = None


class Totals(Body):
    """What the arrays `personal` are: the sums of so many sites, and whether with this one's."""

    sites: int = Field(ge=1)
    with_yours: bool


class EvaluateRequest(Body):
    """Coordinator to site: final evaluation. Heads travel as arrays `<site>/<name>` of `heads`.

    In a run with personal models the arrays `personal` lie beside it, and `totals` describes them.
    """

    task: Task
    heads: list[str] = Field(max_length=1000)
    totals: Totals | None = None


class SecureRequest(Body):
    """Coordinator to site: one stage of a sum that only the sites together can open.

    `request` is the JSON of one of `secure_aggregation.messages`. The stage `masked` carries the
    global arrays beside it; that of the evaluation, in a run with personal models, also the arrays
    `personal` and their `totals`.
    """

    task: Task
    round: int = Field(ge=1)
    step: Literal["train", "evaluate"]
    stage: Literal["keys", "shares", "masked", "confirm", "unmask"]
    request: str
    totals: Totals | None = None


class SecureReply(Body):
    """Site to coordinator. The stage `masked` carries the masked vector beside it."""

    stage: Literal["keys", "shares", "masked", "confirm", "unmask"]
    reply: str


class StatisticsRequest(Body):
    """Coordinator to site, with the first round: what are your training images like?"""

    task: Task
    min_count: int = Field(ge=2, le=1_000_000, description="smallest count that is told")


class StatisticsReply(Body):
    """Site to coordinator. Mean and variance of each feature travel as arrays beside it.

    `min_count` is the larger of what was asked for and the site's own. The last two are None, and
    no array travels, where the images are too few to tell a mean of.
    """

    classes: list[str]
    min_count: int = Field(ge=2)
    images: int = Field(ge=1, le=2**40)
    class_counts: dict[str, int | None]
    few: list[str]
    images_per_group: float = Field(ge=1)
    seconds: float = Field(ge=0)
    design_effect: float | None = Field(gt=0)
    effective_features: float | None = Field(ge=1)


class CrossEvaluation(Body):
    """The head of another site on this site's test images."""

    auroc: float | None = Field(ge=0, le=1)
    f1: float | None = Field(ge=0, le=1)


class EvaluateReply(Body):
    """Site to coordinator: numbers about its test images, no scores of single images."""

    classes: list[str]
    precision: str
    images_total: int = Field(ge=0)
    images_used: int = Field(ge=0)
    seconds: float = Field(ge=0)
    unreadable: int = Field(ge=0)
    n_train: int = Field(ge=0)
    n_test: int = Field(ge=0)
    train_class_counts: dict[str, int]
    evaluations: dict[str, Evaluation]
    global_minus: dict[str, Difference]
    cross: dict[str, CrossEvaluation]
    joining: JoiningCurve | None = None


class NameRequest(Body):
    """Coordinator to node, in simulation: which site are you?"""


class SiteName(Body):
    """Site to coordinator, in simulation: which site answers for this node."""

    name: str


class RegionalHeader(Body):
    """Region to the coordinator above it: who is in its sum, of which round of which run.

    `digests`: site -> SHA-256 of its summand. The sum's parts travel beside it.
    """

    region: str = Field(min_length=1)
    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    round: int = Field(ge=1)
    digests: dict[str, str] = Field(min_length=1)


class Refusal(Body):
    """A site's 'no': one of the codes of `dermino_core.errors` and its sentence."""

    code: str
    sentence: str


def pack(body: BaseModel, arrays: dict[str, Arrays] | None = None) -> RecordDict:
    """One JSON body under `body` and any number of named groups of arrays."""
    records: dict[str, ArrayRecord | ConfigRecord] = {
        "body": ConfigRecord({"kind": type(body).__name__, "json": body.model_dump_json()})
    }
    for group, members in (arrays or {}).items():
        records[group] = pack_arrays(members)
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


def named_heads(heads: Mapping[str, Arrays]) -> Arrays:
    """The heads of several sites as one group of arrays, `<site>/<name>`."""
    return {f"{site}/{name}": a for site, head in heads.items() for name, a in head.items()}


def bound_arrays(arrays: Arrays, personal: Arrays) -> Arrays:
    """What sites bind a secure sum to, so that all were sent the same: both groups of arrays."""
    return arrays | {f"personal/{name}": array for name, array in personal.items()}


def read_arrays(content: RecordDict, group: str, like: Arrays) -> Arrays:
    """A named group of arrays from the other side; see :func:`packing.unpack_arrays`."""
    return unpack_arrays(content.array_records.get(group), like)


def pack_update(body: TrainReply, update: SiteUpdate, local: Arrays | None) -> RecordDict:
    """A site's reply to a training request."""
    groups = {"arrays": update.arrays} | ({"local": local} if local else {})
    content = pack(body, groups)
    metrics = MetricRecord({name: float(value) for name, value in update.metrics.items()})
    metrics["num-examples"] = update.examples
    content["metrics"] = metrics
    return content


def unpack_update(content: RecordDict, like: Arrays) -> SiteUpdate:
    """The update in a site's reply, with the names, shapes and types of `like`.

    Raises
    ------
    DerminoError
        `REQUEST_INVALID` if there is no number of examples.
    ValueError
        If the arrays are not like that.
    """
    metrics = dict(content.metric_records.get("metrics") or {})
    examples = metrics.pop("num-examples", None)
    if not isinstance(examples, int):
        raise DerminoError("REQUEST_INVALID", "A reply lacks the number of its examples.")
    scalars = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float | np.number)}
    return SiteUpdate(read_arrays(content, "arrays", like), examples, scalars)


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


def largest_model(content: RecordDict) -> int:
    """Bytes of the largest model in a message; each of the heads is a model."""
    sizes: Counter[tuple[str, str]] = Counter()
    for group, record in content.array_records.items():
        for part in parts_of(record):
            sizes[group, part.name.rpartition("/")[0]] += len(part.data)
    return max(sizes.values(), default=0)


def size_in_bytes(content: RecordDict) -> int:
    """Payload of a message: packed arrays, configuration and metrics, in bytes."""
    arrays = sum(
        len(array.data) for record in content.array_records.values() for array in record.values()
    )
    configs = sum(
        len(str(value)) for record in content.config_records.values() for value in record.values()
    )
    metrics = sum(8 * len(record) for record in content.metric_records.values())
    return arrays + configs + metrics
