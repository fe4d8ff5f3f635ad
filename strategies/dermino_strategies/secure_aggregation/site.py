"""The hospital's half: five messages in, five replies out, and a record in between.

Bonawitz et al. 2017, Figure 4, "User u". Every check is made before anything is remembered or
sent: a request that is refused leaves the record as it was. Secrets leave this half encrypted for
another site, or as shares of what the whole federation confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from dermino_strategies.base import Arrays
from dermino_strategies.secure_aggregation import keys, messages
from dermino_strategies.secure_aggregation.agreement import (
    advertise,
    confirmation_bytes,
    transcript_of,
)
from dermino_strategies.secure_aggregation.checks import (
    check_confirmations,
    check_invitation,
    check_list,
    check_survivors,
    refused,
)
from dermino_strategies.secure_aggregation.encoding import digest
from dermino_strategies.secure_aggregation.exchange import (
    mask_keys,
    open_shares,
    seal_pair,
    split_secrets,
)
from dermino_strategies.secure_aggregation.identity import Identity, Members
from dermino_strategies.secure_aggregation.masks import add_mask
from dermino_strategies.secure_aggregation.records import (
    Advertised,
    Confirmed,
    Masked,
    Record,
    Secrets,
    Shared,
    Unmasked,
)
from dermino_strategies.secure_aggregation.ring import FixedPoint, Vector
from dermino_strategies.secure_aggregation.session import FEWEST_SITES, Session
from dermino_strategies.secure_aggregation.store import SessionStore, Slot

S = TypeVar("S", bound=Advertised | Shared | Masked | Confirmed | Unmasked)


class SecureSite:
    """One site in secure aggregation; all it knows between two messages is in its store.

    Parameters
    ----------
    minimum
        Fewest sites, this one included, that a sum may be over; at least 3 whatever is given.
    """

    def __init__(
        self,
        identity: Identity,
        members: Members,
        store: SessionStore,
        *,
        minimum: int = FEWEST_SITES,
    ) -> None:
        self.name = identity.name
        self._identity = identity
        self._members = members
        self._store = store
        self._minimum = max(minimum, FEWEST_SITES)

    def keys(self, request: messages.KeysRequest) -> messages.KeysReply:
        """Stage 0: new keys for a new session. Ends an earlier attempt that was not confirmed.

        Raises
        ------
        DerminoError
            `SECURE_REFUSED` if this attempt or a later one was begun before, an attempt at this
            sum was confirmed, or too few sites are invited.
        """
        session = request.session
        check_invitation(session, request.invited, self.name, self._minimum)
        self._store.prune()
        with self._store.locked(session.round_key) as slot:
            record = slot.read()
            if record is not None and record.confirmed is not None:
                raise refused(session, "This sum was confirmed; it cannot be asked for again.")
            if record is not None and session.attempt <= record.attempt:
                raise refused(session, f"Attempt {record.attempt} was begun before.")
            sharing, masking, seed = keys.new_key_pair(), keys.new_key_pair(), keys.new_secret()
            commitment = keys.commitment_to(seed, session_id=session.id, name=self.name)
            advertisement = advertise(
                self._identity, session.id, sharing.public, masking.public, commitment
            )
            state = Advertised(
                session=session,
                invited=request.invited,
                secrets=Secrets(
                    sharing_private=sharing.private, masking_private=masking.private, seed=seed
                ),
                advertisement=advertisement,
            )
            slot.write(Record.of(session, state))
        return messages.KeysReply(session_id=session.id, advertisement=advertisement)

    def shares(self, request: messages.SharesRequest) -> messages.SharesReply:
        """Stage 1: verify everyone's keys, then share this site's two secrets among all.

        Raises
        ------
        DerminoError
            `MEMBER_UNKNOWN` for an identity that is not trusted, `SECURE_REFUSED` for a list
            that is not in order, too short, or in which this site's own keys are not its own.
        """
        session = request.session
        with self._state(session, Advertised) as (slot, state):
            peers = check_list(state, request.advertisements, self._members, self._minimum)
            transcript = transcript_of(request.advertisements, session.id)
            pairs = split_secrets(state.secrets, session.threshold, peers)
            shared = Shared(
                session=session,
                secrets=state.secrets,
                peers=peers,
                transcript=transcript,
                own=pairs.pop(self.name),
            )
            sealed = {name: seal_pair(shared, self.name, name, pairs[name]) for name in pairs}
            slot.write(Record.of(session, shared))
        return messages.SharesReply(session_id=session.id, sealed=sealed)

    def masked(
        self,
        request: messages.MaskedRequest,
        summand: Callable[[], Arrays],
        *,
        limits: Mapping[str, float],
        like: Arrays,
        task_digest: str,
    ) -> tuple[messages.MaskedReply, Vector]:
        """Stage 2: this site's values, masked.

        y = x + PRG(b) + sum over v < u of PRG(s_uv) - sum over v > u of PRG(s_uv), v in U2, u
        this site, modulo 2^64.

        The site's own secrets are gone from its store before the first value is computed, so that
        nothing makes it mask twice. If it dies after that, it is a drop-out.

        Parameters
        ----------
        summand
            Computes this site's values. Called once, after the request was found in order, while
            no lock is held.
        limits, like
            `Additive.summand_limits` and `Additive.summand_like` of the method.
        task_digest
            What this site takes the task to be, by :func:`session.task_digest`.

        Returns
        -------
        The reply and the masked vector [number of parameters], uint64.

        Raises
        ------
        DerminoError
            `SECURE_REFUSED` for shares that are not for this site or too few, another task, a
            second call, or values that are out of bounds.
        """
        session = request.session
        if session.task_digest != task_digest:
            raise refused(session, "The session is about another task or other arrays.")
        with self._state(session, Shared) as (slot, state):
            point = FixedPoint(limits, like, len(state.peers))
            shares = open_shares(state, self.name, request.sealed, self._minimum)
            stretched = mask_keys(state, self.name, shares)
            masked = Masked(
                session=session,
                identities={name: peer.identity for name, peer in state.peers.items()},
                transcript=state.transcript,
                shares=shares,
            )
            slot.write(Record.of(session, masked))
        vector = point.flatten(summand())
        for key, sign in stretched:
            add_mask(vector, key, sign)
        return messages.MaskedReply(session_id=session.id, length=point.length), vector

    def confirm(self, request: messages.ConfirmRequest) -> messages.ConfirmReply:
        """Stage 3: sign the list of survivors, once for all attempts at this sum.

        Raises
        ------
        DerminoError
            `SECURE_REFUSED` if the list is too short, lacks this site, names a site that sent no
            shares, or is another than the one that was signed before.
        """
        session = request.session
        survivors = sorted(request.survivors)
        with self._state(session, Masked, Confirmed, Unmasked) as (slot, state):
            if not isinstance(state, Masked):
                if state.survivors != survivors:
                    raise refused(session, "Another list of survivors was confirmed.")
                return messages.ConfirmReply(session_id=session.id, signature=state.signature)
            check_survivors(state, survivors, self.name, self._minimum)
            signature = self._identity.sign(
                confirmation_bytes(session.id, state.transcript, state.shares, survivors)
            )
            confirmed = Confirmed(
                session=session,
                identities=state.identities,
                transcript=state.transcript,
                shares=state.shares,
                survivors=survivors,
                signature=signature,
            )
            slot.write(Record.of(session, confirmed, survivors))
        return messages.ConfirmReply(session_id=session.id, signature=signature)

    def unmask(self, request: messages.UnmaskRequest) -> messages.UnmaskReply:
        """Stage 4: of each survivor the share of its seed, of each site lost that of its key.

        Raises
        ------
        DerminoError
            `SECURE_REFUSED` unless a threshold of the survivors signed the very list that this
            site signed, and for any request but the first one, word for word.
        """
        session = request.session
        asked = digest("unmask request", request.model_dump_json())
        with self._state(session, Confirmed, Unmasked) as (slot, state):
            if isinstance(state, Unmasked):
                if state.request != asked:
                    raise refused(session, "Another request to unmask was answered.")
                return state.reply
            if sorted(request.survivors) != state.survivors:
                raise refused(session, "Another list of survivors was confirmed.")
            check_confirmations(state, request.confirmations)
            # Of every site one secret or the other, never both: the two sets are disjoint.
            lost = sorted(set(state.shares) - set(state.survivors))
            reply = messages.UnmaskReply(
                session_id=session.id,
                seeds={name: state.shares[name].seed for name in state.survivors},
                masking_keys={name: state.shares[name].masking_private for name in lost},
            )
            unmasked = Unmasked(
                session=session,
                survivors=state.survivors,
                signature=state.signature,
                request=asked,
                reply=reply,
            )
            slot.write(Record.of(session, unmasked, state.survivors))
        return reply

    @contextmanager
    def _state(self, session: Session, *kinds: type[S]) -> Iterator[tuple[Slot, S]]:
        """The state of a session, if it is of the right kind, and the slot to write the next."""
        with self._store.locked(session.round_key) as slot:
            record = slot.read()
            state = None if record is None else record.state
            if state is None or state.session.id != session.id:
                raise refused(session, "This site is not in such a session.")
            if not isinstance(state, kinds):
                raise refused(session, f"Not now: the last step was '{state.kind}'.")
            yield slot, state
