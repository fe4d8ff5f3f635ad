"""Is a SuperLink or a SuperNode there? Its gRPC health service and the HTTP `/health`.

flwr 1.41 serves `grpc.health.v1.Health` without TLS where `--health-server-address` says, and
answers SERVING for as long as the process lives: it tells that a SuperNode runs, not that it is
connected. The SuperLink answers `GET /health` with 200 and no body on its HTTP port.
"""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dermino_core.errors import DerminoError

SERVING = "serving"
_PAUSE_SECONDS = 0.5


@dataclass(frozen=True)
class Check:
    """The answer of one health service."""

    kind: str
    """`grpc` or `http`."""
    address: str
    state: str
    """`serving`, or what is wrong in a few words."""
    seconds: float
    """From the question to the answer, or to giving up."""

    @property
    def ok(self) -> bool:
        """Whether the service said that it is serving."""
        return self.state == SERVING

    def __str__(self) -> str:
        return f"{self.kind}  {self.address}  {self.state}  {self.seconds * 1000:.0f} ms"


def check_grpc(address: str, *, timeout: float = 5.0) -> Check:
    """Ask the gRPC health service at HOST:PORT, without TLS, within `timeout` seconds."""
    import grpc
    from grpc_health.v1 import health_pb2

    start = time.monotonic()
    # A health service is on this machine or its network: never through a web proxy.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )(health_pb2.HealthCheckRequest(), timeout=timeout)
            state = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
            state = SERVING if state == "SERVING" else state.replace("_", " ").lower()
        except grpc.RpcError as error:
            state = _grpc_state(error)
    return Check("grpc", address, state, time.monotonic() - start)


def check_http(url: str, *, ca: Path | None = None, timeout: float = 5.0) -> Check:
    """Ask `/health` over HTTP or HTTPS, within `timeout` seconds.

    Parameters
    ----------
    url
        Of the server; `/health` is added when it has no path of its own.
    ca
        The authority's certificate, for HTTPS; None: those this machine trusts.
    timeout
        Seconds.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if `url` is no http or https URL; `TLS_INVALID` if `ca` cannot be used.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DerminoError(
            "CONFIG_INVALID",
            f"{url!r} is not an http or https URL",
            fix="give it whole, such as https://coordinator.example.org:443",
        )
    address = parts._replace(path="/health").geturl() if parts.path in ("", "/") else url
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=_trust(ca)), _NoRedirect()
    )
    start = time.monotonic()
    try:
        with opener.open(address, timeout=timeout) as reply:
            state = SERVING if reply.status == 200 else f"answered HTTP {reply.status}"
    except urllib.error.HTTPError as error:
        state = f"answered HTTP {error.code}"
    except urllib.error.URLError as error:
        state = _http_state(error.reason)
    except (OSError, ValueError) as error:
        state = _http_state(error)
    return Check("http", address, state, time.monotonic() - start)


def ask_until_healthy(checks: Sequence[Callable[[], Check]], *, wait: float = 0.0) -> list[Check]:
    """Ask every service, again and again for `wait` seconds while one of them is not serving."""
    end = time.monotonic() + wait
    while True:
        answers = [check() for check in checks]
        if all(answer.ok for answer in answers) or time.monotonic() >= end:
            return answers
        time.sleep(_PAUSE_SECONDS)


def require_healthy(answers: Sequence[Check]) -> None:
    """Raise for services that are not serving.

    Raises
    ------
    DerminoError
        `CONNECTION_FAILED`, naming each service that is not serving and what to do.
    """
    bad = [answer for answer in answers if not answer.ok]
    if not bad:
        return
    raise DerminoError(
        "CONNECTION_FAILED",
        "; ".join(f"{answer.kind} health at {answer.address}: {answer.state}" for answer in bad),
        fix=" ".join(dict.fromkeys(_advice(answer) for answer in bad)),
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A health check that is sent elsewhere has not reached what it asked for."""

    def redirect_request(self, *_args: object, **_kwargs: object) -> None:
        return None


def _trust(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise DerminoError(
            "TLS_INVALID",
            f"cannot use the certificate: {error}",
            where=ca,
            fix="give the ca.crt that `dermino provision init` wrote",
        ) from error


def _grpc_state(error: Exception) -> str:
    import grpc

    code = error.code() if isinstance(error, grpc.Call) else None
    if code is grpc.StatusCode.UNAVAILABLE:
        return "unreachable"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return "no health service there"
    return "failed" if code is None else f"failed ({code.name.lower()})"


def _http_state(reason: object) -> str:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"certificate not trusted ({reason.verify_message.rstrip('.')})"
    if isinstance(reason, ssl.SSLError):
        return "no TLS there"
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, OSError):
        return "unreachable"
    return "not an HTTP answer"


def _advice(answer: Check) -> str:
    if "not trusted" in answer.state:
        return (
            "Give --ca the federation's ca.crt, and use a host name that the server certificate "
            "names."
        )
    if answer.state == "no TLS there":
        return "Use http:// for a server without TLS, or the proxy's own port."
    if answer.kind == "http":
        return "Check the address, that flower-superlink and its proxy run, and the firewall."
    return (
        "Check that the process runs with a health address (flower-superlink "
        "--health-server-address, health_address in the site file), and that this is that port."
    )
