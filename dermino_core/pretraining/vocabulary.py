"""The diseases of the supervised loss, and what an image's labels say about each.

DermINO, equation (6): y says which diseases an image has, n which of them are known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermino_core.label_names import (
    NOT,
    canonical_name,
    means_unknown,
    negated_name,
    split_labels,
    tidy_name,
)
from dermino_core.label_table import merged_names, read_label_table

__all__ = ["Vocabulary", "split_labels"]


@dataclass(frozen=True)
class Vocabulary:
    """The names of C diseases, and which of them a label means.

    Attributes
    ----------
    names
        Sorted; the order of the prototypes.
    meanings
        A label as a data set writes it, or in one spelling (:func:`tidy_name`) -> names, with `!`
        before those it excludes. A label that is not here says nothing.
    """

    names: tuple[str, ...]
    meanings: Mapping[str, tuple[str, ...]] = field(repr=False)

    @classmethod
    def from_csv(cls, path: Path) -> Vocabulary:
        """Of a reviewed table of labels.

        Raises
        ------
        DerminoError
            As :func:`~dermino_core.label_table.read_label_table`.
        """
        rows = read_label_table(path)
        written = {row.source_label: row.merged_into for row in rows}
        return cls(merged_names(rows), _with_spellings(written))

    @classmethod
    def from_labels(cls, labels: Iterable[str]) -> Vocabulary:
        """Of labels as they are written: in one spelling each, nothing merged by meaning.

        `!name` excludes a name, and so does "non name" where that name is among the labels.
        "unknown" and "other" say nothing.
        """
        distinct = {label: canonical_name(label.removeprefix(NOT)) for label in labels}
        found = set(distinct.values())
        written: dict[str, tuple[str, ...]] = {}
        for label, name in distinct.items():
            negated = negated_name(name)
            if means_unknown(name):
                written[label] = ()
            elif label.startswith(NOT):
                written[label] = (NOT + name,)
            else:
                written[label] = (NOT + negated,) if negated in found else (name,)
        names = {name.removeprefix(NOT) for meaning in written.values() for name in meaning}
        return cls(tuple(sorted(names)), _with_spellings(written))

    def __len__(self) -> int:
        """C."""
        return len(self.names)

    def meaning(self, label: str) -> tuple[str, ...] | None:
        """The names that `label` means, some with `!`; () if it is ignored, None if not known."""
        if label in self.meanings:
            return self.meanings[label]
        if label.startswith(NOT):
            meant = self.meaning(label.lstrip(NOT))
            # Not to have two diseases at once says nothing about either.
            one = meant is not None and len(meant) == 1 and not meant[0].startswith(NOT)
            return (NOT + meant[0],) if meant and one else (None if meant is None else ())
        if (key := tidy_name(label)) in self.meanings:
            return self.meanings[key]
        name = canonical_name(label)
        if name in self.names:
            return (name,)
        return () if means_unknown(name) else None

    def unmapped(self, labels: Iterable[str]) -> tuple[str, ...]:
        """Those of `labels` that the vocabulary does not know, each once, sorted."""
        return tuple(sorted({label for label in labels if self.meaning(label) is None}))

    def names_of(self, labels: Iterable[str]) -> frozenset[str]:
        """Every name that `labels` are about: what a data set with these labels can tell."""
        return frozenset(
            name.removeprefix(NOT) for label in labels for name in self.meaning(label) or ()
        )

    def encode(
        self, labels: Sequence[str], known: Collection[str] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the labels of one image say about every disease.

        Parameters
        ----------
        labels
            As the data set writes them. Those that mean nothing here count as absent.
        known
            Names that the image would have been labelled with if it had them
            (:meth:`names_of` the data set's labels): not named, they are absent. None: all names.

        Returns
        -------
        targets, available
            float32 [C] each: y and n of equation (6). An image without a label that means
            something has nothing available; one with only `!name` only that name; a name that is
            both given and excluded is not available.
        """
        targets = np.zeros(len(self.names), dtype=np.float32)
        available = np.zeros(len(self.names), dtype=np.float32)
        meanings = {name for label in labels for name in self.meaning(label) or ()}
        has = {name for name in meanings if not name.startswith(NOT)}
        has_not = {name.removeprefix(NOT) for name in meanings if name.startswith(NOT)}
        for place, name in enumerate(self.names):
            if name in has and name in has_not:
                continue
            if name in has:
                targets[place] = available[place] = 1.0
            elif name in has_not or (has and (known is None or name in known)):
                available[place] = 1.0
        return targets, available


def _with_spellings(written: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Adds each label's one spelling, where all labels so spelt agree."""
    spellings: dict[str, set[tuple[str, ...]]] = {}
    for label, meaning in written.items():
        if not label.startswith(NOT):
            spellings.setdefault(tidy_name(label), set()).add(meaning)
    agreed = {key: found.pop() for key, found in spellings.items() if len(found) == 1}
    return {**agreed, **written}
