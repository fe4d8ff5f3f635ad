"""Caption metrics against their formulas, written out again without the libraries."""

from __future__ import annotations

import itertools
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dermino_core.errors import DerminoError
from dermino_core.evaluation.caption_scores import PACKAGES, score_captions
from dermino_core.evaluation.captioning_java import JavaFailedError, meteor_scores, penn_words
from dermino_core.evaluation.measure import Measure
from dermino_core.metrics import bootstrap_weights

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in PACKAGES), reason="needs dermino[captioning]"
)

WORDS = (
    "a",
    "red",
    "patch",
    "plaque",
    "on",
    "the",
    "left",
    "arm",
    "leg",
    "with",
    "scales",
    "crust",
)


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def sentences(rng: np.random.Generator, n: int, shortest: int = 0, longest: int = 12) -> list[str]:
    return [" ".join(rng.choice(WORDS, size=rng.integers(shortest, longest + 1))) for _ in range(n)]


def scores(generated: Sequence[str], references: Sequence[str], **more) -> dict[str, Measure]:
    measures, _ = score_captions(generated, references, method="m", **more)
    return {measure.metric: measure for measure in measures}


def grams(words: Sequence[str], n: int) -> Counter:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(generated: Sequence[str], references: Sequence[str], order: int) -> float:
    """Papineni et al. 2002, sections 2.1 to 2.3, with one reference."""
    ours, theirs = [t.split() for t in generated], [t.split() for t in references]
    length, wanted = sum(map(len, ours)), sum(map(len, theirs))
    if not length:
        return 0.0
    product = 1.0
    for n in range(1, order + 1):
        hits = sum((grams(a, n) & grams(b, n)).total() for a, b in zip(ours, theirs, strict=True))
        total = sum(grams(a, n).total() for a in ours)
        product *= (hits / total if total else 0.0) ** (1 / order)
    return product * (1.0 if length > wanted else math.exp(1 - wanted / length))


def rouge(text: str, reference: str, n: int | None) -> float:
    """Lin 2004: F1 of n-grams, or of the longest common subsequence."""
    ours, theirs = text.split(), reference.split()
    if n is None:
        table = np.zeros((len(ours) + 1, len(theirs) + 1), dtype=int)
        for i, a in enumerate(ours):
            for j, b in enumerate(theirs):
                table[i + 1, j + 1] = (
                    table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
                )
        hits, total = int(table[-1, -1]), len(ours) + len(theirs)
    else:
        hits = (grams(ours, n) & grams(theirs, n)).total()
        total = grams(ours, n).total() + grams(theirs, n).total()
    return 2 * hits / total if total else 0.0


def cider(generated: Sequence[str], references: Sequence[str]) -> list[float]:
    """CIDEr-D (Vedantam et al. 2015, section 4). Lengths count word pairs, as the authors' code."""
    theirs = [t.split() for t in references]
    seen: Counter = Counter()
    for words in theirs:
        seen.update({gram for n in range(1, 5) for gram in grams(words, n)})

    def vector(words: list[str], n: int) -> dict:
        counts = grams(words, n)
        return {g: c * math.log(len(theirs) / max(1, seen[g])) for g, c in counts.items()}

    found = []
    for text, reference in zip(generated, theirs, strict=True):
        ours, total = text.split(), 0.0
        gap = max(0, len(ours) - 1) - max(0, len(reference) - 1)
        for n in range(1, 5):
            a, b = vector(ours, n), vector(reference, n)
            size = math.hypot(*a.values()) * math.hypot(*b.values())
            if size:
                total += sum(min(a[g], b.get(g, 0.0)) * b.get(g, 0.0) for g in a) / size
        found.append(10 * total / 4 * math.exp(-(gap**2) / 72))
    return found


def meteor(generated: Sequence[str], references: Sequence[str]) -> float:
    """METEOR 1.5 (Denkowski & Lavie 2014) where only identical words match, each at most once.

    Words are content words all, so that their weight falls out.
    """
    length = wanted = hits = chunks = 0
    for text, reference in zip(generated, references, strict=True):
        ours, theirs = text.split(), reference.split()
        pairs = [(i, theirs.index(w)) for i, w in enumerate(ours) if w in theirs]
        chunks += bool(pairs) + sum(
            (b[0] - a[0], b[1] - a[1]) != (1, 1) for a, b in itertools.pairwise(pairs)
        )
        length, wanted, hits = length + len(ours), wanted + len(theirs), hits + len(pairs)
    if not hits:
        return 0.0
    precision, recall = hits / length, hits / wanted
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    flawless = chunks == 1 and hits == length == wanted
    return mean * (1 - (0.0 if flawless else 0.6 * (chunks / hits) ** 0.2))


