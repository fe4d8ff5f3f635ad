"""What the outcome of every kind of run says in the same words: means, warnings, `results.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dermino_core.files import write_atomically
from dermino_core.results import BackboneInfo, Results, RoundRecord
from dermino_core.segmentation_results import SegmentationResults

V = TypeVar("V")
M = TypeVar("M")


def means_of_all(
    keys: Iterable[str], sites: Sequence[Mapping[str, V]], mean: Callable[[list[V]], M]
) -> dict[str, M]:
    """Each key's mean over the sites; a key that a site lacks has none."""
    return {
        key: mean([site[key] for site in sites])
        for key in keys
        if all(key in site for site in sites)
    }


def images_trained_on(rounds: Iterable[RoundRecord]) -> dict[str, int]:
    """Site -> images that it trained on, of every site that ever did."""
    trained: dict[str, int] = {}
    for record in rounds:
        trained |= record.examples
    return trained


def backbone_warnings(backbone: BackboneInfo) -> list[str]:
    """That the backbone has not learned to see, where it has not."""
    if unfit := backbone.unfit_because:
        return [
            f"The backbone {unfit}: this run shows that the system works, and says nothing about "
            "skin."
        ]
    return []


def missing_warnings(sites: Sequence[str]) -> list[str]:
    """Who is not in the results."""
    return [f"Not in these results: {', '.join(sites)}."] if sites else []


def precision_warnings(precisions: Sequence[tuple[str, str]]) -> list[str]:
    """Site and arithmetic of each, where they are not all the same."""
    if len({precision for _, precision in precisions}) < 2:
        return []
    told = ", ".join(f"{site} {precision}" for site, precision in precisions)
    return [f"The hospitals computed their features in different arithmetic: {told}."]


def write_results(folder: Path, results: Results | SegmentationResults) -> None:
    """Write `results.json`."""
    write_atomically(folder / "results.json", results.model_dump_json(indent=1) + "\n")
