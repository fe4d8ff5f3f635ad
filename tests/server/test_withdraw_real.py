"""A late joiner and a withdrawal in a real federation on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import BIN, CONNECTION, SITES, Federation, until

pytestmark = [pytest.mark.slow, pytest.mark.long]

FIRST, SECOND, THIRD = sorted(SITES)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    running = Federation(tmp_path_factory.mktemp("federation"))
    running.provision()
    running.start_superlink()
    running.register()
    try:
        yield running
    finally:
        running.stop_all()


def ridge(federation: Federation, run: Path, *extra: str) -> bytes:
    done = federation.run(
        *(str(BIN / "dermino"), "federate", "--superlink", CONNECTION),
        *("--no-report", "--out", str(run), *extra),
    )
    assert done.returncode == 0, done.stderr + federation.log("superlink")
    return (run / "model" / "model.safetensors").read_bytes()


def test_one_joins_while_the_first_is_away_and_the_second_leaves(federation: Federation) -> None:
    """The model is that of a run of the first and the third, to the bit."""
    runs = federation.keys / "runs"
    for name in SITES:
        federation.start_client(name)
    assert until(lambda: all(map(federation.connected, SITES)), seconds=180)
    method = ("--backbone", "demo", "--precision", "fp32", "--strategy", "ridge")
    ridge(federation, runs / "first", *method, "--site", FIRST, "--site", SECOND)
    wanted = ridge(federation, runs / "wanted", *method, "--site", FIRST, "--site", THIRD)
    away = federation.processes.pop(FIRST)
    away.terminate()
    away.wait(timeout=60)
    later = ("--extend", str(runs / "first"), "--site", THIRD, "--wait", "20", "--deadline", "120")
    ridge(federation, runs / "later", *later)
    done = federation.run(
        *(str(BIN / "dermino"), "withdraw", "--run", str(runs / "later"), "--site", SECOND)
    )
    assert done.returncode == 0, done.stderr
    new = runs / f"later-without-{SECOND}"
    assert (new / "model" / "model.safetensors").read_bytes() == wanted
    done = federation.run(
        *(str(BIN / "dermino-client"), "receipt", str(new / "receipt.json")),
        *("--site", SECOND, "--sites-dir", str(federation.sites)),
    )
    assert done.returncode == 0, done.stderr
    assert "the audit log has these very sums" in done.stdout
    done = federation.run(
        *(str(BIN / "dermino-client"), "receipt", str(new / "receipt.json")),
        *("--site", FIRST, "--sites-dir", str(federation.sites)),
    )
    assert done.returncode == 8
