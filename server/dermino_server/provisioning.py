"""The folder of a federation on the coordinator's machine: keys, certificates, roster.

Running again adds what is missing and disturbs nothing that is there.

Layout of the folder that :func:`provision` fills (folders 0700, private files 0600)::

    ca.crt  ca.key                 the authority; ca.key may be kept offline
    server.pem  server.key         for flower-superlink and the proxy in front of it
    federation.json                name, addresses, Flower connection
    roster.json                    every site ever enrolled (dermino_server.enrolment)
    sites/NAME/                    its request, its public node key, its join bundle
    runs/                          run folders
    README.txt                     the exact next commands

No private key of a site is ever here: hospitals make their own and keep them.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dermino_core.certificate_checks import certificate_digest, read_certificate
from dermino_core.enrolment import grouped
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.names import check_address, check_host, check_name
from dermino_core.private_files import private_folder
from dermino_server.certificates import (
    AUTHORITY_DAYS,
    SERVER_DAYS,
    make_authority,
    make_server_certificate,
    read_file,
    server_hosts,
)
from dermino_server.roster import FEDERATION_FILE, Federation, read_federation

SUPERLINK_ADDRESS = "127.0.0.1:8000"
HEALTH_ADDRESS = "127.0.0.1:8001"
CONNECTION = "coordinator"
PORT = 443


@dataclass(frozen=True)
class Provisioned:
    """What a provisioned folder holds after a call, and which files the call made."""

    folder: Path
    federation: Federation
    hosts: tuple[str, ...]
    authority: str
    """SHA-256 of the authority's certificate."""
    made: tuple[Path, ...]


def provision(
    out: Path,
    *,
    hosts: Sequence[str] = (),
    port: int | None = None,
    name: str | None = None,
    superlink: str | None = None,
    connection: str | None = None,
    days: int = SERVER_DAYS,
    local: bool = True,
    ca_key: Path | None = None,
) -> Provisioned:
    """Make the authority, the server certificate and `federation.json`, where they are missing.

    Parameters
    ----------
    out
        A new or empty folder, or one that an earlier call filled.
    hosts
        Names and addresses of the coordinator; needed the first time, later optional. Hospitals
        connect to the first one.
    port
        At which hospitals connect, 443 unless given.
    name
        Of the federation; the first host unless given.
    superlink
        HOST:PORT of the SuperLink for this machine's own commands.
    connection
        Of Flower's configuration, to `superlink`.
    days
        Lifetime of a new server certificate.
    local
        Whether a new server certificate also names `localhost` and `127.0.0.1`.
    ca_key
        Where `ca.key` is, if it is kept elsewhere.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for bad names, hosts, port or days; `OUTPUT_EXISTS` if `out` holds
        something else, or what is there says otherwise than asked; `TLS_INVALID` if files there
        are damaged or one of a pair is missing.
    """
    hosts = [check_host(host) for host in hosts]
    _check_output_folder(out)
    fresh = not (out / "server.pem").exists()
    if not hosts and (fresh or not (out / FEDERATION_FILE).exists()):
        raise DerminoError(
            "CONFIG_INVALID",
            "the coordinator's host name is missing",
            where=out,
            fix="add --host coordinator.example.org (repeat it for further names and addresses)",
        )
    federation = _federation(out, hosts, port, name, superlink, connection)
    if not fresh:
        _require_named(out, hosts)
    private_folder(out)
    made: list[Path] = []
    if not (out / "ca.crt").exists():
        made += make_authority(out, days=max(days, AUTHORITY_DAYS))
    if _pair_missing(out / "server.key", out / "server.pem"):
        made += make_server_certificate(out, hosts, days=days, local=local, ca_key=ca_key)
    if not (out / FEDERATION_FILE).exists():
        write_atomically(out / FEDERATION_FILE, federation.model_dump_json(indent=2) + "\n")
        made.append(out / FEDERATION_FILE)
    private_folder(out / "runs")
    authority = read_certificate(read_file(out / "ca.crt"), where=out / "ca.crt")
    digest = certificate_digest(authority)
    result = Provisioned(out, federation, server_hosts(out), digest, tuple(made))
    write_atomically(out / "README.txt", next_steps(result))
    return result