@pytest.mark.usefixtures("no_java")
@pytest.mark.parametrize("seed", range(5))
def test_bleu_cider_and_rouge_are_their_formulas_on_random_captions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = sentences(rng, 12), sentences(rng, 12, shortest=1)
    if seed == 0:
        ours = theirs
    found = scores(ours, theirs, replicates=0)
    for order in (1, 2, 4):
        assert found[f"bleu-{order}"].value == pytest.approx(bleu(ours, theirs, order), abs=1e-12)
    assert found["cider"].value == pytest.approx(np.mean(cider(ours, theirs)), abs=1e-9)
    for name, n in (("1", 1), ("2", 2), ("l", None)):
        expected = np.mean([rouge(a, b, n) for a, b in zip(ours, theirs, strict=True)])
        assert found[f"rouge-{name}"].value == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("no_java")
def test_replicates_are_the_metrics_of_the_captions_that_were_drawn() -> None:
    rng = np.random.default_rng(7)
    ours, theirs = sentences(rng, 9), sentences(rng, 9, shortest=1)
    units = ["p1", "p1", "p2", "p3", "p3", "p3", "p4", "p5", "p6"]
    found = scores(ours, theirs, units=units, replicates=20, seed=3)
    weights = bootstrap_weights(9, groups=units, replicates=20, seed=3)
    each = np.array(cider(ours, theirs))
    for b, drawn in enumerate(weights):
        rows = np.repeat(np.arange(9), drawn)
        a, r = [ours[i] for i in rows], [theirs[i] for i in rows]
        for metric, expected in {
            "bleu-4": bleu(a, r, 4),
            "bleu-1": bleu(a, r, 1),
            "cider": each[rows].mean(),
            "rouge-l": np.mean([rouge(x, y, None) for x, y in zip(a, r, strict=True)]),
        }.items():
            replicates = found[metric].replicates
            assert replicates is not None
            assert replicates[b] == pytest.approx(expected, abs=1e-9), metric
    low, high = np.percentile(found["bleu-1"].replicates, [2.5, 97.5])
    assert (found["bleu-1"].low, found["bleu-1"].high) == pytest.approx((low, high))


@pytest.mark.usefixtures("no_java")
def test_identical_captions_score_full_and_empty_ones_nothing() -> None:
    texts = ["a red patch on the arm", "brown plaque with crust and scales", "the left leg itches"]
    full = scores(texts, texts, replicates=0)
    for metric in ("bleu-1", "bleu-2", "bleu-4", "rouge-1", "rouge-2", "rouge-l"):
        assert full[metric].value == pytest.approx(1.0, abs=1e-12)
        assert full[metric].value <= 1.0
    assert full["cider"].value == pytest.approx(10.0)
    none = scores(["", "", ""], texts, replicates=50)
    assert {m: none[m].value for m in none if m != "meteor"} == dict.fromkeys(
        ("bleu-1", "bleu-2", "bleu-4", "cider", "rouge-1", "rouge-2", "rouge-l"), 0.0
    )


@pytest.mark.usefixtures("no_java")
def test_what_no_caption_could_reach_is_undefined() -> None:
    found = scores(["melanoma", "nevus"], ["melanoma", "keratosis"], replicates=0)
    assert found["bleu-1"].value == pytest.approx(0.5)
    assert found["bleu-2"].value is None
    assert found["bleu-2"].undefined_because == "no reference has 2 words"
    assert found["rouge-2"].value is None
    assert found["cider"].value == pytest.approx(10 / 4 / 2)  # of one pair, word pairs absent
    same = scores(["a patch", "a crust"], ["a patch", "a patch"], replicates=0)
    assert same["cider"].value is None
    assert "in all of them" in (same["cider"].undefined_because or "")
    assert scores(["a patch"], ["a patch"], replicates=0)["cider"].value is None
    foreign = scores(["красное пятно", "узел"], ["красное пятно", "пятно"], replicates=0)
    assert foreign["rouge-1"].value is None
    assert foreign["bleu-1"].value == pytest.approx(2 / 3)


@pytest.mark.usefixtures("no_java")
def test_words_are_lower_case_and_punctuation_counts() -> None:
    found = scores(["A red patch."], ["a Red patch"], replicates=0)
    assert found["bleu-1"].value == pytest.approx(3 / 4)
    assert found["rouge-1"].value == pytest.approx(1.0)


@pytest.mark.usefixtures("no_java")
def test_without_java_meteor_is_undefined_and_the_rest_is_not() -> None:
    measures, notes = score_captions(["a patch"], ["a crust"], method="m", replicates=0)
    assert [
        m.metric for m in measures if m.undefined_because and "Java" in m.undefined_because
    ] == ["meteor"]
    assert any(note.startswith("METEOR is missing") for note in notes)
    for backend in ("sacrebleu 2", "rouge-score 0", "pycocoevalcap 1"):
        assert any(backend in note for note in notes)
    with pytest.raises(DerminoError, match="Penn Treebank") as error:
        score_captions(["a"], ["a"], method="m", words="ptb")
    assert error.value.code == "DEPENDENCY_MISSING"


