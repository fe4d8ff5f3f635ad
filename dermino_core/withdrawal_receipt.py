"""The receipt of a withdrawal: what a coordinator erased of a hospital, and what it did not.

It is signed with the key of the coordinator's server certificate, so that every hospital can check
it against the authority that it pinned when it joined. A coordinator without a consortium signs
with a key of its own, whose fingerprint is compared by phone. The digests in `sums` are those that
the hospital's own audit log holds of what it sent, so that it can tell which sums were meant.

The signature covers :data:`PURPOSE`, so that it is of no use elsewhere, and the content as
:class:`dermino_core.enrolment.SignedFile` writes it; the file has to be as it was written, to the
byte.
"""

from __future__ import annotations

import base64
import datetime
from pathlib import Path
from typing import Annotated, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import AfterValidator, Field, ValidationError

from dermino_core.certificate_checks import check_authority, read_certificate, utc_now
from dermino_core.enrolment import (
    CLOCK_TOLERANCE,
    Certificate,
    Digest,
    Signature,
    SignedFile,
    SiteName,
)
from dermino_core.errors import DerminoError
from dermino_core.public_keys import key_digest

PURPOSE = b"dermino withdrawal receipt\n"
RECEIPT_FILE = "receipt.json"
_MAX_BYTES = 2**20
_HASH = ec.ECDSA(hashes.SHA384())

PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | ec.EllipticCurvePublicKey


def _public_key(value: str) -> str:
    read_key(value)
    return value


class Receipt(SignedFile):
    """`receipt.json`."""

    format: Literal["dermino-withdrawal"] = "dermino-withdrawal"
    site: SiteName
    run: str = Field(pattern=r"^[0-9a-f]{32}$")
    """The run that it took part in, whose model is the old one."""
    sent_in: str = Field(pattern=r"^[0-9a-f]{32}$")
    """The run that it sent its sums in: another one where later runs built on them."""
    new_run: str = Field(pattern=r"^[0-9a-f]{32}$")
    sums: dict[str, Digest] = Field(min_length=1)
    """Array of the site's sums -> SHA-256 of it as it travelled (`.npy`, header included)."""
    old_model: Digest
    new_model: Digest
    """SHA-256 of `model.safetensors`."""
    trained_on: list[SiteName] = Field(min_length=1)
    """Sites of the new model."""
    erased: list[str]
    not_undone: list[str]
    dermino_version: str
    key: Annotated[str, Field(max_length=400), AfterValidator(_public_key)]
    """Public key of whoever signed: SubjectPublicKeyInfo in base64."""
    certificate: Certificate | None
    """The server certificate that binds the key to the coordinator of a consortium."""
    signature: Signature

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key, 64 hexadecimal digits; its half is read by phone."""
        return key_digest(read_key(self.key))

    @property
    def lines(self) -> list[str]:
        """What it says, for a person."""
        others = ", ".join(self.trained_on)
        return [
            f"{self.site} left the run {self.run} at {self.created:%Y-%m-%d %H:%M:%S} UTC",
            f"the model without it was made from: {others} (SHA-256 {self.new_model[:16]})",
            "erased:" if self.erased else "erased: nothing",
            *(f"  - {item}" for item in self.erased),
            "not undone:",
            *(f"  - {item}" for item in self.not_undone),
        ]


def key_text(key: PublicKey) -> str:
    """A public key as a receipt holds it."""
    return _base64(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def read_key(text: str) -> PublicKey:
    """The key of :func:`key_text`.

    Raises
    ------
    ValueError
        If `text` is anything else, or the key is neither Ed25519 nor of an elliptic curve.
    """
    try:
        key = load_der_public_key(_bytes(text))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("not a public key in base64") from None
    if not isinstance(key, PublicKey) or key_text(key) != text:
        raise ValueError("not an Ed25519 or elliptic-curve public key in base64")
    return key


def sign_receipt(unsigned: Receipt, key: PrivateKey) -> Receipt:
    """The receipt with the signature of `key`, whose public half it names."""
    content = PURPOSE + unsigned.signed_bytes()
    signature = (
        key.sign(content) if isinstance(key, Ed25519PrivateKey) else key.sign(content, _HASH)
    )
    return unsigned.model_copy(update={"signature": _base64(signature)})


def read_receipt(file: Path) -> Receipt:
    """A receipt from its file; the signature is not looked at.

    Raises
    ------
    DerminoError
        `RECEIPT_INVALID` if it cannot be read, is anything else, or is not as it was written.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError("it is far too large")
        receipt = Receipt.model_validate_json(content)
        if receipt.text().encode() != content:
            raise ValueError("it is not as it was written")
        return receipt
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
    raise DerminoError(
        "RECEIPT_INVALID",
        f"This is not a whole receipt: {reason}.",
        where=file,
        fix="Ask the coordinator for receipt.json again, and hand it on unopened.",
    )


