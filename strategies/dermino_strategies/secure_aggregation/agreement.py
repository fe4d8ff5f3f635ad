"""What all sites must agree on: the signed list of keys, and the signed list of survivors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dermino_core.errors import DerminoError
from dermino_strategies.secure_aggregation.encoding import digest, encode
from dermino_strategies.secure_aggregation.identity import Identity, Members, is_signed_by
from dermino_strategies.secure_aggregation.keys import is_canonical
from dermino_strategies.secure_aggregation.messages import Advertisement


def advertise(
    identity: Identity, session_id: bytes, sharing: bytes, masking: bytes, commitment: bytes
) -> Advertisement:
    """A site's public keys for a session, signed by its identity."""
    unsigned = Advertisement(
        name=identity.name,
        certificate=identity.certificate,
        sharing_key=sharing,
        masking_key=masking,
        commitment=commitment,
        signature=bytes(64),
    )
    signature = identity.sign(_signed_bytes(unsigned, session_id))
    return unsigned.model_copy(update={"signature": signature})


def verify_advertisement(
    advertisement: Advertisement, session_id: bytes, members: Members
) -> Ed25519PublicKey:
    """The identity key of the site whose keys these are.

    Raises
    ------
    DerminoError
        `MEMBER_UNKNOWN` if that identity is not trusted; `SECURE_REFUSED` if it did not sign these
        keys for this session, or a key is not written the canonical way.
    """
    name = advertisement.name
    key = members.identity_key(name, advertisement.certificate)
    if not is_signed_by(key, advertisement.signature, _signed_bytes(advertisement, session_id)):
        raise DerminoError(
            "SECURE_REFUSED", f"The keys of '{name}' are not signed by it for this session."
        )
    if not (is_canonical(advertisement.sharing_key) and is_canonical(advertisement.masking_key)):
        raise DerminoError("SECURE_REFUSED", f"A key of '{name}' is not a canonical X25519 key.")
    return key


def verify_advertisements(
    advertisements: Sequence[Advertisement], session_id: bytes, members: Members
) -> dict[str, Ed25519PublicKey]:
    """Name -> identity key of every site in the list.

    Raises
    ------
    DerminoError
        As :func:`verify_advertisement` and :func:`check_distinct`.
    """
    identities = {
        advertisement.name: verify_advertisement(advertisement, session_id, members)
        for advertisement in advertisements
    }
    check_distinct(advertisements, identities)
    return identities


def check_distinct(
    advertisements: Sequence[Advertisement], identities: Mapping[str, Ed25519PublicKey]
) -> None:
    """No two sites of the list share a name, an identity or an ephemeral key.

    Raises
    ------
    DerminoError
        `SECURE_REFUSED` if two do: one site would count as several.
    """
    names = {advertisement.name for advertisement in advertisements}
    signers = {identities[name].public_bytes_raw() for name in names}
    ephemeral = [key for one in advertisements for key in (one.sharing_key, one.masking_key)]
    if len(names) < len(advertisements):
        raise DerminoError("SECURE_REFUSED", "A site is in the list of keys twice.")
    if len(signers) < len(names):
        raise DerminoError("SECURE_REFUSED", "Two sites of the list have the same identity key.")
    if len(set(ephemeral)) < len(ephemeral):
        raise DerminoError("SECURE_REFUSED", "An ephemeral key is in the list twice.")


def transcript_of(advertisements: Iterable[Advertisement], session_id: bytes) -> bytes:
    """SHA-256 over the session and all that was advertised in it, 32 bytes.

    Goes into everything that the sites encrypt and sign from here on: sites that were shown
    different lists cannot read each other's shares, nor confirm each other.
    """
    fields: list[bytes | str | int] = [session_id]
    for advertisement in sorted(advertisements, key=lambda one: one.name):
        fields += [_signed_bytes(advertisement, session_id), advertisement.signature]
    return digest("transcript", *fields)


def share_context(session_id: bytes, transcript: bytes, sender: str, receiver: str) -> bytes:
    """The associated data of the shares that one site encrypts for another."""
    return encode("shares", session_id, transcript, sender, receiver)


def confirmation_bytes(
    session_id: bytes, transcript: bytes, sharers: Iterable[str], survivors: Iterable[str]
) -> bytes:
    """What a site signs in the consistency round: U3, and U2 before it.

    The paper signs U3 alone. With U2, sites that were told of different senders do not get past
    this round either.
    """
    lists = [encode("names", *sorted(names)) for names in (sharers, survivors)]
    return encode("confirmation", session_id, transcript, *lists)


def _signed_bytes(advertisement: Advertisement, session_id: bytes) -> bytes:
    return encode(
        "advertisement",
        session_id,
        advertisement.name,
        advertisement.certificate,
        advertisement.sharing_key,
        advertisement.masking_key,
        advertisement.commitment,
    )
