"""What a site computes with its secrets: shares for others, shares from others, masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dermino_strategies.secure_aggregation import keys
from dermino_strategies.secure_aggregation.agreement import share_context
from dermino_strategies.secure_aggregation.checks import check_enough, refused
from dermino_strategies.secure_aggregation.keys import Party
from dermino_strategies.secure_aggregation.masks import pair_sign
from dermino_strategies.secure_aggregation.records import Peer, Secrets, Shared, SharePair
from dermino_strategies.secure_aggregation.shares import SECRET_BYTES, split_secret


def split_secrets(secrets: Secrets, threshold: int, names: Iterable[str]) -> dict[str, SharePair]:
    """Shares of the seed and of the masking key for every site, by their sorted order."""
    ordered = sorted(names)
    seeds = split_secret(secrets.seed, threshold, len(ordered))
    maskings = split_secret(secrets.masking_private, threshold, len(ordered))
    return {
        name: SharePair(seed=seeds[index], masking_private=maskings[index])
        for index, name in enumerate(ordered, start=1)
    }


def seal_pair(state: Shared, sender: str, receiver: str, pair: SharePair) -> bytes:
    """One site's two shares, encrypted for it."""
    key = _sharing_key(state, sender, receiver)
    context = share_context(state.session.id, state.transcript, sender, receiver)
    return keys.seal(key, pair.seed + pair.masking_private, context)


def open_shares(
    state: Shared, name: str, sealed: Mapping[str, bytes], minimum: int
) -> dict[str, SharePair]:
    """The shares that all of U2 have for this site, its own among them.

    Raises
    ------
    DerminoError
        `SECURE_REFUSED` for too few senders, senders without keys, and shares that are damaged
        or meant for somebody else.
    """
    if strangers := sorted(set(sealed) - set(state.peers) | set(sealed) & {name}):
        raise refused(state.session, f"Shares from the wrong senders: {', '.join(strangers)}.")
    check_enough(state.session, len(sealed) + 1, minimum)
    return {name: state.own} | {sender: _open(state, sender, name, sealed) for sender in sealed}


def mask_keys(state: Shared, name: str, senders: Iterable[str]) -> list[tuple[bytes, int]]:
    """The keys of the masks that this site adds, each with its sign: its own, and one per pair."""
    session_id = state.session.id
    own = keys.self_mask_key(state.secrets.seed, session_id=session_id, name=name)
    masks = [(own, 1)]
    me = Party(name, state.peers[name].masking_key)
    for other in sorted(set(senders) - {name}):
        key = keys.masking_key(
            state.secrets.masking_private,
            session_id=session_id,
            one=me,
            other=Party(other, state.peers[other].masking_key),
        )
        masks.append((key, pair_sign(name, other)))
    return masks


def _open(state: Shared, sender: str, receiver: str, sealed: Mapping[str, bytes]) -> SharePair:
    key = _sharing_key(state, sender, receiver)
    context = share_context(state.session.id, state.transcript, sender, receiver)
    opened = keys.unseal(key, sealed[sender], context)
    return SharePair(seed=opened[:SECRET_BYTES], masking_private=opened[SECRET_BYTES:])


def _sharing_key(state: Shared, sender: str, receiver: str) -> bytes:
    def party(name: str) -> Party:
        peer: Peer = state.peers[name]
        return Party(name, peer.sharing_key)

    return keys.sharing_key(
        state.secrets.sharing_private,
        session_id=state.session.id,
        sender=party(sender),
        receiver=party(receiver),
    )
