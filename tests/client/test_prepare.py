"""From a site file to features: once, honestly, and never on data that changed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dermino_client import prepare as module
from dermino_client.prepare import PreparedSite, load_prepared, prepare_site, select_records
from dermino_client.site import Site
from dermino_core.errors import DerminoError
from dermino_core.manifest import read_manifest

MakeSite = Callable[..., Site]


def rows_of(clinic: Path) -> list[dict[str, str]]:
    with (clinic / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def rewrite(clinic: Path, rows: list[dict[str, str]]) -> None:
    with (clinic / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def damage(clinic: Path, *numbers: int) -> None:
    for number in numbers:
        (clinic / "images" / f"{number:04d}.jpg").write_bytes(b"\xff\xd8\xff no picture")


def halves_of(prepared: PreparedSite, site: Site) -> dict[str, str]:
    """Image name -> half, by the order that features keep."""
    names = [r.image for r in select_records(site).records]
    kept = [n for n in names if Path(site.manifest.parent / n).read_bytes()[:4] != b"\xff\xd8\xff "]
    return dict(zip(kept, prepared.split.tolist(), strict=True))


def same(a: PreparedSite, b: PreparedSite) -> None:
    for name in ("features", "labels", "split"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    for name in ("name", "task", "classes", "groups", "images_total", "unreadable", "card"):
        assert getattr(a, name) == getattr(b, name)
    assert (a.precision, a.width, a.backbone_fingerprint) == (
        b.precision,
        b.width,
        b.backbone_fingerprint,
    )


def test_numbers(make_site: MakeSite, clinic: Path, tmp_path: Path) -> None:
    cache = tmp_path / "fresh"
    site = make_site(node={"cache": str(cache)})
    prepared = prepare_site(site)
    rows = rows_of(clinic)
    assert (prepared.images_total, prepared.images_used, prepared.unreadable) == (24, 24, 0)
    assert prepared.decoded == 24
    assert prepared.features.shape == (24, prepared.width) == (24, prepared.card.width)
    assert prepared.features.dtype == np.float32
    assert np.isfinite(prepared.features).all()
    assert prepared.labels.tolist() == [int(row["label"] == "melanoma") for row in rows]
    assert prepared.precision == "fp32"
    assert not any("patient" in group for group in prepared.groups)
    for column in ("train", "test"):
        features, labels, groups = prepared.half(column)
        assert len(features) == len(labels) == len(groups) == 12
        assert set(labels) == {0, 1}
    train, test = (set(prepared.half(half)[2]) for half in ("train", "test"))
    assert not train & test
    patients = [row["group"] for row in rows]
    assert len(set(patients)) == len(set(prepared.groups)) == len(train | test)
    again = prepare_site(site)
    assert again.decoded == 0
    same(prepared, again)


def test_load_gives_what_prepare_made(make_site: MakeSite) -> None:
    site = make_site()
    prepared = prepare_site(site)
    loaded = load_prepared(site)
    same(prepared, loaded)
    assert loaded.decoded == 0


def test_unreadable_images_within_the_limit(make_site: MakeSite, clinic: Path) -> None:
    whole = prepare_site(make_site())
    before = halves_of(whole, make_site())
    damage(clinic, 3)
    (clinic / "images" / "0007.jpg").unlink()
    (clinic / "images" / "0007.jpg").write_bytes(b"\xff\xd8\xff ")
    site = make_site(data={"max_unreadable": 0.09})
    prepared = prepare_site(site)
    assert (prepared.images_total, prepared.images_used, prepared.unreadable) == (24, 22, 2)
    assert len(prepared.features) == len(prepared.split) == len(prepared.groups) == 22
    assert load_prepared(site).unreadable == 2
    after = halves_of(prepared, site)
    assert len(after) == 22
    assert after == {name: half for name, half in before.items() if name in after}
    keep = [i for i in range(24) if i not in (2, 6)]
    np.testing.assert_array_equal(prepared.features, whole.features[keep])
    np.testing.assert_array_equal(prepared.labels, whole.labels[keep])


def test_too_many_unreadable_images_are_listed(make_site: MakeSite, clinic: Path) -> None:
    damage(clinic, 3)
    (clinic / "images" / "0007.jpg").unlink()
    with pytest.raises(DerminoError) as caught:
        prepare_site(make_site(data={"max_unreadable": 0.08}))
    assert (caught.value.code, caught.value.exit_code) == ("IMAGE_UNREADABLE", 4)
    message = str(caught.value)
    assert "2 of 24 images" in message
    assert "0.08" in message
    assert "'images/0003.jpg': damaged or incomplete JPEG" in message
    assert "'images/0007.jpg': missing" in message
    damage(clinic, *range(1, 13))
    with pytest.raises(DerminoError, match="and 2 more"):
        prepare_site(make_site(data={"max_unreadable": 0.08}))


def test_a_label_can_be_left_out(make_site: MakeSite, clinic: Path) -> None:
    rows = rows_of(clinic)
    wanted = [row["label"] for row in rows]
    for row in rows[:3]:
        row["label"] = "psoriasis"
    rows[3]["label"] = ""
    rewrite(clinic, rows)
    prepared = prepare_site(make_site(labels={"psoriasis": ""}))
    assert (prepared.images_total, prepared.images_used) == (24, 20)
    assert prepared.left_out == {
        "without a label": 1,
        "left out by the label map": 3,
        "in the validation split": 0,
    }
    assert prepared.labels.tolist() == [int(label == "melanoma") for label in wanted[4:]]


def test_unmapped_labels_are_listed(make_site: MakeSite, clinic: Path) -> None:
    rows = rows_of(clinic)
    for row in rows[:3]:
        row["label"] = "psoriasis"
    rows[3]["label"] = "wart"
    rewrite(clinic, rows)
    with pytest.raises(DerminoError) as caught:
        prepare_site(make_site())
    assert (caught.value.code, caught.value.exit_code) == ("LABEL_UNMAPPED", 3)
    assert "'psoriasis' (3), 'wart' (1)" in str(caught.value)
    assert "'benign', 'malignant', or ''" in str(caught.value)


def test_too_few_images(make_site: MakeSite, clinic: Path) -> None:
    with pytest.raises(DerminoError, match=r"Only 24 images can be used.* at least 25") as caught:
        prepare_site(make_site(data={"min_images": 25}))
    assert caught.value.code == "DATA_TOO_FEW"
    damage(clinic, 1)
    site = make_site(data={"min_images": 24, "max_unreadable": 1.0})
    with pytest.raises(DerminoError, match="Only 23 images can be used"):
        prepare_site(site)
    with pytest.raises(DerminoError, match="not been prepared"):
        load_prepared(site)


def test_a_missing_table_is_named(make_site: MakeSite, clinic: Path) -> None:
    vanished_manifest(clinic)
    with pytest.raises(DerminoError, match=r"manifest\.csv") as caught:
        prepare_site(make_site())
    assert caught.value.code == "MANIFEST_INVALID"


def test_an_empty_half_is_refused(make_site: MakeSite, clinic: Path) -> None:
    rewrite(clinic, [row | {"split": "train"} for row in rows_of(clinic)])
    with pytest.raises(DerminoError, match="No image is in the test half") as caught:
        prepare_site(make_site())
    assert caught.value.code == "DATA_TOO_FEW"


def test_the_manifests_own_split_is_kept(make_site: MakeSite, clinic: Path) -> None:
    """Validation images take no part: nothing is tuned on them."""
    own = ["train", "val", "test"] * 8
    rows = [
        row | {"split": half, "group": str(i)}
        for i, (row, half) in enumerate(zip(rows_of(clinic), own, strict=True))
    ]
    rewrite(clinic, rows)
    prepared = prepare_site(make_site())
    assert prepared.split.tolist() == [half for half in own if half != "val"]
    assert (prepared.images_total, prepared.images_used) == (24, 16)
    assert prepared.left_out["in the validation split"] == 8
    assert len(prepared.half("train")[1]) == len(prepared.half("test")[1]) == 8


def test_a_patient_in_both_halves_is_refused(make_site: MakeSite, clinic: Path) -> None:
    rows = [
        row | {"split": "train" if i % 2 else "test", "group": "same" if i < 2 else str(i)}
        for i, row in enumerate(rows_of(clinic))
    ]
    rewrite(clinic, rows)
    with pytest.raises(DerminoError, match=r"1 patients.*both halves.*same") as caught:
        prepare_site(make_site())
    assert caught.value.code == "MANIFEST_INVALID"


def test_the_same_picture_twice_stays_on_one_side(make_site: MakeSite, clinic: Path) -> None:
    """Copies under other names and other patients: the test half would know them."""
    rows = rows_of(clinic)
    for i, row in enumerate(rows[:8]):
        name = f"images/copy-{i}.jpg"
        shutil.copy(clinic / row["image"], clinic / name)
        rows.append(row | {"image": name, "group": f"other-{i}"})
    rewrite(clinic, rows)
    split = prepare_site(make_site()).split.tolist()
    assert split[24:] == split[:8]
    assert set(split[:8]) == {"train", "test"}


def test_the_seed_and_share_of_the_split(make_site: MakeSite) -> None:
    first = prepare_site(make_site())
    other = prepare_site(make_site(data={"split_seed": 1}))
    assert first.split.tolist() != other.split.tolist()
    mostly = prepare_site(make_site(data={"train_share": 0.75}))
    assert 16 <= len(mostly.half("train")[1]) <= 20


def touched_image(clinic: Path) -> None:
    os.utime(clinic / "images" / "0002.jpg")


def grown_image(clinic: Path) -> None:
    file = clinic / "images" / "0002.jpg"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(file.read_bytes() + b"\0")
    os.utime(file, ns=times)


def vanished_image(clinic: Path) -> None:
    (clinic / "images" / "0002.jpg").unlink()


def vanished_folder(clinic: Path) -> None:
    shutil.rmtree(clinic / "images")


def vanished_manifest(clinic: Path) -> None:
    (clinic / "manifest.csv").unlink()


def changed_manifest(clinic: Path) -> None:
    file = clinic / "manifest.csv"
    file.write_text(file.read_text().replace("naevus", "melanoma", 1))


def changed_site_file(clinic: Path) -> None:
    file = clinic.parent / "sites" / "clinic.toml"
    file.write_text(file.read_text().replace('naevus = "benign"', 'naevus = "malignant"'))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (touched_image, "1 images vanished or changed .*0002"),
        (grown_image, "1 images vanished or changed .*0002"),
        (vanished_image, "1 images vanished or changed .*0002"),
        (vanished_folder, "24 images vanished or changed .*0001"),
        (vanished_manifest, "site file or the manifest changed"),
        (changed_manifest, "site file or the manifest changed"),
        (changed_site_file, "site file or the manifest changed"),
    ],
)
def test_changed_data_is_refused(
    make_site: MakeSite, clinic: Path, change: Callable[[Path], None], words: str
) -> None:
    site = make_site()
    prepare_site(site)
    change(clinic)
    with pytest.raises(DerminoError, match=words) as caught:
        load_prepared(site)
    assert caught.value.code == "DATA_CHANGED"
    assert "dermino-client check --site clinic" in str(caught.value)
    assert "0002" not in caught.value.safe_sentence


def test_a_change_during_preparation_is_noticed_too(
    make_site: MakeSite, clinic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embedding takes hours; a label map mended meanwhile is not the one that was used."""
    extract = module.extract_features

    def slow_extract(*arguments: object, **options: object) -> object:
        table = extract(*arguments, **options)
        changed_site_file(clinic)
        return table

    site = make_site()
    monkeypatch.setattr(module, "extract_features", slow_extract)
    prepare_site(site)
    with pytest.raises(DerminoError, match="site file or the manifest changed"):
        load_prepared(site)


