"""Public keys of a site as text: Ed25519 for its identity, P-384 for its SuperNode (flwr 1.41)."""

from __future__ import annotations

import base64
import hashlib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)


def identity_text(key: Ed25519PublicKey) -> str:
    """An identity key as the files hold it."""
    return base64.b64encode(key.public_bytes_raw()).decode()


def node_text(key: ec.EllipticCurvePublicKey) -> str:
    """A node key as the files hold it: an OpenSSH line."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def identity_key(text: str) -> Ed25519PublicKey:
    """The key of :func:`identity_text`.

    Raises
    ------
    ValueError
        If `text` is anything else.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except ValueError:
        raise ValueError("not an Ed25519 public key in base64") from None
    if identity_text(key) != text:
        raise ValueError("not an Ed25519 public key in base64")
    return key


def node_key(text: str) -> ec.EllipticCurvePublicKey:
    """The key of :func:`node_text`.

    Raises
    ------
    ValueError
        If `text` is anything but one P-384 key in OpenSSH format without a comment.
    """
    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, TypeError, NotImplementedError, UnsupportedAlgorithm):
        key = None  # not implemented: a point in its short form
    if (
        not isinstance(key, ec.EllipticCurvePublicKey)
        or not isinstance(key.curve, ec.SECP384R1)
        or node_text(key) != text
    ):
        raise ValueError("not a P-384 public key as OpenSSH writes it, without a comment")
    return key


def key_digest(key: ec.EllipticCurvePublicKey | Ed25519PublicKey) -> str:
    """SHA-256 of a public key's SubjectPublicKeyInfo, 64 hexadecimal digits."""
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()
