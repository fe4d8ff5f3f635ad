"""The sampler: a pure function of the sample's number, with exact shares and whole passes."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_core.errors import DerminoError
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.config_file import resolve_config
from dermino_core.pretraining.image_list import ImageList, LabelSet, Source
from dermino_core.pretraining.sampler import Sampler
from dermino_core.pretraining.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_labels(["melanoma"])


class Unread:
    """A source of so many images, none of which is read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return str(index)

    def read_bytes(self, index: int) -> bytes:
        raise AssertionError(index)


def image_list(*sources: tuple[int, int, float]) -> ImageList:
    """Sources of (labelled, unlabelled, weight)."""
    sets = [LabelSet(i, "", labels) for i in range(len(sources)) for labels in (("melanoma",), ())]
    codes = [
        code
        for i, (labelled, unlabelled, _) in enumerate(sources)
        for code in [2 * i] * labelled + [2 * i + 1] * unlabelled
    ]
    return ImageList(
        [Source(str(i), w, Unread(a + b)) for i, (a, b, w) in enumerate(sources)],
        sets,
        np.array(codes, dtype=np.int32),
        VOCABULARY,
        64,
    )


def config(seed: int = 0, share: float | None = None) -> PretrainConfig:
    data = {} if share is None else {"labelled_share": share}
    return resolve_config({"run": {"steps": 1, "seed": seed}, "data": data})


@settings(max_examples=60, deadline=None)
@given(
    sources=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 30), st.floats(0.1, 10)),
        min_size=1,
        max_size=4,
    ),
    share=st.none() | st.floats(0, 1),
    first=st.integers(0, 10**9),
    cuts=st.lists(st.integers(0, 300), max_size=4),
)
def test_depends_on_the_number_alone(
    sources: list[tuple[int, int, float]],
    share: float | None,
    first: int,
    cuts: list[int],
) -> None:
    images = image_list(*sources)
    whole = Sampler(config(share=share), images).positions(first, 300)
    pieces = Sampler(config(share=share), images)
    bounds = [0, *sorted(cuts), 300]
    parts = [
        pieces.positions(first + start, end - start)
        for start, end in reversed(list(itertools.pairwise(bounds)))
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts[::-1]))
    assert whole.min() >= 0
    assert whole.max() < images.n_images


@pytest.mark.parametrize("share", [None, 0.25])
def test_every_image_once_per_pass_in_another_order(share: float | None) -> None:
    images = image_list((10, 30, 1.0))
    drawn = Sampler(config(share=share), images).positions(0, 80)
    halves = drawn[:40], drawn[40:]
    for half in halves:
        assert sorted(half.tolist()) == list(range(40))
    assert halves[0].tolist() != halves[1].tolist()
    other = Sampler(config(seed=1, share=share), images).positions(0, 80)
    assert other.tolist() != drawn.tolist()


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1), batch=st.integers(1, 64), start=st.integers(0, 10**6))
def test_every_batch_has_its_share_of_labelled_images(share: float, batch: int, start: int) -> None:
    images = image_list((7, 90, 1.0), (50, 3, 2.5), (1, 1, 0.2))
    sampler = Sampler(config(share=share), images)
    for step in range(start, start + 5):
        labelled = images.labelled[sampler.positions(step * batch, batch)].sum()
        assert abs(labelled - share * batch) <= 1 + 1e-3
    if float(share * batch).is_integer():
        assert labelled == share * batch


def test_sources_are_drawn_by_weight_times_images() -> None:
    images = image_list((100, 0, 1.0), (50, 0, 4.0), (0, 100, 1.0))
    drawn = Sampler(config(), images).positions(0, 4000)
    counts = Counter(images.source_of(position) for position in drawn.tolist())
    assert counts == {0: 1000, 1: 2000, 2: 1000}
    kept = Sampler(config(share=0.5), images).positions(0, 6000)
    counts = Counter(images.source_of(position) for position in kept.tolist())
    assert counts == {0: 1000, 1: 2000, 2: 3000}


def test_millions_of_images_need_one_order_each() -> None:
    images = image_list((1_000_000, 1_000_000, 1.0))
    sampler = Sampler(config(share=0.5), images)
    drawn = np.concatenate([sampler.positions(step * 500, 500) for step in range(2000)])
    assert len(np.unique(drawn)) == 1_000_000
    assert len(sampler._orders) == 2


@pytest.mark.parametrize(
    ("sources", "share", "words"),
    [((0, 5, 1.0), 0.5, "no image has a label"), ((5, 0, 1.0), 0.5, "every image has a label")],
)
def test_a_share_that_cannot_be_had(
    sources: tuple[int, int, float], share: float, words: str
) -> None:
    with pytest.raises(DerminoError, match=words) as caught:
        Sampler(config(share=share), image_list(sources))
    assert caught.value.code == "CONFIG_INVALID"
