"""Which image each sample of a run is: a pure function of the seed and the sample's number.

Samples are numbered through the whole run and over all processes. Labelled and unlabelled images
take turns, and so do the sources within each kind, as evenly as whole numbers allow: each batch
holds the chosen share of labelled images to within rounding. Within a source (and kind) every image
comes once per pass, in an order drawn anew for each pass. Nothing is remembered from sample to
sample, hence nothing has to be saved, and a run may go on with another number of processes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermino_core.errors import DerminoError
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.image_list import ImageList
from dermino_core.pretraining.randomness import derived_seed

_BITS = 30
"""Shares are whole numbers of 2**-30, so that counting samples is exact up to 2**33 of them."""


@dataclass(frozen=True)
class Group:
    """Images of one source that are drawn alike.

    Attributes
    ----------
    name
        Names its orders.
    positions
        int64 [n]: its images.
    weight
        Its share of the samples of its kind is this among the groups' weights.
    """

    name: str
    positions: NDArray[np.int64]
    weight: float


@dataclass(frozen=True)
class Kind:
    """Labelled images, unlabelled ones or all: `share` of all samples, spread over groups."""

    share: float
    groups: tuple[Group, ...]


class Sampler:
    """The image of every sample.

    Parameters
    ----------
    config
        `run.seed`, `data.labelled_share`.
    images
        The list, with each source's weight.

    Raises
    ------
    DerminoError
        CONFIG_INVALID for a share of labelled images that cannot be had.
    """

    def __init__(self, config: PretrainConfig, images: ImageList) -> None:
        self._seed = config.run.seed
        self.kinds = _kinds(images, config.data.labelled_share)
        self._kept = 2 * sum(len(kind.groups) for kind in self.kinds)
        self._orders: OrderedDict[tuple[str, int], NDArray[np.int64]] = OrderedDict()

    def positions(self, first: int, count: int) -> NDArray[np.int64]:
        """The images of samples first..first+count-1.

        Parameters
        ----------
        first, count
            Numbers of samples, from 0.

        Returns
        -------
        NDArray[np.int64]
            [count]: positions in the image list.
        """
        found = np.empty(count, dtype=np.int64)
        numbers = np.arange(first, first + count, dtype=np.int64)
        of_kinds = _turns(numbers, [kind.share for kind in self.kinds])
        for kind, (here, own) in zip(self.kinds, of_kinds, strict=True):
            of_groups = _turns(own, [group.weight for group in kind.groups])
            for group, (within, numbers) in zip(kind.groups, of_groups, strict=True):
                found[here[within]] = self._draw(group, numbers)
        return found

    def _draw(self, group: Group, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images of a group's own samples, by their numbers."""
        passes, within = np.divmod(numbers, len(group.positions))
        found = np.empty(len(numbers), dtype=np.int64)
        for each in np.unique(passes).tolist():
            here = passes == each
            found[here] = group.positions[self._order(group, each)[within[here]]]
        return found

    def _order(self, group: Group, number: int) -> NDArray[np.int64]:
        """The permutation of a group's images in one pass; those used last are kept."""
        key = (group.name, number)
        if key not in self._orders:
            seed = derived_seed(self._seed, "order", group.name, number)
            self._orders[key] = np.random.default_rng(seed).permutation(len(group.positions))
            if len(self._orders) > self._kept:
                self._orders.popitem(last=False)
        self._orders.move_to_end(key)
        return self._orders[key]


def _turns(
    numbers: NDArray[np.int64], weights: Sequence[float]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Share consecutive samples out among takers by their weights.

    Each taker in turn takes its share of the samples that those before it left.

    Returns
    -------
    For each taker: places in `numbers`, and how many samples it had taken before each.
    """
    turns = []
    places = np.arange(len(numbers))
    for taker, weight in enumerate(weights):
        share = weight / sum(weights[taker:])
        before, after = _taken(numbers, share), _taken(numbers + 1, share)
        takes = after > before
        turns.append((places[takes], before[takes]))
        places, numbers = places[~takes], (numbers - before)[~takes]
    return turns


def _taken(numbers: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """How many of the first `numbers` samples a share of them takes, rounded."""
    return (numbers * round(share * 2**_BITS) + 2 ** (_BITS - 1)) >> _BITS


def _kinds(images: ImageList, labelled_share: float | None) -> tuple[Kind, ...]:
    everything = np.ones(images.n_images, dtype=bool)
    if labelled_share is None:
        return (Kind(1.0, _groups(images, everything, "all")),)
    _check_share(images, labelled_share)
    both = (
        (labelled_share, images.labelled, "labelled"),
        (1.0 - labelled_share, ~images.labelled, "unlabelled"),
    )
    return tuple(
        Kind(share, _groups(images, chosen, name)) for share, chosen, name in both if share > 0
    )


def _groups(images: ImageList, chosen: NDArray[np.bool_], kind: str) -> tuple[Group, ...]:
    groups = []
    for place, source in enumerate(images.sources):
        first, end = images.starts[place : place + 2].tolist()
        positions = first + np.flatnonzero(chosen[first:end])
        if len(positions):
            weight = source.weight * len(positions)
            groups.append(Group(f"{source.name} {kind}", positions, weight))
    return tuple(groups)


def _check_share(images: ImageList, share: float) -> None:
    labelled = int(images.labelled.sum())
    if share > 0 and labelled == 0:
        problem, fix = "no image has a label", "give a source with labels"
    elif share < 1 and labelled == images.n_images:
        problem, fix = "every image has a label", "give a source without labels"
    else:
        return
    raise DerminoError(
        "CONFIG_INVALID",
        f"A share of {share:g} labelled images is asked for, and {problem}.",
        where="data.labelled_share",
        fix=f"Leave it out, or {fix}.",
    )
