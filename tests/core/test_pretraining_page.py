"""The page of a pretraining run: the answer first, nothing loaded, nothing untrusted runs."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_core.errors import DerminoError
from dermino_core.pretraining.config import PretrainConfig, RunSection
from dermino_core.pretraining.tracking import Tracker
from dermino_core.reporting.plots.curves import MOST_POINTS, short_value, thinned
from dermino_core.reporting.plots.scatter import names_plot
from dermino_core.reporting.pretraining_page import project, write_pretraining_report
from dermino_core.reporting.projection import read_projection, to_plane

VOID = {"meta", "br", "img", "link", "input", "hr"}
CONFIG = PretrainConfig(run=RunSection(steps=1000)).model_dump(mode="json")


class Balanced(HTMLParser):
    """Every element is closed; collects ids and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.extend(v for k, v in values.items() if k == "id" and v)
        addresses = [values.get("src"), values.get("href")]
        self.loaded.extend(a for a in addresses if a and not a.startswith("#"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def make_run(folder: Path, *, last: int = 1000, gain: float = 0.1, probes: bool = True) -> Path:
    """A run folder with every kind of record."""
    with Tracker(folder, (), CONFIG) as tracker:
        for step in range(0, last + 1, 100):
            share = step / 1000
            probe = {
                "step": step,
                "knn_auroc": 0.738 + gain * share,
                "linear_auroc": 0.8 + gain * share,
                "rank_me": 180 - 60 * share,
                "test_images": 412,
                "classes": 7,
            }
            if step:
                for name in ("knn", "linear"):
                    ends = {"": 0.0, "_low": -0.02, "_high": 0.02}
                    probe |= {f"{name}_gain{k}": gain * share + v for k, v in ends.items()}
            if probes:
                tracker.log("probe", probe)
            if not step:
                continue
            tracker.log("step", {
                "step": step, "images": step * 256, "loss": 9 - share,
                "uniform/image": 1 - share / 4, "uniform/patch": 0.9, "loss/koleo": -0.8,
                "loss/supervised": 0.1,
                "teacher/entropy": 0.6, "teacher/prototypes_in_use": 0.7,
                "gradient/backbone": 0.0 if step < 300 else 1.5, "gradient/image_head": math.nan,
                "learning_rate": 1e-4 * (1 - share), "momentum": 0.99, "teacher_temperature": 0.05,
                "images_per_second": 612.0, "data_wait": 0.04,
            })  # fmt: skip
        tracker.log("warning", {"step": 400, "text": "The rank <b>fell</b> & fell."})
        tracker.log("event", {"step": 500, "text": "goes on from step 500 of 1000"})
    about = {"created": "2026-11-21T13:00:00+00:00", "machine": "x86_64", "config": CONFIG,
             "labels": ["<script>alert(1)</script>"], "versions": {"torch": "2.15.0"}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(about), "utf-8")
    return folder


def page_of(folder: Path) -> str:
    text = write_pretraining_report(folder).read_text("utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert parser.loaded == []
    assert len(parser.ids) == len(set(parser.ids))
    assert "<script" not in text
    assert "nan" not in re.sub(r"<[^>]*>", "", text).lower().split()
    return text


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.partition("</style>")[2]))


def test_the_whole_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    project(np.eye(3)[labels] + rng.normal(size=(40, 3)) * 0.1, labels, np.eye(4),
            ["melanoma", "nevus", "$x$ <i>", "acne"], folder / "projection.npz",
            classes=["mel", "nv", "bcc"])  # fmt: skip
    page = page_of(folder)
    said = words(page)
    assert "The backbone became clearly better." in said
    assert "went from 0.738 to 0.838 (+0.100, paired 95 % interval +0.080 to +0.120)" in said
    assert "Measured on 412 test images of 7 classes." in said
    assert "Step 400: The rank &lt;b&gt;fell&lt;/b&gt; &amp; fell." in said
    assert "Step 500: goes on from step 500 of 1000" in said
    for title in (
        "Did it learn?",
        "Losses",
        "Gradient norms",
        "Maps",
        "Configuration",
        "Run facts",
    ):
        assert title in said
    for entry in ("patch_mean_over", "masked_crops", "torch: 2.15.0", "256"):
        assert entry in said
    assert page.index("The answer") < page.index("Look at this first") < page.index("Losses")
    assert said.count("is at step") == 0
    assert page == page_of(folder)


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [(0.1, "clearly better"), (-0.1, "clearly worse"), (0.01, "It is not clear")],
)
def test_the_verdict_is_the_interval(tmp_path: Path, gain: float, verdict: str) -> None:
    assert verdict in words(page_of(make_run(tmp_path, gain=gain)))


