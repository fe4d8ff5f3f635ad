"""The audit log: what it says, what it keeps to itself, and what killed writers leave of it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from typer.testing import CliRunner, Result

from dermino_client.audit import ArrayDigest, AuditLog, digest_of
from dermino_client.commands.audit import audit_app
from dermino_client.journal import Journal
from dermino_core.errors import DerminoError

_SPEC = importlib.util.spec_from_file_location(
    "kill_writer", Path(__file__).with_name("kill_writer.py")
)
kill_writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(kill_writer)


def digests_of(groups: dict[str, dict[str, np.ndarray]]) -> dict[str, ArrayDigest]:
    return {
        f"{group}/{name}": digest_of(array.tobytes(), str(array.dtype), array.shape)
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")
    arrays = {"arrays": {"weight": np.arange(6.0).reshape(2, 3).T, "bias": np.float32([1])}}
    digests = digests_of(arrays)
    before = datetime.now(UTC)
    log.noted("started with the policy of 2026-01-01")
    log.received("TrainRequest", run="17", round_=3, size=1234, digests=digests)
    log.received("TrainRequest", run="17", round_=4, size=9, decision="BUDGET_EXCEEDED")
    log.sent("TrainReply", run="17", round_=3, size=77, digests=digests, epsilon=0.25, note="ok")
    after = datetime.now(UTC)
    records = [record for _, record in AuditLog(tmp_path / "audit").records()]
    assert [r.direction for r in records] == ["note", "in", "in", "out"]
    assert [r.kind for r in records] == ["note", "TrainRequest", "TrainRequest", "TrainReply"]
    assert [r.run for r in records] == [None, "17", "17", "17"]
    assert [r.round for r in records] == [None, 3, 4, 3]
    assert [r.bytes for r in records] == [0, 1234, 9, 77]
    assert [r.decision for r in records] == ["allowed", "allowed", "BUDGET_EXCEEDED", "allowed"]
    assert [r.epsilon for r in records] == [None, None, None, 0.25]
    assert [r.note for r in records] == ["started with the policy of 2026-01-01", "", "", "ok"]
    assert records[1].digests == records[3].digests == digests
    assert all(before <= r.time <= after for r in records)
    assert all(r.time.utcoffset() == timedelta(0) for r in records)
    assert log.verify().entries == 4


def test_digests_are_those_of_the_bytes() -> None:
    assert digest_of(b"abc", "float64", (3, 2)) == ArrayDigest(
        sha256=hashlib.sha256(b"abc").hexdigest(), dtype="float64", shape=(3, 2), bytes=3
    )
    weight = np.arange(6.0).reshape(2, 3).T
    other = weight.copy()
    other[0, 0] += 1e-12
    assert digests_of({"a": {"w": weight}}) != digests_of({"a": {"w": other}})


def test_contents_of_arrays_are_not_kept(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.sent("TrainReply", digests=digests_of({"arrays": {"w": np.full(100_000, 1.2345678)}}))
    text = "".join(file.read_text() for file in tmp_path.glob("journal-*"))
    assert "2345678" not in text
    assert len(text) < 800


def test_no_message_is_too_odd_to_be_recorded(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    odd = {"g/" + "n\ud800" * 500: digests_of({"g": {"n": np.zeros(1)}})["g/n"]}
    log.received("k" * 999, run="\ud800\n" * 999, round_=-(2**70), note="x" * 9999, digests=odd)
    ((_, record),) = log.records()
    assert len(record.kind) == len(record.run or "") == 200
    assert record.kind.endswith("k…")
    assert (record.run or "").startswith("\\ud800\n")
    assert record.round == -(2**70)
    assert len(record.note) == 2000
    assert len(next(iter(record.digests))) == 200
    with pytest.raises(ValueError, match="neither 'allowed' nor"):
        log.received("TrainRequest", decision="perhaps")
    with pytest.raises(ValueError, match="epsilon"):
        log.sent("TrainReply", epsilon=float("nan"))
    assert log.verify().entries == 1


def test_what_is_no_audit_record(tmp_path: Path) -> None:
    Journal(tmp_path).append({"event": "begin"})
    with pytest.raises(DerminoError, match="Entry 1 is not a line of an audit log") as caught:
        list(AuditLog(tmp_path).records())
    assert caught.value.code == "AUDIT_INVALID"


# Writers that are killed.


def kill_many(folder: Path, kills: int) -> None:
    chance = random.Random(7)
    acknowledged: dict[int, str] = {}
    log = AuditLog(folder)
    with kill_writer.Writers("audit", folder, 3000) as writers:
        for number in range(kills):
            told = writers.write_until_killed(f"run{number}", chance)
            acknowledged |= {int(seq): digest for seq, digest in told}
            assert log.verify().entries in (len(acknowledged), len(acknowledged) + 1)
            entry = log.noted("after the kill")
            acknowledged[entry.seq] = entry.hash
            verified = log.verify()
            assert verified.interrupted is False
            hashes = {entry.seq: entry.hash for entry, _ in log.records()}
            # An entry that was whole when its writer was killed is in, and no one was told.
            acknowledged |= {seq: hashes[seq] for seq in hashes.keys() - acknowledged.keys()}
            assert hashes == acknowledged
    assert len(acknowledged) > 2 * kills
    assert log.verify().files > 2


def test_killed_writers_lose_nothing(tmp_path: Path) -> None:
    kill_many(tmp_path / "audit", 10)


@pytest.mark.slow
def test_a_hundred_killed_writers_lose_nothing(tmp_path: Path) -> None:
    kill_many(tmp_path / "audit", 100)


@pytest.mark.parametrize("rotate", [1, 10**6])
def test_killed_at_every_step(tmp_path: Path, rotate: int) -> None:
    """Before each call that changes a file, from making the folder on; writes half done."""
    log = AuditLog(tmp_path / "audit")
    acknowledged: list[tuple[str, str]] = []
    with kill_writer.Writers("audit", tmp_path / "audit", rotate) as writers:
        for step in range(1, 99):
            told, lived = writers.write(f"run{step}", 2, die_at=step)
            acknowledged += told
            log.verify()
            hashes = [(str(entry.seq), entry.hash) for entry, _ in log.records()]
            assert set(acknowledged) <= set(hashes)
            assert [seq for seq, _ in hashes] == [str(n + 1) for n in range(len(hashes))]
            if lived:
                break
    assert lived
    assert step > 16
    log.noted("after the last kill")
    assert log.verify().interrupted is False


# Commands.


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    content = {
        "site": {"name": "clinic"},
        "data": {"manifest": "manifest.csv"},
        "labels": {"melanoma": "malignant"},
        "node": {"folder": "kept"},
    }
    (tmp_path / "clinic.toml").write_text(tomli_w.dumps(content))
    return tmp_path


def call(sites: Path, *arguments: str) -> Result:
    options = ["--site", "clinic", "--sites-dir", str(sites)]
    return CliRunner().invoke(audit_app, [arguments[0], *options, *arguments[1:]])


def code_of(result: Result) -> str:
    assert isinstance(result.exception, DerminoError), result.output
    return result.exception.code


def test_verify_says_what_to_write_down(sites: Path) -> None:
    done = call(sites, "verify")
    assert done.exit_code == 0
    assert "nothing was recorded yet" in done.output
    assert not (sites / "kept").exists()
    log = AuditLog(sites / "kept" / "audit")
    hashes = [log.sent("TrainReply", run=str(number)).hash for number in range(3)]
    done = call(sites, "verify", "--contains", hashes[1].upper())
    assert done.exit_code == 0
    assert "3 entries in 1 files are unchanged" in done.output
    assert f"Write down: entry 3, hash {hashes[2]}" in done.output
    assert "The hash is that of entry 2" in done.output
    assert code_of(call(sites, "verify", "--contains", "0" * 64)) == "AUDIT_INVALID"
    file = sites / "kept" / "audit" / "journal-000001.jsonl"
    with file.open("ab") as stream:
        stream.write(b'{"hash":')
    assert "was interrupted" in call(sites, "verify").output
    file.write_bytes(file.read_bytes().replace(b'"run":"1"', b'"run":"7"'))
    failed = call(sites, "verify")
    assert code_of(failed) == "AUDIT_INVALID"
    assert failed.exception.exit_code == 8
    assert "Line 2 of journal-000001.jsonl was changed" in str(failed.exception)


def test_show(sites: Path) -> None:
    log = AuditLog(sites / "kept" / "audit")
    digests = digests_of({"arrays": {"weight": np.zeros((2, 3))}})
    for number in range(30):
        log.received("TrainRequest", run=str(number % 2), round_=number, size=12_345)
    log.sent("TrainReply", run="1", round_=30, size=48, digests=digests, epsilon=0.125)
    log.sent("Refusal", run="1", decision="OUTSIDE_HOURS", note="\x1b[31m\nred")
    log.noted("new policy")
    lines = call(sites, "show").output.splitlines()
    assert len(lines) == 21
    assert lines[-1].split()[0] == "33"
    assert lines[-1].endswith("note  note  new policy")
    assert "Refusal  run 1  0 bytes  OUTSIDE_HOURS  \\x1b[31m\\nred" in lines[-2]
    assert lines[-3].split() == [
        *("arrays/weight", "float64", "[2,", "3]", "48", "bytes", "sha256"),
        hashlib.sha256(bytes(48)).hexdigest()[:16],
    ]
    assert "run 1  round 30  48 bytes  allowed  epsilon 0.125" in lines[-4]
    assert "TrainRequest  run 1  round 29  12,345 bytes  allowed" in lines[-5]
    assert len(call(sites, "show", "--last", "0").output.splitlines()) == 34
    zeros = call(sites, "show", "--run", "0", "--last", "3").output.splitlines()
    assert [line.split("round ")[1].split()[0] for line in zeros] == ["24", "26", "28"]
    whole = [json.loads(line) for line in call(sites, "show", "--json").output.splitlines()]
    assert [record["seq"] for record in whole] == list(range(14, 34))
    assert whole[-1]["hash"] == log.verify().head
    assert whole[-3]["digests"] == {
        "arrays/weight": digests["arrays/weight"].model_dump(mode="json")
    }


def test_commands_explain_themselves(sites: Path) -> None:
    for command in ("verify", "show"):
        done = CliRunner().invoke(audit_app, [command, "--help"])
        assert f"Example: dermino-client audit {command} --site" in done.output
        missing = CliRunner().invoke(audit_app, [command])
        assert code_of(missing) == "CONFIG_INVALID"
        assert f"{command} --site NAME" in str(missing.exception)
    nowhere = CliRunner().invoke(audit_app, ["show", "--site", "other", "--sites-dir", str(sites)])
    assert code_of(nowhere) == "CONFIG_NOT_FOUND"
    before = CliRunner().invoke(audit_app, ["verify"], obj=("clinic", sites))
    assert before.exit_code == 0
