"""What a certificate of a federation says, whether it holds now, and when it ends.

Three kinds are signed by the consortium's authority or by itself: the authority's own, the
coordinator's server certificate, and one membership certificate for each site. A membership
certificate binds a site's name (CN) to its Ed25519 identity key. Its only purpose is clientAuth
and it names no host, so it can never stand in for the coordinator (RFC 5280, 4.2.1.12).
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dermino_core.errors import DerminoError

WARN_DAYS = 30
_MAX_BYTES = 64 * 1024
_DAMAGED = (
    *(ValueError, TypeError, OverflowError, UnsupportedAlgorithm, x509.InvalidVersion),
    *(x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)


def utc_now() -> datetime.datetime:
    """The time, in whole seconds, as certificates and enrolment files give it."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def read_certificate(content: bytes | str, *, where: object | None = None) -> x509.Certificate:
    """A certificate from PEM or DER, of which every part that is used can be read.

    Raises
    ------
    DerminoError
        `TLS_INVALID` if it is neither.
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError("too long")
        if data.lstrip().startswith(b"-----BEGIN"):
            certificate = x509.load_pem_x509_certificate(data)
        else:
            certificate = x509.load_der_x509_certificate(data)
        # Parsed when asked for, and a damaged one fails only then.
        _ = certificate.public_key(), certificate.extensions
        _ = certificate.subject, certificate.issuer
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except _DAMAGED as error:
        raise DerminoError(
            "TLS_INVALID",
            "this is not a whole certificate",
            where=where,
            fix="it must be a PEM file as the coordinator sent it; ask for it again",
        ) from error
    return certificate


def certificate_digest(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` gives it, without colons."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def check_validity(
    certificate: x509.Certificate,
    what: str,
    *,
    now: datetime.datetime | None = None,
    where: object | None = None,
    renewal: str = "ask the coordinator for a new one",
) -> None:
    """Refuse a certificate before its first and after its last day.

    Raises
    ------
    DerminoError
        `TLS_INVALID` with both times; that it begins in the future means a clock that is off.
    """
    now = now or utc_now()
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        raise DerminoError(
            "TLS_INVALID",
            f"{what} is not valid before {_stamp(begins)}, and this machine's clock says "
            f"{_stamp(now)}: the clock may be off",
            where=where,
            fix="check the clock here (timedatectl), then at the machine that signed it",
        )
    if now > ends:
        raise DerminoError(
            "TLS_INVALID",
            f"{what} expired on {_stamp(ends)}; this machine's clock says {_stamp(now)}",
            where=where,
            fix=f"if the clock is right, {renewal}",
        )


def check_authority(certificate: x509.Certificate) -> EllipticCurvePublicKey:
    """The key of a certificate that is an authority's: self-signed and allowed to sign others.

    Raises
    ------
    DerminoError
        `TLS_INVALID` otherwise. The time is not looked at.
    """
    key = certificate.public_key()
    try:
        certificate.verify_directly_issued_by(certificate)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        good = constraints.ca and isinstance(key, EllipticCurvePublicKey)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        good = False
    except x509.ExtensionNotFound:
        good = False
    if not good or not isinstance(key, EllipticCurvePublicKey):
        raise DerminoError(
            "TLS_INVALID",
            "the authority's certificate is not that of an authority",
            fix="use the ca.crt that `dermino provision init` wrote",
        )
    return key


def check_membership(
    certificate: x509.Certificate, authority: x509.Certificate, name: str
) -> Ed25519PublicKey:
    """The identity key of the site `name`, if `certificate` is its membership certificate.

    The time is not looked at, see :func:`check_validity`.

    Raises
    ------
    DerminoError
        `TLS_INVALID` if another authority signed it, it is for another site, or it is not a
        certificate of a member (its key, its purpose).
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise _no_member(name, "is not signed by this federation's authority") from None
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if [attribute.value for attribute in common] != [name]:
        given = ", ".join(repr(attribute.value) for attribute in common) or "nobody"
        raise _no_member(name, f"is for {given}")
    try:
        extensions = certificate.extensions
        purposes = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        signs = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound):
        raise _no_member(name, "does not say what it is for") from None
    if purposes != [ExtendedKeyUsageOID.CLIENT_AUTH] or signs:
        raise _no_member(name, "is not for a member, but for a server or an authority")
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise _no_member(name, "does not hold an Ed25519 identity key")
    return key


def expiry_warning(
    what: str,
    certificate: x509.Certificate | bytes | str,
    *,
    now: datetime.datetime | None = None,
    days: int = WARN_DAYS,
) -> str | None:
    """A sentence if a certificate has expired, ends within `days`, or has not begun; else None.

    `certificate` may be PEM or DER, such as `SSLSocket.getpeercert(binary_form=True)`. One that
    cannot be read gives a sentence too: a warning never stops anything.
    """
    now = now or utc_now()
    if isinstance(certificate, bytes | str):
        try:
            certificate = read_certificate(certificate)
        except DerminoError as error:
            return f"{what}: {error.what}"
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > ends:
        return f"{what} expired on {ends:%Y-%m-%d}"
    if now < begins:
        return f"{what} is not valid before {_stamp(begins)}; this clock says {_stamp(now)}"
    left = (ends - now).days
    if ends - now >= datetime.timedelta(days=days):
        return None
    return f"{what} expires in {left} day{'' if left == 1 else 's'}, on {ends:%Y-%m-%d}"


def expiry_warnings(
    certificates: Mapping[str, x509.Certificate | bytes | str],
    *,
    now: datetime.datetime | None = None,
    days: int = WARN_DAYS,
) -> list[str]:
    """As :func:`expiry_warning`, for several, by what each one is."""
    found = (
        expiry_warning(what, certificate, now=now, days=days)
        for what, certificate in certificates.items()
    )
    return [warning for warning in found if warning]


def _no_member(name: str, reason: str) -> DerminoError:
    return DerminoError(
        "TLS_INVALID",
        f"the membership certificate of {name} {reason}",
        fix="ask the coordinator; nothing was taken over",
    )


def _stamp(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
