"""Who may know whom, and what a process may load before it needs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
HEAVY = ("torch", "torchvision", "timm", "sklearn", "matplotlib", "ray", "pandas", "pyarrow")

LOADED = """
import importlib, json, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
print(json.dumps(sorted(set(json.loads(sys.argv[1])) & set(sys.modules))))
"""

WITHOUT = """
import importlib, json, sys

class Absent:
    names = set(json.loads(sys.argv[1]))

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def core_modules() -> list[str]:
    package = REPOSITORY / "dermino_core"
    names = []
    for file in sorted(package.rglob("*.py")):
        parts = ["dermino_core", *file.relative_to(package).with_suffix("").parts]
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_contracts_hold() -> None:
    """The contracts of pyproject.toml: core <- strategies <- client, server."""
    done = subprocess.run(
        [str(BIN / "lint-imports"), "--no-cache"],
        cwd=REPOSITORY,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    "module",
    [
        *("dermino_client.app", "dermino_client.cli", "dermino_client.supernode"),
        *("dermino_server.app", "dermino_server.cli", "dermino_server.deployment"),
    ],
)
def test_a_start_loads_nothing_heavy(module: str) -> None:
    """A fresh process answers every message and every `--help`: torch would cost seconds."""
    done = python(LOADED, json.dumps(HEAVY), module)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_the_commands_do_without_flower_until_they_need_it() -> None:
    done = python(LOADED, json.dumps(["flwr"]), "dermino_client.cli", "dermino_client.check")
    assert json.loads(done.stdout) == []


def test_a_hospital_never_loads_the_server() -> None:
    done = python(LOADED, json.dumps(["dermino_server"]), "dermino_client.app")
    assert json.loads(done.stdout) == []
    done = python(LOADED, json.dumps(["dermino_client"]), "dermino_server.app")
    assert json.loads(done.stdout) == []


def test_the_core_needs_no_flower() -> None:
    """All of dermino_core, without Flower and without the other packages of this project."""
    absent = ["flwr", "grpc", "dermino_client", "dermino_server", "dermino_strategies"]
    modules = core_modules()
    assert len(modules) > 30
    done = python(WITHOUT, json.dumps(absent), *modules)
    assert done.returncode == 0, done.stderr


def test_the_science_needs_no_terminal() -> None:
    """A GPU machine has torch, torchvision, timm, numpy, safetensors and pydantic only."""
    absent = ["flwr", "grpc", "typer", "rich", "click", "matplotlib", "sklearn", "pyarrow"]
    absent += ["cryptography", "tomli_w", "scipy", "pandas", "pydicom", "openpyxl"]
    absent += ["threadpoolctl"]
    names = ("backbone", "features", "heads", "metrics", "manifest", "images", "results")
    names += ("labels", "splits", "prediction", "model_folder", "feature_cache", "progress")
    done = python(WITHOUT, json.dumps(absent), *(f"dermino_core.{name}" for name in names))
    assert done.returncode == 0, done.stderr


def test_the_blocker_blocks() -> None:
    done = python(WITHOUT, json.dumps(["flwr"]), "dermino_strategies.protocol")
    assert done.returncode != 0
    assert "No module named 'flwr'" in done.stderr
