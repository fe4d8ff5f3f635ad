"""The log: lines are there at once, a resumed run goes on where it was, trackers are optional."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermino_core.errors import DerminoError
from dermino_core.pretraining.tracking import METRICS_FILE, Tracker, read_metrics

CONFIG: dict[str, object] = {"preset": "recommended", "run": {"steps": 10}}


def log_steps(tracker: Tracker, first: int, last: int) -> None:
    for step in range(first, last + 1):
        tracker.log("step", {"step": step, "loss": 1 / step})


def steps_in(folder: Path) -> list[object]:
    return [r["step"] for r in read_metrics(folder / METRICS_FILE) if r["kind"] == "step"]


def test_a_line_is_there_before_the_file_is_closed(tmp_path: Path) -> None:
    with Tracker(tmp_path / "run", (), CONFIG) as tracker:
        tracker.log("step", {"step": 1, "loss": 2.5, "gradient/backbone": math.nan})
        tracker.log("warning", {"step": 1, "text": "Läsion – größer"})
        lines = (tmp_path / "run" / METRICS_FILE).read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"kind": "step", "step": 1, "loss": 2.5, "gradient/backbone": None},
        {"kind": "warning", "step": 1, "text": "Läsion – größer"},
    ]


def test_a_resumed_run_drops_what_comes_after_its_checkpoint(tmp_path: Path) -> None:
    with Tracker(tmp_path, (), CONFIG) as tracker:
        log_steps(tracker, 1, 6)
        tracker.log("probe", {"step": 4, "knn_auroc": 0.7})
        tracker.log("probe", {"step": 6, "knn_auroc": 0.8})
    with (tmp_path / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write('{"kind": "step", "st')
    with Tracker(tmp_path, (), CONFIG, resume_step=4) as tracker:
        assert [record["step"] for record in tracker.kept] == [1, 2, 3, 4, 4]
        log_steps(tracker, 5, 8)
    assert steps_in(tmp_path) == list(range(1, 9))


def test_a_new_run_starts_an_empty_file_and_a_moved_one_can_go_on(tmp_path: Path) -> None:
    for _ in range(2):
        with Tracker(tmp_path, (), CONFIG) as tracker:
            log_steps(tracker, 1, 2)
    assert steps_in(tmp_path) == [1, 2]
    with Tracker(tmp_path / "elsewhere", (), CONFIG, resume_step=2) as tracker:
        log_steps(tracker, 3, 3)
    assert steps_in(tmp_path / "elsewhere") == [3]


def test_a_killed_process_leaves_what_it_logged(tmp_path: Path) -> None:
    child = (
        "import os, sys, pathlib\n"
        "from dermino_core.pretraining.tracking import Tracker\n"
        "tracker = Tracker(pathlib.Path(sys.argv[1]), (), {})\n"
        "for step in range(1, 4): tracker.log('step', {'step': step})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", child, str(tmp_path)], check=False)
    assert steps_in(tmp_path) == [1, 2, 3]


@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=8),
            st.one_of(st.text(max_size=8), st.integers(), st.floats(), st.none()),
            max_size=4,
        ),
        max_size=5,
    )
)
def test_whatever_is_logged_can_be_read_back(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with Tracker(folder, (), {}) as tracker:
        for record in records:
            tracker.log("event", record)
    expected = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v
         for k, v in {"kind": "event", **record}.items()} for record in records
    ]  # fmt: skip
    assert read_metrics(folder / METRICS_FILE) == expected


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"step": 1}\nnonsense\n{"step": 2}\n', "utf-8")
    with pytest.raises(DerminoError, match="Line 2") as error:
        Tracker(tmp_path, (), CONFIG, resume_step=1)
    assert error.value.code == "RESULTS_INVALID"
    with pytest.raises(DerminoError, match="cannot be read"):
        read_metrics(tmp_path / "none")


def test_tensorboard_shows_numbers_and_sentences(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra `tracking`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Tracker(tmp_path, ("tensorboard",), CONFIG) as tracker:
        log_steps(tracker, 1, 5)
        tracker.log("probe", {"step": 5, "knn_auroc": 0.75, "rank_me": math.nan})
        tracker.log("warning", {"step": 5, "text": "Look."})
    with Tracker(tmp_path, ("tensorboard",), CONFIG, resume_step=3) as tracker:
        log_steps(tracker, 4, 6)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert set(events.Tags()["scalars"]) == {"loss", "probe/knn_auroc"}
    assert events.Scalars("probe/knn_auroc") == []


def test_a_tracker_without_its_package_is_one_sentence(tmp_path: Path) -> None:
    child = (
        "import sys, pathlib\n"
        "sys.modules['wandb'] = None\n"
        "from dermino_core.errors import DerminoError\n"
        "from dermino_core.pretraining.tracking import Tracker\n"
        "try: Tracker(pathlib.Path(sys.argv[1]), ('wandb',), {})\n"
        "except DerminoError as error: sys.stdout.write(f'{error.code} {error}')\n"
    )
    run = [sys.executable, "-c", child, str(tmp_path)]
    said = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    assert said.startswith("DEPENDENCY_MISSING The tracker wandb needs the package wandb")
    with pytest.raises(DerminoError, match="no tracker 'excel'"):
        Tracker(tmp_path, ("excel",), CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trace"), [("wandb", "wandb"), ("mlflow", "mlflow.db")])
def test_other_trackers_stay_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, trace: str
) -> None:
    pytest.importorskip(name, reason=f"needs the extra `{name}`")
    for variable in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    for resume, first, last in ((None, 1, 4), (2, 3, 5)):
        with Tracker(tmp_path / "run", (name,), CONFIG, resume) as tracker:
            log_steps(tracker, first, last)
            tracker.log("warning", {"step": last, "text": "Look."})
    assert (tmp_path / "run" / trace).exists()
    assert steps_in(tmp_path / "run") == [1, 2, 3, 4, 5]
