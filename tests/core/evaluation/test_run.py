"""A whole evaluation on drawn images: real backbones, real tasks, real files."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dermino_core.datasets.synthetic import write_site
from dermino_core.errors import DerminoError
from dermino_core.evaluation import tasks
from dermino_core.evaluation.cohort import Cohort, open_cohort
from dermino_core.evaluation.results import read_evaluation
from dermino_core.evaluation.run import Plan, evaluate
from dermino_core.evaluation.tables import write_tables
from dermino_core.evaluation.tasks import chosen_tasks
from dermino_core.evaluation.work import Options, file_name
from dermino_core.manifest import read_manifest, write_manifest
from dermino_core.reporting.evaluation_page import render_evaluation_page
from tests.core.test_reporting import make_results

BACKBONES = ("demo", "random:dermino_demo")
TASKS = ("retrieval", "classification", "calibration")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("drawn")
    return write_site(out, site="synthetic-mednode", images=60)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def cohort(table: Path, name: str = "drawn") -> Cohort:
    return open_cohort(name, read_manifest(table))


def plan(table: Path, cache: Path, **changes) -> Plan:
    options = Options(replicates=100, precision="fp32")
    first = Plan(BACKBONES, [cohort(table)], TASKS, cache, options)
    return replace(first, **changes)


@pytest.fixture(scope="module")
def finished(drawn, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return evaluate(plan(drawn, cache), out), out


def test_every_backbone_has_every_number(finished):
    results, _ = finished
    found = {(s.backbone, s.task, s.method, s.metric) for s in results.scores}
    for backbone in BACKBONES:
        for task, method in (
            ("retrieval", "votes"),
            ("retrieval", "softmax"),
            ("classification", "linear probe"),
            ("classification", "logistic regression"),
        ):
            for metric in ("auroc", "f1"):
                assert (backbone, task, method, metric) in found
    assert all(s.value is None or s.low is None or s.low <= s.high for s in results.scores)
    assert {c.backbone for c in results.curves} == set(BACKBONES)
    assert {p.backbone for p in results.projections} == set(BACKBONES)
    assert not results.skipped


def test_the_file_is_what_was_returned(finished):
    results, out = finished
    assert read_evaluation(out) == results
    (data,) = results.datasets
    assert data.n_train + data.n_test + data.unreadable == data.images == 60


def test_comparisons_are_paired_on_the_same_images(finished):
    results, _ = finished
    tests = {row.test for row in results.comparisons}
    assert tests == {"paired bootstrap", "DeLong"}
    scores = {
        (s.backbone, s.task, s.method, s.metric): s.value
        for s in results.scores
        if not s.setting and s.group == "all"
    }
    for row in results.comparisons:
        one = scores[row.first, row.task, row.method, row.metric]
        other = scores[row.second, row.task, row.method, row.metric]
        assert one is not None
        assert other is not None
        assert row.difference == pytest.approx(one - other, abs=1e-9)


def test_what_is_finished_is_not_computed_again(finished, drawn, cache, monkeypatch):
    results, out = finished

    def refuse(_work):
        raise AssertionError("computed again")

    again = {name: replace(task, run=refuse) for name, task in tasks.TASKS.items() if name in TASKS}
    monkeypatch.setattr("dermino_core.evaluation.run.TASKS", again)
    second = evaluate(plan(drawn, cache), out)
    assert second.scores == results.scores
    assert second.comparisons == results.comparisons
    with pytest.raises(AssertionError, match="computed again"):
        evaluate(plan(drawn, cache, options=Options(replicates=50, precision="fp32")), out)


def test_one_broken_data_set_loses_nothing_else(drawn, cache, tmp_path):
    table = tmp_path / "one.csv"
    records = [replace(r, label="same") for r in read_manifest(drawn).records]
    write_manifest(table, records)
    broken = open_cohort("broken", read_manifest(table, root=drawn.parent))
    both = plan(drawn, cache, cohorts=[broken, cohort(drawn)], backbones=BACKBONES[:1])
    results = evaluate(both, tmp_path / "run")
    assert {s.dataset for s in results.scores} == {"drawn"}
    assert {s.task for s in results.skipped} == set(TASKS)
    assert all("fewer than two labels" in s.sentence for s in results.skipped)
    quiet = evaluate(replace(both, whatever_fits=True), tmp_path / "run")
    assert not quiet.skipped


def test_two_data_sets_of_one_name_are_refused(drawn, cache, tmp_path):
    twice = plan(drawn, cache, cohorts=[cohort(drawn), cohort(drawn)])
    with pytest.raises(DerminoError, match="Two data sets are called 'drawn'"):
        evaluate(twice, tmp_path)


def test_paper_mode_prints_the_variance(drawn, cache, tmp_path, finished):
    results = evaluate(plan(drawn, cache, statistics="paper"), tmp_path)
    plain, _ = finished
    narrow = [s.high - s.low for s in results.scores if s.low is not None and s.high is not None]
    wide = [s.high - s.low for s in plain.scores if s.low is not None and s.high is not None]
    assert np.median(narrow) < np.median(wide) / 3
    assert any("no confidence intervals" in warning for warning in results.warnings)


def test_tables_and_page_hold_the_numbers(finished):
    results, out = finished
    write_tables(results, out)
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert len(rows) == len(results.scores)
    first = next(s for s in results.scores if s.metric == "auroc")
    value = f"{first.value:.3f}"
    assert value in (out / "tables.md").read_text()
    assert value in (out / "tables.tex").read_text()
    page = render_evaluation_page(results)
    assert value in page
    assert page == render_evaluation_page(results)
    assert "<script" not in page
    for identifier in ("answer", "classification", "comparisons", "calibration", "maps", "data"):
        assert f'id="{identifier}"' in page


def test_a_federation_is_shown_beside(finished):
    results, _ = finished
    assert 'id="federation"' not in render_evaluation_page(results)
    federated = make_results()
    both = results.model_copy(update={"federation": federated})
    page = render_evaluation_page(type(results).model_validate_json(both.model_dump_json()))
    assert 'id="federation"' in page
    for site in federated.sites:
        assert site.name in page
    assert "is not among the backbones of this page" in page


def test_names_from_outside_cannot_write_into_the_page(finished):
    results, _ = finished
    evil = "<img src=x onerror=alert(1)>"
    content = json.loads(results.model_dump_json().replace('"drawn"', json.dumps(evil)))
    page = render_evaluation_page(type(results).model_validate(content))
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


@pytest.fixture(scope="module")
def everything(tmp_path_factory, cache):
    """One table with every column, some under other names, and readers; all tasks but captions."""
    folder = tmp_path_factory.mktemp("everything")
    drawn = write_site(folder, site="synthetic-ph2", images=48, masks=True)
    rng = np.random.default_rng(0)
    rows = list(csv.DictReader(drawn.read_text().splitlines()))
    answers = ["reader,item,answer"]
    for place, row in enumerate(rows):
        person, visit = divmod(place, 2)
        row |= {
            "file": row.pop("image"),
            "patient": f"P{person}",
            "split": ("train", "test")[person // 2 % 2],
            "group": "not this",
            "lesion": "L1",
            "date": f"2021-0{1 + visit}-01",
            "changed": "" if visit == 0 else ("yes" if person % 2 else "no"),
            "sex": ("female", "male")[person % 2],
            "time": f"{rng.integers(1, 60)}",
            "event": "yes" if place % 3 else "no",
        }
        if row["split"] == "test":
            answers += [f"r{reader},{row['file']},{row['label']}" for reader in (1, 2)]
    table = folder / "all.csv"
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    columns = {"image": "file", "group": "patient"}
    one = open_cohort("everything", read_manifest(table, columns=columns), columns=columns)
    readers = folder / "readers.csv"
    readers.write_text("\n".join(answers) + "\n")
    options = Options(replicates=50, precision="fp32", readers=readers)
    wanted = [name for name in tasks.TASKS if name != "captioning"]
    out = folder / "run"
    return evaluate(Plan(["demo"], [one], wanted, cache, options), out), out, one, options


@pytest.mark.slow
def test_every_task_runs_through_the_engine(everything):
    results, out, _, _ = everything
    assert not results.skipped
    # Groups of people are too small here: fairness names them instead of scoring them.
    ran = {score.task for score in results.scores}
    assert ran == set(tasks.TASKS) - {"captioning", "fairness"}
    assert any("sex=" in note for note in results.datasets[0].notes)
    assert (out / "models" / "demo" / "everything" / "segmentation" / "linear").is_dir()


@pytest.mark.slow
def test_patients_under_another_column_stay_apart(everything):
    """All lesions are called L1: without the column they would be one lesion."""
    results, _, _, _ = everything
    pairs = {score.n for score in results.scores if score.task == "longitudinal"}
    assert max(pairs) == 12  # half of 24 patients with one pair each


@pytest.mark.slow
def test_the_page_of_every_task_has_unique_ids(everything):
    results, _, _, _ = everything
    page = render_evaluation_page(results)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "Groups and settings" in page
    assert "share=0.5" in page


@pytest.mark.slow
def test_corrected_answers_of_readers_are_read_again(everything, cache):
    results, out, one, options = everything

    def accuracy(found):
        return next(
            score.value
            for score in found.scores
            if (score.task, score.method, score.metric) == ("reader_study", "readers", "accuracy")
        )

    assert accuracy(results) == 1.0
    first, *lines = options.readers.read_text().splitlines()
    wrong = dict(zip(one.classes, (*one.classes[1:], one.classes[0]), strict=True))
    cells = [line.split(",") for line in lines]
    changed = [f"{reader},{item},{wrong[answer]}" for reader, item, answer in cells]
    options.readers.write_text("\n".join([first, *changed]) + "\n")
    same = ["label_efficiency", "reader_study"]
    again = evaluate(Plan(["demo"], [one], same, cache, options), out)
    assert accuracy(again) == 0.0


def test_names_make_harmless_paths():
    assert file_name("/w/a/vit.safetensors") == "w_a_vit.safetensors"
    assert file_name("../..") == "_"
    assert file_name("demo") == "demo"


def test_tasks_are_named_or_all():
    assert chosen_tasks("all") == list(tasks.TASKS)
    assert chosen_tasks("classification, label-efficiency,retrieval") == [
        "retrieval",
        "classification",
        "label_efficiency",
    ]
    for wrong in ("nothing", ""):
        with pytest.raises(DerminoError, match="task"):
            chosen_tasks(wrong)
