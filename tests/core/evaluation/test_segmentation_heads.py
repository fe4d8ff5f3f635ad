"""Both heads: shapes, formulas, and that they learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dermino_core.errors import DerminoError
from dermino_core.evaluation.segmentation_heads import (
    LinearHead,
    UperNet,
    build_head,
    upsampled,
)
from dermino_core.evaluation.segmentation_settings import SegmentationSettings
from dermino_core.evaluation.segmentation_training import (
    Batch,
    head_logits,
    masks_of,
    segmentation_loss,
    train_head,
)
from tests.core.evaluation.segmentation_pictures import state_of


@pytest.mark.parametrize(
    ("patch", "sides"), [(14, [64, 32, 16, 8]), (16, [56, 28, 14, 7]), (32, [28, 14, 7, 4])]
)
def test_the_pyramid_of_an_image_of_224_pixels(patch: int, sides: list[int]) -> None:
    grid = 224 // patch
    features = torch.randn(2, 4, grid, grid, 10)
    head = UperNet(10, channels=6)
    levels = head.pyramid(features)
    assert [tuple(level.shape) for level in levels] == [
        (2, width, side, side) for width, side in zip((6, 6, 10, 10), sides, strict=True)
    ]
    assert head(features).shape == (2, 1, sides[0], sides[0])
    assert upsampled(head(features), (224, 224)).shape == (2, 224, 224)


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_grids_smaller_than_the_pooling(grid: int) -> None:
    assert UperNet(8, channels=4)(torch.randn(2, 4, grid, grid, 8)).shape == (
        2,
        1,
        4 * grid,
        4 * grid,
    )


def test_upernet_sees_all_depths_and_the_whole_image() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 4, 8, 8, 6, requires_grad=True)
    UperNet(6, channels=8).eval()(features)[0, 0, 0, 0].backward()
    assert features.grad is not None
    seen = features.grad.abs().sum(dim=-1)[0]
    assert all(depth.max() > 0 for depth in seen)
    pooled = seen.reshape(4, 4, 2, 4, 2).amax(dim=(2, 4))
    assert (pooled[3] > 0).all()
    assert pooled[0, -1, -1] == 0


def upernet_by_hand(state: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    """The figure of Xiao et al. (2018), on 12 x 12 patches, so that pools divide evenly."""

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        part = {
            name: state[f"{key}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        }
        scaled = (x - part["running_mean"]) / (part["running_var"] + 1e-5).sqrt()
        return scaled * part["weight"] + part["bias"]

    def block(x: torch.Tensor, key: str) -> torch.Tensor:
        weight = state[f"{key}.0.weight"]
        return norm(F.conv2d(x, weight, padding=weight.shape[-1] // 2), f"{key}.1").clamp(min=0)

    def twice(x: torch.Tensor, key: str) -> torch.Tensor:
        """Each pixel becomes 2 x 2."""
        spread = torch.einsum("bchw,cdyx->bdhywx", x, state[f"{key}.weight"])
        return spread.flatten(4, 5).flatten(2, 3) + state[f"{key}.bias"][:, None, None]

    def to(x: torch.Tensor, side: int) -> torch.Tensor:
        return F.interpolate(x, size=(side, side), mode="bilinear")

    first, second, third, fourth = (features[:, k].permute(0, 3, 1, 2) for k in range(4))
    quarter = twice(F.gelu(norm(twice(first, "to_stride_4.0"), "to_stride_4.1")), "to_stride_4.3")
    eighth = twice(second, "to_stride_8")
    coarsest = fourth.unflatten(3, (6, 2)).unflatten(2, (6, 2)).amax(dim=(3, 5))
    pools = [coarsest]
    for place, grid in enumerate((1, 2, 3, 6)):
        cells = coarsest.unflatten(3, (grid, -1)).unflatten(2, (grid, -1)).mean(dim=(3, 5))
        pools.append(to(block(cells, f"pooled.{place}"), 6))
    p5 = block(torch.cat(pools, dim=1), "top")
    p4 = block(third, "lateral.2") + to(p5, 12)
    p3 = block(eighth, "lateral.1") + to(p4, 24)
    p2 = block(quarter, "lateral.0") + to(p3, 48)
    levels = [block(p2, "smooth.0"), block(p3, "smooth.1"), block(p4, "smooth.2"), p5]
    fused = block(torch.cat([to(level, 48) for level in levels], dim=1), "fuse")
    return F.conv2d(fused, state["classify.weight"], state["classify.bias"])


def test_upernet_is_its_figure() -> None:
    torch.manual_seed(0)
    head = UperNet(5, channels=3).double()
    features = torch.randn(2, 4, 12, 12, 5, dtype=torch.float64)
    head(features)
    head.eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        expected = upernet_by_hand(dict(head.state_dict()), features)
        assert expected.std() > 0.01
        torch.testing.assert_close(head(features), expected)


def test_the_linear_head_is_its_formula() -> None:
    """At evaluation: an affine map of each patch of the last depth, on its own."""
    torch.manual_seed(0)
    head = LinearHead(5).train()
    features = torch.randn(3, 1, 4, 6, 5) * 3 + 1
    head(features)
    head.eval()
    state = state_of(head)
    scale = state["norm.weight"] / np.sqrt(state["norm.running_var"] + 1e-5)
    normed = (features[:, 0].numpy() - state["norm.running_mean"]) * scale + state["norm.bias"]
    expected = normed @ state["classify.weight"][0, :, 0, 0] + state["classify.bias"]
    got = head(features).detach().numpy()
    assert got.shape == (3, 1, 4, 6)
    np.testing.assert_allclose(got[:, 0], expected, atol=1e-5)


def test_dropout_takes_whole_channels() -> None:
    head = LinearHead(200, dropout=0.5).train()
    with torch.no_grad():
        head.norm.bias.fill_(1)
    dropped = head.dropout(head.norm(torch.randn(2, 200, 3, 3))) == 0
    assert (dropped.all(dim=(2, 3)) == dropped.any(dim=(2, 3))).all()
    assert 0.35 < dropped.float().mean() < 0.65


def test_unknown_heads_and_settings() -> None:
    with pytest.raises(ValueError, match="'linear' or 'upernet'"):
        build_head("fcn", 8)  # pyright: ignore[reportArgumentType]
    for wrong in (
        {"batch_size": 1},
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"dropout": 1.0},
        {"score_at": "screen"},
    ):
        with pytest.raises(ValueError, match=r"from|above|is"):
            SegmentationSettings(**wrong)


@pytest.mark.parametrize("dice_weight", [0.0, 0.7])
def test_the_loss_is_its_formula(dice_weight: float) -> None:
    rng = np.random.default_rng(0)
    logits, masks = rng.normal(0, 3, (3, 5, 7)), (rng.random((3, 5, 7)) < 0.3).astype(float)
    masks[1] = 0
    chances = 1 / (1 + np.exp(-logits))
    entropy = -np.mean(masks * np.log(chances) + (1 - masks) * np.log(1 - chances))
    dice = [
        1 - (2 * sum((p * m).ravel()) + 1) / (sum(p.ravel()) + sum(m.ravel()) + 1)
        for p, m in zip(chances, masks, strict=True)
    ]
    got = segmentation_loss(
        torch.from_numpy(logits), torch.from_numpy(masks), dice_weight=dice_weight
    )
    assert float(got) == pytest.approx(entropy + dice_weight * np.mean(dice), abs=1e-9)


RNG = np.random.default_rng(0)
MASKS = np.kron(RNG.random((9, 4, 4)) < 0.4, np.ones((4, 4))).astype(np.uint8)
FEATURES = RNG.normal(0, 1, (9, 4, 4, 4, 8)).astype(np.float16)
FEATURES[..., 0] += 4 * MASKS[:, ::4, ::4][:, None]


def batch_of(rows: np.ndarray) -> Batch:
    return FEATURES[rows], MASKS[rows]


def batch_for_linear(rows: np.ndarray) -> Batch:
    """With masks on its own grid of patches."""
    return FEATURES[rows, -1:], MASKS[rows, ::4, ::4]


QUICK = SegmentationSettings(epochs=30, learning_rate=2e-2, batch_size=4, channels=8, dropout=0)


def test_training_follows_its_seed() -> None:
    """Twice the same, whatever the process did before; and it leaves torch's own stream alone."""
    states = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        head = train_head(
            lambda: build_head("upernet", 8, channels=8),
            batch_of,
            9,
            SegmentationSettings(epochs=2, batch_size=4),
            seed=seed,
            title="test",
        )
        assert torch.equal(torch.random.get_rng_state(), before)
        assert not head.training
        states.append(state_of(head))
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name])
    assert not np.array_equal(states[0]["fuse.0.weight"], states[2]["fuse.0.weight"])


