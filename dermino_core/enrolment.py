"""The two files of an enrolment: a hospital's request, and the join bundle it gets back.

Neither holds a secret. A request is signed by both of the site's keys, which proves that whoever
wrote it has them; who that is, a person finds out by comparing its fingerprint by phone. A bundle
is signed by the consortium's authority over all of its content, so that nothing in it, not even
the address, can be changed on its way; which authority, a person finds out by phone once.

A signature covers the version of the format and the content as JSON with sorted keys and without
spaces (as RFC 8785 does for content such as this: strings, whole numbers, lists).
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from dermino_core.certificate_checks import (
    check_authority,
    check_membership,
    read_certificate,
    utc_now,
)
from dermino_core.errors import DerminoError
from dermino_core.names import check_address, check_name
from dermino_core.public_keys import (
    identity_key,
    identity_text,
    key_digest,
    node_key,
    node_text,
)

FINGERPRINT_DIGITS = 32
"""Hexadecimal digits read by phone: 128 bits, out of reach for whoever wants to match them."""
CLOCK_TOLERANCE = datetime.timedelta(hours=1)
_MAX_BYTES = 4 * 2**20
_SIGNATURES = {"signature", "identity_signature", "node_signature"}
_HASH = ec.ECDSA(hashes.SHA384())

T = TypeVar("T", bound="SignedFile")


def _name(value: str) -> str:
    try:
        return check_name(value)
    except DerminoError as error:
        raise ValueError(error.what) from None


def _address(value: str) -> str:
    try:
        return check_address(value)
    except DerminoError as error:
        raise ValueError(error.what) from None


def _certificate(value: str) -> str:
    try:
        read_certificate(value)
    except DerminoError as error:
        raise ValueError(error.what) from None
    return value


def _utc(value: datetime.datetime) -> datetime.datetime:
    try:
        return value.astimezone(datetime.UTC)
    except OverflowError:
        raise ValueError("no such time") from None


def _identity(value: str) -> str:
    identity_key(value)
    return value


def _node(value: str) -> str:
    node_key(value)
    return value


SiteName = Annotated[str, AfterValidator(_name)]
Address = Annotated[str, AfterValidator(_address)]
Certificate = Annotated[str, Field(max_length=20_000), AfterValidator(_certificate)]
IdentityKey = Annotated[str, Field(max_length=64), AfterValidator(_identity)]
"""An Ed25519 public key: its 32 bytes in base64."""
NodeKey = Annotated[str, Field(max_length=400), AfterValidator(_node)]
"""A P-384 public key as OpenSSH writes it, without a comment."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Signature = Annotated[str, Field(max_length=400, pattern=r"^[A-Za-z0-9+/]+={0,2}$")]


class SignedFile(BaseModel):
    """What both files share: strict fields, and the bytes that signatures cover."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    created: Annotated[AwareDatetime, AfterValidator(_utc)]

    def signed_bytes(self) -> bytes:
        """What the signatures of this file are over."""
        content = self.model_dump(mode="json", exclude=_SIGNATURES)
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    def text(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=2) + "\n"


class Request(SignedFile):
    """`NAME.request.json`: a hospital asks to become a member, or for its renewal."""

    format: Literal["dermino-request"] = "dermino-request"
    name: SiteName
    identity_key: IdentityKey
    node_key: NodeKey
    identity_signature: Signature
    node_signature: Signature

    @property
    def digest(self) -> str:
        """SHA-256 of all that is signed, 64 hexadecimal digits; its half is read by phone."""
        return hashlib.sha256(self.signed_bytes()).hexdigest()


class Member(BaseModel):
    """A site of the federation, as a bundle tells of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: SiteName
    identity_key: IdentityKey
    certificate: Certificate


class Bundle(SignedFile):
    """`NAME.bundle.json`: all that the hospital NAME needs to join, and whom it meets there."""

    format: Literal["dermino-bundle"] = "dermino-bundle"
    federation: SiteName
    federation_id: Digest
    """Of the authority's key, see :func:`dermino_core.public_keys.key_digest`."""
    address: Address
    authority: Certificate
    site: SiteName
    node_key: Digest
    certificate: Certificate
    members: list[Member] = Field(min_length=1, max_length=10_000)
    revoked: list[Digest] = Field(max_length=100_000)
    """Identity keys that this federation no longer accepts."""
    signature: Signature


def grouped(digest: str) -> str:
    """The part of a digest that is read by phone: eight groups of four digits."""
    digits = digest[:FINGERPRINT_DIGITS].upper()
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def same_fingerprint(given: str, digest: str) -> bool:
    """Whether what a person gave is `digest`: all of it, or its eight groups, in any spelling."""
    digits = "".join(given.replace(":", "").replace("-", "").split()).lower()
    return digits in (digest, digest[:FINGERPRINT_DIGITS])


