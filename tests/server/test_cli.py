"""Every command of `dermino` explains itself, with an example and its exit codes."""

from __future__ import annotations

import contextlib
import io
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from dermino_core import __version__
from dermino_core.console import run_command
from dermino_core.errors import EXIT_CODES, DerminoError
from dermino_server.cli import app
from dermino_server.commands.options import parse_settings

COMMAND = Path(sys.executable).parent / "dermino"


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


ROOT = get_command(app)
assert isinstance(ROOT, click.Group)
COMMANDS = list(commands(ROOT))


def dermino(*arguments: str) -> tuple[int, str, str]:
    """As the installed command runs, in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        patch.setattr(sys, "argv", ["dermino", *arguments])
        patch.setenv("COLUMNS", "200")
        patch.delenv("DERMINO_DEBUG", raising=False)
        try:
            run_command(app)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return code, stdout.getvalue(), stderr.getvalue()


def test_the_commands_that_are_promised() -> None:
    names = {path[0] for path in COMMANDS}
    assert names >= {"simulate", "federate", "report", "predict", "provision", "health", "data"}
    assert {("data", "prepare"), ("data", "check")} <= set(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_an_example(path: tuple[str, ...]) -> None:
    code, text, _ = dermino(*path, "--help")
    assert code == 0
    _, word, after = text.partition("Example")
    assert word
    assert f"dermino {' '.join(path)}" in " ".join(after.split())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_examples_use_options_that_exist(path: tuple[str, ...]) -> None:
    command = ROOT
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    options = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    example = (command.help or "").partition("Example")[2]
    used = {word.split("=")[0] for word in example.split() if word.startswith("--")}
    assert used <= options | {"--help"}, used - options


def test_help_lists_the_exit_codes() -> None:
    _, text, _ = dermino("--help")
    plain = " ".join(text.split())
    for number, meaning in EXIT_CODES.items():
        assert f"{number} {meaning}" in plain
    assert "dermino simulate" in plain


def test_version() -> None:
    assert dermino("--version")[:2] == (0, f"dermino {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--nope",), ("simulat",), ("simulate", "--nope"), ("simulate", "--rounds", "0")),
        *(("simulate", "--seed", "-1"), ("simulate", "--engine", "cloud"), ("predict",), ("data",)),
        *(("simulate", "--precision", "fp16"), ("federate",)),
    ],
    ids=" ".join,
)
def test_wrong_command_lines_exit_with_2(arguments: tuple[str, ...]) -> None:
    code, _, errors = dermino(*arguments)
    assert code == 2
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("simulate", "--sites", "nowhere", "--out", "R"), 3, "CONFIG_NOT_FOUND"),
        (("simulate", "--strategy", "fedx", "--out", "R"), 3, "no strategy 'fedx'"),
        (("simulate", "--set", "oops", "--out", "R"), 3, "not KEY=VALUE"),
        (("simulate", "--resume", "nowhere"), 8, "not a run folder"),
        (("report", "nowhere"), 8, "RESULTS_INVALID"),
        (("predict", "--model", "nowhere", "x.jpg"), 8, "MODEL_INVALID"),
        (("federate", "--superlink", "x", "--out", "R"), 3, "Which backbone"),
        (("federate", "--superlink", "x", "--backbone", "demo", "--task", "t"), 3, "not built in"),
        (("data", "check", "nowhere.csv"), 4, "MANIFEST_INVALID"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_expected_failures_are_short(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    got, _, errors = dermino(*arguments)
    assert got == code, errors
    assert errors.startswith("error ")
    assert words in errors
    assert "To do: " in errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) <= 4


def test_tracebacks_only_with_debug(tmp_path: Path) -> None:
    for extra, shown in (((), False), (("--debug",), True)):
        done = subprocess.run(
            [str(COMMAND), "report", "nowhere", *extra],
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if k != "DERMINO_DEBUG"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ("Traceback" in done.stderr) is shown
        assert "There are no results here" in done.stderr


def test_settings() -> None:
    pairs = ["a=1", "b=5e-3", "c=true", "d=uniform", "e=[1, 2]", 'f="1"', "g=", "h=a=b", "i= x"]
    assert parse_settings(pairs) == {
        "a": 1,
        "b": 0.005,
        "c": True,
        "d": "uniform",
        "e": [1, 2],
        "f": "1",
        "g": "",
        "h": "a=b",
        "i": " x",
    }
    assert parse_settings(["a=1", "a=2"]) == {"a": 2}
    assert parse_settings([]) == {}


@pytest.mark.parametrize("pair", ["", "=", "=1", "learning_rate", "learning_rate 5"])
def test_settings_without_key_or_value(pair: str) -> None:
    with pytest.raises(DerminoError, match="not KEY=VALUE") as caught:
        parse_settings([pair])
    assert caught.value.exit_code == 3


@given(st.text(min_size=1).filter(lambda key: "=" not in key), st.text())
def test_any_setting_is_a_value_or_a_text(key: str, value: str) -> None:
    assert list(parse_settings([f"{key}={value}"])) == [key]


@given(st.one_of(st.integers(), st.floats(allow_infinity=False), st.booleans()))
def test_numbers_survive(value: float) -> None:
    import json

    got = parse_settings([f"k={json.dumps(value)}"])["k"]
    assert got == value or (isinstance(got, float) and math.isnan(got) and math.isnan(value))


def test_endless_numbers_and_nesting_are_texts() -> None:
    for value in ("9" * 5000, "[" * 20000):
        assert parse_settings([f"k={value}"]) == {"k": value}
