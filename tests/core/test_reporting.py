"""The report: every number is there, nothing is loaded from outside, nothing untrusted runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dermino_core.reporting import write_report
from dermino_core.reporting.page import render_page
from dermino_core.reporting.text import answer, comparisons
from dermino_core.results import (
    BackboneInfo,
    Calibration,
    CrossSite,
    Difference,
    Estimate,
    Evaluation,
    ModelDescription,
    ModelSummary,
    Rejection,
    Results,
    RocCurve,
    RoundRecord,
    SiteResult,
    Transfer,
)
from dermino_server.commands.report import report

GRID = np.linspace(0, 1, 101)
ONE_CLASS = "all test images are of one class"
MODELS = {
    "global": ("Federated", "One head, averaged over the hospitals after every round.", 0.35),
    "local": ("Each site alone", "The same method on this site's training images only.", 1.1),
    "local_converged": ("Each site alone, converged", "Solved to its optimum.", 1.3),
    "pooled": ("All data pooled", "The same schedule on all training images together.", 0.45),
    "pooled_converged": ("All data pooled, converged", "Solved to its optimum.", 1.6),
}
SITES = {"mednode": (170, 50, 35), "ph2": (200, 80, 20), "fitzpatrick17k": (4497, 1090, 1150)}


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    positive, negative = scores[labels == 1], scores[labels == 0]
    return float((positive[:, None] > negative[None, :]).mean())


def tpr(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    thresholds = np.quantile(scores[labels == 0], 1 - GRID)
    rates = (scores[labels == 1][None, :] >= thresholds[:, None]).mean(axis=1)
    rates[0], rates[-1] = 0.0, 1.0
    return np.maximum.accumulate(rates)


def resampled(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate(
        [rng.choice(np.flatnonzero(labels == c), (labels == c).sum()) for c in (0, 1)]
    )


def estimate(value: float, replicates: list[float]) -> Estimate:
    low, high = np.percentile(replicates, [2.5, 97.5])
    return Estimate(value=value, low=low, high=high, standard_error=float(np.std(replicates)))


def calibration(probability: np.ndarray, labels: np.ndarray) -> Calibration:
    edges = np.linspace(0, 1, 11)
    bins = np.clip(np.digitize(probability, edges) - 1, 0, 9)
    inside = [bins == b for b in range(10)]
    predicted = [float(probability[i].mean()) if i.any() else None for i in inside]
    observed = [float(labels[i].mean()) if i.any() else None for i in inside]
    gaps = [abs(p - o) * i.mean() for p, o, i in zip(predicted, observed, inside, strict=True)
            if p is not None and o is not None]  # fmt: skip
    return Calibration(
        edges=edges.tolist(),
        predicted=predicted,
        observed=observed,
        count=[int(i.sum()) for i in inside],
        expected_calibration_error=float(sum(gaps)),
    )


def evaluation(name: str, negatives: int, positives: int, strength: float, seed: int) -> Evaluation:
    """Scores of two shifted normals, measured as the real thing is."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [negatives, positives])
    scores = rng.normal(labels * strength, 1.0)
    draws = [resampled(labels, rng) for _ in range(40)]
    areas = [auroc(scores[d], labels[d]) for d in draws]
    curves = np.stack([tpr(scores[d], labels[d]) for d in draws])
    f1 = 0.45 + 0.1 * strength
    return Evaluation(
        n=negatives + positives,
        class_counts={"benign": negatives, "malignant": positives},
        auroc=estimate(auroc(scores, labels), areas),
        f1=estimate(f1, [f1 + 0.3 * (a - areas[0]) for a in areas]),
        roc=RocCurve(
            false_positive_rate=GRID.tolist(),
            true_positive_rate=tpr(scores, labels).tolist(),
            low=np.percentile(curves, 2.5, axis=0).tolist(),
            high=np.percentile(curves, 97.5, axis=0).tolist(),
        ),
        calibration=calibration(1 / (1 + np.exp(-1.4 * (scores - 0.4))), labels),
    )


def make_site(name: str, seed: int, total: int, negatives: int, positives: int) -> SiteResult:
    evaluations = {
        key: evaluation(name, negatives, positives, strength, seed)
        for key, (_, _, strength) in MODELS.items()
    }
    return SiteResult(
        name=name,
        images_total=total,
        images_used=total - seed,
        unreadable=seed,
        n_train=total - seed - negatives - positives,
        n_test=negatives + positives,
        train_class_counts={"benign": negatives, "malignant": positives},
        evaluations=evaluations,
        global_minus={
            key: Difference(
                auroc=Estimate(value=-0.121, low=-0.202, high=-0.043),
                f1=Estimate(value=0.011, low=-0.054, high=0.067),
            )
            for key in MODELS
            if key != "global"
        },
    )


