"""The two private keys of a site, made here and nowhere else; they never leave its folder.

`keys/identity.key` (Ed25519, RFC 8032) says who the site is, to the coordinator's authority and to
other sites. `keys/node.key` (P-384 in OpenSSH format) lets its SuperNode connect (flwr 1.41,
how-to-authenticate-supernodes). A node key that is to replace the present one waits as
`keys/node.next.key` until a bundle says that the coordinator knows it.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from dermino_core.errors import DerminoError
from dermino_core.private_files import private_folder, write_new


def identity_file(folder: Path) -> Path:
    """The identity key of the site in `folder`."""
    return folder / "keys" / "identity.key"


def node_file(folder: Path) -> Path:
    """The key that its SuperNode connects with."""
    return folder / "keys" / "node.key"


def next_node_file(folder: Path) -> Path:
    """The key that will replace it, where a renewal asked for one."""
    return folder / "keys" / "node.next.key"


def make_keys(folder: Path, *, new_node_key: bool = False) -> list[Path]:
    """Make what is missing: folders 0700, keys 0600. A key that is there is never touched.

    Returns the files made.
    """
    private_folder(folder)
    private_folder(folder / "keys")
    made = []
    if not identity_file(folder).exists():
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_new(identity_file(folder), pem)
        made.append(identity_file(folder))
    wanted = [node_file(folder), *([next_node_file(folder)] if new_node_key else [])]
    for file in wanted:
        if not file.exists():
            node = ec.generate_private_key(ec.SECP384R1())
            write_new(file, node.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            made.append(file)
    return made


def read_identity(folder: Path) -> Ed25519PrivateKey:
    """The identity key.

    Raises
    ------
    DerminoError
        `TLS_INVALID` if it is missing or damaged.
    """
    file = identity_file(folder)
    try:
        key = load_pem_private_key(file.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable("identity key", file, error) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable("identity key", file, ValueError("not an Ed25519 key"))
    return key


def read_node(file: Path) -> ec.EllipticCurvePrivateKey:
    """A node key.

    Raises
    ------
    DerminoError
        `TLS_INVALID` if it is missing or damaged.
    """
    try:
        key = load_ssh_private_key(file.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable("node key", file, error) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _unusable("node key", file, ValueError("not a P-384 key"))
    return key


def take_next_node_key(folder: Path) -> Path:
    """Connect with the next node key from now on; the old one stays beside it, without a use.

    Returns where the old one is.
    """
    old = folder / "keys" / "node.old.key"
    old.unlink(missing_ok=True)
    os.link(node_file(folder), old)
    os.replace(next_node_file(folder), node_file(folder))
    return old


def _unusable(what: str, file: Path, error: Exception) -> DerminoError:
    missing = isinstance(error, FileNotFoundError)
    reason = "is missing" if missing else f"cannot be used: {error}"
    return DerminoError(
        "TLS_INVALID",
        f"this site's {what} {reason}",
        where=file,
        fix="bring it back from your backup; if it is lost, tell the coordinator, who revokes this "
        "site, then move keys/ and bundle.json of the site folder away and enrol again",
    )
