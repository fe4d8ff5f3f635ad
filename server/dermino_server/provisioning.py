"""Enrolment, the coordinator's side: one folder of keys, and the sites made known to Flower.

Running again adds what is missing and disturbs nothing that is there.

Layout of the folder that :func:`provision` fills (folders 0700, private files 0600)::

    ca.crt  ca.key                 the authority; ca.key never leaves this machine
    server.pem  server.key         for flower-superlink and the proxy in front of it
    sites/NAME/NAME.key            for that hospital only
    sites/NAME/NAME.pub            registered at the SuperLink
    sites/NAME/ca.crt              for that hospital
    README.txt                     the exact next commands
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.names import check_address, check_host, check_name
from dermino_server.certificates import (
    AUTHORITY_DAYS,
    SERVER_DAYS,
    make_authority,
    make_server_certificate,
    make_site,
    private_folder,
    server_hosts,
)
from dermino_server.flower_cli import FlowerCallError, call_flwr

SUPERLINK_ADDRESS = "127.0.0.1:8000"
HEALTH_ADDRESS = "127.0.0.1:8001"
REGISTER_SECONDS = 60


@dataclass(frozen=True)
class Provisioned:
    """What a provisioned folder holds after a call, and which files the call made."""

    folder: Path
    hosts: tuple[str, ...]
    sites: tuple[str, ...]
    made: tuple[Path, ...]


@dataclass(frozen=True)
class Registration:
    """One site at the SuperLink; `node_id` is None where its key was registered before."""

    site: str
    node_id: int | None


def provision(
    out: Path,
    *,
    hosts: Sequence[str] = (),
    sites: Sequence[str] = (),
    days: int = SERVER_DAYS,
    local: bool = True,
) -> Provisioned:
    """Make the authority, the server certificate and the keys of `sites`, where they are missing.

    Parameters
    ----------
    out
        A new or empty folder, or one that an earlier call filled.
    hosts
        Names and addresses of the coordinator; needed the first time, later optional.
    sites
        Sites to have keys. A site that has its public key already (made here earlier, or sent by
        the hospital and put at `sites/NAME/NAME.pub`) is kept as it is.
    days
        Lifetime of a new server certificate.
    local
        Whether a new server certificate also names `localhost` and `127.0.0.1`.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for bad names, hosts or days; `OUTPUT_EXISTS` if `out` holds something
        else, or the server certificate there does not name all `hosts`; `TLS_INVALID` if files
        there are damaged or one of a pair is missing.
    """
    sites = [check_name(site) for site in dict.fromkeys(sites)]
    hosts = [check_host(host) for host in hosts]
    _check_output_folder(out)
    if not (out / "server.pem").exists() and not hosts:
        raise DerminoError(
            "CONFIG_INVALID",
            "the coordinator's host name is missing",
            where=out,
            fix="add --host coordinator.example.org (repeat it for further names and addresses)",
        )
    private_folder(out)
    made: list[Path] = []
    # Without ca.key (kept offline) sites can still be added; only signing needs it.
    if not (out / "ca.crt").exists():
        made += make_authority(out, days=max(days, AUTHORITY_DAYS))
    if _pair_missing(out / "server.key", out / "server.pem"):
        made += make_server_certificate(out, hosts, days=days, local=local)
    named = server_hosts(out)
    if unnamed := [host for host in hosts if host not in named]:
        raise DerminoError(
            "OUTPUT_EXISTS",
            f"the server certificate there does not name {', '.join(unnamed)}, only "
            f"{', '.join(named)}",
            where=out / "server.pem",
            fix="move server.pem and server.key away and run this again with every --host: the "
            "same authority signs a new one, and the sites need nothing new",
        )
    for site in sites:
        if not (out / "sites" / site / f"{site}.pub").exists():
            made += make_site(out, site)
    result = Provisioned(out, named, site_names(out), tuple(made))
    write_atomically(out / "README.txt", next_steps(result))
    return result


def site_names(folder: Path) -> tuple[str, ...]:
    """Sites whose public key is in a provisioned folder, in alphabetical order."""
    found = (folder / "sites").glob("*/*.pub")
    return tuple(sorted(file.stem for file in found if file.parent.name == file.stem))


def next_steps(provisioned: Provisioned) -> str:
    """The commands that come next, ready to copy, for the coordinator and for each hospital."""
    folder = provisioned.folder.resolve()
    quoted = shlex.quote(str(folder))
    outside = [host for host in provisioned.hosts if host not in ("localhost", "127.0.0.1")]
    host = outside[0] if outside else "localhost"
    register = "\n".join(
        f"     flwr supernode register {quoted}/sites/{site}/{site}.pub coordinator --name {site}"
        for site in provisioned.sites
    )
    hospitals = "\n".join(
        f"     {site}: {folder}/sites/{site}/{{{site}.key,ca.crt}}" for site in provisioned.sites
    )
    commands = "\n".join(f"     dermino-client --site {site}" for site in provisioned.sites)
    superlink_host, superlink_port = SUPERLINK_ADDRESS.rsplit(":", 1)
    return f"""\
