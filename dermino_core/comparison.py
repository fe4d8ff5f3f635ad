"""A fingerprint that two people compare by phone before anything is trusted."""

from __future__ import annotations

import sys

from dermino_core.console import say
from dermino_core.enrolment import grouped, same_fingerprint
from dermino_core.errors import DerminoError


def compare_by_phone(
    what: str, digest: str, *, whom: str, given: str | None = None, yes: bool = False
) -> None:
    """Show a fingerprint, and go on only if a person says that it is the right one.

    One that is `given` is compared here, and only shown if it is another.

    Parameters
    ----------
    what
        Whose fingerprint it is, such as `the request of mednode`.
    digest
        SHA-256, 64 hexadecimal digits.
    whom
        Whom to call.
    given
        The fingerprint as that person gave it, compared here instead of by eye.
    yes
        It was compared already.

    Raises
    ------
    DerminoError
        `ENROLMENT_INVALID` if it is another one, or the answer is no; `CONFIG_INVALID` without a
        terminal to ask at.
    """
    if given is not None and same_fingerprint(given, digest):
        return
    say(f"fingerprint of {what}:")
    say()
    say(f"    {grouped(digest)}")
    say()
    if given is not None:
        raise DerminoError(
            "ENROLMENT_INVALID",
            f"the fingerprint of {what} is another one than the one given",
            fix=f"call {whom} on a number you know and read all eight groups to each other; if "
            "they differ, the file was swapped on its way: nothing was taken over",
        )
    if yes:
        return
    if not sys.stdin.isatty():
        raise DerminoError(
            "CONFIG_INVALID",
            f"the fingerprint of {what} must be compared, and there is no terminal to ask at",
            fix=f'call {whom}, then add --fingerprint "..." with what you are told, or --yes',
        )
    sys.stdout.write(f"Call {whom} on a number you know. Is it the same there? [yes/no] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise DerminoError(
            "ENROLMENT_INVALID",
            f"the fingerprint of {what} was not confirmed, so nothing was taken over",
            fix="if the two differ, ask for the file again, over another channel",
        )