def make_results(sites: dict[str, tuple[int, int, int]] = SITES) -> Results:
    found = [make_site(name, i, *sizes) for i, (name, sizes) in enumerate(sites.items())]
    if len(found) > 1:
        undefined = Estimate(value=None, undefined_because=ONE_CLASS)
        found[1].evaluations["local"] = (
            found[1].evaluations["local"].model_copy(update={"auroc": undefined, "roc": None})
        )
    mean: dict[str, ModelSummary] = {}
    for key in MODELS:
        values = [s.evaluations[key].auroc.value for s in found]
        centre = float(np.mean([v for v in values if v is not None]))
        mean[key] = ModelSummary(
            auroc=Estimate(value=centre, low=centre - 0.041, high=centre + 0.039),
            f1=Estimate(value=centre - 0.1, low=centre - 0.152, high=centre - 0.047),
        )
    names = [site.name for site in found]
    rng = np.random.default_rng(0)
    cross = rng.uniform(0.45, 0.95, (len(names), len(names))).round(4).tolist()
    cross[0][-1] = None
    rounds = [
        RoundRecord(
            round=number,
            kind="evaluate" if number == 3 else "train",
            seconds=3.2,
            sites=names,
            rejected=[
                Rejection(site=names[0], code="DATA_TOO_FEW", sentence="Too few usable images.")
            ]
            if number == 2
            else [],
            transfers=[
                Transfer(
                    site=n, seconds=0.8 + 0.7 * i, bytes_to_site=4211, bytes_from_site=5120 + i
                )
                for i, n in enumerate(names)
            ],
            train_loss={n: 0.7 / number + 0.02 * i for i, n in enumerate(names) if number < 3},
            auroc={n: 0.5 + 0.03 * number + 0.04 * i for i, n in enumerate(names)},
        )
        for number in (1, 2, 3)
    ]
    return Results(
        dermino_version="0.1.0",
        created="2026-03-01T12:00:00Z",
        title="Malignancy, three hospitals",
        task="malignancy",
        classes=["benign", "malignant"],
        strategy="fedavg",
        engine="inprocess",
        rounds_planned=2,
        rounds_done=2,
        seed=0,
        backbone=BackboneInfo(
            name="vit_small_patch14_dinov2",
            architecture="vit_small_patch14_dinov2",
            fingerprint="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            width=384,
            precision="bf16",
            pretrained=True,
        ),
        machine="AMD EPYC, 2 cores, 8 GiB",
        models=[
            ModelDescription(key=key, title=title, description=description)
            for key, (title, description, _) in MODELS.items()
        ],
        sites=found,
        mean=mean,
        cross_site=CrossSite(rows=names, columns=names, auroc=cross, f1=cross),
        rounds=rounds,
        seconds={"extract": 84.2, "train": 1.31},
        missing_sites=[],
        warnings=[],
    )


@pytest.fixture(scope="module")
def results() -> Results:
    return make_results()


