"""The real thing on loopback: TLS, node authentication, three hospitals, kills and refusals."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from federation import BIN, SITES, Federation, free_port, until  # beside this file
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    running = Federation(tmp_path_factory.mktemp("federation"))
    running.provision()
    running.start_superlink()
    running.register()
    try:
        for name in SITES:
            running.start_client(name)
        for name in SITES:
            assert until(lambda name=name: running.connected(name), seconds=180), running.log(name)
        yield running
    finally:
        running.stop_all()


def test_federation_gives_the_weights_of_the_simulation(federation: Federation) -> None:
    out = federation.folder / "federated"
    done = federation.federate(out, "--strategy", "ridge")
    assert done.returncode == 0, done.stdout + done.stderr + federation.log("superlink")[-3000:]
    simulated = federation.folder / "simulated"
    again = federation.run(
        *(str(BIN / "dermino"), "simulate", "--sites", str(federation.sites)),
        *("--strategy", "ridge", "--no-report", "--out", str(simulated)),
    )
    assert again.returncode == 0, again.stderr
    real = load_file(out / "model" / "model.safetensors")
    for name, array in load_file(simulated / "model" / "model.safetensors").items():
        np.testing.assert_allclose(real[name], array, atol=1e-8, rtol=0)
    results = json.loads((out / "results.json").read_text())
    assert results["engine"] == "deployment"
    assert [s["name"] for s in results["sites"]] == sorted(SITES)
    assert results["missing_sites"] == []


def test_unregistered_key_is_refused_with_words(federation: Federation) -> None:
    from dermino_client.enrol import enrol

    other = federation.folder / "strangers"
    enrol(other, "stranger")
    key = other / "keys" / "node.key"
    _stranger(federation, "stranger", private_key=str(key))
    process = federation.start_client("stranger")
    assert process.wait(timeout=120) == 6, federation.log("stranger")
    log = federation.log("stranger")
    assert "refuses the key of stranger" in log
    assert "the coordinator" in log


def test_client_without_the_authority_refuses_to_connect(federation: Federation) -> None:
    from dermino_server.provisioning import provision

    other = federation.folder / "impostor"
    provision(other, hosts=["127.0.0.1"])
    _stranger(federation, "misled", root_certificates=str(other / "ca.crt"))
    process = federation.start_client("misled")
    assert process.wait(timeout=120) == 6, federation.log("misled")
    log = federation.log("misled")
    assert "certificate is not trusted" in log
    assert "Ask the coordinator for a new bundle" in log
    assert "SuperNode" not in log

    _stranger(federation, "bare", root_certificates=str(federation.folder / "nowhere.crt"))
    assert federation.start_client("bare").wait(timeout=120) == 6
    assert "CA certificate is missing" in federation.log("bare")


def _stranger(federation: Federation, name: str, **coordinator: str) -> None:
    """A site file like that of a member, under another name and with other credentials."""
    import tomllib

    import tomli_w

    content = tomllib.loads((federation.sites / "synthetic-mednode.toml").read_text())
    content["site"]["name"] = name
    content["coordinator"] |= coordinator
    content["node"]["port"] = free_port()
    folder = federation.folder / "others"
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.toml"
    file.write_text(tomli_w.dumps(content))
    (federation.sites / f"{name}.toml").unlink(missing_ok=True)
    os.symlink(file, federation.sites / f"{name}.toml")


@pytest.fixture
def only_members(federation: Federation) -> None:
    for name in ("stranger", "misled", "bare"):
        (federation.sites / f"{name}.toml").unlink(missing_ok=True)


@pytest.mark.usefixtures("only_members")
def test_killed_server_resumes_to_the_same_weights(federation: Federation) -> None:
    whole = federation.folder / "uninterrupted"
    assert federation.federate(whole, "--rounds", "3").returncode == 0
    cut = federation.folder / "cut"
    coordinator = federation.start(
        "coordinator", *federation.federate_command(cut, "--rounds", "3")
    )
    first = cut / "checkpoints" / "round-0001.safetensors"
    assert until(first.exists, seconds=120), federation.log("coordinator")
    server = _pid_of("flwr-serverapp", federation.port)
    os.kill(server, signal.SIGKILL)
    assert coordinator.wait(timeout=180) == 7, federation.log("coordinator")
    assert not (cut / "results.json").exists()
    resumed = federation.run(
        *(str(BIN / "dermino"), "federate", "--superlink", "loopback", "--no-report"),
        *("--resume", str(cut)),
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    expected = (whole / "model" / "model.safetensors").read_bytes()
    assert (cut / "model" / "model.safetensors").read_bytes() == expected


def _pid_of(program: str, port: int) -> int:
    """The process of this federation's SuperLink: its command line names the port."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if program in line and str(port) in line:
                return int(process.name)
    raise AssertionError(f"no {program} for port {port}")


@pytest.mark.usefixtures("only_members")
def test_site_killed_mid_round(federation: Federation) -> None:
    """With a quorum the round ends without it, by the deadline; without one the run names it."""
    victim = "synthetic-fitzpatrick"
    limits = ("--deadline", "25", "--wait", "10")
    out = federation.folder / "two-of-three"
    messages = federation.log(victim).count("Receiving: train message")
    coordinator = federation.start(
        "coordinator-2", *federation.federate_command(out, "--min-sites", "2", *limits)
    )
    assert until(
        lambda: federation.log(victim).count("Receiving: train message") > messages, seconds=90
    ), federation.log("coordinator-2")
    killed = time.monotonic()
    federation.processes[victim].kill()
    federation.processes[victim].wait()
    assert coordinator.wait(timeout=150) == 0, federation.log("coordinator-2")
    assert time.monotonic() - killed < 120
    results = json.loads((out / "results.json").read_text())
    assert results["missing_sites"] == [victim]
    assert f"round 1: without {victim}" in federation.log("coordinator-2")
    failed = federation.federate(federation.folder / "three-of-three", *limits)
    assert failed.returncode == 7, failed.stdout + failed.stderr
    assert victim in failed.stderr
    assert not (federation.folder / "three-of-three" / "model").exists()


@pytest.mark.usefixtures("only_members")
def test_clients_outlive_a_superlink_restart_and_end_on_sigterm(federation: Federation) -> None:
    federation.processes["superlink"].terminate()
    federation.processes["superlink"].wait(timeout=60)
    federation.start_superlink()
    out = federation.folder / "after-restart"
    done = federation.run(
        *(str(BIN / "dermino"), "federate", "--superlink", "loopback", "--backbone", "demo"),
        *("--site", "synthetic-mednode", "--site", "synthetic-ph2", "--precision", "fp32"),
        *("--wait", "120", "--no-report", "--out", str(out)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    process = federation.processes["synthetic-ph2"]
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert "synthetic-ph2: stopped" in federation.log("synthetic-ph2")
