"""Three hospitals from empty folders to a secure and private run; a fourth comes, one has to go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from consortium import Consortium  # beside this file
from federation import BIN, CONNECTION, until
from safetensors.numpy import load_file

from dermino_client.audit import AuditLog
from dermino_client.ledger import Ledger
from dermino_core.results import Results, read_results

pytestmark = [pytest.mark.slow, pytest.mark.long]

THREE = ("mednode", "ph2", "fitzpatrick17k")


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    running = Consortium(tmp_path_factory.mktemp("trust"))
    running.init()
    running.start_superlink()
    try:
        for name in THREE:
            running.enter(name)
        for name in THREE:
            assert until(lambda name=name: running.connected(name), seconds=180), running.log(name)
        yield running
    finally:
        running.stop_all()


def federate(
    consortium: Consortium, out: str, *extra: str, sites: tuple[str, ...] = THREE
) -> tuple[Path, Results]:
    folder = consortium.folder / out
    done = consortium.run(
        *(str(BIN / "dermino"), "federate", "--superlink", CONNECTION, "--backbone", "demo"),
        *(part for name in sites for part in ("--site", name)),
        *("--rounds", "1", "--precision", "fp32", "--no-report"),
        *("--out", str(folder), *extra),
        timeout=580,
    )
    logs = "".join(consortium.log(name)[-1500:] for name in ("superlink", *sites))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    return folder, read_results(folder)


def head_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model" / "model.safetensors")


def test_a_secure_run_gives_the_plain_result(consortium: Consortium) -> None:
    plain, before = federate(consortium, "plain")
    secure, after = federate(consortium, "secure", "--secure-aggregation")
    for name, array in head_of(plain).items():
        np.testing.assert_allclose(head_of(secure)[name], array, atol=1e-5, rtol=0)
    assert after.totals is not None
    assert after.totals.sites == sorted(THREE)
    assert after.sites == []
    assert after.mean["global"].auroc.value == pytest.approx(before.mean["global"].auroc.value)


def test_a_fourth_joins_a_secure_and_private_run_and_one_is_revoked(
    consortium: Consortium,
) -> None:
    pids = {name: consortium.processes[name].pid for name in THREE}
    consortium.enter("newcomer")
    assert until(lambda: consortium.connected("newcomer"), seconds=180), consortium.log("newcomer")
    four = (*THREE, "newcomer")
    protection = ("--secure-aggregation", "--epsilon", "8")
    _, results = federate(consortium, "four", *protection, sites=four)
    assert results.totals is not None
    assert results.totals.sites == sorted(four)
    assert set(results.privacy) == set(four)
    assert {name: consortium.processes[name].pid for name in THREE} == pids
    assert all(consortium.processes[name].poll() is None for name in four)
    for name in four:
        _in_ledger_and_audit(consortium.site_folder(name))

    consortium.dermino("revoke", "ph2")
    quorum = ("--secure-aggregation", "--min-sites", "3", "--wait", "5")
    _, without = federate(consortium, "revoked", *quorum, sites=four)
    assert without.totals is not None
    assert "ph2" not in without.totals.sites
    assert without.missing_sites == ["ph2"]
    again = consortium.start_client("ph2")
    assert again.wait(timeout=120) == 6, consortium.log("ph2")


def _in_ledger_and_audit(folder: Path) -> None:
    assert 0 < Ledger(folder / "ledger").spent(delta=1e-5) <= 8
    log = AuditLog(folder / "audit")
    log.verify()
    costs = [record.epsilon for _, record in log.records() if record.epsilon is not None]
    assert len(costs) == 1
    kinds = {record.kind for _, record in log.records()}
    assert {"SecureRequest", "SecureReply"} <= kinds


def test_a_policy_refuses_in_words_and_the_others_go_on(consortium: Consortium) -> None:
    file = consortium.sites / "newcomer.toml"
    file.write_text(file.read_text() + '\n[policy]\nstrategies = ["ridge"]\n')
    check = (str(BIN / "dermino-client"), "check", "--site", "newcomer")
    assert consortium.run(*check, "--sites-dir", str(consortium.sites)).returncode == 0
    three = ("mednode", "fitzpatrick17k", "newcomer")
    _, results = federate(consortium, "policy", "--min-sites", "2", sites=three)
    assert results.missing_sites == ["newcomer"]
    codes = {r.code for record in results.rounds for r in record.rejected}
    assert codes == {"POLICY_REFUSED"}
    assert "strategies: it asks for 'fedavg', allowed is 'ridge'" in consortium.log("newcomer")
    records = [
        json.loads(line)
        for line in consortium.run(
            *(str(BIN / "dermino-client"), "audit", "show", "--site", "newcomer", "--json"),
            *("--sites-dir", str(consortium.sites)),
        ).stdout.splitlines()
    ]
    assert any(record.get("decision") == "POLICY_REFUSED" for record in records)