class Outline(HTMLParser):
    """Collects tags, ids, and attributes of a page, and checks that it is balanced."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self.text += " " if tag in {"th", "td", "p", "h3"} else ""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not (self.open and self.open[-1] == "style"):
            self.text += data


def words(page: str) -> str:
    return " ".join(Outline(page).text.replace("\u202f", " ").replace("\u00a0", " ").split())


def written(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def test_every_number_of_the_results_is_in_the_tables(results: Results) -> None:
    text = words(render_page(results))
    estimates = [e for s in results.mean.values() for e in (s.auroc, s.f1)]
    for site in results.sites:
        assert f"{site.images_used:,}".replace(",", " ") in text
        assert f"{site.images_total:,}".replace(",", " ") in text
        for e in site.evaluations.values():
            estimates += [e.auroc, e.f1]
            assert f"n = {e.n:,} test images".replace(",", " ") in text
            for label, n in e.class_counts.items():
                assert f"{n:,} {label}".replace(",", " ") in text
    for e in estimates:
        if e.value is not None:
            assert f"{written(e.value)} {written(e.low)}–{written(e.high)}" in text
    assert results.cross_site is not None
    for row in results.cross_site.auroc:
        for value in row:
            assert written(value) in text
    assert "−0.121 −0.202 to −0.043 clearly worse" in text
    assert "+0.011 −0.054 to +0.067 not clearly different" in text


def test_an_undefined_number_is_a_dash_with_its_reason(results: Results) -> None:
    assert f"— {ONE_CLASS}" in words(render_page(results))
    silent = results.model_copy(deep=True)
    silent.sites[0].evaluations["global"].auroc = Estimate(value=None)
    assert "— no reason was recorded" in words(render_page(silent))


def test_untrusted_text_stays_text(results: Results) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $\\frac{$ ]]>\n\u202e--><b>"
    page = results.model_copy(deep=True)
    page.title = page.task = page.machine = evil
    page.warnings = [evil]
    page.classes = [evil, "b"]
    page.missing_sites = [evil]
    page.sites[0].name = evil
    page.models[0].title = page.models[0].description = evil
    page.sites[0].evaluations["global"].class_counts = {evil: 1}
    assert page.cross_site is not None
    page.cross_site.rows[0] = page.cross_site.columns[0] = evil
    for record in page.rounds:
        record.rejected = [Rejection(site=evil, code=evil, sentence=evil)]
        record.transfers[0].site = evil
    html = render_page(page)
    outline = Outline(html)
    assert not {"script", "img", "iframe", "object", "link", "b"} & set(outline.tags)
    assert not [key for key, _ in outline.attributes if key.startswith("on")]
    assert "<script>alert(1)</script>" in outline.text
    assert "\u202e" not in html
    assert "&#x27;" not in outline.text


def test_nothing_is_loaded_and_no_address_appears(results: Results) -> None:
    page = render_page(results)
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|<script|src=", page)
    assert "default-src 'none'" in page
    assert len(page.encode()) < 700_000


def test_ids_are_unique_and_every_reference_has_its_target(results: Results) -> None:
    outline = Outline(render_page(results))
    ids = [value for key, value in outline.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for key, value in outline.attributes if key == "href"}
    used |= {value[5:-1] for key, value in outline.attributes if key == "clip-path"}
    used |= {value for key, value in outline.attributes if key == "aria-labelledby"}
    assert used
    assert used <= set(ids)
    assert not outline.open


def test_colours_follow_the_page_and_not_matplotlib(results: Results) -> None:
    page = render_page(results)
    svgs = "".join(re.findall(r"<svg viewBox.*?</svg>", page))
    assert "var(--model-0)" in svgs
    assert not re.search(r"#0[0-9a-f]{5}", svgs)
    css = page[page.index("<style>") : page.index("</style>")]
    for variable in set(re.findall(r"var\(--([a-z0-9-]+)\)", page)):
        assert css.count(f"--{variable}:") >= 1, variable


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_and_marks_stand_out_in_both_modes(results: Results, mode: int) -> None:
    css = re.findall(r":root \{(.*?)\}", render_page(results), re.DOTALL)[mode]
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", css))
    for ground in ("paper", "ground", "warn-paper"):
        for text in ("ink", "muted"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for name, colour in colours.items():
        if name.startswith(("model-", "site-", "accent")):
            assert contrast(colour, colours["paper"]) >= 4.5, name


def test_shades_of_the_matrix_are_legible(results: Results) -> None:
    shades = re.findall(
        r"\.shade-\w+ \{ background: (#\w{6}); color: (#\w{6})", render_page(results)
    )
    assert len(shades) == 7
    for background, text in shades:
        assert contrast(background, text) >= 4.5, background


def test_the_same_results_give_the_same_bytes(results: Results, tmp_path: Path) -> None:
    first = write_report(results, tmp_path / "a.html").read_bytes()
    again = Results.model_validate_json(results.model_dump_json())
    assert write_report(again, tmp_path / "new" / "b.html").read_bytes() == first
    assert write_report(results, tmp_path) == tmp_path / "report.html"


def test_missing_parts_leave_no_holes(results: Results) -> None:
    bare = results.model_copy(deep=True)
    bare.cross_site, bare.rounds, bare.seconds = None, [], {}
    for site in bare.sites:
        site.global_minus = {}
        for key in list(site.evaluations):
            if key != "global":
                del site.evaluations[key]
        site.evaluations["global"].roc = site.evaluations["global"].calibration = None
    bare.mean = {"global": bare.mean["global"]}
    bare.models = bare.models[:1]
    page = render_page(bare)
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert not [h for h in headings if "calibration" in h or "ROC" in h or "elsewhere" in h]
    assert "No exchange with a hospital was recorded." in page
    assert not Outline(page).open
    empty = bare.model_copy(deep=True)
    empty.sites, empty.mean, empty.models = [], {}, []
    assert "no mean for the federated model" in words(render_page(empty))


def test_more_than_two_classes(results: Results) -> None:
    many = results.model_copy(deep=True)
    many.classes = ["benign", "inflammatory", "malignant"]
    for site in many.sites:
        for found in site.evaluations.values():
            found.class_counts = {"benign": 40, "inflammatory": 30, "malignant": 30}
    text = words(render_page(many))
    assert (
        "tells an image of one class from an image of the others (averaged over 3 classes)" in text
    )
    assert "Confidence of the model" in text
    assert "30 inflammatory" in text


def with_mean(results: Results, key: str, value: float, low: float, high: float) -> Results:
    changed = results.model_copy(deep=True)
    changed.mean[key].auroc = Estimate(value=value, low=low, high=high)
    return changed


def spoken(results: Results) -> str:
    return " ".join([*answer(results), *comparisons(results)]).replace("\u00a0", " ")


def test_the_answer_says_what_the_intervals_allow(results: Results) -> None:
    text = spoken(with_mean(results, "global", 0.54, 0.48, 0.60))
    assert (
        "ranks a malignant image above a benign one 54 % of the time (95 % interval 48–60 %)"
        in text
    )
    assert "no evidence that the model learnt anything" in text
    text = spoken(with_mean(results, "global", 0.41, 0.36, 0.45))
    assert "worse than guessing" in text


def with_difference(results: Results, key: str, value: float, low: float, high: float) -> Results:
    changed = results.model_copy(deep=True)
    difference = Estimate(value=value, low=low, high=high)
    changed.mean_global_minus[key] = Difference(auroc=difference, f1=difference)
    return changed


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.12, -0.01, "clearly worse on average"),
        (-0.05, 0.01, "not clearly different on average"),
        (0.01, 0.09, "clearly better on average"),
    ],
)
@pytest.mark.parametrize("key", ["local", "local_converged", "pooled", "pooled_converged"])
def test_every_baseline_gets_its_paired_difference(
    results: Results, key: str, low: float, high: float, words: str
) -> None:
    """A verdict rests on the paired difference, whatever the models' own intervals do."""
    title = next(model.title for model in results.models if model.key == key)
    text = spoken(with_difference(results, key, (low + high) / 2, low, high))
    sentence = text[text.index(f"{title}: ") :]
    assert words in sentence[: sentence.index("; ")]
    assert f"interval {100 * low:+.1f} to {100 * high:+.1f}".replace("-", "−") in sentence


