"""The messages of secure aggregation: five requests of the coordinator, five replies of a site.

Bytes travel as base64 in JSON. The masked vector does not: it travels beside its
:class:`MaskedReply`, as an array of uint64. Every field is bounded, nothing unknown is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dermino_core.errors import DerminoError
from dermino_core.names import check_name
from dermino_strategies.secure_aggregation.keys import KEY_BYTES, NONCE_BYTES, TAG_BYTES
from dermino_strategies.secure_aggregation.session import MOST_SITES, Session
from dermino_strategies.secure_aggregation.shares import SECRET_BYTES

SEALED_BYTES = NONCE_BYTES + 2 * SECRET_BYTES + TAG_BYTES
"""Two shares, encrypted for one site."""


def _named(value: str) -> str:
    try:
        return check_name(value)
    except DerminoError as error:
        raise ValueError(error.what) from None


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a name is given twice")
    return names


Name = Annotated[str, AfterValidator(_named)]
Names = Annotated[list[Name], Field(max_length=MOST_SITES), AfterValidator(_distinct)]
Bytes32 = Annotated[bytes, Field(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Signature = Annotated[bytes, Field(min_length=64, max_length=64)]
Sealed = Annotated[bytes, Field(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]
ByName = Annotated[dict[Name, Bytes32], Field(max_length=MOST_SITES)]
SealedByName = Annotated[dict[Name, Sealed], Field(max_length=MOST_SITES)]


class Message(BaseModel):
    """Base of every message."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, ser_json_bytes="base64", val_json_bytes="base64"
    )


class Request(Message):
    """Coordinator to site."""

    session: Session


class Reply(Message):
    """Site to coordinator. `session_id` tells late replies from those that are waited for."""

    session_id: Bytes32


class Advertisement(Message):
    """A site's keys for one session, signed by its identity key."""

    name: Name
    certificate: str = Field(max_length=16_384)
    sharing_key: Bytes32 = Field(description="X25519, c in the paper: shares are encrypted with it")
    masking_key: Bytes32 = Field(description="X25519, s in the paper: pairwise masks come of it")
    commitment: Bytes32 = Field(description="hash of the seed b of the site's own mask")
    signature: Signature


class KeysRequest(Request):
    """Stage 0: who is invited."""

    invited: Names


class KeysReply(Reply):
    """Stage 0: the site's keys."""

    advertisement: Advertisement


class SharesRequest(Request):
    """Stage 1: the keys of all who answered."""

    advertisements: list[Advertisement] = Field(max_length=MOST_SITES)


class SharesReply(Reply):
    """Stage 1: for each other site its shares of this site's two secrets, encrypted."""

    sealed: SealedByName


class MaskedRequest(Request):
    """Stage 2: by sender, the shares for this site. Sender or receiver: these make up U2."""

    sealed: SealedByName


class MaskedReply(Reply):
    """Stage 2: the masked vector travels beside it."""

    length: int = Field(ge=1)


class ConfirmRequest(Request):
    """Stage 3: U3, the sites whose masked vector arrived."""

    survivors: Names


class ConfirmReply(Reply):
    """Stage 3: this site's signature under U3."""

    signature: Signature


class Confirmation(Message):
    """Who signed U3, and the signature."""

    name: Name
    signature: Signature


class UnmaskRequest(Request):
    """Stage 4: U3 again, with the signatures of those who confirmed it."""

    survivors: Names
    confirmations: list[Confirmation] = Field(max_length=MOST_SITES)


class UnmaskReply(Reply):
    """Stage 4: shares of the seeds of U3, and of the masking keys of those lost since U2."""

    seeds: ByName
    masking_keys: ByName


AskedStage = Literal["keys", "shares", "masked", "confirm", "unmask"]

REQUESTS: Mapping[AskedStage, type[Request]] = {
    "keys": KeysRequest,
    "shares": SharesRequest,
    "masked": MaskedRequest,
    "confirm": ConfirmRequest,
    "unmask": UnmaskRequest,
}
REPLIES: Mapping[AskedStage, type[Reply]] = {
    "keys": KeysReply,
    "shares": SharesReply,
    "masked": MaskedReply,
    "confirm": ConfirmReply,
    "unmask": UnmaskReply,
}

M = TypeVar("M", bound=Message)


def read_request(stage: AskedStage, text: str | bytes) -> Request:
    """The request of a stage from its JSON.

    Raises
    ------
    DerminoError
        `REQUEST_INVALID` if it does not fit.
    """
    return _read(REQUESTS[stage], text, "REQUEST_INVALID")


def read_reply(stage: AskedStage, text: str | bytes) -> Reply:
    """The reply of a stage from its JSON.

    Raises
    ------
    DerminoError
        `REPLY_INVALID` if it does not fit.
    """
    return _read(REPLIES[stage], text, "REPLY_INVALID")


def _read(kind: type[M], text: str | bytes, code: str) -> M:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        # Where and what kind of mistake, but not the value: it may be a share.
        first = error.errors(include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DerminoError(
            code,
            f"A {kind.__name__} does not fit: {first['type']} at '{place}'.",
            fix="Use the same version of dermino at the coordinator and at every site.",
        ) from None
