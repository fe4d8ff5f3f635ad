"""A site leaves a finished run, others join it: real apps in one process, exact to the bit."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import withdrawing
from federation import contents
from safetensors.numpy import load_file
from withdrawing import (
    SIGNER,
    assert_same_model,
    join,
    killed,
    model_bytes,
    ridge,
    ridge_of,
    run,
    without,
)

from dermino_client.audit import AuditLog
from dermino_client.hospital import Hospital
from dermino_core.errors import DerminoError
from dermino_core.model_folder import load_model
from dermino_core.withdrawal_receipt import check_receipt, read_receipt
from dermino_server import withdraw as module
from dermino_server.kept_run import PENDING_FILE, read_kept_run
from dermino_server.kept_sums import KeptSums
from dermino_server.plan import read_plan
from dermino_server.withdraw import withdraw
from dermino_strategies.base import SiteData
from dermino_strategies.ridge import Ridge

sites, finished, first = withdrawing.sites, withdrawing.finished, withdrawing.first


def test_the_model_is_that_of_a_run_that_never_asked_the_site(
    sites: dict[str, Hospital], first: Path, tmp_path: Path
) -> None:
    before = model_bytes(first)
    done = withdraw(first, "beta", SIGNER)
    rest = without(sites, "beta")
    run(rest, ridge(sites=sorted(rest), min_sites=2), tmp_path / "fresh")
    assert done.folder == tmp_path / "first-without-beta"
    assert model_bytes(done.folder) == model_bytes(tmp_path / "fresh") != before
    assert_same_model(done.folder, ridge_of(rest))
    fresh, found = (load_model(f / "model")[1] for f in (tmp_path / "fresh", done.folder))
    assert found.trained_on == fresh.trained_on
    assert read_plan(done.folder).sites == ["alpha", "gamma"]
    assert read_plan(done.folder).withdrawn == ["beta"]
    assert not (done.folder / "results.json").exists()
    card = (done.folder / "model" / "README.md").read_text()
    assert "has not been evaluated" in card
    assert "beta was never asked" in card
    assert "AUROC" not in card


def test_what_was_sent_is_kept_as_it_came_for_the_coordinators_eyes(
    sites: dict[str, Hospital], first: Path
) -> None:
    assert sorted(p.name for p in (first / "sums").iterdir()) == [
        *("alpha.safetensors", "beta.safetensors", "gamma.safetensors", "index.json"),
    ]
    assert stat.S_IMODE((first / "sums").stat().st_mode) == 0o700
    file = first / "sums" / "beta.safetensors"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    x, y, groups = sites["beta"].prepared.half("train")
    sent = Ridge().site_update(
        SiteData("beta", x, y, 2, groups=tuple(groups)), Ridge().initial_arrays(2, 8, 0), 1, 0
    )
    found = load_file(file)
    assert set(found) == set(sent.arrays)
    for name, array in sent.arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert KeptSums(first).index["beta"].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_nothing_of_the_site_is_left_but_what_the_receipt_says(first: Path, tmp_path: Path) -> None:
    old, model = load_file(first / "sums" / "beta.safetensors"), model_bytes(first)
    receipt = withdraw(first, "beta", SIGNER).receipt
    assert not (first / "sums").exists()
    assert not (first / "checkpoints").exists()
    assert model_bytes(first) == model
    needles = [a.tobytes() for a in old.values() if a.nbytes > 16]
    for name, content in contents(tmp_path).items():
        assert not any(needle in content for needle in needles), name
    assert receipt.old_model == hashlib.sha256(model).hexdigest()
    assert receipt.erased[0] == "the sums of beta (sums/beta.safetensors)"
    said = " ".join(receipt.not_undone)
    for word in ("earlier model", "handed out", "report", "alone", "audit log", "backups"):
        assert word in said
    assert "personal" not in said


def test_the_receipt_holds_and_names_the_sums_as_the_sites_own_log_does(
    sites: dict[str, Hospital], first: Path
) -> None:
    done = withdraw(first, "beta", SIGNER)
    receipt = read_receipt(done.folder / "receipt.json")
    assert receipt == done.receipt
    check_receipt(receipt, None)
    log = AuditLog(sites["beta"].folder / "audit")
    (sent,) = [
        r
        for _, r in log.records()
        if r.direction == "out" and r.kind == "TrainReply" and r.run == receipt.sent_in
    ]
    assert receipt.sent_in == receipt.run
    logged = {n.removeprefix("arrays/"): d.sha256 for n, d in sent.digests.items()}
    assert receipt.sums.items() <= logged.items()
    assert receipt.new_model == hashlib.sha256(model_bytes(done.folder)).hexdigest()


def test_who_withdrew_cannot_be_trained_on_again_by_going_on(first: Path) -> None:
    new = withdraw(first, "beta", SIGNER).folder
    for what in (read_kept_run, lambda f: withdraw(f, "gamma", SIGNER)):
        with pytest.raises(DerminoError, match="beta was withdrawn") as caught:
            what(first)
        assert str(new) in str(caught.value)


def test_the_new_run_can_be_evaluated_left_and_joined_in_turn(
    sites: dict[str, Hospital], first: Path, tmp_path: Path
) -> None:
    new = withdraw(first, "beta", SIGNER).folder
    before = model_bytes(new)
    results = run(without(sites, "beta"), read_plan(new), new, resume=True)
    assert model_bytes(new) == before
    assert [site.name for site in results.sites] == ["alpha", "gamma"]
    assert results.withdrawn == ["beta"]
    assert results.rounds[0].kept == ["alpha", "gamma"]
    assert results.rounds[0].sites == []
    last = withdraw(new, "alpha", SIGNER, out=tmp_path / "last").folder
    assert_same_model(last, ridge_of(without(sites, "alpha", "beta")))
    join(last, sites, {"alpha", "beta"}, tmp_path / "again")
    assert_same_model(tmp_path / "again", ridge_of(sites))
    assert read_plan(tmp_path / "again").withdrawn == []


def test_the_original_can_be_kept_and_the_receipt_says_so(first: Path, tmp_path: Path) -> None:
    before = contents(first)
    done = withdraw(first, "beta", SIGNER, keep_original=True)
    assert contents(first) == before
    assert done.receipt.erased == []
    assert "nothing was erased" in done.receipt.not_undone[0]
    assert withdraw(first, "beta", SIGNER, keep_original=True).again
    with pytest.raises(DerminoError, match="done with --keep-original"):
        withdraw(first, "beta", SIGNER)
    held = withdraw(first, "alpha", SIGNER, out=tmp_path / "other").receipt
    assert "the same sums in other run folders: first-without-beta" in held.not_undone


@pytest.mark.parametrize("step", ["_save_model", "_erase", "_write_receipt", "sign_receipt"])
def test_a_kill_at_any_step_loses_nothing_and_the_same_command_ends_it(
    first: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = withdraw(shutil.copytree(first, first.parent / "copy"), "beta", SIGNER)
    before = contents(first)
    with monkeypatch.context() as patch:
        patch.setattr(module, step, killed)
        with pytest.raises(KeyboardInterrupt):
            withdraw(first, "beta", SIGNER)
    if step == "_save_model":
        assert contents(first) == before
    done = withdraw(first, "beta", SIGNER)
    assert not done.again
    assert {*contents(done.folder)} == {*contents(whole.folder)}
    assert model_bytes(done.folder) == model_bytes(whole.folder)
    assert done.receipt.erased == [
        item.replace("copy-without", "first-without") for item in whole.receipt.erased
    ]
    assert not (first / "sums").exists()
    assert withdraw(first, "beta", SIGNER).receipt == done.receipt
    assert withdraw(first, "beta", SIGNER).again


def test_a_kill_in_the_middle_of_erasing(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(folder: Path) -> None:
        (folder / "beta.safetensors").unlink()
        (folder / "index.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            withdraw(first, "beta", SIGNER)
    new = first.parent / "first-without-beta"
    assert (new / PENDING_FILE).exists()
    with pytest.raises(DerminoError, match="interrupted"):
        withdraw(new, "gamma", SIGNER)
    assert withdraw(first, "beta", SIGNER).receipt.erased
    assert not (first / "sums").exists()
    assert withdraw(new, "gamma", SIGNER).receipt.trained_on == ["alpha"]


def test_a_disk_that_cannot_be_written_loses_nothing(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(first)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def refused(place: object, name: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            with pytest.raises(DerminoError, match="No space left"):
                withdraw(first, "beta", SIGNER)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "access", lambda *_: False)
        with pytest.raises(DerminoError, match="no permission"):
            withdraw(first, "beta", SIGNER)
    refused(module, "write_atomically")
    assert contents(first) == before
    assert [f.name for f in first.parent.iterdir()] == ["first"]
    refused(module.shutil, "rmtree")
    left = contents(first)
    assert left.pop("superseded.json")
    assert left == before
    refused(module, "write_atomically")
    assert withdraw(first, "beta", SIGNER).receipt.erased


@pytest.mark.parametrize("name", ["alpha.safetensors", "gamma.safetensors", "index.json"])
@pytest.mark.parametrize("how", ["changed", "missing"])
def test_damaged_sums_are_found_before_anything_happens(first: Path, name: str, how: str) -> None:
    file = first / "sums" / name
    content = file.read_bytes()
    file.unlink()
    if how == "changed":
        file.write_bytes(content[:-40] + bytes([content[-40] ^ 128]) + content[-39:])
    before = contents(first.parent)
    with pytest.raises(DerminoError) as caught:
        withdraw(first, "beta", SIGNER)
    assert caught.value.exit_code in (3, 8)
    assert contents(first.parent) == before
    file.write_bytes(content)
    assert withdraw(first, "beta", SIGNER).receipt.erased


def test_sums_that_are_not_those_that_came_are_found(first: Path) -> None:
    """The receipt would name what the site never sent."""
    index = first / "sums" / "index.json"
    content = json.loads(index.read_text())
    content["sites"]["beta"]["as_sent"]["total.sums"] = "0" * 64
    index.write_text(json.dumps(content))
    with pytest.raises(DerminoError, match="not those that were noted"):
        withdraw(first, "beta", SIGNER)
    assert not (first.parent / "first-without-beta").exists()


def test_the_leaving_sites_own_sums_are_not_needed(sites: dict[str, Hospital], first: Path) -> None:
    (first / "sums" / "beta.safetensors").write_bytes(b"damaged")
    kept = withdraw(first, "beta", SIGNER, out=first.parent / "a", keep_original=True).receipt
    (first / "sums" / "beta.safetensors").unlink()
    done = withdraw(first, "beta", SIGNER)
    assert done.receipt.sums == kept.sums
    assert_same_model(done.folder, ridge_of(without(sites, "beta")))
    assert len(done.receipt.sums) == 7


def test_runs_that_a_site_cannot_leave_say_why_and_what_to_do(
    sites: dict[str, Hospital], first: Path, tmp_path: Path
) -> None:
    for site, words in (("delta", "no sums of the site 'delta'"), ("..", "cannot name a site")):
        with pytest.raises(DerminoError, match=words):
            withdraw(first, site, SIGNER)
    one = ridge(sites=["alpha"], min_sites=1)
    run({"alpha": sites["alpha"]}, one, tmp_path / "one")
    with pytest.raises(DerminoError, match="no site is left"):
        withdraw(tmp_path / "one", "alpha", SIGNER)
    ridge(run_id="a" * 32).write(tmp_path / "unfinished")
    logistic = ridge(strategy="logistic", rounds=6)
    secure = ridge(secure_aggregation=True, cross_site=False)
    run(sites, ridge(keep_sums=False), tmp_path / "unkept")
    assert not (tmp_path / "unkept" / "sums").exists()
    for name, plan in (
        ("fedavg", ridge(strategy="fedavg")),
        ("logistic", logistic),
        ("secure", secure),
    ):
        plan.write(tmp_path / name)
    cases = {
        "unfinished": "not finished.*\n.*--resume",
        "unkept": "kept no sums.*\n.*Run again",
        "fedavg": "fedavg learned.*\n.*Run again with the sites",
        "logistic": "logistic learned.*\n.*Run again with the sites",
        "secure": "nobody but a site itself.*\n.*Run again with the sites",
        "nowhere": "not a run folder",
    }
    for name, words in cases.items():
        with pytest.raises(DerminoError, match=words):
            withdraw(tmp_path / name, "beta", SIGNER)
        with pytest.raises(DerminoError, match=words):
            read_kept_run(tmp_path / name)


def test_a_folder_in_use_is_left_alone(first: Path, tmp_path: Path) -> None:
    with pytest.raises(DerminoError, match="to be erased"):
        withdraw(first, "beta", SIGNER, out=first / "sums" / "new")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("dear")
    with pytest.raises(DerminoError, match="not empty"):
        withdraw(first, "beta", SIGNER, out=tmp_path / "full")
    withdraw(first, "beta", SIGNER, out=tmp_path / "other", keep_original=True)
    with pytest.raises(DerminoError, match="another withdrawal"):
        withdraw(first, "gamma", SIGNER, out=tmp_path / "other")
    (tmp_path / "empty").mkdir()
    assert withdraw(first, "gamma", SIGNER, out=tmp_path / "empty").receipt.erased
