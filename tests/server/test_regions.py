"""One model from the runs of several coordinators: the same bits, or a refusal that says why."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import contents
from regional_runs import ALL, SIZES, Runs, forged, four_sites, refused, runs_of
from safetensors.numpy import load_file
from withdrawing import SIGNER, model_bytes, ridge_of

from dermino_client.hospital import Hospital
from dermino_core.errors import DerminoError
from dermino_core.model_folder import load_model
from dermino_core.privacy.plan import PrivacyRequest
from dermino_server import region_file, regions
from dermino_server.kept_run import read_kept_run
from dermino_server.plan import read_plan
from dermino_server.region_file import read_region
from dermino_server.region_joint import gather
from dermino_server.region_study import study_of
from dermino_server.regions import join_model, join_regions, sum_run
from dermino_server.withdraw import withdraw
from dermino_strategies.ridge import Ridge


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hospital]:
    return four_sites(tmp_path_factory.mktemp("hospitals"))


@pytest.fixture(scope="module")
def runs(sites: dict[str, Hospital], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runs_of(sites, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def north(runs: Runs, tmp_path: Path) -> Path:
    return sum_run(runs("alpha", "beta"), "north", tmp_path / "north.region").file


@pytest.fixture
def south(runs: Runs, tmp_path: Path) -> Path:
    return sum_run(runs("gamma", "delta"), "south", tmp_path / "south.region").file


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model" / "model.safetensors")


def test_the_model_is_that_of_one_run_of_all(
    sites: dict[str, Hospital], runs: Runs, north: Path, south: Path, tmp_path: Path
) -> None:
    """To a last bit of float32, for an ordinary run rounds at each step of its sum."""
    done = join_model([north, south], tmp_path / "both")
    ordinary, found = weights(runs(*ALL)), weights(done.folder)
    assert set(found) == set(ordinary)
    for name, array in ordinary.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-7, atol=1e-9)
        np.testing.assert_allclose(found[name], ridge_of(sites)[name], rtol=2e-7, atol=1e-9)
    only = weights(runs("alpha", "beta"))["weight"]
    assert np.abs(found["weight"] - only).max() > 0.01


def test_the_sums_before_the_last_rounding_are_those_of_one_run(
    runs: Runs, north: Path, south: Path
) -> None:
    total = gather([north, south], None, None).region.total()
    kept = read_kept_run(runs(*ALL)).sums.updates()
    summands = [Ridge().summand(kept[site]) for site in sorted(kept)]
    for name, array in total.items():
        flat = np.sum([summand[name] for summand in summands], axis=0)
        np.testing.assert_allclose(array, flat, rtol=1e-12, atol=1e-12)
    assert total["examples"].tolist() == [sum(size // 2 + size % 2 for size in SIZES.values())]


def test_every_division_gives_the_same_bits(
    runs: Runs, north: Path, south: Path, tmp_path: Path
) -> None:
    first = join_model([north, south], tmp_path / "a").folder
    east = sum_run(runs("alpha", "gamma"), "east", tmp_path / "east.region").file
    west = sum_run(runs("beta", "delta"), "west", tmp_path / "west.region").file
    assert model_bytes(join_model([west, east], tmp_path / "b").folder) == model_bytes(first)
    one = sum_run(runs(*ALL), "one", tmp_path / "one.region").file
    assert model_bytes(join_model([one], tmp_path / "c").folder) == model_bytes(first)
    three = sum_run(runs("delta"), "d", tmp_path / "d.region", min_sites=1).file
    upper = join_regions([three, north], "upper", tmp_path / "upper.region").file
    low = sum_run(runs("gamma"), "c", tmp_path / "c.region", min_sites=1).file
    top = join_regions([low, upper], "top", tmp_path / "top.region").file
    assert read_region(top).sum.sites == ALL
    assert model_bytes(join_model([top], tmp_path / "d").folder) == model_bytes(first)
    deep = join_model([low, upper], tmp_path / "e").folder
    assert model_bytes(deep) == model_bytes(first)


def test_a_late_region_joins_a_run_of_ones_own(
    runs: Runs, north: Path, south: Path, tmp_path: Path
) -> None:
    both = model_bytes(join_model([north, south], tmp_path / "both").folder)
    own = runs("gamma", "delta")
    late = join_model([north], tmp_path / "late", run=own)
    assert model_bytes(late.folder) == both
    assert late.record.run is not None
    assert late.record.run.run_id == read_plan(own).run_id
    assert late.record.run.sites == ["delta", "gamma"]
    trained_on = {s.site: s.classes for s in load_model(late.folder / "model")[1].trained_on}
    assert sum(trained_on["gamma"].values()) == 21
    assert trained_on["alpha"] == {}
    larger = join_regions([north], "all", tmp_path / "all.region", run=own).file
    assert model_bytes(join_model([larger], tmp_path / "again").folder) == both


def test_a_region_whose_site_withdrew_joins_without_it(
    runs: Runs, north: Path, south: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(runs(*ALL), tmp_path / "all")
    rest = withdraw(copy, "beta", SIGNER).folder
    made = sum_run(rest, "rest", tmp_path / "rest.region")
    assert made.sum.sites == ["alpha", "delta", "gamma"]
    fresh = sum_run(runs("alpha", "gamma", "delta"), "rest", tmp_path / "fresh.region")
    for name, parts in fresh.sum.parts.items():
        np.testing.assert_array_equal(made.sum.parts[name], parts)
    refused(
        "CHECKPOINT_INVALID",
        "beta was withdrawn",
        lambda: sum_run(copy, "x", tmp_path / "x.region"),
    )


def test_the_model_folder_and_the_record_say_what_it_is(
    runs: Runs, north: Path, south: Path, tmp_path: Path
) -> None:
    done = join_model([north, south], tmp_path / "new" / "both")
    head, info = load_model(done.folder / "model")
    assert head.weight.shape == (2, 8)
    assert [(s.site, s.images) for s in info.trained_on] == [
        *(("alpha", 30), ("beta", 55), ("delta", 26), ("gamma", 21)),
    ]
    whole = load_model(runs(*ALL) / "model")[1]
    assert info.backbone == whole.backbone
    assert [s.images for s in info.trained_on] == [s.images for s in whole.trained_on]
    same = {"created", "dermino_version", "trained_on", "title"}
    assert info.model_dump(exclude=same) == whole.model_dump(exclude=same)
    card = (done.folder / "model" / "README.md").read_text()
    for words in (*ALL, "No test images have been evaluated", "are believed", "not been evaluated"):
        assert words in card
    assert "AUROC" not in card
    record = json.loads((done.folder / "join.json").read_text())
    assert [file["region"] for file in record["files"]] == ["north", "south"]
    for entry, file in zip(record["files"], (north, south), strict=True):
        assert entry["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sorted(record["digests"]) == sorted(record["images"]) == ALL
    assert record["study"]["backbone"] == "f" * 64
    assert record["run"] is None
    assert record["versions"]["numpy"] == np.__version__
    assert record["created"]
    assert sorted(p.name for p in done.folder.iterdir()) == ["join.json", "model"]
    assert [p.name for p in done.folder.parent.iterdir()] == ["both"]


def test_the_file_holds_the_sum_and_no_sites_own(runs: Runs, north: Path) -> None:
    """Neither as it was sent, nor as its parts, nor in float32; but the sum is there."""
    content = north.read_bytes()
    kept = read_kept_run(runs("alpha", "beta"))
    study, strategy = study_of(kept)
    found = read_region(north)
    for site, update in kept.sums.updates().items():
        alone = region_file.new_region(None, study, strategy)
        alone.add(site, strategy.summand(update))
        for name, parts in alone.sum().parts.items():
            if not update.arrays.get(name, np.zeros(1)).any():
                continue
            for array in (*parts[:1], alone.total()[name], alone.total()[name].astype("<f4")):
                for row in array.reshape(-1, array.shape[-1]):
                    assert len(set(row.tolist())) < 2 or row.tobytes() not in content, (site, name)
    total = region_file.new_region(None, study, strategy)
    total.add_region(found.sum)
    assert total.sum().parts["total.products"][0].tobytes() in content
    assert found.info.images == {"alpha": 30, "beta": 55}
    assert set(found.info.digests) == {"alpha", "beta"}
    assert "counts" not in found.info.model_dump_json()
    assert stat.S_IMODE(north.stat().st_mode) == 0o600


def test_a_region_of_one_site_is_refused(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "one.region"
    words = "1 of at least 2 sites (delta)"
    refused("CONFIG_INVALID", words, lambda: sum_run(runs("delta"), "one", out))
    refused(
        "CONFIG_INVALID",
        "2 of at least 3 sites",
        lambda: sum_run(runs("alpha", "beta"), "two", out, min_sites=3),
    )
    assert not list(tmp_path.iterdir())
    one = sum_run(runs("delta"), "one", out, min_sites=1).file
    up = tmp_path / "up.region"
    refused("CONFIG_INVALID", words, lambda: join_regions([one], "up", up))
    assert not up.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 7}, "seed: 0 here, 7 there"),
        ({"task": "melanoma"}, "task: malignancy here, melanoma there"),
        ({"settings": {"folds": 3}}, "setting folds: 5 here, 3 there"),
        ({"settings": {"standardise": True}}, "setting standardise: false here, true there"),
    ],
)
def test_another_study_is_refused_by_what_differs(
    runs: Runs, north: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    base = runs("gamma", "delta")
    other = shutil.copytree(base, tmp_path / "other")
    if "seed" in changes or "task" in changes:
        read_plan(base).model_copy(update=changes).write(other)
    else:
        other = runs("gamma", "delta", **changes)
    file = sum_run(other, "south", tmp_path / "south.region").file
    out = tmp_path / "both"
    refused("CONFIG_INVALID", words, lambda: join_model([north, file], out))
    there = words.replace(" here, ", "|").replace(" there", "").split(": ")
    first, second = there[1].split("|")
    turned = f"{there[0]}: {second} here, {first} there"
    refused("CONFIG_INVALID", turned, lambda: join_model([north], out, run=other))
    assert not out.exists()


def test_another_backbone_or_order_of_classes_is_refused(
    runs: Runs, north: Path, tmp_path: Path
) -> None:
    plan = read_plan(runs("gamma", "delta"))
    backbone = plan.backbone.model_copy(update={"fingerprint": "77aa" * 16})
    for changes, words in (
        ({"backbone": backbone}, "backbone: ffffffffffff... here, 77aa77aa77aa... there"),
        (
            {"classes": ["malignant", "benign"]},
            "classes: benign, malignant here, malignant, benign",
        ),
    ):
        other = shutil.copytree(runs("gamma", "delta"), tmp_path / words[:4])
        plan.model_copy(update=changes).write(other)
        file = sum_run(other, "south", tmp_path / f"{words[:4]}.region").file
        out = tmp_path / "both"
        refused("CONFIG_INVALID", words, lambda f=file, o=out: join_model([north, f], o))


def test_settings_that_nobody_set_are_the_usual_ones(
    runs: Runs, south: Path, north: Path, tmp_path: Path
) -> None:
    plain = join_model([north, south], tmp_path / "plain").folder
    said = runs("alpha", "beta", settings={"class_weight": "none", "folds": 5})
    file = sum_run(said, "north", tmp_path / "said.region").file
    assert model_bytes(join_model([file, south], tmp_path / "b").folder) == model_bytes(plain)


def test_nothing_counts_twice(runs: Runs, north: Path, south: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    copy = Path(shutil.copy(north, tmp_path / "copy.region"))
    east = sum_run(runs("alpha", "gamma"), "east", tmp_path / "east.region").file
    newer = sum_run(runs("gamma", "delta"), "north", tmp_path / "newer.region").file
    words = "alpha would count twice: in east and in the region north"
    refused("CONFIG_INVALID", "file is there twice", lambda: join_model([north, north], out))
    refused("CONFIG_INVALID", "file is there twice", lambda: join_model([north, copy], out))
    refused(
        "CONFIG_INVALID", "two files of the region north", lambda: join_model([north, newer], out)
    )
    refused("CONFIG_INVALID", words, lambda: join_model([north, east], out))
    refused(
        "CONFIG_INVALID",
        "gamma would count twice: in east and in the run",
        lambda: join_model([east], out, run=runs("gamma", "delta")),
    )
    larger = join_regions([north, south], "all", tmp_path / "all.region").file
    refused(
        "CONFIG_INVALID",
        "delta, gamma would count twice: in south and in the region all",
        lambda: join_model([larger, south], out),
    )
    refused(
        "CONFIG_INVALID",
        "cannot be called south",
        lambda: join_regions([north, south], "south", tmp_path / "x.region"),
    )
    assert not out.exists()
    assert not (tmp_path / "x.region").exists()


def test_one_site_under_two_names_is_found(south: Path, north: Path, tmp_path: Path) -> None:
    def rename(info: dict[str, Any]) -> None:
        info["region"] = "east"
        for key in ("images", "digests"):
            info[key] = {f"{site}-2": value for site, value in info[key].items()}

    other = forged(north, tmp_path / "east.region", rename)
    words = "alpha-2 of east and alpha of the region north sent the very same"
    refused("CONFIG_INVALID", words, lambda: join_model([north, other], tmp_path / "both"))


def test_what_is_there_is_not_touched(runs: Runs, north: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    base = runs("alpha", "beta")
    before, here = contents(tmp_path), "something of this name"
    for name in ("full", "file", "link"):
        refused("OUTPUT_EXISTS", "", lambda n=name: join_model([north], tmp_path / n))
        refused("OUTPUT_EXISTS", here, lambda n=name: sum_run(base, "n", tmp_path / n))
        refused("OUTPUT_EXISTS", here, lambda n=name: join_regions([north], "n", tmp_path / n))
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert join_model([north], tmp_path / "empty").folder == tmp_path / "empty"
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_nothing_behind(
    runs: Runs, north: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    base = runs("alpha", "beta")
    monkeypatch.setattr(regions, "save_model", full)
    refused("CONFIG_INVALID", "No space left", lambda: join_model([north], tmp_path / "both"))
    monkeypatch.setattr(region_file, "write_new", full)
    refused("CONFIG_INVALID", "No space", lambda: sum_run(base, "n", tmp_path / "n.region"))
    assert [p.name for p in tmp_path.iterdir()] == ["north.region"]


def test_runs_without_sums_are_refused_in_their_own_words(runs: Runs, tmp_path: Path) -> None:
    base = runs("alpha", "beta")
    plan = read_plan(base)
    out = tmp_path / "x.region"
    for number, (changes, words) in enumerate(
        [
            ({"strategy": "fedavg"}, "What fedavg learned from one site"),
            (
                {"secure_aggregation": True, "sites": ALL, "min_sites": 3},
                "Under secure aggregation nobody",
            ),
            ({"privacy": PrivacyRequest(epsilon=3.0, delta=1e-5)}, "sums of a private run"),
        ]
    ):
        folder = shutil.copytree(base, tmp_path / str(number))
        plan.model_copy(update=changes).write(folder)
        refused("CONFIG_INVALID", words, lambda f=folder: sum_run(f, "x", out))
    folder = shutil.copytree(base, tmp_path / "unfinished")
    (folder / "results.json").unlink()
    refused("CHECKPOINT_INVALID", "has not finished", lambda: sum_run(folder, "x", out))
    refused("CHECKPOINT_INVALID", "not a run", lambda: sum_run(tmp_path / "none", "x", out))
    refused("CHECKPOINT_INVALID", "not a run", lambda: join_model([], out, run=tmp_path / "none"))
    assert not out.exists()
    with pytest.raises(DerminoError, match="cannot name a region"):
        sum_run(base, "north+south", out)
    with pytest.raises(DerminoError, match="nothing to join"):
        join_model([], out)


def test_kept_sums_that_were_changed_are_refused(runs: Runs, tmp_path: Path) -> None:
    copy = shutil.copytree(runs("alpha", "beta"), tmp_path / "copy")
    file = copy / "sums" / "alpha.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    refused(
        "CHECKPOINT_INVALID", "alpha", lambda: sum_run(copy, "north", tmp_path / "north.region")
    )
    assert not (tmp_path / "north.region").exists()
