"""The blockwise cross-entropy against torch's own, values and gradients."""

from __future__ import annotations

import pytest
import torch

from dermino_core.losses import soft_cross_entropy as module
from dermino_core.losses.soft_cross_entropy import soft_cross_entropy


def drawn(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + columns)
    scores = torch.randn(rows, columns, generator=generator) * 3
    targets = torch.rand(rows, columns, generator=generator)
    return scores, targets, torch.rand(rows, generator=generator)


def by_hand(
    scores: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, temperature: float
) -> torch.Tensor:
    logs = (scores.double() / temperature).log_softmax(dim=-1)
    return -(weights.double() * (targets.double() * logs).sum(dim=-1)).sum()


@pytest.mark.parametrize("rows", [0, 1, 3, 7])
@pytest.mark.parametrize("temperature", [0.04, 1.0])
def test_value_and_gradient(rows: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_VALUES", 2 * 11)  # blocks of two rows
    scores, targets, weights = drawn(rows, 11)
    ours, reference = (scores.clone().requires_grad_() for _ in range(2))
    value = soft_cross_entropy(ours, targets, weights, temperature=temperature)
    expected = by_hand(reference, targets, weights, temperature)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    (3.0 * value).backward()
    (3.0 * expected).backward()
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-5, atol=1e-5)


def test_scores_in_half_precision_get_gradients_in_half_precision() -> None:
    scores, targets, weights = drawn(4, 9)
    half = scores.bfloat16().requires_grad_()
    value = soft_cross_entropy(half, targets, weights, temperature=0.1)
    expected = by_hand(half.detach(), targets, weights, 0.1)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    value.backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_huge_scores_stay_finite() -> None:
    scores = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    targets = torch.tensor([[0.0, 1.0, 0.0]])
    value = soft_cross_entropy(scores, targets, torch.ones(1), temperature=0.1)
    value.backward()
    assert float(value.detach()) == pytest.approx(2e5)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_nothing_is_kept_without_a_gradient() -> None:
    scores, targets, weights = drawn(3, 5)
    assert not soft_cross_entropy(scores, targets, weights, temperature=1.0).requires_grad
