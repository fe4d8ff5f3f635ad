"""What the report of a pretraining run says in words. Plain text."""

from __future__ import annotations

from collections.abc import Sequence

from dermino_core.reporting.numbers import NO_BREAK, count, decimal, percent
from dermino_core.reporting.pretraining_run import PretrainingRun, Values, number, part

MEASURES = (("knn", "Retrieval (kNN AUROC)"), ("linear", "The AUROC of a linear probe"))

TERMS: tuple[tuple[str, str], ...] = (
    (
        "kNN AUROC",
        "Each test image is compared with the labelled training images of the monitor’s table; "
        "its nearest neighbours vote. 0.5 is guessing, 1 is perfect. Nothing is trained, so it "
        "shows what the features hold by themselves.",
    ),
    (
        "Linear probe",
        "A linear layer is fitted to the features of the monitor’s training images and tested on "
        "its test images. This is close to what a federation will do with the backbone.",
    ),
    (
        "What it can prove",
        "The test images must not be among those that the run learnt from, nor close copies of "
        "them; dermino data audit checks that. The probe is small: intervals are wide.",
    ),
    (
        "Share of ln K",
        "With K prototypes a model that knows nothing has an image loss of ln K, or 100 %. Below "
        "that the student predicts the teacher better than by guessing. The teacher changes too, "
        "so a loss that falls slowly is not a fault by itself.",
    ),
    (
        "RankMe",
        "How many directions the features really use, from 1 to their width. A steep fall means "
        "that images are being told apart by ever fewer properties.",
    ),
    (
        "Teacher entropy, prototypes in use",
        "Entropy near 0 % or near 100 % of ln K, or few prototypes in use, are signs of collapse: "
        "all images are becoming the same to the model.",
    ),
    (
        "Waiting for images",
        "The part of the time in which the model stood still because the next images were not "
        "decoded yet.",
    ),
    (
        "Map (t-SNE)",
        "Points that lie close have similar features. Distances between far groups and the sizes "
        "of groups mean nothing.",
    ),
)


def answer(run: PretrainingRun) -> list[str]:
    """Did it learn? From the first measurement to the last."""
    ends = _ends(run)
    if ends is None:
        return [
            "Whether the backbone became better was not measured: this run has no two "
            "measurements on labelled images (monitor.manifest, monitor.probe_every).",
            *_loss_sentence(run),
        ]
    first, last = ends
    return [_verdict(last), *_sentences(first, last), *_test_size(last)]


def unfinished(run: PretrainingRun) -> list[str]:
    """A sentence if the run has not reached its end."""
    planned = number(part(run.config, "run"), "steps")
    if planned is None or run.last_step >= planned:
        return []
    return [
        f"The run is at step {count(run.last_step)} of {count(int(planned))}: this page shows its "
        "state so far."
    ]


def cards(run: PretrainingRun) -> list[tuple[str, str, str]]:
    """Title, last value and what it was at the start."""
    ends = _ends(run)
    found: list[tuple[str, str, str]] = []
    for name, title in (("knn_auroc", "kNN AUROC"), ("linear_auroc", "Linear AUROC")):
        if ends is not None and number(ends[1], name) is not None:
            start = decimal(number(ends[0], name))
            found.append((title, decimal(number(ends[1], name)), f"at the start {start}"))
    if ends is not None and (rank := number(ends[1], "rank_me")) is not None:
        start = number(ends[0], "rank_me")
        below = "" if start is None else f"at the start {start:.0f}"
        found.append(("RankMe", f"{rank:.0f}", below))
    if images := run.points("images"):
        steps = f"{count(run.last_step)} optimiser steps"
        found.append(("Images seen", count(int(images[-1][1])), steps))
    return found


def _ends(run: PretrainingRun) -> tuple[Values, Values] | None:
    """The first and last probe with a number, if they are two."""
    usable = [r for r in run.probes if number(r, "knn_auroc") is not None]
    return (usable[0], usable[-1]) if len(usable) > 1 else None


def _verdict(last: Values) -> str:
    clear = {"better": 0, "worse": 0}
    intervals = 0
    for name, _ in MEASURES:
        low, high = number(last, f"{name}_gain_low"), number(last, f"{name}_gain_high")
        if low is None or high is None:
            continue
        intervals += 1
        clear["better"] += low > 0
        clear["worse"] += high < 0
    if not intervals:
        return "The backbone was measured at the start and at the end, without intervals."
    if clear["better"] and clear["worse"]:
        return "The backbone became clearly better in one way and clearly worse in the other."
    if clear["worse"]:
        return "The backbone became clearly worse: this run destroyed what it knew."
    if clear["better"] == intervals:
        return "The backbone became clearly better."
    if clear["better"]:
        return "The backbone became clearly better in one way; in the other it is not clear."
    return "It is not clear that the backbone changed for better or worse."


def _sentences(first: Values, last: Values) -> list[str]:
    sentences: list[str] = []
    for name, title in MEASURES:
        before, after = number(first, f"{name}_auroc"), number(last, f"{name}_auroc")
        if before is None or after is None:
            continue
        same = decimal(before) == decimal(after)
        moved = "stayed at" if same else f"went from {decimal(before)} to"
        sentences.append(f"{title} {moved} {decimal(after)}{_interval(last, name)}.")
    return sentences


def _interval(last: Values, name: str) -> str:
    gain = [number(last, f"{name}_gain{end}") for end in ("", "_low", "_high")]
    if any(value is None for value in gain):
        return ""
    value, low, high = (decimal(v, signed=True) for v in gain)
    return f" ({value}, paired 95{NO_BREAK}% interval {low} to {high})"


def _test_size(last: Values) -> list[str]:
    images, classes = number(last, "test_images"), number(last, "classes")
    if images is None or classes is None:
        return []
    return [f"Measured on {count(int(images))} test images of {int(classes)} classes."]


def _loss_sentence(run: PretrainingRun) -> list[str]:
    shares = run.points("uniform/image")
    if len(shares) > 1:
        return [
            f"The image loss went from {percent(shares[0][1])} to {percent(shares[-1][1])} of ln K."
        ]
    losses = run.points("loss")
    if len(losses) > 1:
        return [f"The loss went from {decimal(losses[0][1])} to {decimal(losses[-1][1])}."]
    return []


def noted(entries: Sequence[tuple[int, str]]) -> list[str]:
    """Sentences with the step at which they were written."""
    return [f"Step {count(step)}: {text}" for step, text in entries]
