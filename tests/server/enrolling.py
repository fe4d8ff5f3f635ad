"""What the tests of enrolment share: a hospital that asks, a coordinator that answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from federation import contents  # beside this file
from typer.testing import CliRunner

from dermino_client.enrol import enrol
from dermino_core.errors import DerminoError
from dermino_server.commands.provision import provision_app
from dermino_server.enrolment import Accepted, accept

HOST = "coordinator.example.org"


def ask(folder: Path, name: str = "mednode", **options: Any) -> Path:
    return enrol(folder / f"{name}.site", name, **options).file


def admit(keys: Path, request: Path, **options: Any) -> Accepted:
    options = {"confirm": lambda *_: None, "register": False} | options
    return accept(keys, request, **options)


def refused(keys: Path, request: Path, words: str, **options: Any) -> DerminoError:
    before = contents(keys)
    with pytest.raises(DerminoError, match=words) as caught:
        admit(keys, request, **options)
    assert contents(keys) == before
    assert caught.value.fix
    return caught.value


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(provision_app, [str(argument) for argument in arguments])
