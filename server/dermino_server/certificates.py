"""Certificates that the consortium's authority signs: for the server, and for each member.

The SuperLink proves itself to a site by a certificate of the consortium's own authority (flwr
1.41, how-to-authenticate-supernodes). A member proves its identity to other members by one that
binds its name to its Ed25519 key. Sites make their private keys themselves; none is made here.
Private files are 0600, folders 0700, and no key is ever overwritten.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dermino_core.certificate_checks import check_validity, read_certificate, utc_now
from dermino_core.errors import DerminoError
from dermino_core.names import check_host, check_name
from dermino_core.private_files import private_folder, refuse_existing, write_new

AUTHORITY_DAYS = 3650
SERVER_DAYS = 825
MEMBER_DAYS = 825
LONGEST_DAYS = 36_500
LOCAL_HOSTS = ("localhost", "127.0.0.1")


def make_authority(folder: Path, *, days: int = AUTHORITY_DAYS) -> list[Path]:
    """Make `ca.key` and `ca.crt` (P-384, self-signed, may sign no further authority) in `folder`.

    Raises
    ------
    DerminoError
        `OUTPUT_EXISTS` if either file is there.
    """
    certificate_file, key_file = folder / "ca.crt", folder / "ca.key"
    refuse_existing(key_file, certificate_file)
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dermino consortium authority")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _certificate(name, key.public_key(), issuer=name, days=days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
    )
    certificate = builder.sign(key, hashes.SHA384())
    private_folder(folder)
    write_new(key_file, _private_pem(key))
    write_new(certificate_file, certificate.public_bytes(Encoding.PEM), mode=0o644)
    return [key_file, certificate_file]


def make_server_certificate(
    folder: Path,
    hosts: Sequence[str],
    *,
    days: int = SERVER_DAYS,
    local: bool = True,
    ca_key: Path | None = None,
) -> list[Path]:
    """Make `server.key` and `server.pem`, signed by the authority of `folder`.

    Parameters
    ----------
    folder
        Holds `ca.crt`, and `ca.key` unless `ca_key` says where that is.
    hosts
        DNS names and IP addresses that sites and the coordinator use for the server.
    days
        Lifetime; never longer than the authority's.
    local
        Whether the certificate also names `localhost` and `127.0.0.1`. The SuperLink's own
        helper processes, `dermino federate` and the proxy reach it by these.

    Raises
    ------
    DerminoError
        `OUTPUT_EXISTS` if either file is there; `CONFIG_INVALID` for a bad or missing host;
        `TLS_INVALID` if the authority is missing, damaged or expired.
    """
    certificate_file, key_file = folder / "server.pem", folder / "server.key"
    refuse_existing(key_file, certificate_file)
    names = list(dict.fromkeys(check_host(host) for host in (*hosts, *(LOCAL_HOSTS * local))))
    key, certificate = _server_pair(folder, names, days=days, ca_key=ca_key)
    private_folder(folder)
    write_new(key_file, key)
    write_new(certificate_file, certificate, mode=0o644)
    return [key_file, certificate_file]


def renew_server_certificate(
    folder: Path,
    hosts: Sequence[str] = (),
    *,
    days: int = SERVER_DAYS,
    ca_key: Path | None = None,
    now: datetime.datetime | None = None,
) -> tuple[Path, Path]:
    """Replace `server.key` and `server.pem` by a new pair of the same authority.

    The new certificate names what the old one did, and `hosts`. The old pair stays beside it as
    `server-DATE.key` and `server-DATE.pem`, with the date of today.

    Returns
    -------
    tuple[Path, Path]
        Where the old key and the old certificate are now.

    Raises
    ------
    DerminoError
        As :func:`make_server_certificate`; `TLS_INVALID` if there is none to renew.
    """
    certificate_file, key_file = folder / "server.pem", folder / "server.key"
    names = [*server_hosts(folder), *(check_host(host) for host in hosts)]
    key, certificate = _server_pair(folder, list(dict.fromkeys(names)), days=days, ca_key=ca_key)
    old_key, old_certificate = _kept_aside(folder, now or utc_now())
    new_key, new_certificate = folder / ".new-server.key", folder / ".new-server.pem"
    for file in (new_key, new_certificate):
        file.unlink(missing_ok=True)  # of a renewal that a power cut ended
    write_new(new_key, key)
    write_new(new_certificate, certificate, mode=0o644)
    if key_file.exists():
        os.link(key_file, old_key)
    os.link(certificate_file, old_certificate)
    os.replace(new_key, key_file)
    os.replace(new_certificate, certificate_file)
    return old_key, old_certificate


def sign_member(
    folder: Path,
    name: str,
    identity: Ed25519PublicKey,
    *,
    days: int = MEMBER_DAYS,
    ca_key: Path | None = None,
) -> x509.Certificate:
    """The membership certificate of a site: its name (CN) and its identity key, for clientAuth.

    It names no host and is for no server, so that no member can pose as the coordinator. It never
    outlives the authority.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for a bad name or lifetime; `TLS_INVALID` as :func:`read_authority`.
    """
    authority, authority_key = read_authority(folder, ca_key)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_name(name))])
    return _signed(
        subject, identity, authority, authority_key, days, ExtendedKeyUsageOID.CLIENT_AUTH
    )


def server_hosts(folder: Path) -> tuple[str, ...]:
    """DNS names and IP addresses that `folder/server.pem` names.

    Raises
    ------
    DerminoError
        `TLS_INVALID` if the file is missing or is not a certificate with such names.
    """
    file = folder / "server.pem"
    try:
        certificate = x509.load_pem_x509_certificate(read_file(file))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise DerminoError(
            "TLS_INVALID", "not a certificate that names hosts", where=file, fix=_OWN_FILES
        ) from error
    addresses = names.get_values_for_type(x509.IPAddress)
    return (*names.get_values_for_type(x509.DNSName), *map(str, addresses))


def read_file(file: Path) -> bytes:
    """Bytes of a certificate or key file.

    Raises
    ------
    DerminoError
        `TLS_INVALID` if it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise DerminoError(
            "TLS_INVALID",
            f"cannot read the file: {error.strerror}",
            where=file,
            fix="bring it back from your backup, or run `dermino provision init` in a new folder",
        ) from error


