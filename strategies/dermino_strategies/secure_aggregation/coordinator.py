"""The coordinator's half: requests out, replies in, and at the end a sum.

Bonawitz et al. 2017, Figure 4, "Server". Free of transport and of time: whoever drives it sends
:meth:`Coordinator.requests`, hands in replies as they come, and decides when a stage has lasted
long enough::

    coordinator = Coordinator(session, invited, members, limits=limits, like=like)
    while coordinator.stage != "done":
        for name, request in coordinator.requests().items():
            reply, vector = ...  # what the site answers, within the stage's time
            coordinator.receive(name, reply, vector)
        coordinator.advance()
    total = coordinator.total()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dermino_core.errors import DerminoError
from dermino_strategies.base import Arrays
from dermino_strategies.secure_aggregation.agreement import (
    check_distinct,
    confirmation_bytes,
    transcript_of,
    verify_advertisement,
)
from dermino_strategies.secure_aggregation.identity import Members, is_signed_by
from dermino_strategies.secure_aggregation.messages import (
    Advertisement,
    Confirmation,
    ConfirmReply,
    ConfirmRequest,
    KeysReply,
    KeysRequest,
    MaskedReply,
    MaskedRequest,
    Reply,
    Request,
    SharesReply,
    SharesRequest,
    UnmaskReply,
    UnmaskRequest,
)
from dermino_strategies.secure_aggregation.ring import FixedPoint, Vector
from dermino_strategies.secure_aggregation.session import Session, check_threshold
from dermino_strategies.secure_aggregation.unmasking import remove_masks

Stage = Literal["keys", "shares", "masked", "confirm", "unmask", "done", "aborted"]

_NEXT: dict[Stage, Stage] = {
    "keys": "shares",
    "shares": "masked",
    "masked": "confirm",
    "confirm": "unmask",
    "unmask": "done",
}

R = TypeVar("R", bound=Reply)


class Coordinator:
    """One attempt at one sum.

    Holds one vector, the running sum; what a site sends is added to it and let go.

    Parameters
    ----------
    invited
        Names of the sites.
    members
        Whose identity is whose, as the sites know it.
    limits, like
        `Additive.summand_limits` and `Additive.summand_like` of the method.

    Attributes
    ----------
    stage
        What is asked now; `done` when there is a sum, `aborted` when there will be none.
    repeatable
        Whether another attempt at this sum has a chance: no site was asked to confirm yet.
    lost
        Site -> the stage at which it gave no usable answer. One that is lost at `confirm` or
        `unmask` is in the sum nevertheless.

    Raises
    ------
    DerminoError
        `SECURE_REFUSED` if the threshold does not fit the number of sites.
    """

    def __init__(
        self,
        session: Session,
        invited: Iterable[str],
        members: Members,
        *,
        limits: Mapping[str, float],
        like: Arrays,
    ) -> None:
        self.session = session
        self.invited = sorted(set(invited))
        check_threshold(session.threshold, len(self.invited))
        self.stage: Stage = "keys"
        self.repeatable = True
        self.lost: dict[str, Stage] = {}
        self._members = members
        self._limits, self._like = dict(limits), like
        self._point = FixedPoint(self._limits, like, len(self.invited))
        self._asked = self.invited
        self._answers: set[str] = set()
        self._advertisements: dict[str, Advertisement] = {}
        self._identities: dict[str, Ed25519PublicKey] = {}
        self._sealed: dict[str, dict[str, bytes]] = {}
        self._survivors: list[str] = []
        self._signatures: dict[str, bytes] = {}
        self._unmasking: dict[str, UnmaskReply] = {}
        self._sum: Vector = np.zeros(0, np.uint64)

    @property
    def waiting(self) -> list[str]:
        """Sites that were asked at this stage and have not answered."""
        return [name for name in self._asked if name not in self._answers]

    @property
    def participants(self) -> list[str]:
        """Sites whose values are in the sum (U3); empty before all vectors are in."""
        return list(self._survivors)

    def requests(self) -> dict[str, Request]:
        """Site -> what to ask it at this stage. Empty when it is over."""
        return {name: self._request(name) for name in self._asked}

    def receive(self, name: str, reply: Reply, vector: Vector | None = None) -> None:
        """Take one site's answer at this stage.

        A site whose answer is not usable is left waiting, and is lost when the stage ends.

        Parameters
        ----------
        vector
            With the reply to the third request: the masked vector, uint64. It is added to the sum.

        Raises
        ------
        DerminoError
            `REPLY_INVALID` for what was not asked for or does not fit; `MEMBER_UNKNOWN` or
            `SECURE_REFUSED` for keys that are not properly signed.
        """
        if name not in self.waiting:
            raise self._unusable(name, "answers though nobody waits for it")
        if reply.session_id != self.session.id:
            raise self._unusable(name, "answers in another session")
        if self.stage == "keys":
            self._take_keys(name, self._expect(name, reply, KeysReply))
        elif self.stage == "shares":
            self._take_shares(name, self._expect(name, reply, SharesReply))
        elif self.stage == "masked":
            self._take_masked(name, self._expect(name, reply, MaskedReply), vector)
        elif self.stage == "confirm":
            self._take_confirmation(name, self._expect(name, reply, ConfirmReply))
        else:
            self._take_unmasking(name, self._expect(name, reply, UnmaskReply))
        self._answers.add(name)

    def advance(self) -> None:
        """End this stage: who has not answered is lost. Goes on with the rest, or gives up.

        Raises
        ------
        DerminoError
            `SECURE_ABORTED` if too few sites are left, or a share that they gave was wrong.
        """
        if self.stage in _NEXT:
            try:
                self._end_stage()
            except DerminoError:
                self._go_to("aborted", [])
                raise

    def _end_stage(self) -> None:
        stage = self.stage
        self.lost |= dict.fromkeys(self.waiting, stage)
        if len(self._answers) < self.session.threshold:
            raise self._too_few()
        answered = sorted(self._answers)
        if stage == "keys":
            # The sites scale by the number of those whose keys they are shown.
            self._point = FixedPoint(self._limits, self._like, len(answered))
        elif stage == "shares":
            self._sum = np.zeros(self._point.length, np.uint64)
        elif stage == "masked":
            self._survivors = answered
            self.repeatable = False
        elif stage == "unmask":
            self._unmask()
        self._go_to(_NEXT[stage], answered)

    def _go_to(self, stage: Stage, asked: list[str]) -> None:
        self.stage, self._asked, self._answers = stage, asked, set()

    def total(self) -> Arrays:
        """The sum of what the participants sent, float64 arrays.

        Raises
        ------
        DerminoError
            `SECURE_ABORTED` if the sum is larger than the sites may send.
        RuntimeError
            Before there is a sum.
        """
        if self.stage != "done":
            raise RuntimeError(f"there is no sum at stage '{self.stage}'")
        return self._point.unflatten(self._sum)

    def _request(self, name: str) -> Request:
        session = self.session
        if self.stage == "keys":
            return KeysRequest(session=session, invited=self.invited)
        if self.stage == "shares":
            advertisements = [self._advertisements[one] for one in sorted(self._advertisements)]
            return SharesRequest(session=session, advertisements=advertisements)
        if self.stage == "masked":
            sealed = {
                sender: shares[name] for sender, shares in self._sealed.items() if sender != name
            }
            return MaskedRequest(session=session, sealed=sealed)
        if self.stage == "confirm":
            return ConfirmRequest(session=session, survivors=self._survivors)
        confirmations = [
            Confirmation(name=signer, signature=signature)
            for signer, signature in sorted(self._signatures.items())
        ]
        return UnmaskRequest(
            session=session, survivors=self._survivors, confirmations=confirmations
        )

    def _expect(self, name: str, reply: Reply, kind: type[R]) -> R:
        if not isinstance(reply, kind):
            raise self._unusable(name, f"answers with a {type(reply).__name__}")
        return reply

    def _take_keys(self, name: str, reply: KeysReply) -> None:
        advertisement = reply.advertisement
        if advertisement.name != name:
            raise self._unusable(name, f"advertises keys for '{advertisement.name}'")
        key = verify_advertisement(advertisement, self.session.id, self._members)
        # All sites would refuse a list in which two share a key: found here, one is lost.
        check_distinct(
            [*self._advertisements.values(), advertisement], {**self._identities, name: key}
        )
        self._advertisements[name], self._identities[name] = advertisement, key

    def _take_shares(self, name: str, reply: SharesReply) -> None:
        if set(reply.sealed) != set(self._advertisements) - {name}:
            raise self._unusable(name, "sends shares for other sites than it was told of")
        self._sealed[name] = reply.sealed

    def _take_masked(self, name: str, reply: MaskedReply, vector: Vector | None) -> None:
        length = self._point.length
        fits = vector is not None and vector.shape == (length,) and vector.dtype == np.uint64
        if vector is None or not fits or reply.length != length:
            raise self._unusable(name, f"sends no vector of {length} numbers of type uint64")
        self._sum += vector

    def _take_confirmation(self, name: str, reply: ConfirmReply) -> None:
        if not is_signed_by(self._identities[name], reply.signature, self._to_confirm()):
            raise self._unusable(name, "did not sign the sites that are in the sum")
        self._signatures[name] = reply.signature

    def _take_unmasking(self, name: str, reply: UnmaskReply) -> None:
        if set(reply.seeds) != set(self._survivors) or set(reply.masking_keys) != self._gone():
            raise self._unusable(name, "sends other shares than it was asked for")
        self._unmasking[name] = reply

    def _to_confirm(self) -> bytes:
        transcript = transcript_of(self._advertisements.values(), self.session.id)
        return confirmation_bytes(self.session.id, transcript, self._sealed, self._survivors)

    def _gone(self) -> set[str]:
        """Sites that shared their keys but sent no vector."""
        return set(self._sealed) - set(self._survivors)

    def _unmask(self) -> None:
        remove_masks(
            self._sum,
            self.session,
            self._advertisements,
            survivors=self._survivors,
            lost=sorted(self._gone()),
            replies=self._unmasking,
        )

    def _too_few(self) -> DerminoError:
        lost = ", ".join(f"{name} ({stage})" for name, stage in sorted(self.lost.items()))
        again = (
            "Try again with the sites that are there: a new attempt at the same round."
            if self.repeatable
            else "Go on with the next round: a sum that was to be confirmed is not asked for twice."
        )
        return DerminoError(
            "SECURE_ABORTED",
            f"Secure aggregation ends at stage '{self.stage}': {len(self._answers)} sites are "
            f"left, {self.session.threshold} are needed. Lost: {lost}.",
            where=self.session.title,
            fix=again,
        )

    def _unusable(self, name: str, what: str) -> DerminoError:
        return DerminoError(
            "REPLY_INVALID", f"'{name}' {what}.", where=f"{self.session.title}, {self.stage}"
        )