def test_never_prepared_and_damaged(make_site: MakeSite, tmp_path: Path) -> None:
    cache = tmp_path / "own"
    site = make_site(node={"cache": str(cache)})
    with pytest.raises(DerminoError, match="not been prepared"):
        load_prepared(site)
    prepare_site(site)
    (snapshot,) = (cache / "prepared").iterdir()
    whole = snapshot.read_bytes()
    for damaged in (whole[:1000], b"", b"text", whole.replace(b'"version"', b'"versien"')):
        snapshot.write_bytes(damaged)
        with pytest.raises(DerminoError, match="snapshot cannot be used") as caught:
            load_prepared(site)
        assert caught.value.code == "DATA_CHANGED"
    snapshot.write_bytes(whole)
    load_prepared(site)


def test_two_files_of_one_name_do_not_share_a_snapshot(make_site: MakeSite, tmp_path: Path) -> None:
    from dermino_client.site import read_site

    site = make_site()
    prepare_site(site)
    copy = tmp_path / "other" / "clinic.toml"
    copy.parent.mkdir()
    shutil.copy(site.file, copy)
    with pytest.raises(DerminoError, match="not been prepared"):
        load_prepared(read_site(copy))


def test_a_simulation_leaves_the_clients_snapshot_alone(
    make_site: MakeSite, warm_cache: Path
) -> None:
    """`dermino simulate --precision bf16` beside a running client must not change its features."""
    site = make_site()
    own = prepare_site(site)
    assert prepare_site(site, precision="bf16", cache=warm_cache).precision == "bf16"
    same(load_prepared(site), own)