Next steps for the federation at {host}

1. Start the SuperLink on this machine, on loopback only: whoever reaches this port can run code
   on this machine and at the hospitals.

     export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
     flower-superlink --host {superlink_host} --port {superlink_port} \\
       --ssl-ca-certfile {quoted}/ca.crt \\
       --ssl-certfile {quoted}/server.pem \\
       --ssl-keyfile {quoted}/server.key \\
       --enable-supernode-auth --database superlink.db \\
       --disable-runtime-dependency-installation \\
       --health-server-address {HEALTH_ADDRESS}

2. Register the sites, while the SuperLink runs (safe to repeat):

     dermino provision --out {quoted} --register coordinator

   This writes the connection "coordinator" and does the same as:

{register}

3. Put the proxy of deploy/ in front: it publishes /v1/fleet/ and /health of the SuperLink on
   port 443, nothing else.

4. Give each hospital its two files, over a channel you trust, then delete the .key file here:

{hospitals}

   The hospital keeps them in /etc/dermino (the key readable by the dermino user only), names
   them in its site file:

     [coordinator]
     address = "{host}:443"
     root_certificates = "/etc/dermino/ca.crt"
     private_key = "/etc/dermino/keys/NAME.key"

   and starts:

{commands}

Keep ca.key offline, with a backup: it can sign a server that every hospital will trust.
"""


def write_connection(
    flwr_home: Path, name: str, address: str, root_certificates: Path | None
) -> Path:
    """Add or replace `[superlink.NAME]` in `flwr_home/config.toml`; all else stays, byte for byte.

    Parameters
    ----------
    flwr_home
        Flower's folder, `$FLWR_HOME` or `~/.flwr`.
    name
        Of the connection, as `flwr` commands take it.
    address
        HOST:PORT of the SuperLink.
    root_certificates
        The authority's certificate, or None for a SuperLink without TLS (`insecure = true`).

    Returns
    -------
    Path
        The configuration file. A new one also makes `name` the default connection.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for a bad name or address, or a file that is not TOML or holds the
        connection in a form that cannot be replaced by table.
    """
    if check_name(name, what="connection") == "default":
        raise DerminoError(
            "CONFIG_INVALID", "'default' cannot name a connection", fix="choose another name"
        )
    entry: dict[str, Any] = {"address": check_address(address)}
    if root_certificates is None:
        entry["insecure"] = True
    else:
        entry["root-certificates"] = str(root_certificates.resolve())
    file = (flwr_home / "config.toml").resolve()
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    before = _parse_toml(text, file)
    if not text:
        text = f"[superlink]\ndefault = {json.dumps(name)}\n"
        before = _parse_toml(text, file)
    links = before.setdefault("superlink", {})
    if not isinstance(links, dict):
        raise _not_by_table(file)
    if links.get(name) == entry:
        return file
    header = f"[superlink.{json.dumps(name) if '.' in name else name}]\n"
    after = _replace_table(text, name, header + tomli_w.dumps(entry))
    links[name] = entry
    if _parse_toml(after, file, changed=True) != before:
        raise _not_by_table(file)
    write_atomically(file, after)
    return file


def register_sites(connection: str, folder: Path) -> list[Registration]:
    """Register every `sites/*/*.pub` of a provisioned folder at a running SuperLink.

    Calls `flwr supernode register` of this environment, in the caller's `FLWR_HOME`. A key that
    is registered already is left as it is, so this may be repeated.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if there are no sites; `DEPENDENCY_MISSING` without the `flwr` command;
        `CONNECTION_FAILED` if the SuperLink does not answer or refuses a key.
    """
    check_name(connection, what="connection")
    names = site_names(folder)
    if not names:
        raise DerminoError(
            "CONFIG_INVALID",
            "there are no sites to register",
            where=folder / "sites",
            fix="add --site NAME for each hospital",
        )
    return [_register(connection, folder / "sites" / name / f"{name}.pub") for name in names]


def _check_output_folder(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / "ca.crt").is_file()):
        raise DerminoError(
            "OUTPUT_EXISTS",
            "the folder holds other things than the keys of a federation",
            where=out,
            fix="give a new folder, or the one an earlier `dermino provision` filled",
        )


def _pair_missing(key: Path, certificate: Path) -> bool:
    if key.exists() == certificate.exists():
        return not key.exists()
    present, absent = (key, certificate) if key.exists() else (certificate, key)
    raise DerminoError(
        "TLS_INVALID",
        f"{present.name} is there without {absent.name}",
        where=present.parent,
        fix=f"bring {absent.name} back (from your backup, or from where you keep it offline), or "
        f"move {present.name} away too",
    )


def _parse_toml(text: str, file: Path, *, changed: bool = False) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        if changed:
            raise _not_by_table(file) from error
        raise DerminoError(
            "CONFIG_INVALID",
            f"not valid TOML: {error}",
            where=file,
            fix="correct the file, or move it away for Flower to write a new one",
        ) from error


def _not_by_table(file: Path) -> DerminoError:
    return DerminoError(
        "CONFIG_INVALID",
        "the connection cannot be written without disturbing the rest of the file",
        where=file,
        fix="write connections as tables of their own, [superlink.NAME], and run this again",
    )


def _replace_table(text: str, name: str, table: str) -> str:
    """`text` with the tables of `[superlink.name]` replaced by `table`, or `table` at its end."""
    spelled = "|".join(re.escape(form) for form in (name, f'"{name}"', f"'{name}'"))
    own = re.compile(rf"\s*\[\s*superlink\s*\.\s*(?:{spelled})\s*(?:\.[^\]]*)?\]\s*(?:#.*)?")
    kept: list[str] = []
    waiting: list[str] = []
    inside = placed = False
    for line in text.splitlines(keepends=True):
        if re.match(r"\s*\[", line):
            inside = own.fullmatch(line.rstrip("\r\n")) is not None
            if inside and not placed:
                kept.append(table)
                placed = True
        if not inside:
            kept += [*waiting, line]
            waiting = []
        elif not line.strip() or line.lstrip().startswith("#"):
            waiting.append(line)
        else:
            waiting = []
    kept += waiting
    result = "".join(kept)
    if placed:
        return result
    return result + ("" if result.endswith("\n") else "\n") + "\n" + table


def _register(connection: str, public_key: Path) -> Registration:
    site = public_key.stem
    try:
        answer = call_flwr("supernode", "register", str(public_key), connection, "--name", site)
        return Registration(site, int(answer["node-id"]))
    except FlowerCallError as refusal:
        if "Public key already in use" in refusal.reason:
            return Registration(site, None)
        raise _not_registered(site, connection, refusal.reason) from refusal


def _not_registered(site: str, connection: str, reason: str) -> DerminoError:
    return DerminoError(
        "CONNECTION_FAILED",
        f"could not register {site}: {reason}",
        where=f"connection {connection}",
        fix="check that flower-superlink runs, and that the connection in Flower's config.toml has "
        "its address and this federation's ca.crt",
    )