def make_request(
    name: str,
    identity: Ed25519PrivateKey,
    node: ec.EllipticCurvePrivateKey,
    *,
    now: datetime.datetime | None = None,
) -> Request:
    """A request of the site `name`, signed with both of its private keys."""
    unsigned = Request(
        name=check_name(name),
        identity_key=identity_text(identity.public_key()),
        node_key=node_text(node.public_key()),
        created=now or utc_now(),
        identity_signature="A",
        node_signature="A",
    )
    content = unsigned.signed_bytes()
    return unsigned.model_copy(
        update={
            "identity_signature": _base64(identity.sign(content)),
            "node_signature": _base64(node.sign(content, _HASH)),
        }
    )


def check_request(request: Request, *, now: datetime.datetime | None = None) -> None:
    """Refuse a request that its own keys did not sign, or that comes from the future.

    Raises
    ------
    DerminoError
        `ENROLMENT_INVALID`.
    """
    content = request.signed_bytes()
    try:
        identity_key(request.identity_key).verify(_bytes(request.identity_signature), content)
        node_key(request.node_key).verify(_bytes(request.node_signature), content, _HASH)
    except (InvalidSignature, ValueError):
        raise DerminoError(
            "ENROLMENT_INVALID",
            f"the request of {request.name} was damaged or changed: its signatures do not fit",
            fix="ask the hospital to send its request file again, unopened",
        ) from None
    now = now or utc_now()
    if request.created > now + CLOCK_TOLERANCE:
        raise DerminoError(
            "ENROLMENT_INVALID",
            f"the request of {request.name} was made at {request.created:%Y-%m-%d %H:%M:%S} UTC, "
            f"and this machine's clock says {now:%Y-%m-%d %H:%M:%S} UTC: a clock is off",
            fix="check the clocks of both machines (timedatectl); if the hospital's was wrong, it "
            "makes a new request with: dermino-client enrol --renew",
        )


def sign_bundle(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    *,
    federation: str,
    address: str,
    site: str,
    node_digest: str,
    certificate: str,
    members: Sequence[Member],
    revoked: Sequence[str],
    now: datetime.datetime | None = None,
) -> Bundle:
    """The join bundle of `site`, signed by the authority."""
    unsigned = Bundle(
        federation=federation,
        federation_id=key_digest(authority_key.public_key()),
        address=address,
        authority=authority.public_bytes(Encoding.PEM).decode(),
        site=site,
        node_key=node_digest,
        certificate=certificate,
        members=sorted(members, key=lambda member: member.name),
        revoked=sorted(revoked),
        created=now or utc_now(),
        signature="A",
    )
    signature = authority_key.sign(unsigned.signed_bytes(), _HASH)
    return unsigned.model_copy(update={"signature": _base64(signature)})


def check_bundle(bundle: Bundle) -> x509.Certificate:
    """The authority's certificate of a bundle whose content the authority signed.

    Certificates of members are checked too, but for their time.

    Raises
    ------
    DerminoError
        `ENROLMENT_INVALID` if anything was changed or does not fit together, `TLS_INVALID` if a
        certificate is not what the bundle says it is.
    """
    authority = read_certificate(bundle.authority)
    key = check_authority(authority)
    try:
        key.verify(_bytes(bundle.signature), bundle.signed_bytes(), _HASH)
        fits = key_digest(key) == bundle.federation_id
    except (InvalidSignature, ValueError):
        fits = False
    if not fits:
        raise _bad_bundle(bundle, "was damaged or changed: the authority's signature does not fit")
    names = [member.name for member in bundle.members]
    if len(set(names)) < len(names):
        raise _bad_bundle(bundle, "names a member twice")
    for member in bundle.members:
        known = check_membership(read_certificate(member.certificate), authority, member.name)
        if identity_text(known) != member.identity_key:
            raise _bad_bundle(bundle, f"gives another key for {member.name} than its certificate")
    own = [member for member in bundle.members if member.name == bundle.site]
    if [member.certificate for member in own] != [bundle.certificate]:
        raise _bad_bundle(bundle, f"does not list {bundle.site} itself")
    return authority


def read_signed(file: Path, kind: type[T]) -> T:
    """A request or a bundle from its file; the signatures are not looked at.

    Raises
    ------
    DerminoError
        `ENROLMENT_INVALID` if the file cannot be read or is anything else.
    """
    what = "request" if kind is Request else "join bundle"
    try:
        if not file.is_file():
            raise OSError("there is no such file")
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError("it is far too large")
        return kind.model_validate_json(file.read_bytes())
    except ValidationError as error:
        reason = "; ".join(_problem(item) for item in error.errors()[:3])
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
    raise DerminoError(
        "ENROLMENT_INVALID",
        f"this is not a whole {what}: {reason}",
        where=file,
        fix="ask for the file again, and hand it on unopened",
    )


def _problem(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    return f"{key}: {item['msg']}" if key else str(item["msg"])


def _bad_bundle(bundle: Bundle, reason: str) -> DerminoError:
    return DerminoError(
        "ENROLMENT_INVALID",
        f"the join bundle of {bundle.site} {reason}",
        fix="ask the coordinator for the file again; nothing was taken over",
    )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _bytes(text: str) -> bytes:
    content = base64.b64decode(text, validate=True)
    if _base64(content) != text:
        raise ValueError("bits after the end")
    return content