def test_warnings_name_what_a_reader_must_know(results: Results) -> None:
    bad = results.model_copy(deep=True)
    bad.backbone.pretrained = False
    bad.rounds_planned, bad.missing_sites, bad.warnings = 5, ["ph2"], ["The disk was full."]
    text = words(render_page(bad))
    for part in (
        "This was a rehearsal",
        "no number on this page says anything about skin",
        "Only 2 of 5 rounds were done.",
        "Missing at the end of the run: ph2.",
        "1 reply was missing or not usable",
        "The disk was full.",
        "Small test sets: mednode (85 images)",
    ):
        assert part in text, part
    assert "Too few usable images. DATA_TOO_FEW" in text


def test_fifty_hospitals_stay_readable(results: Results) -> None:
    names = {f"hospital-{i:02d}": (200, 60, 40) for i in range(50)}
    crowd = make_results(names)
    page = render_page(crowd)
    assert len(page.encode()) < 1_500_000
    assert "The first 12 of 50 hospitals are drawn" in page
    text = words(page)
    assert all(name in text for name in names)
    assert "44 others" in text


def test_bytes_and_messages_that_left_each_hospital(results: Results) -> None:
    text = words(render_page(results))
    assert "fitzpatrick17k 3 15.4 kB 15 366 bytes 12.6 kB 12 633 bytes 6.60 s" in text
    assert "weights (2 × 384) and its biases (2), together 3 080 bytes" in text


def test_the_command_writes_the_page_beside_the_results(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(results.model_dump_json(), encoding="utf-8")
    report(tmp_path)
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "Malignancy, three hospitals" in (tmp_path / "report.html").read_text(encoding="utf-8")
