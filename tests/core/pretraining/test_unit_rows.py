"""Normalised prototypes against the textbook formula and its numerical derivative."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dermino_core.pretraining import unit_rows as module
from dermino_core.pretraining.unit_rows import unit_rows


@pytest.fixture(autouse=True)
def blocks_of_three_rows(monkeypatch):
    monkeypatch.setattr(module, "CPU_VALUES", 15)


def matrix(rows: int = 7, width: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, width, generator=generator, dtype=dtype).requires_grad_()


def test_rows_equal_the_definition():
    weight = matrix()
    torch.testing.assert_close(unit_rows(weight), F.normalize(weight, dim=1), rtol=0, atol=1e-15)


def test_derivative_equals_finite_differences():
    assert torch.autograd.gradcheck(unit_rows, (matrix(),))


def test_derivative_has_no_part_along_a_row():
    weight = matrix()
    unit_rows(weight).pow(3).sum().backward()
    assert weight.grad is not None
    along = (weight.grad * weight).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-12)


def test_autocast_gives_what_the_product_would_cast():
    weight = matrix(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        unit = unit_rows(weight)
    assert unit.dtype == torch.bfloat16
    torch.testing.assert_close(unit, F.normalize(weight, dim=1).bfloat16(), rtol=2**-7, atol=0)
    unit.float().pow(3).sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_a_row_of_zeros_stays_finite():
    weight = torch.zeros(2, 3, requires_grad=True)
    unit = unit_rows(weight)
    unit.sum().backward()
    assert torch.equal(unit, torch.zeros(2, 3))
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()
