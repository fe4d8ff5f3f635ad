"""`dermino-client init`: what it writes is a site file, whatever the labels are called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dermino_client.init import Proposal, write_proposal
from dermino_client.site import Site, find_site, read_site
from dermino_core.errors import DerminoError
from dermino_core.manifest import Record, read_manifest, write_manifest

UNDECIDED = re.compile(r'^# (".*") = ""$', re.MULTILINE)


def decide(file: Path, target: str = "benign") -> Site:
    """As a person would: take the '#' away and name a class."""
    text = file.read_text(encoding="utf-8")
    file.write_text(UNDECIDED.sub(rf'\1 = "{target}"', text), encoding="utf-8")
    return read_site(file)


def proposal(folder: Path, labels: list[str | None], **changes: object) -> Proposal:
    records = [Record(image=f"{i}.jpg", label=label) for i, label in enumerate(labels)]
    write_manifest(folder / "table.csv", records)
    values = {"name": "ward", "images": folder, "table": folder / "table.csv"}
    return Proposal(**(values | changes))


def test_a_synthetic_hospital(clinic: Path, tmp_path: Path) -> None:
    ours = Proposal("clinic", clinic, clinic / "manifest.csv", backbone="weights.safetensors")
    file, notes = write_proposal(ours, tmp_path / "sites")
    site = find_site("clinic", tmp_path / "sites")
    assert site.file == file
    assert site.labels == {"melanoma": "malignant", "naevus": "benign"}
    assert site.manifest == clinic / "manifest.csv"
    assert site.images == clinic
    assert site.coordinator is None
    assert notes == ["24 images, 2 labels, 0 without a label"]
    melanomas = sum(r.label == "melanoma" for r in read_manifest(ours.table).records)
    assert f'"melanoma" = "malignant"  # {melanomas} images' in file.read_text()


def test_ham10000(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "ham10000"
    plain = Proposal("ham", folder, folder / "labels.csv", backbone="weights.safetensors")
    file, notes = write_proposal(plain, tmp_path)
    site = read_site(file)
    assert site.labels == {
        **dict.fromkeys(("akiec", "bcc", "mel"), "malignant"),
        **dict.fromkeys(("bkl", "df", "nv", "vasc"), "benign"),
    }
    assert len(notes) == 2
    assert "800 images, 7 labels" in notes[0]
    assert "group" in notes[1]
    grouped = Proposal(
        name="ham2",
        images=folder,
        table=folder / "labels.csv",
        columns={"group": "lesion_id"},
        coordinator="consortium.example.org:443",
        backbone="weights/vit.safetensors",
    )
    file, notes = write_proposal(grouped, tmp_path)
    site = read_site(file)
    assert len(notes) == 1
    assert site.data.columns == {"group": "lesion_id"}
    assert site.coordinator is not None
    assert site.coordinator.address == "consortium.example.org:443"
    assert site.coordinator.private_key == Path("ham2.key")
    assert site.backbone.name == "weights/vit.safetensors"


def test_ph2(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "ph2"
    file, notes = write_proposal(
        Proposal("ph2", folder, folder / "labels.csv", backbone="weights.safetensors"), tmp_path
    )
    assert set(read_site(file).labels.values()) == {"benign", "malignant"}
    assert not any("decide" in note for note in notes)


def test_what_is_noticed(tmp_path: Path) -> None:
    labels = ["melanoma", "psoriasis", "psoriasis", None, "wart"]
    ours = proposal(tmp_path, labels)
    (tmp_path / "0.jpg").touch()
    file, notes = write_proposal(ours, tmp_path)
    assert notes[:3] == [
        "5 images, 3 labels, 1 without a label",
        f"4 images are not in {tmp_path}",
        "you must decide about: psoriasis, wart",
    ]
    assert "demo' knows drawn lesions only" in notes[3]
    assert "not independent" in notes[4]
    assert read_site(file).labels == {"melanoma": "malignant"}
    assert "# DECIDE: 2 images. One of benign, malignant" in file.read_text()
    assert decide(file).labels == {
        "melanoma": "malignant",
        "psoriasis": "benign",
        "wart": "benign",
    }


def test_names_too_long_for_a_file_are_missing_images(tmp_path: Path) -> None:
    write_manifest(tmp_path / "table.csv", [Record(image="x" * 300, label="mole")])
    _, notes = write_proposal(Proposal("ward", tmp_path, tmp_path / "table.csv"), tmp_path)
    assert f"1 images are not in {tmp_path}" in notes


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "ward.toml").write_text("mine")
    with pytest.raises(DerminoError) as caught:
        write_proposal(proposal(tmp_path, ["mole"]), tmp_path)
    assert caught.value.code == "OUTPUT_EXISTS"
    assert (tmp_path / "ward.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../ward"}, "cannot name a site"),
        ({"task": "diagnosis"}, "no built-in task 'diagnosis'"),
        ({"coordinator": "https://c.example"}, "HOST:PORT"),
        ({"columns": {"lesion": "x"}}, "No such column to map"),
        ({"columns": {"group": "x"}}, "no column 'x'"),
        ({"table": Path("nowhere.csv")}, "nowhere.csv"),
    ],
)
def test_mistakes_write_nothing(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(DerminoError, match=re.escape(words)):
        write_proposal(proposal(tmp_path, ["mole"], **changes), tmp_path / "sites")
    assert not (tmp_path / "sites").exists()


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12),
        min_size=1,
        max_size=5,
    )
)
@example(['a"b', "a'b", "a\\b", "a = b", "[labels]", "# no", '"""', "'''"])
@example(["two\nlines", "re\rturn", "tab\there", "\x7f", "\x1b[2J", "\u2028", "\ufeff"])
@example(["皮膚癌", "naïve", "🙂", "\u202emalignant", "a.b", "", " "])
@settings(max_examples=100, deadline=None)
def test_any_label_survives(tmp_path_factory: pytest.TempPathFactory, labels: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    ours = proposal(folder, list(labels))
    seen = {r.label for r in read_manifest(ours.table).records} - {None}
    file, _ = write_proposal(ours, folder)
    site = decide(file)
    assert set(site.labels) == seen
    assert set(site.labels.values()) <= {"benign", "malignant"}


@given(st.text(st.characters(codec="utf-8"), max_size=20).map("x".__add__))
@settings(max_examples=50, deadline=None)
def test_any_path_and_backbone_survive(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    images = folder / name.replace("\0", "0").replace("/", "-")
    images.mkdir()
    file, _ = write_proposal(
        proposal(folder, ["mole"], images=images, backbone=name), folder / "sites"
    )
    site = read_site(file)
    assert site.images == images
    assert site.backbone.name == name
