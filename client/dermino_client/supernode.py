"""From a prepared site to a running `flower-supernode`.

Its command line is its only public surface, so it runs as a child process: signals are handed on,
it ends when `dermino-client` ends, and its exit is explained in words a hospital can act on. While
the coordinator is away it keeps trying; that is not an error.

It starts no app by itself (`--isolation process`): messages wait in it until our own runner, which
knows the site's policy, takes them.
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
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from dermino_client.membership import enrolled_coordinator, start_warnings
from dermino_client.runner_keeper import RunnerKeeper, new_secret, runner_command
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


def coordinator_of(site: Site) -> CoordinatorSection:
    """Where to connect and with which key: as the site file says, else as the join bundle does.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if neither says it.
    """
    if site.coordinator is not None:
        return site.coordinator
    enrolled = enrolled_coordinator(site.folder)
    if enrolled is None:
        raise DerminoError(
            "CONFIG_INVALID",
            "This site has not joined a federation, so there is nothing to connect to.",
            where=site.file,
            fix=f"dermino-client enrol --site {site.name}, send the request to the coordinator, "
            f"then: dermino-client --site {site.name} --bundle {site.name}.bundle.json",
        )
    address, authority, key = enrolled
    return CoordinatorSection(address=address, root_certificates=authority, private_key=key)


def preflight(site: Site) -> CoordinatorSection:
    """Check key, certificate and connection before the long-running part starts.

    A coordinator that is not there yet is only a warning, and so is what expires within 30 days.

    Raises
    ------
    DerminoError
        As :func:`coordinator_of`; `TLS_INVALID` if the key or the CA certificate
        is missing or wrong, or the coordinator's certificate does not verify against it.
    """
    coordinator = coordinator_of(site)
    key = site.resolve(coordinator.private_key)
    authority = site.resolve(coordinator.root_certificates)
    certificate = None
    _check_key(key)
    context = _trust(authority)
    host, _, port = coordinator.address.rpartition(":")
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host.strip("[]")) as secure,
        ):
            certificate = secure.getpeercert(binary_form=True)
            say(f"{site.name}: the certificate of {coordinator.address} is valid")
    except ssl.SSLCertVerificationError as error:
        raise DerminoError(
            "TLS_INVALID",
            f"The coordinator's certificate is not trusted: {error.verify_message}.",
            where=f"{coordinator.address}, with {authority}",
            fix="Ask the coordinator for a new bundle, and install it: dermino-client --site NAME "
            "--bundle FILE. Nothing was sent.",
        ) from None
    except ssl.SSLError as error:
        raise DerminoError(
            "TLS_INVALID",
            f"The coordinator does not speak TLS as expected: {error.reason or error}.",
            where=coordinator.address,
            fix="Check the address and port; dermino never connects without TLS.",
        ) from None
    except OSError as error:
        warn(
            f"{site.name}: {coordinator.address} cannot be reached yet "
            f"({error.strerror or error}); it is tried again until it answers"
        )
    for warning in start_warnings(site.folder, certificate):
        warn(f"{site.name}: {warning}")
    return coordinator


def _check_key(key: Path) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    advice = "Site keys are P-384 in OpenSSH format; `dermino-client enrol --site NAME` makes them."
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
            fix="The coordinator's bundle holds it: dermino-client --site NAME --bundle FILE. "
            "Without it the coordinator cannot be told from an impostor, so nothing is sent.",
        ) from None
    except (ssl.SSLError, OSError) as error:
        raise DerminoError(
            "TLS_INVALID",
            f"The coordinator's CA certificate cannot be read: {error}.",
            where=authority,
            fix="It must be a PEM file, as in the bundle that the coordinator sent.",
        ) from None


def command(site: Site, coordinator: CoordinatorSection, secret: Path) -> list[str]:
    """The command line of a site's SuperNode; writes its node configuration.

    `secret` is a file that only this user can read: who knows it may take this site's messages
    out of the SuperNode.
    """
    from dermino_client.app import SITE_FILE_KEY

    node_config = site.cache / "node" / f"{site.name}.toml"
    write_atomically(node_config, tomli_w.dumps({SITE_FILE_KEY: str(site.file)}))
    arguments = [
        *_program(),
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
        "--isolation",
        "process",
        "--superexec-auth-secret-file",
        str(secret),
    ]
    if site.node.health_address:
        arguments += ["--health-server-address", site.node.health_address]
    return arguments


def _program() -> list[str]:
    return [sys.executable, "-m", "dermino_client.supernode_flower"]


def _environment(site: Site) -> dict[str, str]:
    """Telemetry and the search for updates are off: nothing but the coordinator is called."""
    return {
        **os.environ,
        "DERMINO_CACHE": str(site.cache),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
    }


def run(site: Site, coordinator: CoordinatorSection) -> None:
    """Run the SuperNode and the runner until the SuperNode ends or this process is told to stop.

    SIGTERM and SIGINT end it cleanly, and this function returns.

    Raises
    ------
    DerminoError
        `TLS_INVALID` if the coordinator refuses the site's key, `DEPENDENCY_MISSING` if the runner
        does not work with this flwr, `CONNECTION_FAILED` if the SuperNode ends for another reason.
    """
    with tempfile.TemporaryDirectory(prefix="dermino-") as folder:
        secret = new_secret(Path(folder) / "runtime.secret")
        child = subprocess.Popen(  # noqa: S603 - our own command line
            command(site, coordinator, secret),
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
        runner = RunnerKeeper(
            runner_command(site.file, site.node.port, secret), _environment(site), child.terminate
        )
        with _handing_on_signals(child) as stopped:
            runner.start()
            code = child.wait()
        runner.stop()
    reader.join(timeout=2)
    if runner.failed:
        raise DerminoError(
            "DEPENDENCY_MISSING",
            f"{site.name}: the process that answers messages cannot run; its error is above.",
            fix="Mend what it says. Without it this site answers nothing, so it left.",
        )
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
    run(site, coordinator_of(site))


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
    if _CERTIFICATE.search(output):
        return DerminoError(
            "TLS_INVALID",
            "The coordinator's certificate is not trusted.",
            where=coordinator.address,
            fix="Ask the coordinator for a new bundle, and install it: dermino-client --site "
            f"{site.name} --bundle FILE",
        )
    if _KEY_REFUSED.search(output):
        return DerminoError(
            "TLS_INVALID",
            f"The coordinator refuses the key of {site.name}: it is not registered, was revoked, "
            "or is in use by a node that is still connected or was killed within the last minute.",
            where=coordinator.address,
            fix=f"If another client of {site.name} runs, stop it; if one was killed, wait a "
            "minute. Else the coordinator registers it again: dermino provision accept with the "
            "request of this site (dermino-client enrol writes it).",
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
