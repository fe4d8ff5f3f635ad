"""Certificates and keys: the consortium's authority, the server's certificate, site keys.

A site proves itself to the SuperLink by signing with a P-384 key in OpenSSH format, and the
SuperLink proves itself to a site by a certificate of the consortium's own authority (flwr 1.41,
how-to-authenticate-supernodes). Private files are 0600, folders 0700, and no key is ever
overwritten.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dermino_core.errors import DerminoError
from dermino_core.names import check_host, check_name

AUTHORITY_DAYS = 3650
SERVER_DAYS = 825
LOCAL_HOSTS = ("localhost", "127.0.0.1")


def make_authority(folder: Path, *, days: int = AUTHORITY_DAYS) -> list[Path]:
    """Make `ca.key` and `ca.crt` (P-384, self-signed, may sign servers only) in `folder`.

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
    _write_private(key_file, _private_pem(key))
    _write_new(certificate_file, certificate.public_bytes(Encoding.PEM), mode=0o644)
    return [key_file, certificate_file]


def make_server_certificate(
    folder: Path, hosts: Sequence[str], *, days: int = SERVER_DAYS, local: bool = True
) -> list[Path]:
    """Make `server.key` and `server.pem`, signed by the authority in `folder`.

    Parameters
    ----------
    folder
        Holds `ca.key` and `ca.crt`.
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
    if not names:
        raise DerminoError(
            "CONFIG_INVALID",
            "a server certificate needs a host to name",
            fix="add --host coordinator.example.org",
        )
    authority, authority_key = _read_authority(folder)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dermino coordinator")])
    certificate = (
        _certificate(
            subject,
            key.public_key(),
            issuer=authority.subject,
            days=days,
            at_most=authority.not_valid_after_utc,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(n) for n in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA384())
    )
    _write_private(key_file, _private_pem(key))
    _write_new(certificate_file, certificate.public_bytes(Encoding.PEM), mode=0o644)
    return [key_file, certificate_file]


def make_site(folder: Path, name: str) -> list[Path]:
    """Make the key pair of one site and a copy of the authority's certificate beside it.

    Parameters
    ----------
    folder
        Holds `ca.crt`; the site's folder is `folder/sites/name`.
    name
        The site, see :func:`check_name`.

    Raises
    ------
    DerminoError
        `OUTPUT_EXISTS` if the site has a key of either half; `CONFIG_INVALID` for a bad name.
    """
    site = folder / "sites" / check_name(name)
    key_file, public_file, authority_file = (
        site / f"{name}.key",
        site / f"{name}.pub",
        site / "ca.crt",
    )
    refuse_existing(key_file, public_file)
    authority = read_file(folder / "ca.crt")
    private_folder(folder / "sites")
    private_folder(site)
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    made = []
    if not authority_file.exists():
        _write_new(authority_file, authority, mode=0o644)
        made.append(authority_file)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    _write_private(key_file, private)
    _write_new(public_file, public + f" dermino-{name}\n".encode(), mode=0o644)
    return [*made, key_file, public_file]


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
            fix="bring it back from your backup, or run `dermino provision` in a new folder",
        ) from error


def private_folder(folder: Path) -> None:
    """Make `folder` with mode 0700, or give an existing one that mode."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)


def refuse_existing(*files: Path) -> None:
    """Raise `OUTPUT_EXISTS` if one of `files` is there."""
    for file in files:
        if file.exists() or file.is_symlink():
            raise DerminoError(
                "OUTPUT_EXISTS",
                "the file is there already, and keys are never overwritten",
                where=file,
                fix="to replace it, move it away (with the file it belongs to) and run this again",
            )


_OWN_FILES = "use the files that `dermino provision` wrote, from your backup if these are damaged"


def _read_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(read_file(folder / "ca.crt"))
        key = load_pem_private_key(read_file(folder / "ca.key"), None)
    except (ValueError, TypeError) as error:
        raise DerminoError(
            "TLS_INVALID", "the authority's files are damaged", where=folder, fix=_OWN_FILES
        ) from error
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or certificate.public_key() != key.public_key()
    ):
        raise DerminoError(
            "TLS_INVALID", "ca.crt and ca.key do not belong together", where=folder, fix=_OWN_FILES
        )
    if certificate.not_valid_after_utc <= datetime.datetime.now(datetime.UTC):
        raise DerminoError(
            "TLS_INVALID",
            f"the authority expired on {certificate.not_valid_after_utc:%Y-%m-%d}",
            where=folder / "ca.crt",
            fix="provision a new folder and hand its ca.crt to every site",
        )
    return certificate, key


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    *,
    issuer: x509.Name,
    days: int,
    at_most: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    if days < 1:
        raise DerminoError(
            "CONFIG_INVALID", f"a lifetime of {days} days", fix="give --days 1 or more"
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


def _write_private(file: Path, content: bytes) -> None:
    private_folder(file.parent)
    _write_new(file, content, mode=0o600)


def _write_new(file: Path, content: bytes, *, mode: int) -> None:
    """Write a file that is whole or absent, never readable by others on the way, never replaced."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        try:
            os.link(name, file)
        except FileExistsError:
            refuse_existing(file)
            raise
    finally:
        Path(name).unlink(missing_ok=True)
