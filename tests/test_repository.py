"""The house rules that a machine can check, on the files that git tracks."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import click
import pytest
from typer.main import get_command

REPOSITORY = Path(__file__).resolve().parent.parent
LONGEST = 500
PACKAGES = {
    "dermino_core": REPOSITORY / "dermino_core",
    "dermino_strategies": REPOSITORY / "strategies" / "dermino_strategies",
    "dermino_client": REPOSITORY / "client" / "dermino_client",
    "dermino_server": REPOSITORY / "server" / "dermino_server",
}


@cache
def tracked() -> tuple[Path, ...]:
    git = shutil.which("git")
    if git is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout: an unpacked source archive has no list of its files")
    listed = subprocess.run(
        [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    ).stdout
    files = (REPOSITORY / name.decode() for name in listed.split(b"\0") if name)
    return tuple(file for file in files if file.is_file() and not file.is_symlink())


def texts() -> list[tuple[Path, str]]:
    """Every file that git tracks or would add, less this one, which names what it forbids."""
    found = []
    for file in tracked():
        content = file.read_bytes()
        if b"\0" not in content and file != Path(__file__).resolve():
            found.append((file.relative_to(REPOSITORY), content.decode("utf-8")))
    return found


def hits(pattern: str, *, only: str = "") -> list[str]:
    expression = re.compile(pattern)
    return [
        f"{file}:{number}: {line.strip()[:120]}"
        for file, text in texts()
        if str(file).endswith(only)
        for number, line in enumerate(text.splitlines(), start=1)
        if expression.search(line)
    ]


def test_files_stay_readable() -> None:
    long = {
        str(file): lines
        for file, text in texts()
        if file.suffix == ".py" and (lines := len(text.splitlines())) > LONGEST
    }
    assert not long


def test_nothing_is_left_for_later() -> None:
    assert not hits(r"\b(TODO|FIXME|XXX|HACK)\b", only=".py")


def test_no_names_of_the_machine_it_was_written_on() -> None:
    patterns = (
        r"(?<![\w.])/(work|home/\w+|root|Users/\w+|mnt/\w+)/",
        r"\bpypi-[A-Za-z0-9_-]{8,}",
        r"(?i)(index[-_]url|find-links|trusted-host|extra-index)\s*[= ]\s*\S*://",
        r"https?://[^/\s]*@",
        r"https?://[^/\s\"'`)]*(pypi|artifactory|nexus|mirror)[^/\s\"'`)]*(?<!pypi\.org)/",
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s*[A-Za-z0-9+/]{20}",
    )
    for pattern in patterns:
        assert not hits(pattern), pattern


def test_no_secrets_or_data_are_tracked() -> None:
    forbidden = {".key", ".pem", ".crt", ".safetensors", ".pt", ".npz", ".parquet", ".db"}
    demo = PACKAGES["dermino_core"] / "demo_backbone" / "model.safetensors"
    files = [file for file in tracked() if file != demo]
    assert not [str(f) for f in files if f.suffix in forbidden]
    assert not [str(f) for f in files if f.stat().st_size > 500_000]


@pytest.mark.parametrize(
    "folder", ["server", "client", "strategies", "dermino_core", "deploy", "tests"]
)
def test_every_door_has_a_sign(folder: str) -> None:
    """For whom, what is inside, and one command to try that exists."""
    text = (REPOSITORY / folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(text.split()) >= 20
    assert re.search(r"`[^`]*(dermino|make|python)[^`]*`|^ {4}\S|```", text, re.MULTILINE)


def known_commands() -> dict[str, click.Command]:
    from dermino_client.cli import app as client
    from dermino_server.cli import app as server

    return {"dermino": get_command(server), "dermino-client": get_command(client)}


CALL = re.compile(r"(?:^|`|\$ |/|(?<!-u) )(dermino(?:-client)?)((?: +[^\s`|;&]+)+)", re.MULTILINE)


def documented_calls() -> list[tuple[str, str, list[str]]]:
    """Commands that the Markdown files show in code: file, program, words."""
    calls = []
    for file, text in texts():
        if file.suffix != ".md":
            continue
        joined = text.replace("\\\n", " ")
        blocks = re.findall(r"```[a-z]*\n(.*?)```", joined, re.DOTALL)
        prose = re.sub(r"```.*?```", "", joined, flags=re.DOTALL)
        blocks += re.findall(r"^ {4}(\S.*)$", prose, re.MULTILINE)
        blocks += re.findall(r"`([^`\n]+)`", prose)
        for block in blocks:
            calls += [
                (str(file), program, words.split())
                for program, words in CALL.findall(block)
                if re.match(r"--|[a-z]+$", words.split()[0])
            ]
    return calls


def test_documented_commands_exist() -> None:
    calls = documented_calls()
    assert {program for _, program, _ in calls} == {"dermino", "dermino-client"}
    wrong = []
    for file, program, words in calls:
        command = known_commands()[program]
        flags = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
        assert isinstance(command, click.Group)
        if not words[0].startswith("-") and words[0] not in command.commands:
            wrong.append(f"{file}: {program} {' '.join(words)}: no such command")
        for word in words:
            inner = isinstance(command, click.Group) and command.commands.get(word)
            if inner:
                command = inner
                flags |= {f for p in command.params for f in (*p.opts, *p.secondary_opts)}
            elif word.startswith("--") and word.split("=")[0] not in flags | {"--help"}:
                wrong.append(f"{file}: {program} {' '.join(words)}: no {word}")
    assert not wrong


def test_the_readme_begins_with_the_two_commands() -> None:
    screen = "\n".join((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()[:20])
    assert "    make demo" in screen
    assert "    make test" in screen


def test_make_targets_of_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "check", "bench"} <= targets
    named = {
        target
        for file, text in texts()
        if file.suffix == ".md"
        for target in re.findall(r"`make ([a-z-]+)`|^ {4}make ([a-z-]+)", text, re.MULTILINE)
        for target in target
        if target
    }
    assert named <= targets, named - targets


def test_the_wheel_holds_every_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {REPOSITORY / path for path in wheel} == set(PACKAGES.values())
    for name, folder in PACKAGES.items():
        assert (folder / "__init__.py").is_file(), name
        for file in folder.rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), file
    assert set(project["project"]["scripts"]) == {"dermino", "dermino-client"}
