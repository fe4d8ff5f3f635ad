"""Whose identity key is whose, as this site knows it: `members.json` in its folder.

A name is pinned to a key at first sight, from a join bundle or by a membership certificate, and
from then on only that key will do. The consortium's authority can therefore vouch for a newcomer,
but neither it nor the coordinator can put another key under the name of a site already met.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from dermino_core.certificate_checks import (
    check_membership,
    check_validity,
    read_certificate,
    utc_now,
)
from dermino_core.enrolment import Certificate, Digest, IdentityKey, SiteName, grouped
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.names import check_name
from dermino_core.private_files import locked, private_folder
from dermino_core.public_keys import identity_key as read_key
from dermino_core.public_keys import identity_text, key_digest

MEMBERS_FILE = "members.json"
AUTHORITY_FILE = "ca.crt"

NewMembers = Literal["authority", "ask"]
How = Literal["bundle", "authority", "accepted", "given"]


class Pin(BaseModel):
    """One name and the key that it is bound to at this site."""

    model_config = ConfigDict(extra="forbid", strict=True)

    identity_key: IdentityKey
    certificate: Certificate | None = None
    """The newest one seen; None where keys were handed over without one."""
    since: AwareDatetime
    how: How

    @property
    def digest(self) -> str:
        """SHA-256 of the key."""
        return key_digest(read_key(self.identity_key))


class Pins(BaseModel):
    """All of `members.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["dermino-members"] = "dermino-members"
    version: Literal[1] = 1
    members: dict[SiteName, Pin] = {}
    revoked: list[Digest] = []
    """Identity keys that the newest bundle says are no longer accepted."""


@dataclass(frozen=True)
class Listed:
    """One line of `dermino-client members`."""

    name: str
    digest: str
    expires: datetime.datetime | None
    since: datetime.datetime
    how: How
    revoked: bool


class Members:
    """The members whose identity this site trusts, for secure aggregation.

    Parameters
    ----------
    folder
        The site's folder.
    new_members
        `authority`: a name never seen is pinned when the federation's authority vouches for it;
        `ask`: only a person at this site pins it.
    now
        Instead of the clock, for certificates.
    """

    def __init__(
        self, folder: Path, *, new_members: NewMembers, now: datetime.datetime | None = None
    ) -> None:
        self._folder = folder
        self._new_members = new_members
        self._now = now

    def identity_key(self, name: str, certificate: str) -> Ed25519PublicKey:
        """The identity key of the member `name`, who shows this certificate (PEM).

        Raises
        ------
        DerminoError
            `MEMBER_UNKNOWN` if the name is pinned to another key, was revoked, shows no valid
            certificate of this federation, or is new and nobody here has accepted it;
            `ENROLMENT_INVALID` if `members.json` is damaged.
        """
        pins = read_pins(self._folder)
        pin = pins.members.get(name)
        if pin is not None and pin.certificate is None and not certificate:
            return self._unrevoked(name, read_key(pin.identity_key), pins)
        shown, ends = self._vouched(name, certificate)
        self._unrevoked(name, shown, pins)
        if pin is not None and pin.identity_key != identity_text(shown):
            raise _swapped(name, pin, shown)
        if pin is None or _is_older(pin, ends):
            self._pin(name, shown, certificate, ends)
        return shown

    def _pin(
        self, name: str, shown: Ed25519PublicKey, certificate: str, ends: datetime.datetime
    ) -> None:
        with locked(self._folder):
            pins = read_pins(self._folder)
            pin = pins.members.get(name)
            if pin is None:
                if self._new_members == "ask":
                    raise DerminoError(
                        "MEMBER_UNKNOWN",
                        f"{name} is new, and nobody at this site has accepted it",
                        where=self._folder / MEMBERS_FILE,
                        fix="ask the coordinator for a newer bundle, compare the key's "
                        f"fingerprint with {name} by phone, then: dermino-client members --accept "
                        f"{name} --bundle FILE",
                    )
                since, how = self._now or utc_now(), "authority"
            elif pin.identity_key != identity_text(shown):
                raise _swapped(name, pin, shown)
            elif not _is_older(pin, ends):  # another process was here first
                return
            else:
                since, how = pin.since, pin.how
            pins.members[name] = Pin(
                identity_key=identity_text(shown), certificate=certificate, since=since, how=how
            )
            write_pins(self._folder, pins)

    def _vouched(self, name: str, certificate: str) -> tuple[Ed25519PublicKey, datetime.datetime]:
        """The key in a certificate that holds now, and when it ends."""
        file = self._folder / AUTHORITY_FILE
        try:
            check_name(name)
            authority = read_certificate(file.read_bytes(), where=file)
            shown = read_certificate(certificate)
            key = check_membership(shown, authority, name)
            check_validity(shown, f"the membership certificate of {name}", now=self._now)
        except FileNotFoundError:
            raise DerminoError(
                "MEMBER_UNKNOWN",
                f"{name} cannot be checked: this site was not enrolled",
                where=file,
                fix="install the join bundle: dermino-client --site NAME --bundle FILE",
            ) from None
        except DerminoError as error:
            raise DerminoError(
                "MEMBER_UNKNOWN", error.what, where=error.where, fix=error.fix
            ) from error
        return key, shown.not_valid_after_utc

    def _unrevoked(self, name: str, key: Ed25519PublicKey, pins: Pins) -> Ed25519PublicKey:
        if key_digest(key) in pins.revoked:
            raise DerminoError(
                "MEMBER_UNKNOWN",
                f"{name} shows an identity key that was revoked",
                where=self._folder / MEMBERS_FILE,
                fix="ask the coordinator whether it has left the federation",
            )
        return key


def read_pins(folder: Path) -> Pins:
    """All that is pinned; nothing before the first bundle.

    Raises
    ------
    DerminoError
        `ENROLMENT_INVALID` if `members.json` is damaged.
    """
    file = folder / MEMBERS_FILE
    try:
        return Pins.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return Pins()
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise DerminoError(
            "ENROLMENT_INVALID",
            f"the list of known members is damaged: {reason}",
            where=file,
            fix="bring it back from your backup, or move it away and install the newest bundle",
        ) from error


def write_pins(folder: Path, pins: Pins) -> None:
    """Write `members.json`, whole or not at all; the caller holds the folder's lock."""
    write_atomically(folder / MEMBERS_FILE, pins.model_dump_json(indent=2) + "\n")


def pin_keys(folder: Path, keys: Mapping[str, Ed25519PublicKey]) -> None:
    """Pin keys that were handed over without certificates, as a simulation does.

    Raises
    ------
    DerminoError
        `ENROLMENT_INVALID` if a name is pinned to another key.
    """
    private_folder(folder)
    with locked(folder):
        pins = read_pins(folder)
        for name, key in keys.items():
            add_pin(pins, name, key, None, "given")
        write_pins(folder, pins)


def add_pin(
    pins: Pins,
    name: str,
    key: Ed25519PublicKey,
    certificate: str | None,
    how: How,
    *,
    now: datetime.datetime | None = None,
) -> None:
    """Bind a name to a key, in memory; a name that has this key already keeps its date.

    Raises
    ------
    DerminoError
        `ENROLMENT_INVALID` if it is bound to another key.
    """
    text = identity_text(key)
    pin = pins.members.get(name)
    if pin is not None and pin.identity_key != text:
        swapped = _swapped(name, pin, key)
        raise DerminoError(
            "ENROLMENT_INVALID", swapped.what, fix=f"{swapped.fix}; nothing was taken over"
        )
    pins.members[name] = Pin(
        identity_key=text,
        certificate=certificate,
        since=pin.since if pin else now or utc_now(),
        how=pin.how if pin else how,
    )


def forget_member(folder: Path, name: str) -> Pin:
    """Take a name out of the list; the next key that is vouched for, or accepted, gets it.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if it is not in it.
    """
    if not folder.is_dir():
        raise _not_listed(name, Pins())
    with locked(folder):
        pins = read_pins(folder)
        if name not in pins.members:
            raise _not_listed(name, pins)
        pin = pins.members.pop(name)
        write_pins(folder, pins)
    return pin


def list_members(folder: Path) -> list[Listed]:
    """Every pinned member, by name."""
    pins = read_pins(folder)
    return [
        Listed(name, pin.digest, _ends(pin), pin.since, pin.how, pin.digest in pins.revoked)
        for name, pin in sorted(pins.members.items())
    ]


def _ends(pin: Pin) -> datetime.datetime | None:
    if pin.certificate is None:
        return None
    return read_certificate(pin.certificate).not_valid_after_utc


def _is_older(pin: Pin, ends: datetime.datetime) -> bool:
    known = _ends(pin)
    return known is None or known < ends


def _swapped(name: str, pin: Pin, shown: Ed25519PublicKey) -> DerminoError:
    return DerminoError(
        "MEMBER_UNKNOWN",
        f"{name} comes with another identity key ({grouped(key_digest(shown))}) than the one known "
        f"here since {pin.since:%Y-%m-%d} ({grouped(pin.digest)})",
        fix=f"call {name} on a number you know. Only if it has really made a new key: "
        f"dermino-client members --forget {name}",
    )


def _not_listed(name: str, pins: Pins) -> DerminoError:
    return DerminoError(
        "CONFIG_INVALID",
        f"{name} is not among the members known here",
        fix=f"known: {', '.join(sorted(pins.members)) or 'nobody'}",
    )
