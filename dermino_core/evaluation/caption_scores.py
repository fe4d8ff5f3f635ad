"""How close captions are to references: BLEU, METEOR, CIDEr, ROUGE (paper, section 4.2.2).

Every number is a published library's, named in the notes: of each of these metrics there are
several that differ. A metric whose library cannot run here is undefined, with the reason; nothing
takes its place. The interval is a bootstrap over patients or lesions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Literal

import numpy as np

from dermino_core.errors import DerminoError
from dermino_core.evaluation.captioning_java import JavaFailedError, meteor_scores, penn_words
from dermino_core.evaluation.measure import FloatArray, Measure, measured
from dermino_core.metrics import REPLICATES, bootstrap_weights

Words = Literal["13a", "ptb"]
"""What a word is for BLEU, METEOR and CIDEr, in lower case. `13a`: as in machine translation
(sacrebleu), punctuation counts. `ptb`: as COCO captions are scored, no punctuation; in Java."""

Meteor = Literal["1.5", "wordnet"]
"""`1.5`: the authors' last version, with synonyms and paraphrases, in Java; as COCO captions are
scored. `wordnet`: that of 2007 in nltk, with synonyms from WordNet, averaged over captions. They
cannot be compared: of the four captions that the paper prints, 0.27 and 0.48."""

PACKAGES = ("sacrebleu", "rouge_score", "nltk", "pycocoevalcap")
"""What scoring imports."""

_BLEU_ORDERS = (1, 2, 4)
_ROUGE = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}
_ORDER = ("bleu-1", "bleu-2", "bleu-4", "meteor", "cider", "rouge-1", "rouge-2", "rouge-l")


@dataclass(frozen=True)
class _Score:
    """A metric of all captions, [B]: the first number is the point estimate, the others replicates.

    `why_undefined` is said if the first is NaN.
    """

    metric: str
    values: FloatArray
    why_undefined: str = "undefined"


def require_packages(names: Sequence[str]) -> None:
    """Check before long work that packages are there.

    Raises
    ------
    DerminoError
        `DEPENDENCY_MISSING`.
    """
    missing = [name.replace("_", "-") for name in names if find_spec(name) is None]
    if missing:
        raise DerminoError(
            "DEPENDENCY_MISSING",
            f"Captioning needs {', '.join(missing)}.",
            fix="Install it: pip install 'dermino[captioning]'",
        )


def score_captions(
    generated: Sequence[str],
    references: Sequence[str],
    *,
    method: str,
    units: Sequence[str] | None = None,
    words: Words = "13a",
    meteor: Meteor = "1.5",
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[list[Measure], list[str]]:
    """Score captions against one reference each.

    BLEU and METEOR are of the whole test set, and every replicate adds up the counts of the
    captions it drew; CIDEr and ROUGE are means over captions. CIDEr's word weights come from all
    references, in every replicate. BLEU is not smoothed; ROUGE is F1. CIDEr goes from 0 to 10,
    all others from 0 to 1.

    Parameters
    ----------
    generated, references
        n texts each; a generated one may be empty.
    method
        Of the measures.
    units
        Patient or lesion of each caption.

    Returns
    -------
    Eight measures, and notes that name what computed them.

    Raises
    ------
    DerminoError
        `DEPENDENCY_MISSING`: a package, or Java where `words` needs it. `DATA_TOO_FEW` without
        captions.
    """
    if len(generated) != len(references):
        raise ValueError(f"{len(generated)} captions, {len(references)} references")
    require_packages(PACKAGES)
    n = len(references)
    if not n:
        raise DerminoError("DATA_TOO_FEW", "There are no captions to score.")
    drawn = bootstrap_weights(n, groups=units, replicates=replicates, seed=seed)
    weights = np.vstack([np.ones(n), drawn.astype(np.float64)])
    both, note = _split([*generated, *references], words)
    ours, theirs = both[:n], both[n:]
    meteor_score, meteor_note = _METEOR[meteor](ours, theirs, weights)
    found = [
        *_bleu(ours, theirs, weights),
        meteor_score,
        _cider(ours, theirs, weights),
        *_rouge(generated, references, weights),
    ]
    by_name = {score.metric: score for score in found}
    measures = [
        measured(
            method,
            name,
            float(by_name[name].values[0]),
            by_name[name].values[1:],
            n=n,
            why_undefined=by_name[name].why_undefined,
        )
        for name in _ORDER
    ]
    notes = [
        f"BLEU: sacrebleu {version('sacrebleu')}, of the whole test set, not smoothed; {note}.",
        f"CIDEr: pycocoevalcap {version('pycocoevalcap')} (CIDEr-D), 0 to 10, word weights from "
        f"the test references; {note}.",
        meteor_note + (f"; {note}." if meteor_score.why_undefined == "undefined" else "."),
        f"ROUGE: rouge-score {version('rouge-score')}, mean F1, no stemming; its words are runs of "
        "the letters a to z and digits.",
    ]
    return measures, notes


def _split(texts: Sequence[str], words: Words) -> tuple[list[str], str]:
    """Texts as words separated by single spaces, and how that was done."""
    if words == "ptb":
        try:
            return penn_words(texts), "words as the Penn Treebank's, without punctuation"
        except JavaFailedError as error:
            raise DerminoError(
                "DEPENDENCY_MISSING",
                f"Words as in the Penn Treebank cannot be had: {error}",
                fix="Install Java (a runtime is enough), or use the words '13a'.",
            ) from error
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenizer = Tokenizer13a()
    split = [" ".join(tokenizer(text.lower()).split()) for text in texts]
    return split, "words by sacrebleu's 13a, in lower case"


def _bleu(ours: Sequence[str], theirs: Sequence[str], weights: FloatArray) -> list[_Score]:
    """BLEU (Papineni et al. 2002) from the counts that each caption adds to the corpus's."""
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(tokenize="none", effective_order=True)  # for its counts
    counts = np.zeros((len(ours), 10))
    for row, (text, reference) in enumerate(zip(ours, theirs, strict=True)):
        one = scorer.sentence_score(text, [reference])
        counts[row] = [one.sys_len, one.ref_len, *one.counts, *one.totals]
    lengths = np.array([len(reference.split()) for reference in theirs])
    sums = (weights @ counts).astype(int).tolist()
    scores: list[_Score] = []
    for order in _BLEU_ORDERS:
        values = [
            BLEU.compute_bleu(
                total[2 : 2 + order],
                total[6 : 6 + order],
                *total[:2],
                smooth_method="none",
                max_ngram_order=order,
            ).score
            for total in sums
        ]
        possible = weights @ (lengths >= order) > 0
        why = f"no reference has {order} words"
        shares = np.minimum(np.array(values) / 100, 1.0)  # a product of ones can be 1 + 4e-16
        scores.append(_Score(f"bleu-{order}", np.where(possible, shares, np.nan), why))
    return scores


