"""What a site refuses, stage by stage. Nothing here changes or sends anything."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dermino_core.errors import DerminoError
from dermino_strategies.secure_aggregation.agreement import (
    confirmation_bytes,
    verify_advertisements,
)
from dermino_strategies.secure_aggregation.identity import Members, is_signed_by
from dermino_strategies.secure_aggregation.messages import Advertisement, Confirmation
from dermino_strategies.secure_aggregation.records import Advertised, Confirmed, Masked, Peer
from dermino_strategies.secure_aggregation.session import Session, check_threshold


def check_invitation(session: Session, invited: Sequence[str], name: str, minimum: int) -> None:
    """Stage 0: this site is invited, with enough others.

    Raises
    ------
    DerminoError
        `SECURE_REFUSED` otherwise.
    """
    if name not in invited:
        raise refused(session, f"'{name}' is not among those invited.")
    check_enough(session, len(invited), minimum)


def check_list(
    state: Advertised, advertisements: Sequence[Advertisement], members: Members, minimum: int
) -> dict[str, Peer]:
    """Stage 1: the list of keys is in order, and this site's own are in it. Returns U1.

    Raises
    ------
    DerminoError
        `MEMBER_UNKNOWN` or `SECURE_REFUSED` otherwise.
    """
    session = state.session
    check_threshold(session.threshold, len(advertisements))
    check_enough(session, len(advertisements), minimum)
    if state.advertisement not in advertisements:
        raise refused(session, "This site's own keys are not in the list as it sent them.")
    identities = verify_advertisements(advertisements, session.id, members)
    if strangers := sorted(set(identities) - set(state.invited)):
        raise refused(session, f"Not invited, but in the list: {', '.join(strangers)}.")
    return {
        one.name: Peer(
            identity=identities[one.name].public_bytes_raw(),
            sharing_key=one.sharing_key,
            masking_key=one.masking_key,
        )
        for one in advertisements
    }


def check_survivors(state: Masked, survivors: Sequence[str], name: str, minimum: int) -> None:
    """Stage 3: U3 is part of U2, holds this site, and is large enough.

    Raises
    ------
    DerminoError
        `SECURE_REFUSED` otherwise.
    """
    session = state.session
    if name not in survivors:
        raise refused(session, f"'{name}' sent its masked vector, but is not in the sum.")
    if strangers := sorted(set(survivors) - set(state.shares)):
        raise refused(session, f"In the sum, but sent no shares: {', '.join(strangers)}.")
    check_enough(session, len(survivors), minimum)


def check_confirmations(state: Confirmed, confirmations: Sequence[Confirmation]) -> None:
    """Stage 4: a threshold of the survivors signed what this site signed.

    Raises
    ------
    DerminoError
        `SECURE_REFUSED` otherwise; one signature that does not hold spoils them all.
    """
    session = state.session
    names = [confirmation.name for confirmation in confirmations]
    if len(set(names)) < len(names) or not set(names) <= set(state.survivors):
        raise refused(session, "A confirmation is there twice, or from a site not in the sum.")
    if len(names) < session.threshold:
        raise refused(
            session, f"{len(names)} sites confirmed the sum, {session.threshold} are needed."
        )
    signed = confirmation_bytes(session.id, state.transcript, state.shares, state.survivors)
    for confirmation in confirmations:
        key = Ed25519PublicKey.from_public_bytes(state.identities[confirmation.name])
        if not is_signed_by(key, confirmation.signature, signed):
            raise refused(session, f"'{confirmation.name}' did not confirm this sum.")


def check_enough(session: Session, sites: int, minimum: int) -> None:
    """Every set of sites is as large as the threshold, and as this site's own minimum.

    Raises
    ------
    DerminoError
        `SECURE_REFUSED` otherwise.
    """
    needed = max(minimum, session.threshold)
    if sites < needed:
        raise refused(session, f"{sites} sites take part, {needed} are needed.")


def refused(session: Session, what: str) -> DerminoError:
    """`SECURE_REFUSED` in a session."""
    return DerminoError(
        "SECURE_REFUSED",
        what,
        where=session.title,
        fix="Nothing was sent. If it happens again, the coordinator's machine or software is at "
        "fault: compare versions, and ask who runs it.",
    )
