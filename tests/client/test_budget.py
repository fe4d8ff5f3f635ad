"""`dermino-client budget`: what a person at a hospital reads about the privacy ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import tomli_w
import typer
from click.testing import Result
from typer.testing import CliRunner

from dermino_client.commands.budget import budget
from dermino_client.ledger import YEAR, Ledger, Limits
from dermino_core.errors import DerminoError
from dermino_core.privacy.accounting import epsilon
from dermino_core.privacy.plan import Mechanism

SIGMA, STEPS, DELTA = 10.0, 4, 1e-5


def call(sites: Path, policy: dict[str, object], *extra: str) -> Result:
    content = {
        "site": {"name": "clinic"},
        "data": {"manifest": "manifest.csv"},
        "labels": {"melanoma": "malignant"},
        "policy": policy,
    }
    (sites / "clinic.toml").write_text(tomli_w.dumps(content))
    app = typer.Typer()
    app.command()(budget)
    return CliRunner().invoke(app, ["--site", "clinic", "--sites-dir", str(sites), *extra])


def show(sites: Path, policy: dict[str, object], *extra: str) -> list[str]:
    done = call(sites, policy, *extra)
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def cost(rounds: int, delta: float = DELTA) -> float:
    return epsilon([Mechanism(SIGMA, 1.0, STEPS * rounds)], delta)


def reserve(ledger: Ledger, run: str, rounds: int, now: datetime) -> None:
    ledger.reserve(run, "dpfedavg", Mechanism(SIGMA, 1.0, STEPS), rounds, DELTA, Limits(), now)


def test_an_empty_ledger(tmp_path: Path) -> None:
    without = "without limit ([policy] of the site file sets none)"
    assert show(tmp_path, {}) == [
        f"clinic: a run may cost epsilon {without}",
        f"clinic: 365 days may cost epsilon {without} at delta 1e-05",
        "clinic: no run has reserved anything yet",
        "clinic: the last 365 days cost epsilon 0 at delta 1e-05",
    ]
    assert not (tmp_path / "clinic.site").exists()


def test_runs_and_what_is_left(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "clinic.site" / "ledger")
    today = datetime.now(UTC)
    reserve(ledger, "old", 5, today - 2 * YEAR)
    reserve(ledger, "a\x1b", 3, today)
    ledger.begin("a\x1b", 1, today)
    reserve(ledger, "b", 4, today)
    ledger.begin("b", 1, today)
    ledger.close("b", today)
    policy = {"epsilon_per_run": 2.0, "epsilon_per_year": 8.0, "delta": 1e-4}
    lines = show(tmp_path, policy)
    one, three, five = (f"epsilon {cost(rounds):.4g} at delta 1e-05" for rounds in (1, 3, 5))
    year = cost(4, delta=1e-4)
    assert lines == [
        "clinic: a run may cost epsilon 2",
        "clinic: 365 days may cost epsilon 8 at delta 0.0001",
        f"  {today - 2 * YEAR:%Y-%m-%d}  run old  dpfedavg  open, 0 of 5 rounds begun  {five} "
        "(begun so far: 0)",
        f"  {today:%Y-%m-%d}  run a\\x1b  dpfedavg  open, 1 of 3 rounds begun  {three} "
        f"(begun so far: {cost(1):.4g})",
        f"  {today:%Y-%m-%d}  run b  dpfedavg  closed, 1 of 4 rounds begun  {one}",
        f"clinic: the last 365 days cost epsilon {year:.4g} at delta 0.0001",
        f"clinic: left of the year: epsilon {8 - year:.4g}",
        f"ledger: entry 6, hash {ledger.verify().head}",
    ]
    assert "clinic: left of the year: epsilon 0" in show(tmp_path, {"epsilon_per_year": 0.01})
    ledger.begin("b", 1, today + timedelta(days=9))
    assert "check this machine's clock" in " ".join(show(tmp_path, {}))


def test_an_abandoned_run_is_closed_by_hand(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "clinic.site" / "ledger")
    today = datetime.now(UTC)
    reserve(ledger, "left", 5, today)
    ledger.begin("left", 1, today)
    assert any("open, 1 of 5" in line for line in show(tmp_path, {}))
    lines = show(tmp_path, {}, "--close", "left")
    assert any("closed, 1 of 5" in line for line in lines)
    assert f"the last 365 days cost epsilon {cost(1):.4g}" in " ".join(lines)
    failed = call(tmp_path, {}, "--close", "nobody")
    assert isinstance(failed.exception, DerminoError)
    assert "knows no run nobody" in failed.exception.what


def test_it_explains_itself(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(budget)
    done = CliRunner().invoke(app, ["--help"])
    assert "Example: dermino-client budget --site mednode" in done.output
    missing = CliRunner().invoke(app, [])
    assert isinstance(missing.exception, DerminoError)
    assert missing.exception.code == "CONFIG_INVALID"