def test_no_captions_are_an_error() -> None:
    with pytest.raises(DerminoError) as error:
        score_captions([], [], method="m")
    assert error.value.code == "DATA_TOO_FEW"
    with pytest.raises(ValueError, match="1 captions, 2 references"):
        score_captions(["a"], ["a", "b"], method="m")


@pytest.fixture
def wordnet_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """nltk looks for WordNet in this folder only, and forgets it afterwards."""
    import nltk
    from nltk.corpus import wordnet

    kind, state = object.__getattribute__(wordnet, "__class__"), dict(vars(wordnet))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    yield tmp_path
    object.__setattr__(wordnet, "__class__", kind)
    vars(wordnet).clear()
    vars(wordnet).update(state)


def small_wordnet(folder: Path) -> None:
    """A WordNet in which `patch` and `macula` are one thing, and nothing else is known."""
    place = folder / "corpora" / "wordnet"
    place.mkdir(parents=True)
    for name in ("cntlist.rev", "index.sense", "lexnames"):
        (place / name).touch()
    for part in ("adj", "adv", "noun", "verb"):
        for kind in ("data.{}", "index.{}", "{}.exc"):
            (place / kind.format(part)).touch()
    (place / "lexnames").write_text("00\tnoun.state\t1\n")
    (place / "data.noun").write_text("00000000 00 n 02 patch 0 macula 0 000 | a spot  \n")
    (place / "index.noun").write_text("macula n 1 0 1 0 00000000  \npatch n 1 0 1 0 00000000  \n")


@pytest.mark.usefixtures("no_java")
def test_meteor_of_nltk_with_a_wordnet_and_without(wordnet_paths: Path) -> None:
    ours, theirs = ["a red macula", "", "crust"], ["a red patch here", "a", "crust"]
    found = scores(ours, theirs, meteor="wordnet", replicates=0)["meteor"]
    assert (found.value, found.undefined_because) == (
        None,
        "nltk finds no WordNet on this machine",
    )
    small_wordnet(wordnet_paths)
    # Lavie & Agarwal 2007 as nltk has it: alpha 0.9, gamma 0.5, beta 3; 3 hits in one chunk.
    first = (1.0 * 0.75) / (0.9 * 1.0 + 0.1 * 0.75) * (1 - 0.5 * (1 / 3) ** 3)
    third = 1.0 - 0.5 * 1.0
    found = scores(ours, theirs, meteor="wordnet", replicates=0)["meteor"]
    assert found.value == pytest.approx((first + 0.0 + third) / 3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")
def test_meteor_is_its_formula_on_invented_words_and_sums_up_replicates() -> None:
    rng = np.random.default_rng(0)
    invented = np.array(
        ["zorp", "blick", "quav", "fenx", "druzz", "wompt", "glarf", "skeev", "trond", "plugh"]
    )
    ours = [" ".join(rng.permutation(invented)[: rng.integers(0, 9)]) for _ in range(8)]
    theirs = [" ".join(rng.permutation(invented)[: rng.integers(1, 9)]) for _ in range(8)]
    ours[3] = theirs[3]
    weights = np.vstack([np.ones(8), np.eye(8), rng.integers(0, 4, size=(6, 8))])
    found = meteor_scores(ours, theirs, weights)
    for drawn, score in zip(weights.astype(int), found, strict=True):
        rows = np.repeat(np.arange(8), drawn)
        expected = meteor([ours[i] for i in rows], [theirs[i] for i in rows])
        assert score == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")
def test_meteor_of_a_whole_test_set_with_odd_captions() -> None:
    texts = ["A red ||| patch,\n on the arm.", "病変 is seen", "", "|||"]
    references = ["a red patch on the arm", "病変 is seen", "a plaque", "crust"]
    measures, notes = score_captions(texts, references, method="m", replicates=30)
    found = next(m for m in measures if m.metric == "meteor")
    assert found.value is not None
    assert 0.3 < found.value < 1
    assert found.low is not None
    assert found.low <= found.value
    assert any(note.startswith("METEOR: 1.5 in Java") for note in notes)


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")
def test_penn_words_keep_their_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["A Red patch, 3 mm.", "", "don't\nscratch", "病変", ".", ""]
    assert penn_words(texts) == ["a red patch 3 mm", "", "do n't scratch", "病変", "", ""]
    monkeypatch.setattr("dermino_core.evaluation.captioning_java._UTF8", "-Xno-such-option")
    with pytest.raises(JavaFailedError, match="Unrecognized option"):
        penn_words(texts)
    with pytest.raises(JavaFailedError, match="Unrecognized option"):
        meteor_scores(["a"], ["a"], np.ones((1, 1)))
