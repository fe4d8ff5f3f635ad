"""The key that the coordinator signs receipts with.

Best is the key of its server certificate: hospitals pinned the authority behind it when they
joined, so nothing has to be compared. A coordinator without a consortium has a key of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from dermino_core.certificate_checks import check_validity, read_certificate
from dermino_core.errors import DerminoError
from dermino_core.private_files import private_folder, write_new
from dermino_core.withdrawal_receipt import PrivateKey, key_text, key_text_of
from dermino_server.certificates import read_file
from dermino_server.roster import FEDERATION_FILE

_RENEWAL = "make a new one with `dermino provision renew`"


@dataclass(frozen=True)
class Signer:
    """A private key, and the certificate (PEM) that says whose it is; None for an own key."""

    key: PrivateKey
    certificate: str | None
    file: Path
    made: bool = False

    @property
    def public(self) -> str:
        """The public key as a receipt holds it."""
        return key_text(self.key.public_key())


def own_key_file() -> Path:
    """`$XDG_CONFIG_HOME/dermino/receipt.key`, else `~/.config/dermino/receipt.key`."""
    configured = os.environ.get("XDG_CONFIG_HOME")
    return Path(configured or Path.home() / ".config").absolute() / "dermino" / "receipt.key"


def find_signer(run: Path, key: Path | None = None, certificate: Path | None = None) -> Signer:
    """The key to sign with.

    Parameters
    ----------
    run
        The run folder. Where it lies in the folder of a consortium (`runs/NAME` below what
        `dermino provision init` filled), the server's key there is taken if no other is given.
    key
        Private key, PEM: Ed25519 or of an elliptic curve.
    certificate
        Certificate of `key`; if not given, the `.pem` of the same name beside it, if there is one.

    Raises
    ------
    DerminoError
        `TLS_INVALID` if a file is missing or damaged, the two do not belong together, or the
        certificate is not valid now; `CONFIG_INVALID` for a certificate without a key.
    """
    if key is None and certificate is not None:
        raise DerminoError("CONFIG_INVALID", "--certificate needs --key.", fix="Add --key FILE.")
    if key is None:
        consortium = _consortium_above(run)
        if consortium is None:
            return _own_key()
        key, certificate = consortium / "server.key", consortium / "server.pem"
    if certificate is None and (beside := key.with_suffix(".pem")).is_file() and beside != key:
        certificate = beside
    private = _read_private(key)
    if certificate is None:
        return Signer(private, None, key)
    content = read_certificate(read_file(certificate), where=certificate)
    if key_text_of(content) != key_text(private.public_key()):
        raise DerminoError(
            "TLS_INVALID",
            f"{certificate.name} is not the certificate of {key.name}",
            where=certificate,
            fix="give the two that `dermino provision` made together, server.key and server.pem",
        )
    check_validity(content, "the server certificate", where=certificate, renewal=_RENEWAL)
    return Signer(private, content.public_bytes(Encoding.PEM).decode(), key)


def _consortium_above(run: Path) -> Path | None:
    for folder in list(run.absolute().parents)[:2]:
        wanted = (FEDERATION_FILE, "server.key", "server.pem")
        if all((folder / name).is_file() for name in wanted):
            return folder
    return None


def _own_key() -> Signer:
    file = own_key_file()
    made = not file.exists()
    if made:
        fresh = Ed25519PrivateKey.generate()
        pem = fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            private_folder(file.parent)
            write_new(file, pem)
        except OSError as error:
            raise DerminoError(
                "CONFIG_INVALID",
                f"A key to sign receipts with cannot be written: {error.strerror}.",
                where=file,
                fix="Give one with --key FILE.",
            ) from error
    return Signer(_read_private(file), None, file, made)


def _read_private(file: Path) -> PrivateKey:
    try:
        key = load_pem_private_key(read_file(file), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, PrivateKey):
        raise DerminoError(
            "TLS_INVALID",
            "this is not a private key that receipts can be signed with",
            where=file,
            fix="give an Ed25519 or elliptic-curve key in PEM without a passphrase, such as "
            "server.key of `dermino provision init`",
        )
    return key