def _rouge(
    generated: Sequence[str], references: Sequence[str], weights: FloatArray
) -> list[_Score]:
    """ROUGE (Lin 2004)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(_ROUGE.values()), use_stemmer=False)
    itself = [scorer.score(reference, reference) for reference in references]
    against = [scorer.score(r, text) for text, r in zip(generated, references, strict=True)]
    scores: list[_Score] = []
    for metric, name in _ROUGE.items():
        values = _mean(weights, [score[name].fmeasure for score in against])
        possible = weights @ [score[name].fmeasure > 0 for score in itself] > 0
        why = "no reference is long enough in words of the letters a to z and digits"
        scores.append(_Score(metric, np.where(possible, values, np.nan), why))
    return scores


def _cider(ours: Sequence[str], theirs: Sequence[str], weights: FloatArray) -> _Score:
    """CIDEr-D (Vedantam et al. 2015), mean of the captions; word weights are those of the set."""
    why = "every word of the references is in all of them, so none has weight"
    if not any(theirs) or not any(_cider_of_each(theirs, theirs)):
        return _Score("cider", np.full(len(weights), np.nan), why)
    return _Score("cider", _mean(weights, _cider_of_each(ours, theirs)), why)


def _cider_of_each(ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer()
    for text, reference in zip(ours, theirs, strict=True):
        scorer += (text, [reference])
    return scorer.compute_score()[1].tolist()


def _meteor_in_java(
    ours: Sequence[str], theirs: Sequence[str], weights: FloatArray
) -> tuple[_Score, str]:
    try:
        values = meteor_scores(ours, theirs, weights)
    except JavaFailedError as error:
        why = f"METEOR 1.5 cannot be computed: {error}"
        return _undefined_meteor(
            weights, why
        ), f"METEOR is missing: {error} It takes a Java runtime"
    return _Score("meteor", values), "METEOR: 1.5 in Java, for English, of the whole test set"


def _meteor_of_wordnet(
    ours: Sequence[str], theirs: Sequence[str], weights: FloatArray
) -> tuple[_Score, str]:
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import single_meteor_score

    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError):
        why = "nltk finds no WordNet on this machine"
        advice = "bring it with nltk.download('wordnet') and name its folder in NLTK_DATA"
        return _undefined_meteor(weights, why), f"METEOR is missing: {why}; {advice}"
    each = [
        single_meteor_score(reference.split(), text.split())
        for text, reference in zip(ours, theirs, strict=True)
    ]
    name = f"METEOR: nltk {version('nltk')} with WordNet (the formula of 2007), mean"
    return _Score("meteor", _mean(weights, each)), name


_METEOR: dict[
    Meteor,
    Callable[[Sequence[str], Sequence[str], FloatArray], tuple[_Score, str]],
] = {"1.5": _meteor_in_java, "wordnet": _meteor_of_wordnet}


def _undefined_meteor(weights: FloatArray, why: str) -> _Score:
    return _Score("meteor", np.full(len(weights), np.nan), why)


def _mean(weights: FloatArray, each: Sequence[float]) -> FloatArray:
    return weights @ np.asarray(each, dtype=np.float64) / weights.sum(axis=1)
