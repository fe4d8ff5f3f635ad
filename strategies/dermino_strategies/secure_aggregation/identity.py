"""Who a site is: a long-lived Ed25519 key (RFC 8032), and how others know that it is its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dermino_core.errors import DerminoError


@dataclass(frozen=True)
class Identity:
    """A site's name, its identity key, and the certificate that others may want to see."""

    name: str
    private_key: Ed25519PrivateKey = field(repr=False)
    certificate: str = ""

    @classmethod
    def generate(cls, name: str) -> Identity:
        """A new identity without a certificate, for simulations."""
        return cls(name, Ed25519PrivateKey.generate())

    @property
    def public_key(self) -> Ed25519PublicKey:
        """What others check signatures with."""
        return self.private_key.public_key()

    def sign(self, message: bytes) -> bytes:
        """64 bytes; the same message gives the same signature."""
        return self.private_key.sign(message)


class Members(Protocol):
    """Decides whose identity key is whose: by a pinned list, or by certificates."""

    def identity_key(self, name: str, certificate: str) -> Ed25519PublicKey:
        """The identity key of the member `name`, who shows this certificate.

        Raises
        ------
        DerminoError
            `MEMBER_UNKNOWN` if nobody of that name is trusted, or not with that certificate.
        """
        ...


class PinnedMembers:
    """Members known by name beforehand; certificates are not looked at."""

    def __init__(self, keys: Mapping[str, Ed25519PublicKey]) -> None:
        self._keys = dict(keys)

    def identity_key(self, name: str, certificate: str) -> Ed25519PublicKey:
        """As :meth:`Members.identity_key`."""
        del certificate
        if name not in self._keys:
            raise DerminoError(
                "MEMBER_UNKNOWN",
                f"The identity of '{name}' is not known.",
                fix="If it should take part, pin its identity key.",
            )
        return self._keys[name]


def is_signed_by(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether the owner of the key signed this message."""
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
