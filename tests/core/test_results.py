"""`results.json`: one schema, strict both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermino_core.errors import DerminoError
from dermino_core.results import Estimate, Results, read_results

MINIMAL: dict[str, Any] = {
    "dermino_version": "0",
    "created": "2026-01-01T00:00:00+00:00",
    "title": "test",
    "task": "malignancy",
    "classes": ["benign", "malignant"],
    "strategy": "fedavg",
    "engine": "inprocess",
    "rounds_planned": 2,
    "rounds_done": 2,
    "seed": 0,
    "backbone": {
        "name": "demo",
        "architecture": "vit",
        "fingerprint": "0" * 64,
        "width": 4,
        "precision": "fp32",
        "pretrained": False,
    },
    "machine": "a machine",
    "models": [],
    "sites": [],
    "mean": {"global": {"auroc": {"value": 0.5}, "f1": {"value": None, "undefined_because": "x"}}},
    "rounds": [],
}


def written(folder: Path, content: object) -> Path:
    file = folder / "results.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_round_trip(tmp_path: Path) -> None:
    results = Results.model_validate(MINIMAL)
    file = written(tmp_path, results.model_dump_json())
    assert read_results(file) == read_results(tmp_path) == results
    assert results.mean["global"].f1.value is None
    assert json.loads(file.read_text())["schema_version"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"kind": "evaluation"},
        {"engine": "cloud"},
        {"surprise": 1},
        {"seed": None},
        {"mean": {"global": {"auroc": {"value": 0.5, "p": 0.01}, "f1": {"value": 1}}}},
        {"sites": [{"name": "ward"}]},
        {"rounds": [{"round": 1, "kind": "rest", "seconds": 1, "sites": []}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_contents_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    file = written(tmp_path, MINIMAL | change)
    with pytest.raises(DerminoError, match="schema version 1") as caught:
        read_results(file)
    assert (caught.value.code, caught.value.exit_code) == ("RESULTS_INVALID", 8)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("key", sorted(MINIMAL))
def test_nothing_may_be_missing(tmp_path: Path, key: str) -> None:
    written(tmp_path, {k: v for k, v in MINIMAL.items() if k != key})
    with pytest.raises(DerminoError, match="schema version 1"):
        read_results(tmp_path)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DerminoError, match=r"(?s)no results here.*resume") as caught:
        read_results(tmp_path)
    assert str(tmp_path / "results.json") in str(caught.value)
    with pytest.raises(DerminoError, match="no results here"):
        read_results(tmp_path / "nowhere")
    text = json.dumps(MINIMAL)
    for content in (text[:-20], "", "null", "[]", "NaN"):
        written(tmp_path, content)
        with pytest.raises(DerminoError, match="schema version 1"):
            read_results(tmp_path)
    (tmp_path / "results.json").write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))
    with pytest.raises(DerminoError, match="schema version 1"):
        read_results(tmp_path)


@given(st.floats(0, 1), st.none() | st.floats(0, 1))
def test_numbers_survive_to_the_last_bit(value: float, low: float | None) -> None:
    estimate = Estimate(value=value, low=low)
    assert Estimate.model_validate_json(estimate.model_dump_json()) == estimate
