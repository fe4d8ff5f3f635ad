"""Every loss against plain float64 loops written from its equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch

from dermino_core.losses.image_level import image_level_loss, share_of_uniform
from dermino_core.losses.koleo import koleo_loss
from dermino_core.losses.patch_level import patch_level_loss
from dermino_core.losses.supervised import supervised_loss
from dermino_core.losses.teacher_scores import SoftmaxCentering, sinkhorn_knopp


def log_softmax(row: np.ndarray) -> np.ndarray:
    shifted = row - row.max()
    return shifted - math.log(np.exp(shifted).sum())


def softmax(row: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(row))


def draw(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * scale).float()


def sinkhorn_by_hand(logits: np.ndarray, temperature: float, iterations: int) -> np.ndarray:
    """Matrix K x B of the appendix, element by element."""
    q = np.exp(logits.astype(np.float64).T / temperature - logits.max() / temperature)
    q /= q.sum()
    n_prototypes, batch = q.shape
    for _ in range(iterations):
        for k in range(n_prototypes):
            q[k] /= q[k].sum() * n_prototypes
        for b in range(batch):
            q[:, b] /= q[:, b].sum() * batch
    return (q * batch).T


@pytest.mark.parametrize("shape", [(1, 3), (4, 7), (33, 20)])
@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_knopp(shape: tuple[int, int], iterations: int) -> None:
    logits = draw(0, *shape)
    result = sinkhorn_knopp(logits, 0.07, iterations=iterations)
    expected = sinkhorn_by_hand(logits.numpy(), 0.07, iterations)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(result.sum(dim=1).numpy(), 1, rtol=1e-5)


def test_sinkhorn_after_softmax_starts_from_probabilities() -> None:
    logits = draw(1, 5, 9)
    probabilities = torch.stack([torch.from_numpy(softmax(r / 0.07)) for r in logits.numpy()])
    expected = sinkhorn_by_hand(probabilities.log().numpy(), 1.0, 3)
    result = sinkhorn_knopp(logits, 0.07, after="softmax").numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-8)
    assert np.abs(result - sinkhorn_knopp(logits, 0.07).numpy()).max() > 1e-3


def test_sinkhorn_uses_prototypes_equally_and_survives_large_logits() -> None:
    result = sinkhorn_knopp(draw(2, 64, 8, scale=0.1), 0.5, iterations=50)
    np.testing.assert_allclose(result.sum(dim=0).numpy(), 64 / 8, rtol=1e-3)
    assert torch.isfinite(sinkhorn_knopp(draw(3, 6, 5, scale=1e4), 0.04)).all()
    assert sinkhorn_knopp(torch.zeros(0, 5), 0.04).shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.07])
@pytest.mark.parametrize("after", ["logits", "softmax"])
def test_sinkhorn_leaves_the_logits_as_they_are(
    dtype: torch.dtype, temperature: float, after: Literal["logits", "softmax"]
) -> None:
    logits = draw(4, 5, 7).to(dtype)
    before = logits.clone()
    first = sinkhorn_knopp(logits, temperature, after=after)
    assert torch.equal(logits, before)
    assert torch.equal(first, sinkhorn_knopp(logits, temperature, after=after))
    # Rows that share their memory.
    repeated = logits[:1].expand(5, 7)
    np.testing.assert_allclose(sinkhorn_knopp(repeated, temperature), 1 / 7, rtol=1e-4)
    assert torch.equal(logits, before)


def test_softmax_centering() -> None:
    centering = SoftmaxCentering(4, momentum=0.9)
    batches = [draw(i, 6, 4).numpy() for i in range(3)]
    centre = np.zeros(4)
    for batch in batches:
        expected = np.stack([softmax((row - centre) / 0.07) for row in batch])
        np.testing.assert_allclose(
            centering(torch.from_numpy(batch), 0.07).numpy(), expected, rtol=1e-4, atol=1e-7
        )
        centering.update(torch.from_numpy(batch))
        centre = 0.9 * centre + 0.1 * batch.mean(axis=0)
    before = centering.centre.clone()
    centering.update(torch.zeros(0, 4))
    assert torch.equal(centering.centre, before)


@pytest.mark.parametrize("pairs", ["other", "same"])
@pytest.mark.parametrize(("n_global", "n_local"), [(2, 8), (2, 0), (3, 4), (1, 5)])
@pytest.mark.parametrize("batch", [1, 4])
def test_image_level(pairs: str, n_global: int, n_local: int, batch: int) -> None:
    student, local = draw(0, n_global, batch, 11), draw(1, n_local, batch, 11)
    teacher = draw(2, n_global, batch, 11).softmax(dim=-1)
    total = 0.0
    for b in range(batch):
        for i in range(n_global):
            target = teacher[i, b].double().numpy()
            for j in range(n_global):
                if (i == j) == (pairs == "same"):
                    total -= target @ log_softmax(student[j, b].double().numpy() / 0.1)
            for n in range(n_local):
                total -= target @ log_softmax(local[n, b].double().numpy() / 0.1)
    terms = n_global * (n_global - 1) if pairs == "other" else n_global
    expected = total / (terms + n_global * n_local) / batch
    loss = image_level_loss(student, local if n_local else None, teacher, pairs=pairs)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_paper_and_code_normalise_alike_at_two_and_eight() -> None:
    """18 terms in both readings, so identical crops give identical losses."""
    student = draw(0, 1, 3, 9).repeat(2, 1, 1)
    teacher = draw(1, 1, 3, 9).softmax(dim=-1).repeat(2, 1, 1)
    local = draw(2, 8, 3, 9)
    same = image_level_loss(student, local, teacher, pairs="same")
    assert float(same) == pytest.approx(float(image_level_loss(student, local, teacher)), rel=1e-6)


def test_uniform_output_costs_ln_k() -> None:
    uniform = torch.full((2, 3, 50), 1 / 50)
    loss = image_level_loss(torch.zeros(2, 3, 50), torch.zeros(8, 3, 50), uniform)
    assert float(share_of_uniform(loss, 50)) == pytest.approx(1, rel=1e-6)
    crop = torch.tensor([0, 0, 2])
    patch = patch_level_loss(torch.zeros(3, 50), uniform[0], crop, n_crops=4)
    assert float(patch) == pytest.approx(math.log(50), rel=1e-6)
    half = patch_level_loss(torch.zeros(3, 50), uniform[0], crop, n_crops=4, mean_over="all_crops")
    assert float(half) == pytest.approx(math.log(50) / 2, rel=1e-6)


@pytest.mark.parametrize("mean_over", ["masked_crops", "all_crops"])
def test_patch_level(mean_over: str) -> None:
    crop = torch.tensor([0, 0, 0, 2, 2, 5])
    student, teacher = draw(0, 6, 13), draw(1, 6, 13).softmax(dim=-1)
    per_crop = []
    for c in range(6):
        members = [m for m in range(6) if crop[m] == c]
        if members:
            terms = [
                -teacher[m].double().numpy() @ log_softmax(student[m].double().numpy() / 0.1)
                for m in members
            ]
            per_crop.append(sum(terms) / len(members))
    expected = sum(per_crop) / (3 if mean_over == "masked_crops" else 6)
    loss = patch_level_loss(student, teacher, crop, 6, mean_over=mean_over)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 9, 16), (3, 40, 5)])
def test_koleo(shape: tuple[int, int, int]) -> None:
    views = draw(0, *shape)
    expected = 0.0
    for view in views.double().numpy():
        x = view / np.linalg.norm(view, axis=1, keepdims=True)
        logs = []
        for i in range(len(x)):
            nearest = max((j for j in range(len(x)) if j != i), key=lambda j: x[i] @ x[j])
            logs.append(math.log(np.linalg.norm(x[i] - x[nearest]) + 1e-8))
        expected -= sum(logs) / len(logs)
    assert float(koleo_loss(views)) == pytest.approx(expected, rel=1e-5)


def test_koleo_never_pairs_two_views_of_one_image() -> None:
    one = draw(0, 1, 6, 8)
    alone = float(koleo_loss(one))
    assert float(koleo_loss(one.repeat(2, 1, 1))) == pytest.approx(2 * alone, rel=1e-6)


@pytest.mark.parametrize("mean_over", ["labelled_images", "all_images"])
def test_supervised(mean_over: str) -> None:
    rng = np.random.default_rng(0)
    logits = draw(0, 2, 5, 7, scale=3)
    targets = torch.from_numpy(rng.integers(0, 2, (5, 7)))
    available = torch.from_numpy(rng.integers(0, 2, (5, 7)))
    available[2] = 0
    total = 0.0
    for b in range(5):
        known = [j for j in range(7) if available[b, j]]
        for g in range(2):
            for j in known:
                p = 1 / (1 + math.exp(-float(logits[g, b, j])))
                y = int(targets[b, j])
                total -= (y * math.log(p) + (1 - y) * math.log(1 - p)) / len(known) / 2
    labelled = int((available.sum(dim=1) > 0).sum())
    expected = total / (labelled if mean_over == "labelled_images" else 5)
    loss = supervised_loss(logits, targets, available, mean_over=mean_over)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_unknown_targets_do_not_count_even_when_they_are_nan() -> None:
    targets = torch.tensor([[1.0, float("nan")]])
    available = torch.tensor([[1, 0]])
    logits = draw(0, 2, 1, 2).requires_grad_()
    loss = supervised_loss(logits, targets, available)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert (logits.grad[..., 1] == 0).all()


def _images(x: torch.Tensor) -> torch.Tensor:
    return image_level_loss(x, x, torch.full_like(x, 1 / x.shape[-1]).float())


def _patches(x: torch.Tensor) -> torch.Tensor:
    flat = x.flatten(0, 1)
    crop = torch.arange(len(flat)) % 2
    return patch_level_loss(flat, torch.full_like(flat, 1 / flat.shape[-1]), crop, n_crops=3)


def _no_patches(x: torch.Tensor) -> torch.Tensor:
    flat = x.flatten(0, 1)[:0]
    return patch_level_loss(flat, flat.detach(), torch.zeros(0, dtype=torch.long), n_crops=2)


def _no_labels(x: torch.Tensor) -> torch.Tensor:
    nothing = torch.zeros(x.shape[1:])
    return supervised_loss(x, nothing, nothing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("loss_of", [_images, _patches, _no_patches, koleo_loss, _no_labels])
def test_edges_give_finite_losses_and_gradients(
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    duplicates: bool,
    batch: int,
    dtype: torch.dtype,
) -> None:
    values = draw(0, 2, batch, 6).to(dtype)
    if duplicates:
        values = values[:, :1].repeat(1, batch, 1)
    values.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(values)
        loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()


def test_autocast_does_not_reach_the_losses() -> None:
    views = draw(0, 2, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = koleo_loss(views), sinkhorn_knopp(views[0], 0.07)
    torch.testing.assert_close(inside[0], koleo_loss(views), rtol=0, atol=0)
    torch.testing.assert_close(inside[1], sinkhorn_knopp(views[0], 0.07), rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: sinkhorn_knopp(torch.zeros(2, 3), 0.0),
        lambda: sinkhorn_knopp(torch.zeros(2, 3, 4), 0.1),
        lambda: SoftmaxCentering(3, momentum=1.0),
        lambda: SoftmaxCentering(3)(torch.zeros(2, 3), 0.0),
        lambda: image_level_loss(torch.zeros(1, 2, 3), None, torch.zeros(1, 2, 3)),
        lambda: image_level_loss(torch.zeros(2, 2, 3), None, torch.zeros(2, 2, 4)),
        lambda: image_level_loss(torch.zeros(2, 2, 3), torch.zeros(1, 1, 3), torch.zeros(2, 2, 3)),
        lambda: patch_level_loss(
            torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), 2
        ),
        lambda: koleo_loss(torch.zeros(2, 3)),
        lambda: supervised_loss(torch.zeros(2, 2, 3), torch.zeros(2, 4), torch.zeros(2, 4)),
    ],
)
def test_wrong_shapes_are_named(wrong: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"must|above|differ|fit|nothing to compare"):
        wrong()