def test_every_image_is_seen_once_in_an_epoch() -> None:
    """No batch is smaller than asked for: batch norm cannot work on one image."""
    seen: list[list[int]] = []

    def noted(rows: np.ndarray) -> Batch:
        seen.append(rows.tolist())
        return batch_for_linear(rows)

    settings = SegmentationSettings(epochs=3, batch_size=4)
    train_head(lambda: build_head("linear", 8), noted, 9, settings, seed=0, title="test")
    assert [len(rows) for rows in seen] == [5, 4] * 3
    epochs = [sorted(seen[place] + seen[place + 1]) for place in (0, 2, 4)]
    assert epochs == [list(range(9))] * 3
    assert seen[:2] != seen[2:4]


def test_the_rate_falls_by_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.Adam.step

    def noted(self: torch.optim.Adam) -> None:
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    settings = SegmentationSettings(epochs=5, batch_size=4)
    train_head(lambda: build_head("linear", 8), batch_for_linear, 9, settings, seed=0, title="t")
    expected = [1e-3 * (1 + np.cos(np.pi * t / 10)) / 2 for t in range(10)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["linear", "upernet"])
def test_a_head_learns_what_features_tell(name: str) -> None:
    source = batch_for_linear if name == "linear" else batch_of
    head = train_head(
        lambda: build_head(name, 8, channels=8, dropout=0), source, 9, QUICK, seed=0, title="test"
    )
    features, masks = source(np.arange(9))
    predicted = masks_of(head_logits(head, features), masks.shape[1:])
    assert np.mean(predicted == masks) > 0.95


def test_training_that_cannot_work() -> None:
    with pytest.raises(DerminoError, match="two are needed") as caught:
        train_head(lambda: build_head("linear", 8), batch_for_linear, 1, QUICK, seed=0, title="t")
    assert caught.value.code == "DATA_TOO_FEW"

    def broken(rows: np.ndarray) -> Batch:
        return np.full_like(FEATURES[rows, -1:], np.inf), MASKS[rows]

    with pytest.raises(DerminoError, match="not finite") as caught:
        train_head(lambda: build_head("linear", 8), broken, 9, QUICK, seed=0, title="t")
    assert caught.value.code == "RUN_FAILED"