CHILD = """
import json, sys
from pathlib import Path
from dermino_client.app import app
from dermino_client.hospital import hospital_of
from dermino_client.site import read_site
from dermino_client.work import train
from dermino_strategies.fedavg import FedAvg
from dermino_strategies.protocol import Task, TrainRequest
hospital = hospital_of(read_site(Path(sys.argv[1])))
site = hospital.prepared
task = Task(
    run_id="0" * 32, name=site.task, classes=site.classes,
    backbone_fingerprint=site.backbone_fingerprint,
    width=site.width, strategy="fedavg", rounds=2, seed=0, replicates=2, settings={},
)
arrays = FedAvg().initial_arrays(2, site.width, 0)
request = TrainRequest(task=task, round=1, send_local_head=True)
assert len(train(hospital, request, arrays)) == 3
print(json.dumps([site.images_used, sorted({"torch", "timm", "sklearn"} & set(sys.modules))]))
"""


def test_answering_a_message_needs_neither_torch_nor_timm(make_site: MakeSite) -> None:
    """A fresh process answers every message: importing torch would cost seconds each time."""
    site = make_site()
    prepare_site(site)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(site.file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [24, []]


def test_manifest_of_another_place(make_site: MakeSite, clinic: Path, tmp_path: Path) -> None:
    """The table may lie elsewhere, and call its columns what it likes."""
    table = tmp_path / "tables" / "clinic.csv"
    table.parent.mkdir()
    text = (clinic / "manifest.csv").read_text().replace("label", "dx", 1)
    table.write_text(text.replace("group", "lesion_id", 1))
    site = make_site(
        data={
            "manifest": str(table),
            "images": str(clinic),
            "columns": {"label": "dx", "group": "lesion_id"},
        }
    )
    prepared = prepare_site(site)
    records = read_manifest(clinic / "manifest.csv").records
    assert len(set(prepared.groups)) == len({r.group for r in records})
