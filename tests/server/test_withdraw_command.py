"""`dermino withdraw`, `--extend` and `dermino-client receipt`, as people call them."""

from __future__ import annotations

import re
import shutil
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from dermino_client.cli import app as client_app
from dermino_core.datasets.synthetic import find_site, write_site
from dermino_core.errors import DerminoError
from dermino_core.results import read_results
from dermino_server import simulate as simulation
from dermino_server.cli import app
from dermino_server.plan import read_plan
from dermino_server.provisioning import provision
from dermino_server.receipt_key import find_signer, own_key_file
from dermino_server.simulate import SimulationRequest

NAMES = ("synthetic-mednode", "synthetic-ph2", "synthetic-fitzpatrick")
JOINER = NAMES[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium's `keys`, its three `sites`, two of them in `two`, and runs of both folders."""
    folder = tmp_path_factory.mktemp("place")
    keys = folder / "keys"
    provision(keys, hosts=["localhost"])
    for name in NAMES:
        manifest = write_site(folder / "data" / name, site=name, images=20)
        content = {
            "site": {"name": name},
            "data": {"manifest": str(manifest), "min_images": 4},
            "labels": dict(find_site(name).label_map),
            "backbone": {"name": "demo", "precision": "fp32", "device": "cpu"},
            "node": {
                "cache": str(folder / "cache"),
                "folder": str(keys / "runs" / "all" / "sites" / name),
            },
            "coordinator": {
                "address": "localhost:443",
                "root_certificates": str(keys / "ca.crt"),
                "private_key": str(keys / "server.key"),
            },
        }
        for where in ("sites", *(["two"] if name != JOINER else [])):
            (folder / where).mkdir(exist_ok=True)
            (folder / where / f"{name}.toml").write_text(tomli_w.dumps(content))
    for sites, run in (("sites", "all"), ("two", "two")):
        request = SimulationRequest(sites=folder / sites, strategy="ridge")
        simulation.simulate(request, keys / "runs" / run)
    return folder


def call(*arguments: str | Path, of: Any = app) -> Any:
    return CliRunner().invoke(of, [str(argument) for argument in arguments])


def good(*arguments: str | Path, of: Any = app) -> str:
    result = call(*arguments, of=of)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def bad(code: str, *arguments: str | Path, of: Any = app) -> str:
    error = call(*arguments, of=of).exception
    assert isinstance(error, DerminoError), repr(error)
    assert error.code == code
    assert error.fix
    return str(error)


@pytest.fixture
def left(place: Path, tmp_path: Path) -> Path:
    """What `dermino withdraw` made of a copy of the run of all, with the consortium's key."""
    run = shutil.copytree(place / "keys" / "runs" / "all", tmp_path / "all")
    text = good(
        *("withdraw", "--run", run, "--site", NAMES[1], "--out", tmp_path / "new"),
        *("--key", place / "keys" / "server.key"),
    )
    for words in ("erased:", "not undone:", "not evaluated yet", "dermino-client receipt"):
        assert words in text
    return tmp_path / "new"


def model_bytes(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_the_hospital_checks_the_receipt_with_what_it_has(place: Path, left: Path) -> None:
    receipt, options = left / "receipt.json", ("--sites-dir", place / "sites")
    text = good("receipt", receipt, "--site", NAMES[1], *options, of=client_app)
    assert "the audit log has these very sums" in text
    assert "as the coordinator signed it" in text
    words = bad("RECEIPT_INVALID", "receipt", receipt, "--site", NAMES[0], *options, of=client_app)
    assert f"about {NAMES[1]}, not about {NAMES[0]}" in words
    receipt.write_text(receipt.read_text().replace("backups", "no backups"))
    words = bad("RECEIPT_INVALID", "receipt", receipt, "--site", NAMES[1], *options, of=client_app)
    assert "signature does not fit" in words


def site_with(place: Path, folder: Path, **sections: dict[str, str]) -> Path:
    content = tomllib.loads((place / "sites" / f"{NAMES[1]}.toml").read_text())
    for name, values in sections.items():
        content[name] |= values
    folder.mkdir()
    (folder / f"{NAMES[1]}.toml").write_text(tomli_w.dumps(content))
    return folder


def test_a_hospital_of_another_consortium_or_without_the_run_is_told(
    place: Path, left: Path, tmp_path: Path
) -> None:
    provision(tmp_path / "others", hosts=["localhost"])
    foreign = {"root_certificates": str(tmp_path / "others" / "ca.crt")}
    sites = site_with(place, tmp_path / "a", coordinator=foreign)
    arguments = ("receipt", left / "receipt.json", "--site", NAMES[1], "--sites-dir")
    assert "another federation" in bad("RECEIPT_INVALID", *arguments, sites, of=client_app)
    sites = site_with(place, tmp_path / "b", node={"folder": str(tmp_path / "fresh")})
    assert "rests on the coordinator's word" in good(*arguments, sites, of=client_app)


def test_sums_that_the_hospital_never_sent_are_found_out(
    place: Path, left: Path, tmp_path: Path
) -> None:
    """The receipt is about another site's sums under this site's name: its own log knows better."""
    from dermino_core.withdrawal_receipt import read_receipt, sign_receipt

    receipt = read_receipt(left / "receipt.json")
    sums = receipt.sums | {"total.sums": "0" * 64}
    signer = find_signer(left, place / "keys" / "server.key")
    lie = sign_receipt(receipt.model_copy(update={"sums": sums}), signer.key)
    (tmp_path / "lie.json").write_text(lie.text())
    words = bad(
        "RECEIPT_INVALID",
        *("receipt", tmp_path / "lie.json", "--site", NAMES[1], "--sites-dir", place / "sites"),
        of=client_app,
    )
    assert "other sums than those that left here" in words


def test_the_coordinator_checks_it_too(place: Path, left: Path) -> None:
    receipt, ca = left / "receipt.json", place / "keys" / "ca.crt"
    assert "as the coordinator signed it" in good("withdraw", "--verify", receipt, "--ca", ca)
    assert "--ca ca.crt" in bad("RECEIPT_INVALID", "withdraw", "--verify", receipt)
    assert "Who leaves which run" in bad("CONFIG_INVALID", "withdraw", "--site", NAMES[1])
    bad("RECEIPT_INVALID", "withdraw", "--verify", left / "run.json")
    bad("TLS_INVALID", "withdraw", "--verify", receipt, "--ca", left / "nothing")


def test_without_a_consortium_a_key_of_its_own_is_compared_by_phone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    run = shutil.copytree(place / "keys" / "runs" / "all", tmp_path / "all")
    result = call("withdraw", "--run", run, "--site", NAMES[1])
    assert f"made the key {own_key_file()}" in result.output
    assert stat.S_IMODE(own_key_file().stat().st_mode) == 0o600
    found = re.search(r"by phone: ([0-9A-F ]{39})", result.output)
    assert found
    receipt = tmp_path / f"all-without-{NAMES[1]}" / "receipt.json"
    check = ("withdraw", "--verify", receipt)
    assert "no terminal to ask at" in bad("CONFIG_INVALID", *check)
    bad("ENROLMENT_INVALID", *check, "--fingerprint", "0" * 32)
    good(*check, "--fingerprint", found[1])
    own = ("receipt", receipt, "--site", NAMES[1], "--sites-dir", place / "sites")
    bad("CONFIG_INVALID", *own, of=client_app)
    good(*own, "--fingerprint", found[1], of=client_app)
    assert find_signer(run).file == own_key_file()
    assert not find_signer(run).made


def test_the_key_of_the_consortium_around_the_run_is_taken(place: Path, tmp_path: Path) -> None:
    keys = place / "keys"
    signer = find_signer(keys / "runs" / "all")
    assert signer.file == keys / "server.key"
    assert signer.certificate == (keys / "server.pem").read_text()
    provision(tmp_path / "others", hosts=["localhost"])
    for key, certificate, code in (
        (keys / "server.key", tmp_path / "others" / "server.pem", "TLS_INVALID"),
        (keys / "nothing", None, "TLS_INVALID"),
        (keys / "server.pem", None, "TLS_INVALID"),
        (None, keys / "server.pem", "CONFIG_INVALID"),
    ):
        with pytest.raises(DerminoError) as caught:
            find_signer(keys / "runs" / "all", key, certificate)
        assert caught.value.code == code


def test_a_simulation_goes_on_without_the_site_or_not_at_all(left: Path, tmp_path: Path) -> None:
    words = bad("CHECKPOINT_INVALID", "simulate", "--resume", tmp_path / "all")
    assert f"Go on with {left}" in words
    before = model_bytes(left)
    good("simulate", "--resume", left, "--no-report")
    assert model_bytes(left) == before
    results = read_results(left)
    assert [site.name for site in results.sites] == sorted({*NAMES} - {NAMES[1]})
    assert any(f"Without {NAMES[1]}" in text for text in results.warnings)
    assert "AUROC" in (left / "model" / "README.md").read_text()


def test_a_simulation_extended_is_that_of_all_sites(place: Path, tmp_path: Path) -> None:
    runs = place / "keys" / "runs"
    good(
        *("simulate", "--extend", runs / "two", "--sites", place / "sites"),
        *("--out", tmp_path / "later", "--no-report"),
    )
    assert model_bytes(tmp_path / "later") == model_bytes(runs / "all") != model_bytes(runs / "two")
    later, fresh = read_results(tmp_path / "later"), read_results(runs / "all")
    assert later.rounds[-2].sites == [JOINER]
    assert later.rounds[-2].kept == sorted(NAMES[:2])
    assert later.mean == fresh.mean
    assert later.sites == fresh.sites
    assert read_plan(tmp_path / "later").extends == read_plan(runs / "two").run_id
    with_one = tmp_path / "one"
    with_one.mkdir()
    shutil.copy(place / "sites" / f"{JOINER}.toml", with_one)
    good(
        *("simulate", "--extend", runs / "two", "--sites", with_one),
        *("--out", tmp_path / "apart", "--no-report"),
    )
    assert model_bytes(tmp_path / "apart") == model_bytes(runs / "all")
    apart = read_results(tmp_path / "apart")
    assert [site.name for site in apart.sites] == [JOINER]
    assert "pooled" not in apart.mean


def test_what_the_earlier_run_decided_is_not_asked_again(place: Path, tmp_path: Path) -> None:
    two = place / "keys" / "runs" / "two"
    extend = ("simulate", "--extend", two, "--out", tmp_path / "later")
    assert "Where are the sites" in bad("CONFIG_INVALID", *extend)
    sites = ("--sites", place / "sites")
    for option in (
        *(["--strategy", "ridge"], ["--seed", "1"], ["--set", "folds=3"], ["--rounds", "1"]),
        *(["--epsilon", "3"], ["--secure-aggregation"], ["--no-keep-sums"], ["--personal"]),
    ):
        words = bad("CONFIG_INVALID", *extend, *sites, *option)
        assert words.startswith(f"{option[0].replace('--no-keep', '--keep')}: the run behind")
    assert "No site is new" in bad("CONFIG_INVALID", *extend, "--sites", place / "two")
    federate = ("federate", "--superlink", "x", "--site", "y", "--extend", two)
    assert "--seed" in bad("CONFIG_INVALID", *federate, "--seed", "1")
    assert not (tmp_path / "later").exists()


def test_a_site_whose_images_changed_cannot_lend_its_old_sums(place: Path, tmp_path: Path) -> None:
    data = shutil.copytree(place / "data" / NAMES[0], tmp_path / "data")
    lines = (data / "manifest.csv").read_text().splitlines()
    (data / "manifest.csv").write_text("\n".join(lines[:-1]) + "\n")
    sites = shutil.copytree(place / "sites", tmp_path / "sites")
    file = sites / f"{NAMES[0]}.toml"
    content = tomllib.loads(file.read_text())
    content["data"]["manifest"] = str(data / "manifest.csv")
    file.write_text(tomli_w.dumps(content))
    words = bad(
        "DATA_CHANGED",
        *("simulate", "--extend", place / "keys" / "runs" / "two", "--sites", sites),
    )
    assert NAMES[0] in words