def test_a_run_that_goes_on_or_measured_nothing(tmp_path: Path) -> None:
    said = words(page_of(make_run(tmp_path / "a", last=600)))
    assert "The run is at step 600 of 1 000" in said
    said = words(page_of(make_run(tmp_path / "b", probes=False)))
    assert "was not measured" in said
    assert "The image loss went from 98 % to 75 % of ln K." in said
    assert "Did it learn?" not in said


def test_a_baseline_with_a_loss_only_and_no_description(tmp_path: Path) -> None:
    with Tracker(tmp_path, (), {}) as tracker:
        for step in (1, 2):
            tracker.log("step", {"step": step, "loss": 1 / step, "learning_rate": 0.0})
    said = words(page_of(tmp_path))
    assert "The loss went from 1.000 to 0.500." in said
    assert "Learning rate" not in said


def test_an_empty_log_is_a_page(tmp_path: Path) -> None:
    Tracker(tmp_path, (), {}).close()
    assert "was not measured" in words(page_of(tmp_path))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DerminoError, match="metrics cannot be read") as error:
        write_pretraining_report(tmp_path)
    assert error.value.code == "RESULTS_INVALID"
    folder = make_run(tmp_path / "run")
    (folder / "projection.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(DerminoError, match="projection"):
        write_pretraining_report(folder)
    (folder / "run.json").write_text("[1]", "utf-8")
    with pytest.raises(DerminoError, match="description"):
        write_pretraining_report(folder)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["step", "kind", "loss", "uniform/image", "gradient/x<y", "knn_auroc",
                             "rank_me", "learning_rate", "text", "data_wait", "images"]),
            st.one_of(st.sampled_from(["step", "probe", "warning"]), st.text(max_size=5),
                      st.floats(), st.integers(-(10**9), 10**9), st.none(), st.booleans()),
        ),
        max_size=6,
    )
)  # fmt: skip
def test_no_log_breaks_the_page(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with Tracker(folder, (), {}) as tracker:
        for record in records:
            tracker.log("step", record)
    page_of(folder)


def test_close_neighbours_stay_close_in_the_plane() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 15)
    centres = rng.normal(size=(4, 20)) * 5
    vectors = centres[labels] + rng.normal(size=(60, 20)) * 0.3
    xy = to_plane(vectors)
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).mean() > 0.95
    np.testing.assert_array_equal(xy, to_plane(vectors))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("same", [True, False])
def test_few_or_equal_vectors_have_a_place(tmp_path: Path, n: int, *, same: bool) -> None:
    vectors = np.ones((n, 3)) if same else np.random.default_rng(n).normal(size=(n, 3))
    names = [str(i) for i in range(n)]
    project(vectors, list(names), vectors, names, tmp_path / "p.npz")
    found = read_projection(tmp_path / "p.npz")
    assert found.cls_xy.shape == found.prototype_xy.shape == (n, 2)
    assert np.isfinite(found.cls_xy).all()
    svg, named = names_plot(found.prototype_xy, names, name="a") if n else ("<svg", 0)
    assert svg.startswith("<svg")
    assert named <= n


def test_rows_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(8, 4))
    features[3] = np.nan
    project(features, np.arange(8), None, (), tmp_path / "p.npz")
    found = read_projection(tmp_path / "p.npz")
    assert found.cls_label.tolist() == ["0", "1", "2", "4", "5", "6", "7"]
    assert len(found.prototype_xy) == 0


def test_thinning_keeps_the_mean_and_the_end() -> None:
    points = [(step, float(step % 7)) for step in range(1, 1001)]
    short = thinned(points)
    assert len(short) <= MOST_POINTS
    assert short[-1][0] == 1000
    means = [value for _, value in short], [value for _, value in points]
    assert np.mean(means[0]) == pytest.approx(np.mean(means[1]))
    assert thinned(points[:5]) == points[:5]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9975, "0.9975"), (-1.2, "−1.2"), (0, "0"), (1e-5, "1.0e−05"), (12000, "12k"),
     (1e12, "1.0e+12")],
)  # fmt: skip
def test_short_numbers(value: float, text: str) -> None:
    assert short_value(value) == text


def test_names_that_would_cover_each_other_are_left_out() -> None:
    spread = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.5]])
    assert names_plot(spread, ["melanoma", "nevus", "acne"], name="a")[1] == 3
    heap = np.array([[0.0, 0.0], [1e-4, 0.0], [0.0, 1e-4], [1.0, 1.0]])
    assert names_plot(heap, ["melanoma", "nevus", "acne", "rosacea"], name="a")[1] < 4
