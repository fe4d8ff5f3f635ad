"""What the check of a table finds across rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dermino_core.manifest import Manifest, Record, read_manifest
from dermino_core.manifest_checks import ManifestReport, check_manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(6):
        Image.new("RGB", (16, 16), (index * 9, 0, 0)).save(tmp_path / f"{index}.png")
    for copy in ("copy.png", "again.png"):
        (tmp_path / copy).write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


def _check(root: Path, *records: Record, **options: bool) -> ManifestReport:
    manifest = Manifest(root / "manifest.csv", root, list(records))
    return check_manifest(manifest, progress=False, **options)


def _found(report: ManifestReport) -> list[tuple[str, int | None, str]]:
    return [(problem.kind, problem.row, problem.severity) for problem in report.problems]


def test_a_clean_table_is_ok(root: Path) -> None:
    report = _check(
        root,
        Record("0.png", "a", "train", "p1", mask="4.png"),
        Record("1.png", "b", "train", "p1"),
        Record("2.png", "a", "test", "p2"),
        Record("3.png", "b", "test"),
    )
    assert report.ok
    assert report.problems == []
    counts = report.counts
    assert (counts.images, counts.readable, counts.groups, counts.masks) == (4, 4, 2, 1)
    assert counts.labels == {"a": 2, "b": 2}
    assert counts.splits == {"test": 2, "train": 2}


def test_copies_across_splits_are_errors_and_within_one_warnings(root: Path) -> None:
    report = _check(
        root,
        Record("0.png", "a", "train"),
        Record("copy.png", "a", "train"),
        Record("1.png", "a", "test"),
    )
    assert _found(report) == [("duplicate_content", 3, "warning")]
    assert report.ok
    report = _check(
        root,
        Record("0.png", "a", "train"),
        Record("copy.png", "a", "train"),
        Record("again.png", "b", "test"),
    )
    assert _found(report) == [
        ("duplicate_content_across_splits", 3, "error"),
        ("duplicate_content_across_splits", 4, "error"),
    ]
    assert "row 4" in report.problems[0].detail
    assert "another split and label" in report.problems[1].detail
    assert not report.ok


def test_one_file_in_two_rows(root: Path) -> None:
    report = _check(root, Record("0.png", "a"), Record("./0.png", "b"))
    assert _found(report) == [("duplicate_row", 3, "warning")]
    assert "row 2, with another label" in report.problems[0].detail
    report = _check(root, Record("0.png", "a", "train"), Record("0.png", "a", "test"))
    assert _found(report) == [("duplicate_row", 3, "error")]


def test_one_group_in_two_splits_is_told_once(root: Path) -> None:
    report = _check(
        root,
        Record("0.png", "a", "train", "p1"),
        Record("1.png", "a", "test", "p1"),
        Record("2.png", "a", "test", "p1"),
    )
    assert _found(report) == [("group_across_splits", 3, "error")]


def test_labels_and_splits_that_are_not_there(root: Path) -> None:
    report = _check(root, Record("0.png", "a"), Record("1.png"), Record("2.png"))
    assert _found(report) == [("empty_label", 3, "warning"), ("empty_label", 4, "warning")]
    assert report.counts.labels == {"": 2, "a": 1}
    assert _found(_check(root, Record("0.png"), Record("1.png"))) == [
        ("no_labels", None, "warning")
    ]
    report = _check(root, Record("0.png", "a", "train"), Record("1.png", "a"))
    assert _found(report) == [("partial_split", None, "error")]


def test_masks(root: Path) -> None:
    report = _check(
        root,
        Record("0.png", "a", mask="gone.png"),
        Record("1.png", "a", mask="broken.png"),
        Record("2.png", "a", mask="../x.png"),
    )
    kinds = [problem.kind for problem in report.problems]
    assert kinds == ["missing_mask", "unreadable_mask", "outside_folder"]
    assert "gone.png" in report.problems[0].detail
    assert report.counts.readable == 3


def test_without_decoding_damage_is_not_looked_for(root: Path) -> None:
    assert not _check(root, Record("broken.png", "a")).ok
    assert _check(root, Record("broken.png", "a"), decode=False).ok


def test_notes_of_the_reader_are_warnings(root: Path) -> None:
    (root / "m.csv").write_text("image,label,age\n0.png,a,old\n1.png,a,61\n")
    report = check_manifest(read_manifest(root / "m.csv"), progress=False)
    assert _found(report) == [("note", None, "warning")]
    assert "'old', row 2" in report.problems[0].detail


def test_progress_is_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_manifest(Manifest(root / "m.csv", root, [Record("0.png", "a")]))
    assert "1/1 images" in capsys.readouterr().err


def test_real_tables_are_clean(shared_data: Path) -> None:
    file = shared_data / "ph2" / "labels.csv"
    manifest = read_manifest(file, columns={"label": "binary"})
    few = Manifest(manifest.file, manifest.root, manifest.records[:40])
    report = check_manifest(few, progress=False)
    assert report.ok
    assert report.counts.readable == report.counts.masks == 40
    assert set(report.counts.labels) <= {"benign", "malignant"}