def next_steps(provisioned: Provisioned) -> str:
    """The commands that come next, ready to copy, for the coordinator and for each hospital."""
    folder = shlex.quote(str(provisioned.folder.resolve()))
    federation = provisioned.federation
    superlink_host, superlink_port = federation.superlink.rsplit(":", 1)
    return f"""\
Next steps for the federation {federation.name}, hospitals connect to {federation.address}

Fingerprint of the authority, which hospitals compare by phone:

     {grouped(provisioned.authority)}

1. Start the SuperLink on this machine, on loopback only: whoever reaches this port can run code
   on this machine and at the hospitals.

     export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
     flower-superlink --host {superlink_host} --port {superlink_port} \\
       --ssl-ca-certfile {folder}/ca.crt \\
       --ssl-certfile {folder}/server.pem \\
       --ssl-keyfile {folder}/server.key \\
       --enable-supernode-auth --database superlink.db \\
       --disable-runtime-dependency-installation \\
       --health-server-address {HEALTH_ADDRESS}

2. Put the proxy of deploy/ in front: it publishes /v1/fleet/ and /health of the SuperLink at
   {federation.address}, nothing else.

3. For each hospital, in this order. There:

     dermino-client enrol --site NAME

   It sends you NAME.request.json and reads its fingerprint to you by phone. Here, while the
   SuperLink runs:

     dermino provision accept NAME.request.json --out {folder}

   Send it sites/NAME/NAME.bundle.json, which holds nothing secret. There:

     dermino-client --site NAME --bundle NAME.bundle.json

   It shows the authority's fingerprint: read yours, above, to each other.

4. Run, when `dermino provision list` and `flwr supernode list {federation.connection}` show them:

     dermino federate --superlink {federation.connection} --site NAME --site OTHER \\
       --backbone BACKBONE --out {folder}/runs/first

   The SuperLink's own processes write the run folder, so their user must be allowed to.

Later: `dermino provision list`, `renew` and `revoke`, each with --out {folder}

Keep ca.key offline, with a backup: it can sign a server that every hospital will trust. Move it
to a medium that you lock away; all but signing works without it. `accept`, `renew` and `init`
say when they need it, and take it as --ca-key FILE.
"""


def _federation(
    out: Path,
    hosts: Sequence[str],
    port: int | None,
    name: str | None,
    superlink: str | None,
    connection: str | None,
) -> Federation:
    """What is in the folder if it agrees with what is asked, or else what to write there."""
    if (out / FEDERATION_FILE).exists():
        known = read_federation(out)
        there = {
            "port": (port, int(known.address.rpartition(":")[2])),
            "name": (name, known.name),
            "superlink": (superlink, known.superlink),
            "connection": (connection, known.connection),
        }
        for option, (asked, is_) in there.items():
            if asked is not None and asked != is_:
                raise DerminoError(
                    "OUTPUT_EXISTS",
                    f"--{option} {asked} is asked for, and this federation has {is_}",
                    where=out / FEDERATION_FILE,
                    fix="leave the option out, or change the file by hand; hospitals that are "
                    "enrolled already keep the address they were given",
                )
        return known
    first = hosts[0]
    address = f"[{first}]" if ":" in first else first
    connection = check_name(connection or CONNECTION, what="connection")
    if connection == "default":
        raise DerminoError(
            "CONFIG_INVALID", "'default' cannot name a connection", fix="choose another name"
        )
    named = name or ("federation" if ":" in first else first[:63].rstrip(".-"))
    return Federation(
        name=check_name(named, what="federation"),
        address=check_address(f"{address}:{PORT if port is None else port}"),
        superlink=check_address(superlink or SUPERLINK_ADDRESS),
        connection=connection,
    )


def _require_named(out: Path, hosts: Sequence[str]) -> None:
    named = server_hosts(out)
    if unnamed := [host for host in hosts if host not in named]:
        raise DerminoError(
            "OUTPUT_EXISTS",
            f"the server certificate there does not name {', '.join(unnamed)}, only "
            f"{', '.join(named)}",
            where=out / "server.pem",
            fix="dermino provision renew --host NAME makes one that names it too; the sites need "
            "nothing new",
        )


def _check_output_folder(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / "ca.crt").is_file()):
        raise DerminoError(
            "OUTPUT_EXISTS",
            "the folder holds other things than the keys of a federation",
            where=out,
            fix="give a new folder, or the one that `dermino provision init` filled",
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
