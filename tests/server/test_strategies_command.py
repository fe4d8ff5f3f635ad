"""`dermino strategies` says what the methods really do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from dermino_core.errors import DerminoError
from dermino_server.commands.options import parse_settings
from dermino_server.commands.strategies import EXAMPLE, strategies
from dermino_strategies.base import Additive, Private, SiteData, Tuning
from dermino_strategies.facts import ATTACKS, FACTS, facts_of
from dermino_strategies.registry import STRATEGIES, get_strategy

APP = typer.Typer()
APP.command()(strategies)
METHODS = sorted(STRATEGIES)
ON_IMAGES = [name for name, (make, _) in STRATEGIES.items() if issubclass(make, Tuning)]
"""Methods that train on images, which these tests do not have; see test_lora.py."""


def run(*arguments: str) -> str:
    """The command's output; its errors are raised here."""
    done = CliRunner().invoke(APP, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def rows(*arguments: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(run("--json", *arguments))}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_facts(name: str) -> None:
    assert name in FACTS, f"add '{name}' to dermino_strategies/facts.py"
    facts = facts_of(name)
    assert facts.title
    assert any(year in facts.citation for year in map(str, range(1900, 2030)))
    assert facts.leaves
    assert facts.rounds >= 1
    assert set(facts.survives) <= set(ATTACKS)
    assert get_strategy(name).name == name


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ON_IMAGES])
def test_what_is_said_to_leave_is_what_leaves(name: str) -> None:
    """Against a site's real update, not against what the method says of itself."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 12)).astype(np.float32)
    strategy = get_strategy(name)
    arrays = strategy.initial_arrays(3, 12, seed=0)
    data = SiteData("a", x, np.arange(40) % 3, 3, groups=tuple(map(str, range(40))))
    update = strategy.site_update(data, arrays, 1, 0)
    row = rows(name, "--width", "12", "--classes", "3")[name]
    said = {array["name"]: (tuple(array["shape"]), array["dtype"]) for array in row["leaving"]}
    assert said == {key: (a.shape, str(a.dtype)) for key, a in update.arrays.items()}
    assert row["bytes_from_site"] == sum(a.nbytes for a in update.arrays.values())
    assert row["secure_aggregation"] == isinstance(strategy, Additive)
    assert row["differential_privacy"] == isinstance(strategy, Private)


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_those_of_the_method(name: str) -> None:
    """Each can be given back as it is printed."""
    lines = run(name).partition("settings (--set KEY=VALUE):\n")[2].splitlines()
    pairs = [line.strip().split("  (")[0].replace(" = ", "=", 1) for line in lines]
    settings_type = STRATEGIES[name][1]
    given = parse_settings(pairs)
    assert set(given) == set(settings_type.model_fields)
    assert settings_type.model_validate(given) == settings_type()


def test_the_table_names_every_method() -> None:
    text = run()
    for name in METHODS:
        assert any(line.split()[:1] == [name] for line in text.splitlines())
        assert FACTS[name].title in text
    assert list(rows()) == METHODS


def test_bytes_follow_the_width() -> None:
    small, large = rows("--width", "384"), rows("--width", "768")
    assert small["fedavg"]["bytes_from_site"] == 4 * (2 * 384 + 2)
    assert large["fedavg"]["bytes_from_site"] == 4 * (2 * 768 + 2)
    assert f"{4 * (2 * 384 + 2):,} bytes" in run("fedavg", "--width", "384")


def test_limits_and_choices_are_told() -> None:
    text = run("fedavg")
    assert "learning_rate = 0.0002  (above 0 to 10" in text
    assert 'initial_head = "uniform"  (uniform or zeros' in text
    assert "McMahan et al. 2017" in text


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(DerminoError, match=r"Known: .*fedavg"):
        run("fedmagic")


def test_the_example_uses_options_that_exist() -> None:
    for command in EXAMPLE.removeprefix("Example: ").split("; "):
        arguments = command.removeprefix("dermino strategies").split()
        if not arguments or arguments[0].startswith("--") or arguments[0] in STRATEGIES:
            run(*arguments)