_OWN_FILES = (
    "use the files that `dermino provision init` wrote, from your backup if these are damaged"
)


def read_authority(
    folder: Path, ca_key: Path | None = None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority's certificate and its private key, which may be kept elsewhere.

    Raises
    ------
    DerminoError
        `TLS_INVALID` if the key is not there, does not belong to `ca.crt`, or the authority is
        not valid now.
    """
    certificate = read_certificate(read_file(folder / "ca.crt"), where=folder / "ca.crt")
    file = ca_key or folder / "ca.key"
    if not file.is_file():
        raise DerminoError(
            "TLS_INVALID",
            "signing needs the authority's private key, ca.key, and it is not here",
            where=file,
            fix="bring the medium that it is kept on, and add --ca-key FILE",
        )
    try:
        key = load_pem_private_key(read_file(file), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DerminoError(
            "TLS_INVALID", "the authority's key is damaged", where=file, fix=_OWN_FILES
        ) from error
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or certificate.public_key() != key.public_key()
    ):
        raise DerminoError(
            "TLS_INVALID", "ca.crt and ca.key do not belong together", where=file, fix=_OWN_FILES
        )
    check_validity(
        certificate,
        "the authority's certificate",
        where=folder / "ca.crt",
        renewal="make a new federation with `dermino provision init` in a new folder, and enrol "
        "every site there",
    )
    return certificate, key


def _server_pair(
    folder: Path, names: list[str], *, days: int, ca_key: Path | None
) -> tuple[bytes, bytes]:
    if not names:
        raise DerminoError(
            "CONFIG_INVALID",
            "a server certificate needs a host to name",
            fix="add --host coordinator.example.org",
        )
    authority, authority_key = read_authority(folder, ca_key)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dermino coordinator")])
    certificate = _signed(
        subject,
        key.public_key(),
        authority,
        authority_key,
        days,
        ExtendedKeyUsageOID.SERVER_AUTH,
        x509.SubjectAlternativeName([_general(name) for name in names]),
    )
    return _private_pem(key), certificate.public_bytes(Encoding.PEM)


def _kept_aside(folder: Path, now: datetime.datetime) -> tuple[Path, Path]:
    """Names that are free, for the key and the certificate that are replaced today."""
    number = 1
    while True:
        stem = f"server-{now:%Y-%m-%d}" + (f"-{number}" if number > 1 else "")
        key, certificate = folder / f"{stem}.key", folder / f"{stem}.pem"
        if not key.exists() and not certificate.exists():
            return key, certificate
        number += 1


def _signed(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    days: int,
    purpose: x509.ObjectIdentifier,
    hosts: x509.SubjectAlternativeName | None = None,
) -> x509.Certificate:
    builder = (
        _certificate(
            subject,
            key,
            issuer=authority.subject,
            days=days,
            at_most=authority.not_valid_after_utc,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
    )
    if hosts is not None:
        builder = builder.add_extension(hosts, critical=False)
    return builder.sign(authority_key, hashes.SHA384())


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    *,
    issuer: x509.Name,
    days: int,
    at_most: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    if not 1 <= days <= LONGEST_DAYS:
        raise DerminoError(
            "CONFIG_INVALID", f"a lifetime of {days} days", fix=f"give --days 1 to {LONGEST_DAYS}"
        )
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # A site whose clock is behind must not find the certificate "not yet valid".
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(min(end, at_most) if at_most else end)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
