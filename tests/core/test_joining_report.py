"""The report's section on what joining gives, and results from before there was one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_reporting import Outline, make_results, words  # beside this file

from dermino_core.joining_curve import sentence
from dermino_core.reporting.page import render_page
from dermino_core.reporting.plots.joining import place, ticks
from dermino_core.reporting.roles import roles_of
from dermino_core.reporting.text import comparisons
from dermino_core.results import (
    Difference,
    Estimate,
    JoiningCurve,
    JoiningPoint,
    ModelDescription,
    ModelSummary,
    Results,
    read_results,
)

NONE = Estimate(value=None, undefined_because="no labels of two classes, in training or in testing")


def around(value: float, half: float = 0.061) -> Estimate:
    low, high = max(-1.0, value - half), min(1.0, value + half)
    return Estimate(value=value, low=low, high=high, standard_error=half / 2)


def point(labels: int, alone: Estimate, shift: float) -> JoiningPoint:
    return JoiningPoint(
        labels=labels,
        draws=1,
        alone=alone,
        federated=around(0.712),
        personal=around(0.723 + shift),
        personal_minus_alone=NONE if alone.value is None else around(shift, 0.017),
        federated_minus_alone=NONE,
        personal_minus_federated=around(0.013 + shift),
    )


def curve(shift: float, labels: tuple[int, ...] = (0, 10, 20, 40, 80, 85)) -> JoiningCurve:
    points = [point(n, NONE if n == 0 else around(0.55 + n / 500), shift) for n in labels]
    return JoiningCurve(n_train=labels[-1], n_test=85, points=points)


def joined(sites: int, shifts: tuple[float, ...] = (0.031, 0.0, -0.042)) -> Results:
    results = make_results({f"site-{i}": (170, 50, 35) for i in range(sites)})
    results.models.append(ModelDescription(key="personal", title="Personal", description="own"))
    for i, site in enumerate(results.sites):
        site.joining = curve(shifts[i % len(shifts)])
        site.evaluations["personal"] = site.evaluations["pooled"]
        site.global_minus["personal"] = Difference(auroc=around(-0.021, 0.008), f1=around(0.01))
    results.personal = True
    results.mean["personal"] = ModelSummary(auroc=around(0.81), f1=around(0.7))
    results.mean_global_minus["personal"] = Difference(auroc=around(-0.021, 0.008), f1=around(0.0))
    return results


@pytest.mark.parametrize("sites", [1, 3, 25])
def test_every_hospital_has_its_sentence_and_its_numbers(sites: int) -> None:
    results = joined(sites)
    page = render_page(results)
    text = words(page)
    assert "What joining gives each hospital" in text
    for site in results.sites:
        assert site.joining is not None
        assert text.count(sentence(site.joining).replace(" -0.", " −0.")) >= 1
        assert f"By number of labels: {site.name}" in text
    assert text.count("With your 85 labelled images, joining changes your AUROC by") == sites
    assert page.count('aria-label="AUROC at site-') == min(sites, 12) + sites  # plots and tables
    for number in ("0.712", "0.754", "+0.031", "0.773"):
        assert number in text
    tags = Outline(page).tags
    assert tags.count("details") >= sites
    better = sum(1 for i in range(sites) if i % 3 == 0)
    worse = sum(1 for i in range(sites) if i % 3 == 2)
    assert f"clearly better than training alone at {better} of {sites} hospital" in text
    assert f"and clearly worse at {worse}" in text
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_without_curves_the_page_has_no_such_section() -> None:
    page = render_page(make_results())
    assert "What joining gives" not in page
    assert "every hospital was sent the sums" not in page
    assert "every hospital was sent the sums" in render_page(joined(3))
    some = joined(3)
    some.sites[1].joining = None
    text = words(render_page(some))
    assert text.count("joining changes your AUROC by") == 2


def test_undefined_values_are_told_and_not_drawn() -> None:
    results = joined(2)
    nothing = [
        JoiningPoint(
            labels=n,
            draws=1,
            **dict.fromkeys(JoiningPoint.model_fields.keys() - {"labels", "draws"}, NONE),
        )
        for n in (0, 9)
    ]
    results.sites[0].joining = JoiningCurve(n_train=9, n_test=20, points=nothing)
    single = curve(0.02, (85,))
    results.sites[1].joining = single
    text = words(render_page(results))
    assert "Your test images are of one class" in text
    assert "no labels of two classes" in text
    assert "clearly better than training alone at 1 of 2 hospitals (site-1)" in text
    assert "0 labels" not in sentence(single)


def test_an_evil_name_is_only_text() -> None:
    results = joined(2)
    results.sites[0].name = '<script>alert("x")</script>'
    assert "<script" not in render_page(results)


def test_the_answer_speaks_of_personal_models_and_not_as_a_baseline() -> None:
    results = joined(3, (0.031,))
    assert roles_of(results).personal == "personal"
    first, *others = comparisons(results)
    assert first.startswith("Personal models, one made by each hospital for itself: 81\u00a0%")
    assert "clearly better than the federated one on average (+2.1 points" in first
    assert "clearly better than what each hospital trains alone on average (+3.1 points" in first
    assert not any(sentence.startswith("Personal") for sentence in others)
    same = joined(3, (0.001,))
    assert "not clearly different from what each hospital" in comparisons(same)[0]
    plain = make_results()
    assert roles_of(plain).personal is None
    assert not any("Personal" in sentence for sentence in comparisons(plain))


def test_the_axis_has_room_for_none_and_for_all() -> None:
    assert place(0) == 0
    assert place(10) == 1
    assert ticks([0, 10, 20, 40, 80, 85]) == [0, 10, 20, 40, 85]
    assert ticks([0, 9, 20, 39, 80, 400]) == [0, 9, 20, 39, 80, 400]
    assert ticks([7]) == [7]


def test_older_results_still_read(tmp_path: Path) -> None:
    content = joined(3).model_dump()
    for site in content["sites"]:
        site.pop("joining")
    content.pop("personal")
    file = tmp_path / "results.json"
    file.write_text(json.dumps(content))
    assert all(site.joining is None for site in read_results(file).sites)
    whole = joined(3)
    file.write_text(whole.model_dump_json())
    assert read_results(file) == whole
