"""Federated segmentation heads: averaging by hand, one site, turns that keep image and mask."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch

from dermino_core.errors import DerminoError
from dermino_core.evaluation.segmentation_heads import build_head, upsampled
from dermino_core.evaluation.segmentation_scores import overlap_scores
from dermino_core.evaluation.segmentation_training import segmentation_loss, train_head
from dermino_core.evaluation.segmentation_turns import TURNS, turned, turned_levels
from dermino_strategies.base import SiteUpdate
from dermino_strategies.segmentation import (
    PooledPatches,
    SegmentationMethod,
    SitePatches,
    aggregate,
    arrays_of,
    check_update,
    head_of,
    initial_arrays,
    overlap,
    require_head_fits,
    round_seed,
    scores_of,
    site_update,
    train_alone,
)

WIDTH, GRID, SIDE = 6, 4, 16


def patches(n: int, seed: int, *, views: int = 2, depths: int = 1) -> SitePatches:
    """Squares whose features say where they are, in every view."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 2, (n, GRID, GRID)).astype(np.uint8)
    masks = coarse.repeat(SIDE // GRID, axis=1).repeat(SIDE // GRID, axis=2)
    features = rng.normal(size=(n, views, depths, GRID, GRID, WIDTH))
    for view in range(views):
        for row in range(n):
            features[row, view, ..., 0] += 3 * turned(coarse[row], view)
    return SitePatches(features.astype(np.float16), masks)


def method(head: Literal["linear", "upernet"] = "linear", **changes: Any) -> SegmentationMethod:
    given = {"local_epochs": 2, "learning_rate": 0.02, "channels": 4, "image_size": SIDE}
    return SegmentationMethod(head=head, **{**given, **changes})


def update_of(seed: int, examples: int, chosen: SegmentationMethod) -> SiteUpdate:
    rng = np.random.default_rng(seed)
    like = initial_arrays(chosen, WIDTH, 0)
    return SiteUpdate(
        {name: np.abs(rng.normal(size=a.shape)).astype(np.float32) for name, a in like.items()},
        examples,
        {"train-loss": 1.0},
    )


@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_averaging_is_the_mean_weighted_by_images(head: Literal["linear", "upernet"]) -> None:
    updates = {f"s{i}": update_of(i, n, method(head)) for i, n in enumerate((3, 10, 1))}
    found = aggregate(updates)
    for name in updates["s0"].arrays:
        stacked = np.stack([u.arrays[name].astype(np.float64) for u in updates.values()])
        by_hand = np.tensordot(np.array([3, 10, 1]) / 14, stacked, axes=1)
        np.testing.assert_allclose(found[name], by_hand, rtol=1e-6)
    assert "norm.running_mean" in found if head == "linear" else "top.1.running_var" in found
    assert not any("num_batches" in name for name in found)
    assert all(array.dtype == np.float32 for array in found.values())


def test_the_order_of_sites_does_not_matter() -> None:
    updates = {f"s{i}": update_of(i, 1 + 7 * i, method()) for i in range(5)}
    turned_round = dict(reversed(updates.items()))
    first, second = aggregate(updates), aggregate(turned_round)
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_arrays_make_the_same_head_again(head: Literal["linear", "upernet"]) -> None:
    chosen = method(head)
    arrays = update_of(1, 1, chosen).arrays
    again = arrays_of(head_of(chosen, WIDTH, arrays))
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert not head_of(chosen, WIDTH, arrays).training


def test_one_round_of_one_site_is_the_training_of_evaluate() -> None:
    """Without turns: the core's own loop on the same images, bit for bit."""
    data, chosen = patches(9, 0), method(augment=False)
    start = initial_arrays(chosen, WIDTH, 5)
    found = site_update(data, chosen, start, width=WIDTH, round_=1, rounds=1, seed=5)

    def build() -> Any:
        head = build_head("linear", WIDTH, dropout=0.1)
        state = {name: torch.from_numpy(array) for name, array in start.items()}
        head.load_state_dict(head.state_dict() | state)
        return head

    central = train_head(
        build,
        lambda rows: (data.features[rows, 0], data.masks[rows]),
        9,
        chosen.for_training(2),
        seed=round_seed(5, 1),
        title="central",
    )
    for name, value in central.state_dict().items():
        if value.is_floating_point():
            np.testing.assert_array_equal(found.arrays[name], value.numpy())
    assert found.examples == 9


def test_a_federation_of_one_site_is_training_alone() -> None:
    data, chosen = patches(9, 0), method()
    arrays = initial_arrays(chosen, WIDTH, 3)
    for round_ in (1, 2, 3):
        update = site_update(data, chosen, arrays, width=WIDTH, round_=round_, rounds=3, seed=3)
        arrays = aggregate({"only": update})
    alone = train_alone(data, chosen, width=WIDTH, rounds=3, seed=3)
    assert all(np.array_equal(arrays[name], alone[name]) for name in alone)


def test_the_learning_rate_falls_over_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds of two epochs walk down one cosine."""
    seen: list[float] = []
    step = torch.optim.Adam.step

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    train_alone(patches(8, 0), method(), width=WIDTH, rounds=3, seed=0)
    steps = 3 * 2 * 2
    cosine = 0.02 * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    np.testing.assert_allclose(seen, cosine, rtol=1e-12)


def test_turns_are_the_eight_of_a_square() -> None:
    square = np.arange(9).reshape(3, 3)
    seen = {turned(square, turn).tobytes() for turn in range(TURNS)}
    turns = [np.rot90(s, k) for s in (square, square[:, ::-1]) for k in range(4)]
    assert seen == {np.ascontiguousarray(s).tobytes() for s in turns}
    np.testing.assert_array_equal(turned(square, 1), np.fliplr(square))
    np.testing.assert_array_equal(turned(square, 2), np.flipud(square))
    with pytest.raises(ValueError, match="0 to 7"):
        turned(square, 8)


def test_a_turn_leaves_every_patch_on_its_pixels() -> None:
    """A feature that encodes a patch's place stays with the mask's pixels of that place."""
    place = np.arange(GRID * GRID, dtype=np.uint8).reshape(GRID, GRID)
    features = np.broadcast_to(place[None, None, None, :, :, None], (1, 8, 2, GRID, GRID, 3))
    as_seen = features.copy()
    for view in range(8):
        as_seen[:, view] = turned(place, view)[None, None, :, :, None]
    masks = place.repeat(SIDE // GRID, axis=0).repeat(SIDE // GRID, axis=1)[None]
    data = SitePatches(as_seen.astype(np.float16), masks)
    block = SIDE // GRID
    for view in range(8):
        for turn in range(TURNS):
            found, mask = data.take(np.array([0]), 2, np.array([view / 8]), np.array([turn]))
            for level in found[0]:
                per_patch = mask[0].reshape(GRID, block, GRID, block)
                assert (per_patch == level[:, None, :, None, 0]).all()
    assert turned_levels(as_seen[0, 0], 5).shape == (2, GRID, GRID, 3)


def test_turning_the_grid_teaches_the_linear_head_nothing() -> None:
    """It looks at patches one by one: its loss is the same for all eight turns; UperNet's not."""
    for name, same in (("linear", True), ("upernet", False)):
        torch.manual_seed(0)
        depths = 1 if name == "linear" else 4
        head = build_head(name, WIDTH, channels=4).eval()  # type: ignore[arg-type]
        data = patches(1, 0, depths=depths)
        losses = []
        for turn in range(TURNS):
            features, masks = data.take(np.array([0]), depths, np.zeros(1), np.array([turn]))
            with torch.inference_mode():
                logits = upsampled(head(torch.from_numpy(features).float()), (SIDE, SIDE))
                losses.append(float(segmentation_loss(logits, torch.from_numpy(masks).float())))
        assert (max(losses) - min(losses) < 1e-6) == same


def test_views_and_turns_reach_the_training() -> None:
    """Without augmentation other views do not matter; with it they do."""
    plain = patches(8, 0, views=2)
    other = plain.features.copy()
    other[:, 1] = 0
    changed = SitePatches(other, plain.masks)
    for augment, same in ((False, True), (True, False)):
        chosen = method(augment=augment)
        first, second = (
            train_alone(data, chosen, width=WIDTH, rounds=1, seed=0) for data in (plain, changed)
        )
        equal = all(np.array_equal(first[name], second[name]) for name in first)
        assert equal == same


def test_pooled_images_are_those_of_the_sites() -> None:
    parts = [patches(3, 1), patches(4, 2)]
    pool = PooledPatches(parts)
    rows = np.array([6, 0, 3, 2])
    views, turns = np.array([0.9, 0.1, 0.6, 0.0]), np.array([0, 3, 5, 1])
    features, masks = pool.take(rows, 1, views, turns)
    assert len(pool) == 7
    for place, (part, row) in enumerate([(1, 3), (0, 0), (1, 0), (0, 2)]):
        one = slice(place, place + 1)
        alone = parts[part].take(np.array([row]), 1, views[one], turns[one])
        np.testing.assert_array_equal(features[place], alone[0][0])
        np.testing.assert_array_equal(masks[place], alone[1][0])


def test_a_head_learns_and_scores_are_those_of_its_masks() -> None:
    data, chosen = patches(12, 0), method(local_epochs=20)
    before = scores_of(data, chosen, initial_arrays(chosen, WIDTH, 0), width=WIDTH)
    arrays = train_alone(data, chosen, width=WIDTH, rounds=2, seed=0)
    found = scores_of(data, chosen, arrays, width=WIDTH)
    assert found[:, 0].mean() > max(0.85, before[:, 0].mean() + 0.1)
    head = head_of(chosen, WIDTH, arrays)
    with torch.inference_mode():
        logits = upsampled(head(torch.from_numpy(data.features[:, 0]).float()), (SIDE, SIDE))
    for row in range(12):
        by_hand = overlap_scores((logits[row] > 0).numpy(), data.masks[row] > 0)
        np.testing.assert_allclose(found[row], by_hand)


def test_intervals_draw_patients_whole_and_heads_in_pairs() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((30, 2))
    alone = overlap(scores, [str(i) for i in range(30)], replicates=400, seed=1)
    paired = overlap(scores - scores, ["a"] * 30, replicates=50, seed=1)
    three = overlap(scores, [str(i % 3) for i in range(30)], replicates=400, seed=1)
    assert alone.dice.value == pytest.approx(scores[:, 0].mean())
    assert alone.dice.standard_error == pytest.approx(scores[:, 0].std() / 30**0.5, rel=0.15)
    assert paired.jaccard.value == paired.jaccard.low == paired.jaccard.high == 0
    assert len({alone.dice.low, three.dice.low}) == 2


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda a: a | {"classify.bias": np.full(1, np.nan, np.float32)}, "NaN"),
        (lambda a: a | {"norm.running_var": -a["norm.running_var"]}, "negative variance"),
        (lambda a: a | {"norm.weight": a["norm.weight"][:-1]}, "shape"),
        (lambda a: a | {"norm.bias": a["norm.bias"].astype(np.float64)}, "float64"),
        (lambda a: {n: v for n, v in a.items() if n != "norm.bias"}, "sent the arrays"),
    ],
)
def test_a_head_that_would_poison_the_model_is_refused(change: Any, what: str) -> None:
    like = initial_arrays(method(), WIDTH, 0)
    check_update(like, SiteUpdate(like, 3))
    with pytest.raises(ValueError, match=what):
        check_update(like, SiteUpdate(change(like), 3))


def test_other_claims_are_refused() -> None:
    like = initial_arrays(method(), WIDTH, 0)
    with pytest.raises(ValueError, match="0 images"):
        check_update(like, SiteUpdate(like, 0))
    with pytest.raises(ValueError, match="loss"):
        check_update(like, SiteUpdate(like, 1, {"train-loss": float("nan")}))
    with pytest.raises(ValueError, match="sent the arrays"):
        head_of(method("upernet"), WIDTH, like)
    with pytest.raises(DerminoError, match="4 depths") as refused:
        require_head_fits(1, method("upernet"))
    assert refused.value.code == "REQUEST_MISMATCH"


def test_fresh_heads_leave_torchs_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = initial_arrays(method(), WIDTH, 0)
    train_alone(patches(4, 0), method(), width=WIDTH, rounds=1, seed=0)
    assert torch.equal(torch.rand(3), expected)
    assert all(np.array_equal(a, initial_arrays(method(), WIDTH, 0)[n]) for n, a in first.items())
    assert method("upernet", learning_rate=None).rate == 1e-3
