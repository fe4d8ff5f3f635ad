"""`dermino health`: is a SuperLink or a client there?"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dermino_core.console import say
from dermino_core.names import check_address
from dermino_server.health import ask_until_healthy, check_grpc, check_http, require_healthy


def health(
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="[HOST:PORT]",
            help="A gRPC health service: --health-server-address of flower-superlink, or "
            "health_address of a site.",
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A SuperLink or its proxy; asks its /health."),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The federation's ca.crt, for an https URL."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for each answer.")] = 5.0,
    wait: Annotated[
        float, typer.Option(min=0.0, help="Keep asking for this many seconds until all serve.")
    ] = 0.0,
) -> None:
    """Ask health services; exit with 0 if all are serving, with 6 otherwise.

    Example: dermino health 127.0.0.1:8001 --http https://localhost:8000 --ca ca.crt
    """
    checks = []
    if address is not None:
        checks.append(partial(check_grpc, check_address(address), timeout=timeout))
    if http is not None:
        checks.append(partial(check_http, http, ca=ca, timeout=timeout))
    if not checks:
        raise typer.BadParameter("give HOST:PORT, --http URL, or both")
    answers = ask_until_healthy(checks, wait=wait)
    for answer in answers:
        say(str(answer))
    require_healthy(answers)