def check_receipt(
    receipt: Receipt,
    authority: x509.Certificate | None,
    *,
    now: datetime.datetime | None = None,
) -> None:
    """Refuse a receipt that was changed, or that the authority's coordinator did not sign.

    Parameters
    ----------
    authority
        The consortium's; None for a receipt without a certificate, whose fingerprint a person has
        to compare.

    Raises
    ------
    DerminoError
        `RECEIPT_INVALID`.
    """
    content, signature = PURPOSE + receipt.signed_bytes(), receipt.signature
    try:
        key = read_key(receipt.key)
        if isinstance(key, Ed25519PublicKey):
            key.verify(_bytes(signature), content)
        else:
            key.verify(_bytes(signature), content, _HASH)
    except (InvalidSignature, ValueError):
        raise _bad(receipt, "was damaged or changed: its signature does not fit") from None
    if receipt.created > (now or utc_now()) + CLOCK_TOLERANCE:
        raise _bad(receipt, f"comes from the future ({receipt.created:%Y-%m-%d %H:%M:%S} UTC)")
    if receipt.certificate is None:
        if authority is not None:
            raise _bad(
                receipt,
                "is signed with a key that no authority vouches for",
                "Ask the coordinator to sign with the key of its server certificate, or compare "
                "the key's fingerprint by phone, without a certificate of an authority.",
            )
        return
    certificate = read_certificate(receipt.certificate)
    if key_text_of(certificate) != receipt.key:
        raise _bad(receipt, "names another key than its certificate does")
    if authority is None:
        raise _bad(
            receipt,
            "is signed by a coordinator whose authority is not known here",
            "Give the consortium's certificate: --ca ca.crt.",
        )
    _check_coordinator(receipt, certificate, authority)


def key_text_of(certificate: x509.Certificate) -> str | None:
    """The key of a certificate as a receipt holds it; None if it is of another kind."""
    key = certificate.public_key()
    return key_text(key) if isinstance(key, PublicKey) else None


def _check_coordinator(
    receipt: Receipt, certificate: x509.Certificate, authority: x509.Certificate
) -> None:
    """A server certificate of this authority: members have others, which are for clients only."""
    check_authority(authority)
    try:
        certificate.verify_directly_issued_by(authority)
        extensions = certificate.extensions
        purposes = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        signs = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise _bad(receipt, "is signed by a coordinator of another federation") from None
    except x509.ExtensionNotFound:
        raise _bad(receipt, "has a certificate that does not say what it is for") from None
    if purposes != [ExtendedKeyUsageOID.SERVER_AUTH] or signs:
        raise _bad(receipt, "is signed by a member of the federation, not by its coordinator")
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= receipt.created <= ends:
        raise _bad(receipt, "is dated outside the lifetime of the coordinator's certificate")


def _bad(receipt: Receipt, reason: str, fix: str | None = None) -> DerminoError:
    return DerminoError(
        "RECEIPT_INVALID",
        f"The receipt of the withdrawal of {receipt.site} {reason}.",
        fix=fix or "Ask the coordinator for receipt.json again, over another channel.",
    )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _bytes(text: str) -> bytes:
    content = base64.b64decode(text, validate=True)
    if _base64(content) != text:
        raise ValueError("bits after the end")
    return content
