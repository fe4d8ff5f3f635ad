"""What a site remembers between two messages, because a fresh process answers each.

One :class:`Record` per (run, round, purpose). Its state goes one way, and each state holds only
what the next step needs::

    Advertised -> Shared -> Masked -> Confirmed -> Unmasked

`Advertised` and `Shared` hold the site's own secrets. `Masked` no longer does: only shares, its
own among them. `Unmasked` holds the shares that were given to the coordinator, and no others.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dermino_strategies.secure_aggregation.encoding import digest
from dermino_strategies.secure_aggregation.messages import (
    Advertisement,
    Bytes32,
    Name,
    Names,
    Signature,
    UnmaskReply,
)
from dermino_strategies.secure_aggregation.session import Session


class _Stored(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, ser_json_bytes="base64", val_json_bytes="base64"
    )


class Secrets(_Stored):
    """A site's own secrets of one session. They must not outlive the masking."""

    sharing_private: Bytes32 = Field(repr=False)
    masking_private: Bytes32 = Field(repr=False)
    seed: Bytes32 = Field(repr=False)


class SharePair(_Stored):
    """One site's shares of another's two secrets."""

    seed: Bytes32 = Field(repr=False)
    masking_private: Bytes32 = Field(repr=False)


class Peer(_Stored):
    """Another site's public keys, or this one's, verified."""

    identity: Bytes32
    sharing_key: Bytes32
    masking_key: Bytes32


class Advertised(_Stored):
    """Stage 0 is answered."""

    kind: Literal["advertised"] = "advertised"
    session: Session
    invited: Names
    secrets: Secrets
    advertisement: Advertisement


class Shared(_Stored):
    """Stage 1 is answered: U1 is known and agreed on."""

    kind: Literal["shared"] = "shared"
    session: Session
    secrets: Secrets
    peers: dict[Name, Peer]
    transcript: Bytes32
    own: SharePair


class _Agreed(_Stored):
    session: Session
    identities: dict[Name, Bytes32]
    transcript: Bytes32
    shares: dict[Name, SharePair]


class Masked(_Agreed):
    """Stage 2 is answered: the shares of U2, this site's own among them."""

    kind: Literal["masked"] = "masked"


class Confirmed(_Agreed):
    """Stage 3 is answered: U3 is signed."""

    kind: Literal["confirmed"] = "confirmed"
    survivors: Names
    signature: Signature


class Unmasked(_Stored):
    """Stage 4 is answered: the reply is kept for the coordinator that asks the same again."""

    kind: Literal["unmasked"] = "unmasked"
    session: Session
    survivors: Names
    signature: Signature
    request: Bytes32
    reply: UnmaskReply = Field(repr=False)


State = Annotated[Advertised | Shared | Masked | Confirmed | Unmasked, Field(discriminator="kind")]


class Record(_Stored):
    """All that a site keeps about one (run, round, purpose).

    Without a state it is a tombstone: the newest attempt, and what was confirmed, if anything.

    Parameters
    ----------
    attempt
        The newest attempt that this site took part in; no other goes on.
    confirmed
        SHA-256 over the session and the survivors that this site signed. Once set it stays,
        and no new attempt begins.
    touched
        When it last changed, in seconds since 1970.
    """

    version: Literal[1] = 1
    run: str
    round: int
    purpose: str
    attempt: int
    confirmed: Bytes32 | None = None
    touched: float
    state: State | None = None

    @classmethod
    def of(cls, session: Session, state: State, survivors: Iterable[str] | None = None) -> Record:
        """The record of a session that has just got into a state, with what it confirmed."""
        confirmed = None
        if survivors is not None:
            confirmed = digest("confirmed", session.id, *sorted(survivors))
        return cls(
            run=session.run,
            round=session.round,
            purpose=session.purpose,
            attempt=session.attempt,
            confirmed=confirmed,
            touched=time.time(),
            state=state,
        )

    def tombstone(self) -> Record:
        """The same without secrets, shares and replies."""
        return self.model_copy(update={"state": None})
