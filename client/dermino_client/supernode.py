"""From a prepared site to a running `flower-supernode`.

Its command line is its only public surface, so it runs as a child process: signals are handed on,
it ends when `dermino-client` ends, and its exit is explained in words a hospital can act on. While
the coordinator is away it keeps trying; that is not an error.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from dermino_client.site import CoordinatorSection, Site, read_site
from dermino_core.console import run_command, say, warn
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically

CONNECT_SECONDS = 10.0
STOP_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1
# What flower-supernode 1.41 writes; it ends with status 1 or 0, its own codes are in the text.
_CERTIFICATE = re.compile(r"CERTIFICATE_VERIFY_FAILED|certificate verify failed")
_KEY_REFUSED = re.compile(r"\[code: 2004\]|Failed to activate SuperNode")


def preflight(site: Site) -> CoordinatorSection:
    """Check key, certificate and connection before the long-running part starts.

    A coordinator that is not there yet is only a warning.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` without a `[coordinator]`; `TLS_INVALID` if the key or the CA certificate
        is missing or wrong, or the coordinator's certificate does not verify against it.
    """
    if site.coordinator is None:
        raise DerminoError(
            "CONFIG_INVALID",
            "The site file has no [coordinator] section, so there is nothing to connect to.",
            where=site.file,
            fix="Add address, root_certificates and private_key, which the coordinator provides.",
        )
    key = site.resolve(site.coordinator.private_key)
    authority = site.resolve(site.coordinator.root_certificates)
    _check_key(key)
    context = _trust(authority)
    host, _, port = site.coordinator.address.rpartition(":")
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host.strip("[]")),
        ):
            say(f"{site.name}: the certificate of {site.coordinator.address} is valid")
    except ssl.SSLCertVerificationError as error:
        raise DerminoError(
            "TLS_INVALID",
            f"The coordinator's certificate is not trusted: {error.verify_message}.",
            where=f"{site.coordinator.address}, with {authority}",
            fix="Ask the coordinator for the current ca.crt, compare its fingerprint by phone, "
            "and put it where coordinator.root_certificates points. Nothing was sent.",
        ) from None
    except ssl.SSLError as error:
        raise DerminoError(
            "TLS_INVALID",
            f"The coordinator does not speak TLS as expected: {error.reason or error}.",
            where=site.coordinator.address,
            fix="Check the address and port; dermino never connects without TLS.",
        ) from None
    except OSError as error:
        warn(
            f"{site.name}: {site.coordinator.address} cannot be reached yet "
            f"({error.strerror or error}); it is tried again until it answers"
        )
    return site.coordinator


def _check_key(key: Path) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    advice = "Site keys are P-384 in OpenSSH format; `dermino provision --site NAME` makes them."
    try:
        loaded = load_ssh_private_key(key.read_bytes(), password=None)
    except FileNotFoundError:
        raise DerminoError(
            "TLS_INVALID", "The site's private key is missing.", where=key, fix=advice
        ) from None
    except (OSError, TypeError, ValueError, UnsupportedAlgorithm) as error:  # Type: a password
        raise DerminoError(
            "TLS_INVALID", f"The site's private key cannot be read: {error}.", where=key, fix=advice
        ) from None
    if not isinstance(loaded, EllipticCurvePrivateKey) or loaded.curve.name != "secp384r1":
        raise DerminoError(
            "TLS_INVALID", "The site's private key is not a P-384 key.", where=key, fix=advice
        )
    if key.stat().st_mode & 0o077:
        warn(f"{key} can be read by others on this machine: chmod 600 it")


def _trust(authority: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(authority))
    except FileNotFoundError:
        raise DerminoError(
            "TLS_INVALID",
            "The coordinator's CA certificate is missing.",
            where=authority,
            fix="Ask the coordinator for ca.crt and name it in coordinator.root_certificates. "
            "Without it the coordinator cannot be told from an impostor, so nothing is sent.",
        ) from None
    except (ssl.SSLError, OSError) as error:
        raise DerminoError(
            "TLS_INVALID",
            f"The coordinator's CA certificate cannot be read: {error}.",
            where=authority,
            fix="It must be a PEM file, as `dermino provision` writes it.",
        ) from None


def command(site: Site, coordinator: CoordinatorSection) -> list[str]:
    """The `flower-supernode` command line of a site; writes its node configuration."""
    from dermino_client.app import SITE_FILE_KEY

    node_config = site.cache / "node" / f"{site.name}.toml"
    write_atomically(node_config, tomli_w.dumps({SITE_FILE_KEY: str(site.file)}))
    arguments = [
        str(_environment_bin() / "flower-supernode"),
        "--superlink",
        coordinator.address,
        "--root-certificates",
        str(site.resolve(coordinator.root_certificates)),
        "--auth-supernode-private-key",
        str(site.resolve(coordinator.private_key)),
        "--node-config",
        str(node_config),
        "--port",
        str(site.node.port),
    ]
    if site.node.health_address:
        arguments += ["--health-server-address", site.node.health_address]
    return arguments


def _environment_bin() -> Path:
    return Path(sys.executable).parent


def _environment(site: Site) -> dict[str, str]:
    """Flower starts its helpers by PATH; messages are polled often, telemetry is off."""
    path = f"{_environment_bin()}{os.pathsep}{os.environ.get('PATH', '')}"
    return {
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        **os.environ,
        "PATH": path,
        "DERMINO_CACHE": str(site.cache),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
    }


def run(site: Site, coordinator: CoordinatorSection) -> None:
    """Run the SuperNode until it ends or this process is told to stop.

    SIGTERM and SIGINT end it cleanly, and this function returns.

    Raises
    ------
    DerminoError
        `TLS_INVALID` if the coordinator refuses the site's key, `CONNECTION_FAILED` if the
        SuperNode ends for any other reason.
    """
    child = subprocess.Popen(  # noqa: S603 - our own command line
        command(site, coordinator),
        env=_environment(site),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=_end_with_parent,
    )
    tail: list[str] = []
    reader = threading.Thread(target=_pass_on, args=(child, tail), daemon=True)
    reader.start()
    with _handing_on_signals(child) as stopped:
        code = child.wait()
    reader.join(timeout=2)
    if stopped:
        say(f"{site.name}: stopped")
        return
    raise _explain(site, coordinator, code, "\n".join(tail))


def exec_supervisor(site: Site) -> None:
    """Become the process that runs the SuperNode, without the memory that preparing the site took.

    Does not return.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    module = [sys.executable, "-m", "dermino_client.supernode", str(site.file)]
    os.execv(sys.executable, module)  # noqa: S606 - our own command line


def main() -> None:
    """Supervise the SuperNode of the site file that the command line names."""
    site = read_site(Path(sys.argv[1]))
    if site.coordinator is not None:
        run(site, site.coordinator)


def _end_with_parent() -> None:
    """Linux: the kernel ends the SuperNode when `dermino-client` dies, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _pass_on(child: subprocess.Popen[str], tail: list[str]) -> None:
    for line in child.stdout or ():
        sys.stderr.write(line)
        sys.stderr.flush()
        tail.append(line.rstrip())
        del tail[:-50]


@contextmanager
def _handing_on_signals(child: subprocess.Popen[str]) -> Iterator[list[int]]:
    stopped: list[int] = []

    def stop(number: int, _frame: object) -> None:
        if stopped:
            return
        stopped.append(number)
        child.terminate()
        impatience.start()

    impatience = threading.Timer(STOP_SECONDS, child.kill)
    impatience.daemon = True
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        impatience.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _explain(site: Site, coordinator: CoordinatorSection, code: int, output: str) -> DerminoError:
    public = site.resolve(coordinator.private_key).with_suffix(".pub").name
    if _CERTIFICATE.search(output):
        return DerminoError(
            "TLS_INVALID",
            "The coordinator's certificate is not trusted.",
            where=coordinator.address,
            fix="Ask the coordinator for the current ca.crt.",
        )
    if _KEY_REFUSED.search(output):
        return DerminoError(
            "TLS_INVALID",
            f"The coordinator refuses the key of {site.name}: it is not registered, was revoked, "
            "or is in use by a node that is still connected or was killed within the last minute.",
            where=coordinator.address,
            fix=f"If another client of {site.name} runs, stop it; if one was killed, wait a "
            f"minute. Else send {public} to the coordinator, who registers it with: flwr "
            f"supernode register {public} CONNECTION --name {site.name}",
        )
    if code == 0:
        return DerminoError(
            "TLS_INVALID",
            f"The coordinator no longer accepts {site.name}.",
            where=coordinator.address,
            fix="Its key was revoked, or this machine's clock is off by more than a few seconds "
            "(check it with: timedatectl). Ask the coordinator.",
        )
    return DerminoError(
        "CONNECTION_FAILED",
        f"flower-supernode ended with exit code {code}.",
        where=coordinator.address,
        fix="Its last lines are above. If a port is in use, choose another with node.port.",
    )


if __name__ == "__main__":
    run_command(main)
