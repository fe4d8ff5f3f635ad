"""Figures as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.benchmarks.leaks.exposure import ATTACKS, Exposure
from tests.benchmarks.leaks.reconstruction import Returned
from tests.benchmarks.leaks.scores import Bound, Figures, Measured, mean_of


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One table; numbers to the right, the first column to the left."""
    marks = ["---", *("---:" for _ in header[1:])]
    lines = [header, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def membership_table(exposures: Sequence[Exposure]) -> str:
    """One row per method, privacy and place: means over the hospitals, and the most exposed one."""
    weak, lira, strong = ATTACKS
    header = ["method, privacy, what is seen", f"{weak}: AUC", f"{lira}: AUC", f"{lira}: TPR"]
    header += [
        f"{strong}: AUC",
        "TPR",
        "balanced accuracy",
        "most exposed hospital: AUC",
        "shadows",
    ]
    rows = []
    for one in exposures:
        means = {name: mean_of(list(by.values())) for name, by in one.attacks.items() if by}
        best = means[strong]
        worst, figures = _most_exposed(one.attacks[strong])
        rows.append(
            [
                f"{one.method}, {one.privacy}, {one.place}",
                _show(means, weak, "auc"),
                _show(means, lira, "auc"),
                _show(means, lira, "hits"),
                best.auc.show(),
                best.hits.show(3),
                best.accuracy.show(),
                f"{worst} {figures.auc.show()}",
                str(one.shadows),
            ]
        )
    return markdown(header, rows)


def _show(means: Mapping[str, Figures], attack: str, figure: str) -> str:
    if attack not in means:
        return "–"
    value: Measured = getattr(means[attack], figure)
    return value.show(3 if figure == "hits" else 2)


def _most_exposed(by_hospital: Mapping[str, Figures]) -> tuple[str, Figures]:
    return max(by_hospital.items(), key=lambda item: item[1].auc.value)


def bounds_table(bounds: Mapping[float, Bound]) -> str:
    """What differential privacy allows any attack, whatever it knows."""
    rows = [
        [f"ε = {epsilon:g}", f"{b.auc:.2f}", f"{b.hits:.3f}", f"{b.accuracy:.2f}"]
        for epsilon, b in bounds.items()
    ]
    return markdown(["promise, δ = 1e-5", "AUC", "TPR", "balanced accuracy"], rows)


def sums_table(by_place: Mapping[str, Mapping[str, Figures]]) -> str:
    """The leverage attack: means over the hospitals."""
    rows = []
    for place, by_hospital in by_place.items():
        mean = mean_of(list(by_hospital.values()))
        worst, figures = _most_exposed(by_hospital)
        rows.append(
            [
                place,
                mean.auc.show(),
                mean.hits.show(3),
                mean.accuracy.show(),
                f"{worst} {figures.auc.show()}",
            ]
        )
    header = ["what is seen", "AUC", "TPR", "balanced accuracy", "most exposed hospital: AUC"]
    return markdown(header, rows)


def property_table(rows: Sequence[tuple[str, Measured, Measured, Measured]]) -> str:
    """What is seen, AUC of the sexes, error of the share and of a guess."""
    header = ["what is seen", "30 or 70 % women: AUC"]
    header += ["share of malignant: mean error", "error without any upload"]
    return markdown(header, [[name, *(m.show(2) for m in figures)] for name, *figures in rows])


def returned_table(rows: Sequence[tuple[str, Returned]]) -> str:
    """What is seen, cosines, and how often a member is named."""
    header = ["what is seen", "best cosine", "of strangers", "names a member", "by chance"]
    shown = [
        [
            name,
            one.cosine.show(),
            one.guess.show(),
            one.named.show(),
            f"{one.chance:.3f}",
        ]
        for name, one in rows
    ]
    return markdown(header, shown)
