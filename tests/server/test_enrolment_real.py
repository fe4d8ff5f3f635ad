"""Enrolment for real: commands only, TLS, a SuperLink on loopback, hospitals that come and go."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from consortium import Consortium  # beside this file
from enrolling import HOST, admit, ask
from federation import BIN, free_port, until

from dermino_core.enrolment import Bundle, check_bundle, read_signed
from dermino_core.errors import DerminoError
from dermino_server.provisioning import provision
from dermino_server.revocation import revoke
from dermino_server.roster import read_roster, write_roster

pytestmark = pytest.mark.slow


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    out = tmp_path / "keys"
    provision(out, hosts=[HOST])
    return out


@pytest.fixture
def flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    return tmp_path / "flower"


def test_without_a_superlink_all_else_is_kept(keys: Path, tmp_path: Path, flower: Path) -> None:
    federation = json.loads((keys / "federation.json").read_text())
    federation["superlink"] = f"127.0.0.1:{free_port()}"
    (keys / "federation.json").write_text(json.dumps(federation))
    request = ask(tmp_path)
    with pytest.raises(DerminoError, match="accepted and its bundle is written") as caught:
        admit(keys, request, register=True)
    assert caught.value.code == "CONNECTION_FAILED"
    assert "run the same command again" in str(caught.value.fix)
    entry = read_roster(keys).member("mednode")
    assert entry is not None
    assert entry.node_id is None
    check_bundle(read_signed(keys / "sites/mednode/mednode.bundle.json", Bundle))
    assert admit(keys, request).kind == "same"
    with pytest.raises(DerminoError, match="revoked in the roster, and can still") as caught:
        revoke(keys, "mednode")
    assert caught.value.code == "CONNECTION_FAILED"
    assert read_roster(keys).member("mednode") is None
    assert not read_roster(keys).sites[0].unregistered


# ---------------------------------------------------------------- the real thing


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    running = Consortium(tmp_path_factory.mktemp("consortium"))
    running.init()
    running.start_superlink()
    try:
        yield running
    finally:
        running.stop_all()


def test_the_superlink_is_asked_for_an_id_that_the_roster_lost(consortium: Consortium) -> None:
    """Stopped between registering and writing it down; or registered by hand."""
    consortium.ask("forgotten")
    request = consortium.site_folder("forgotten") / "forgotten.request.json"
    consortium.dermino("accept", str(request), "--yes")
    roster = read_roster(consortium.keys)
    entry = roster.member("forgotten")
    assert entry is not None
    node_id, entry.node_id = entry.node_id, None
    write_roster(consortium.keys, roster)
    assert "not registered" in consortium.dermino("list")
    consortium.dermino("accept", str(request))
    entry = read_roster(consortium.keys).member("forgotten")
    assert entry is not None
    assert entry.node_id == node_id
    entry.node_id = None
    roster = read_roster(consortium.keys)
    before = consortium.count("unregistered")
    for each in roster.sites:
        each.node_id = None if each.name == "forgotten" else each.node_id
    write_roster(consortium.keys, roster)
    consortium.dermino("revoke", "forgotten")
    assert consortium.count("unregistered") == before + 1


def test_a_renewed_node_key_takes_the_place_of_the_old_one(consortium: Consortium) -> None:
    name = "renewing"
    consortium.enter(name)
    assert until(lambda: consortium.connected(name), seconds=120), consortium.log(name)
    before = read_roster(consortium.keys).member(name)
    assert before is not None
    request, fingerprint = consortium.ask(name, "--renew", "--new-node-key")
    consortium.dermino("accept", request, "--fingerprint", fingerprint)
    assert consortium.processes[name].wait(timeout=30) == 6, consortium.log(name)
    after = read_roster(consortium.keys).member(name)
    assert after is not None
    assert [former.node_id for former in after.former_nodes] == [before.node_id]
    assert after.former_nodes[0].unregistered
    connected = consortium.log(name).count("SuperNode ID")
    bundle = str(consortium.keys / "sites" / name / f"{name}.bundle.json")
    consortium.start_client(name, "--bundle", bundle)  # the authority is known: nothing to compare
    assert until(lambda: consortium.log(name).count("SuperNode ID") > connected, seconds=120), (
        consortium.log(name)
    )
    consortium.stop(name)


def test_hospitals_come_and_go(consortium: Consortium) -> None:
    """From empty folders; a fourth disturbs nobody; a revoked one is out, and comes back anew."""
    three = ("mednode", "ph2", "fitzpatrick17k")
    for name in three:
        consortium.enter(name)
    for name in three:
        assert until(lambda name=name: consortium.connected(name), seconds=120), consortium.log(
            name
        )
    logs = {name: consortium.log(name).count("SuperNode ID") for name in three}
    consortium.enter("fourth")
    assert until(lambda: consortium.connected("fourth"), seconds=120), consortium.log("fourth")
    assert consortium.count("online") == 4
    assert {name: consortium.log(name).count("SuperNode ID") for name in three} == logs
    assert not [name for name in three if consortium.processes[name].poll() is not None]

    request = str(consortium.keys / "sites/mednode/mednode.request.json")
    consortium.dermino("revoke", "mednode")
    revoked = time.monotonic()
    assert consortium.processes["mednode"].wait(timeout=30) == 6, consortium.log("mednode")
    assert time.monotonic() - revoked < 20
    assert "no longer accepts mednode" in consortium.log("mednode")
    assert consortium.start_client("mednode").wait(timeout=120) == 6
    assert "refuses the key of mednode" in consortium.log("mednode")
    words = ("provision", "accept", request, "--out", str(consortium.keys), "--yes")
    again = consortium.run(str(BIN / "dermino"), *words)
    assert again.returncode == 8, again.stdout
    assert "revoked keys never come back" in again.stderr
    assert consortium.count("online") == 3
    assert "mednode: revoked on" in consortium.dermino("list")

    site = consortium.site_folder("mednode")
    shutil.move(site / "keys", site / "lost")
    (site / "bundle.json").unlink()
    connected = consortium.log("mednode").count("SuperNode ID")
    consortium.enter("mednode")
    assert until(
        lambda: consortium.log("mednode").count("SuperNode ID") > connected, seconds=120
    ), consortium.log("mednode")
    assert consortium.count("online") == 4
