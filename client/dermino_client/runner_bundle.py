"""Which Flower app bundle may run here: judged by its bytes, before anything of it is used.

Whoever controls the SuperLink can submit any bundle. The policy's `apps` names those that may run:
`dermino`, the one that the installed dermino itself would build, and others by their SHA-256.

dermino's own bundle holds no code, only a description, and nothing of it is used: the installed
package answers. It is known by what it says, not by its hash, because the same description gives
different bytes with another zlib, another version of flwr or another version of dermino, and what
versions fit together the protocol decides.
"""

from __future__ import annotations

import hashlib
import io
import tomllib
import zipfile
from importlib.resources import files
from typing import Any, Literal

from dermino_client.policy import OWN_APP
from dermino_core.errors import DerminoError

DESCRIPTION = "pyproject.toml"
_CONTENTS = ".info/CONTENT"
_LARGEST = 16 * 1024
"""Bytes; dermino's own bundle and its description are some hundred."""

Verdict = Literal["own", "listed"]


def bundle_hash(bundle: bytes) -> str:
    """SHA-256 of a bundle in hexadecimal, as `apps` names it and as `sha256sum` prints it."""
    return hashlib.sha256(bundle).hexdigest()


def judge(bundle: bytes, apps: list[str]) -> Verdict:
    """`own` or `listed`: what to do with a bundle that may run here.

    Parameters
    ----------
    apps
        The policy's `apps`.

    Raises
    ------
    DerminoError
        `APP_REFUSED` for every other bundle.
    """
    digest = bundle_hash(bundle)
    own = is_own(bundle)
    if own and (OWN_APP in apps or digest in apps):
        return "own"
    if digest in apps:
        return "listed"
    reason = (
        f"It is dermino's own, but '{OWN_APP}' is not in [policy] apps."
        if own
        else "It is not dermino's own and [policy] apps does not name it."
    )
    raise DerminoError(
        "APP_REFUSED",
        f"The coordinator sent an app bundle that may not run here. {reason}",
        where=f"SHA-256 {digest}, {len(bundle)} bytes",
        fix="Nothing of it was installed or run. Ask the coordinator what it is. To let it run "
        "with all this user's rights, add its SHA-256 to [policy] apps and start the client again.",
    )


def is_own(bundle: bytes) -> bool:
    """Whether a bundle is the one that the installed dermino would build, of any version."""
    description = _description(bundle)
    return description is not None and description == _own_description()


def _own_description() -> dict[str, Any]:
    file = files("dermino_strategies").joinpath("flower_app", DESCRIPTION)
    return _comparable(tomllib.loads(file.read_text(encoding="utf-8")))


def _description(bundle: bytes) -> dict[str, Any] | None:
    """What a bundle says of itself if it holds nothing else; None for any other bundle."""
    if len(bundle) > _LARGEST:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            members = sorted(member.filename for member in archive.infolist())
            if members != [_CONTENTS, DESCRIPTION]:
                return None
            with archive.open(DESCRIPTION) as member:
                text = member.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            return None
        return _comparable(tomllib.loads(text.decode("utf-8")))
    except Exception:  # noqa: BLE001 - an archive from a stranger: what cannot be read is not ours
        return None


def _comparable(description: dict[str, Any]) -> dict[str, Any]:
    """A description without its version: what versions fit together the protocol decides."""
    project = description.get("project")
    if not isinstance(project, dict):
        return description
    return description | {"project": {k: v for k, v in project.items() if k != "version"}}
