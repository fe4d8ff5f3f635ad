"""Finished parts come back as they were."""

from __future__ import annotations

import numpy as np
import pytest

from dermino_core.evaluation.measure import Measure, Outcome, measured
from dermino_core.evaluation.parts import content_of, part_key, read_part, write_part
from dermino_core.results import Calibration, RocCurve


def outcome() -> Outcome:
    rng = np.random.default_rng(0)
    return Outcome(
        [
            measured("softmax", "auroc", 0.8, rng.random(10), n=5),
            measured("votes", "auroc", np.nan, None, n=5, why_undefined="one class"),
            measured("softmax", "f1", 0.7, rng.random(10), n=3, group="sex=female", setting="s=1"),
        ],
        {"softmax": rng.random((5, 2)), "vötes": rng.random((5, 2))},
        {
            "softmax": RocCurve(
                false_positive_rate=[0.0, 1.0],
                true_positive_rate=[0.0, 1.0],
                low=[0.0, 1.0],
                high=[0.0, 1.0],
            )
        },
        {
            "softmax": Calibration(
                edges=[0.0, 1.0],
                predicted=[None],
                observed=[0.5],
                count=[5],
                expected_calibration_error=None,
            )
        },
        ["a note"],
    )


def test_an_outcome_comes_back_whole(tmp_path):
    before = outcome()
    write_part(tmp_path / "parts", "key", before)
    after = read_part(tmp_path / "parts", "key")
    assert after is not None
    assert list(after.measures) == list(before.measures)
    for one, other in zip(after.measures, before.measures, strict=True):
        assert (one.replicates is None) == (other.replicates is None)
        if one.replicates is not None and other.replicates is not None:
            np.testing.assert_array_equal(one.replicates, other.replicates)
    assert list(after.predictions) == ["softmax", "vötes"]
    np.testing.assert_array_equal(after.predictions["vötes"], before.predictions["vötes"])
    assert (after.rocs, after.calibrations) == (before.rocs, before.calibrations)
    assert list(after.notes) == ["a note"]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nothing", None])
def test_a_damaged_part_counts_as_absent(tmp_path, damage):
    write_part(tmp_path, "key", outcome())
    file = tmp_path / "key.part"
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    assert read_part(tmp_path, "key") is None
    assert read_part(tmp_path, "another") is None


def test_no_flipped_bytes_stop_a_run(tmp_path):
    write_part(tmp_path, "key", outcome())
    file = tmp_path / "key.part"
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        place = int(rng.integers(0, len(whole) - 8))
        file.write_bytes(whole[:place] + rng.bytes(8) + whole[place + 8 :])
        assert read_part(tmp_path, "key") is None
    file.write_bytes(whole)
    assert read_part(tmp_path, "key") is not None


def test_content_is_of_files_and_folders(tmp_path):
    file = tmp_path / "a.csv"
    assert content_of(file) is None
    file.write_text("1")
    first, folder = content_of(file), content_of(tmp_path)
    file.write_text("23")
    assert content_of(file) != first
    assert content_of(tmp_path) != folder


def test_a_key_depends_on_everything():
    first = part_key(task="retrieval", options={"seed": 0})
    assert first == part_key(options={"seed": 0}, task="retrieval")
    assert first != part_key(task="retrieval", options={"seed": 1})


def test_the_interval_leaves_undefined_replicates_out():
    values = np.array([np.nan, *np.linspace(0, 1, 101)])
    found = measured("m", "auroc", 0.5, values, n=9)
    assert found == Measure(
        "m", "auroc", 0.5, 9, *np.percentile(values[1:], [2.5, 97.5]), values[1:].std(ddof=1)
    )
    assert measured("m", "auroc", np.nan, values, n=9).value is None
