"""Names of sites and hosts, the same rules at the hospital and at the coordinator."""

from __future__ import annotations

import ipaddress
import re

from dermino_core.errors import DerminoError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_DNS_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]/\s]+):(?P<port>[0-9]{1,5})")


def check_name(name: str, *, what: str = "site") -> str:
    """Return `name` when it may name a site, a folder and a Flower connection.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for anything but 1 to 63 letters, digits, `-`, `_` and `.`, with a letter
        or digit at both ends.
    """
    if not _NAME.fullmatch(name):
        raise DerminoError(
            "CONFIG_INVALID",
            f"{name!r} cannot name a {what}.",
            fix="Use 1 to 63 letters, digits, '-', '_' and '.', a letter or digit at both ends.",
        )
    return name


def check_host(host: str) -> str:
    """Return `host` in the form in which a certificate names it: a DNS name or an IP address.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for anything else (a port, a URL, a wildcard, a non-ASCII name).
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        labels = host.split(".")
    numbers_only = labels[-1].isdigit()
    if len(host) > 253 or numbers_only or not all(_DNS_LABEL.fullmatch(part) for part in labels):
        raise DerminoError(
            "CONFIG_INVALID",
            f"{host!r} is not a host name or an IP address.",
            fix="Give the name alone, such as coordinator.example.org or 10.0.0.5: no port, no "
            "https://, no wildcard.",
        )
    return host.lower()


def check_address(address: str) -> str:
    """Return `address` when it is HOST:PORT as flwr wants it, without a URL prefix.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` otherwise.
    """
    match = _ADDRESS.fullmatch(address)
    good = match is not None and 1 <= int(match["port"]) <= 65535
    if match is not None and good:
        try:
            # Containers are reached under names with underscores; certificates cannot hold them.
            check_host(match["host"].strip("[]").replace("_", "-"))
        except DerminoError:
            good = False
    if not good:
        raise DerminoError(
            "CONFIG_INVALID",
            f"{address!r} is not an address.",
            fix="Give HOST:PORT, such as coordinator.example.org:443, without https://.",
        )
    return address
