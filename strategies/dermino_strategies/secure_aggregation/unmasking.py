"""Taking the masks off the sum, once the sites have given the shares for it.

A share that was damaged on its way, at the coordinator or by a site shows here: the secret that
comes out is held against what its owner advertised and signed. Without that a wrong share would
turn the sum into noise that looks like a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dermino_core.errors import DerminoError
from dermino_strategies.secure_aggregation import keys
from dermino_strategies.secure_aggregation.keys import Party
from dermino_strategies.secure_aggregation.masks import add_mask, pair_sign
from dermino_strategies.secure_aggregation.messages import Advertisement, UnmaskReply
from dermino_strategies.secure_aggregation.ring import Vector
from dermino_strategies.secure_aggregation.session import Session
from dermino_strategies.secure_aggregation.shares import combine_secret


def remove_masks(
    total: Vector,
    session: Session,
    advertisements: Mapping[str, Advertisement],
    *,
    survivors: Sequence[str],
    lost: Iterable[str],
    replies: Mapping[str, UnmaskReply],
) -> None:
    """Subtract all masks from the sum of the masked vectors [n], in place.

    Bonawitz et al. 2017, Figure 4, round 4: of every survivor its own mask, and of every site
    that shared its keys but sent no vector, its half of the masks it shares with the survivors.

    Parameters
    ----------
    advertisements
        U1: their sorted names number the shares.
    survivors, lost
        U3, and U2 without U3.
    replies
        U5: shares from at least a threshold of the survivors.

    Raises
    ------
    DerminoError
        `SECURE_ABORTED` if a secret does not come out as it was advertised; `total` is then as
        it was.
    """
    index = {name: number for number, name in enumerate(sorted(advertisements), start=1)}

    def combine(shares: Mapping[str, bytes]) -> bytes:
        return combine_secret({index[n]: s for n, s in shares.items()}, session.threshold)

    masks: list[tuple[bytes, int]] = []
    for name in survivors:
        seed = combine({giver: reply.seeds[name] for giver, reply in replies.items()})
        commitment = keys.commitment_to(seed, session_id=session.id, name=name)
        if commitment != advertisements[name].commitment:
            raise _wrong(name)
        masks.append((keys.self_mask_key(seed, session_id=session.id, name=name), 1))
    for name in lost:
        private = combine({giver: reply.masking_keys[name] for giver, reply in replies.items()})
        if keys.public_of(private) != advertisements[name].masking_key:
            raise _wrong(name)
        gone = Party(name, advertisements[name].masking_key)
        for survivor in survivors:
            left = Party(survivor, advertisements[survivor].masking_key)
            key = keys.masking_key(private, session_id=session.id, one=left, other=gone)
            masks.append((key, pair_sign(survivor, name)))
    for key, sign in masks:
        # The sign with which a site added the mask, turned around.
        add_mask(total, key, -sign)


def _wrong(name: str) -> DerminoError:
    return DerminoError(
        "SECURE_ABORTED",
        f"The shares of '{name}' do not give back what it advertised: a share was changed.",
        fix="There is no sum. The sum of this round cannot be asked for again; go on with the "
        "next round, and look at the sites' versions if it happens again.",
    )
