"""The installed `dermino-client`, as a person at a hospital calls it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dermino_client.site import Site, read_site
from dermino_client.site_keys import make_keys, node_file
from dermino_core import __version__
from dermino_core.errors import EXIT_CODES
from dermino_server.provisioning import provision

COMMAND = Path(sys.executable).parent / "dermino-client"
MakeSite = Callable[..., Site]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path, warm_cache: Path) -> Run:
    """Run `dermino-client` in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    hidden = ("DERMINO_SITES", "DERMINO_DEBUG")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment |= {"DERMINO_CACHE": str(warm_cache), "COLUMNS": "200"}

    def call(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(COMMAND), *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return call


def failed(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_init_then_check(run: Run, clinic: Path, tmp_path: Path) -> None:
    """The two commands that a new hospital begins with, word for word."""
    done = run("init", "--site", "new", "--images", clinic, "--labels", clinic / "manifest.csv")
    assert done.returncode == 0, done.stderr
    assert "24 images, 2 labels" in done.stdout
    advice = re.search(r"then: dermino-client (check .*)", done.stdout)
    assert advice
    checked = run(*advice[1].split())
    assert checked.returncode == 0, checked.stderr
    assert "new: 24 of 24 images used, 0 unreadable" in checked.stdout
    halves = r"new: (train|test): 12 images of \d+ groups \(\d+ benign, \d+ malignant\)"
    assert re.findall(halves, checked.stdout) == ["train", "test"]
    assert "fingerprint" in checked.stdout
    second = run(*advice[1].split())
    assert second.returncode == 0, second.stderr
    assert "24 of 24 images used, 0 unreadable, 0 newly embedded" in second.stdout
    again = run("init", "--site", "new", "--images", clinic, "--labels", clinic / "manifest.csv")
    failed(again, 3, "OUTPUT_EXISTS", "not overwritten")
    assert read_site(tmp_path / "here" / "sites" / "new.toml").name == "new"


def test_init_with_columns(run: Run, clinic: Path) -> None:
    table = clinic / "manifest.csv"
    table.write_text(table.read_text().replace("label", "dx", 1))
    base = ("init", "--site", "new", "--images", clinic, "--labels", table)
    failed(run(*base, "--column", "label"), 3, "--column takes NAME=COLUMN")
    done = run(*base, "--column", "label=dx", "--column", "group=group", "--sites-dir", "mine")
    assert done.returncode == 0, done.stderr
    assert run("--site", "new", "--sites-dir", "mine", "check").returncode == 0


def test_missing_site(run: Run, make_site: MakeSite) -> None:
    failed(run("--site", "nowhere"), 3, "CONFIG_NOT_FOUND", "nowhere.toml", "To do: ", "init")
    folder = make_site().file.parent
    done = run("--site", "clinik", "--sites-dir", folder)
    failed(done, 3, str(folder), "Sites found there: clinic.")
    assert done.stdout == ""
    failed(run(), 3, "Which site", "--site NAME")
    failed(run("check"), 3, "Which site", "check --site NAME")


def test_data_errors_have_their_code(run: Run, make_site: MakeSite, clinic: Path) -> None:
    site = make_site()
    arguments = ("check", "--site", "clinic", "--sites-dir", site.file.parent)
    (clinic / "images" / "0004.jpg").unlink()
    failed(run(*arguments), 4, "IMAGE_UNREADABLE", "0004.jpg", "max_unreadable")
    site.file.write_text(site.file.read_text().replace('"benign"', '"harmless"'))
    failed(run(*arguments), 3, "CONFIG_INVALID", "'harmless'")
    make_site(backbone={"name": "nowhere.safetensors"})
    failed(run(*arguments), 5, "nowhere.safetensors")


def test_joining_needs_coordinator_key_and_authority(
    run: Run, make_site: MakeSite, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    provision(keys, hosts=["127.0.0.1"])
    make_keys(tmp_path / "site")
    folder = make_site().file.parent
    arguments = ("--site", "clinic", "--sites-dir", folder)
    failed(run(*arguments), 3, "has not joined a federation", "dermino-client enrol")
    good = {
        "address": "127.0.0.1:1",
        "root_certificates": str(keys / "ca.crt"),
        "private_key": str(node_file(tmp_path / "site")),
    }
    make_site(coordinator=good | {"private_key": "nowhere.key"})
    failed(run(*arguments), 6, "TLS_INVALID", str(folder / "nowhere.key"))
    make_site(coordinator=good | {"root_certificates": str(keys / "server.key")})
    failed(run(*arguments), 6, "TLS_INVALID", "CA certificate cannot be read")
    (tmp_path / "clinic" / "images" / "0001.jpg").unlink()
    make_site(coordinator=good)
    done = run(*arguments)
    failed(done, 4, "127.0.0.1:1 cannot be reached yet", "IMAGE_UNREADABLE")
    assert "clinic: joining" not in done.stdout


@pytest.mark.parametrize("command", [(), ("check",), ("init",)])
def test_help(run: Run, command: tuple[str, ...]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout
    assert f"dermino-client {' '.join(command)}".strip() in done.stdout
    assert "--site" in done.stdout
    assert "\\b" not in done.stdout


def test_help_lists_the_exit_codes(run: Run) -> None:
    text = " ".join(run("--help").stdout.split())
    for number, meaning in EXIT_CODES.items():
        assert f"{number} {meaning}" in text


def test_version_and_wrong_command_lines(run: Run) -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"dermino-client {__version__}\n")
    assert run("--sitte", "x").returncode == 2
    assert run("leave").returncode == 2
    assert run("init", "--site", "x").returncode == 2


def test_tracebacks_only_with_debug(run: Run) -> None:
    failed(run("--site", "nowhere"), 3)
    for arguments in (("--debug", "--site", "nowhere"), ("check", "--site", "nowhere", "--debug")):
        done = run(*arguments)
        assert done.returncode != 0
        assert "Traceback" in done.stderr
        assert "nowhere.toml" in done.stderr
