"""Disease prototypes against plain float64 loops, at the start, under bfloat16, and wrong input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dermino_core.errors import DerminoError
from dermino_core.losses.supervised import supervised_loss
from dermino_core.pretraining.prototypes import (
    DiseasePrototypes,
    load_embeddings,
    save_embeddings,
)


def build(
    n_labels: int,
    width: int,
    text_width: int | None = None,
    *,
    form: str = "cosine",
    trainable: bool = True,
    seed: int = 0,
) -> tuple[DiseasePrototypes, torch.Tensor | None]:
    embeddings = None
    if text_width is not None:
        generator = torch.Generator().manual_seed(seed + 1)
        embeddings = 3 * torch.randn(n_labels, text_width, generator=generator) + 0.5
    module = DiseasePrototypes(
        n_labels,
        width,
        form=form,  # type: ignore[arg-type]
        embeddings=embeddings,
        trainable=trainable,
        seed=seed,
    )
    return module, embeddings


def reference(module: DiseasePrototypes, cls: torch.Tensor, form: str) -> np.ndarray:
    """Equation (5)'s logits, one number at a time."""
    weights = module.prototypes.detach().double().numpy()
    if module.projection is not None:
        weights = weights @ module.projection.detach().double().numpy().T
    tokens = cls.double().reshape(-1, cls.shape[-1]).numpy()
    out = np.zeros((len(tokens), len(weights)))
    for i, token in enumerate(tokens):
        for j, weight in enumerate(weights):
            dot = sum(a * b for a, b in zip(token, weight, strict=True))
            if form == "cosine":
                lengths = math.sqrt((token**2).sum()) * math.sqrt((weight**2).sum())
                dot = math.exp(module.log_scale.item()) * dot / lengths + module.bias.item()
            out[i, j] = dot
    return out.reshape(*cls.shape[:-1], len(weights))


@pytest.mark.parametrize("form", ["cosine", "literal"])
@pytest.mark.parametrize("text_width", [None, 8, 12, 20])
@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 12)])
def test_logits(form: str, text_width: int | None, shape: tuple[int, ...]) -> None:
    module, _ = build(5, 12, text_width, form=form)
    cls = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    logits = module(cls)
    assert logits.shape == (*shape[:-1], 5)
    np.testing.assert_allclose(
        logits.detach().numpy(), reference(module, cls, form), rtol=1e-5, atol=1e-5
    )


def test_equal_widths_take_the_embeddings_themselves() -> None:
    module, embeddings = build(5, 12, 12)
    assert embeddings is not None
    assert module.projection is None
    assert torch.equal(module.matrix(), embeddings)


@given(st.integers(1, 9), st.integers(2, 14), st.integers(2, 14), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_projection_keeps_angles(n_labels: int, width: int, text_width: int, seed: int) -> None:
    module, embeddings = build(n_labels, width, text_width, seed=seed)
    assert embeddings is not None
    if module.projection is not None:
        matrix = module.projection.detach()
        narrow = matrix if width < text_width else matrix.T
        torch.testing.assert_close(
            narrow @ narrow.T, torch.eye(min(width, text_width)), rtol=0, atol=1e-5
        )
    start = module.matrix().detach()
    if min(n_labels, text_width) <= width:
        torch.testing.assert_close(start @ start.T, embeddings @ embeddings.T, rtol=1e-4, atol=1e-3)
    else:
        # The best that rank `width` can do: what is lost are the smallest singular values.
        lost = torch.linalg.svdvals(embeddings.double())[width:].square().sum()
        kept = start.double().square().sum()
        assert kept.item() == pytest.approx(
            (embeddings.double().square().sum() - lost).item(), rel=1e-4
        )


def test_repeated_embeddings_still_give_an_orthonormal_projection() -> None:
    embeddings = torch.ones(6, 20)
    module = DiseasePrototypes(6, 4, form="cosine", embeddings=embeddings, trainable=True, seed=0)
    assert module.projection is not None
    rows = module.projection.detach()
    torch.testing.assert_close(rows @ rows.T, torch.eye(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(module.matrix().norm(dim=1), embeddings.norm(dim=1))


@pytest.mark.parametrize(("n_labels", "chance"), [(1, 0.5), (2, 0.5), (7, 1 / 7), (114, 1 / 114)])
def test_an_unrelated_image_is_given_one_disease_in_all(n_labels: int, chance: float) -> None:
    module, _ = build(n_labels, 512)
    module.eval()
    orthogonal = torch.zeros(512)
    assert torch.sigmoid(module(orthogonal)).mean().item() == pytest.approx(chance, rel=1e-5)
    assert module.log_scale.exp().item() == pytest.approx(10.0)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("text_width", [8, 12])
def test_what_learns(trainable: bool, text_width: int) -> None:
    module, _ = build(5, 12, text_width, trainable=trainable)
    loss = supervised_loss(module(torch.randn(2, 4, 12)), torch.zeros(4, 5), torch.ones(4, 5))
    loss.backward()
    learning = {name for name, value in module.named_parameters() if value.grad is not None}
    expected = {"log_scale", "bias"}
    expected |= {"prototypes"} if trainable else set()
    expected |= {"projection"} if text_width != 12 else set()
    assert learning == expected
    assert {name for name, value in module.named_parameters() if value.requires_grad} == expected


def test_float32_under_autocast() -> None:
    module, _ = build(5, 12, 8)
    cls = torch.randn(4, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = module(cls)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, module(cls))
    assert module(cls.bfloat16()).dtype == torch.float32


def test_class_tokens_of_length_zero_keep_gradients_finite() -> None:
    module, _ = build(3, 6)
    cls = torch.zeros(2, 6, requires_grad=True)
    module(cls).sum().backward()
    assert cls.grad is not None
    assert cls.grad.abs().max() < 1e8


@pytest.mark.parametrize("text_width", [None, 4, 9])
def test_without_labels_nothing_breaks(text_width: int | None) -> None:
    module, _ = build(0, 6, text_width)
    logits = module(torch.randn(2, 3, 6, requires_grad=True))
    assert logits.shape == (2, 3, 0)
    loss = supervised_loss(logits, torch.zeros(3, 0), torch.zeros(3, 0))
    loss.backward()
    assert loss.item() == 0.0


def test_the_seed_fixes_the_start() -> None:
    one, same, other = (build(4, 6, seed=seed)[0].prototypes for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "embeddings",
    [torch.ones(4, 6), torch.ones(5), torch.zeros(5, 6), torch.full((5, 6), float("nan"))],
)
def test_wrong_embeddings(embeddings: torch.Tensor) -> None:
    with pytest.raises(DerminoError) as caught:
        DiseasePrototypes(5, 6, form="cosine", embeddings=embeddings, trainable=True, seed=0)
    assert caught.value.code == "CONFIG_INVALID"
    assert len(str(caught.value).splitlines()) <= 2


def test_a_class_token_of_another_width() -> None:
    with pytest.raises(DerminoError, match="12 wide, the class token is 6"):
        build(5, 12)[0](torch.randn(3, 6))


def test_embeddings_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "labels.safetensors"
    values = np.arange(12, dtype=np.float64).reshape(3, 4)
    save_embeddings(path, ["a", "ß", "c"], values, encoder="tiny")
    read = load_embeddings(path, ["c", "a", "ß"])
    assert read.dtype == torch.float32
    np.testing.assert_array_equal(read.numpy(), values[[2, 0, 1]])
    for names, differ in ((["a", "c"], "'ß'"), (["a", "c", "ß", "d"], "'d'")):
        with pytest.raises(DerminoError, match=differ) as caught:
            load_embeddings(path, names)
        assert caught.value.code == "CONFIG_INVALID"


@pytest.mark.parametrize("metadata", [None, {"names": "not json"}, {"names": '["a"]'}])
def test_files_that_hold_no_embeddings(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"embeddings": torch.ones(2, 3)}, path, metadata=metadata)
    with pytest.raises(DerminoError):
        load_embeddings(path, ["a"])
    save_file({"others": torch.ones(1, 3)}, path, metadata={"names": json.dumps(["a"])})
    with pytest.raises(DerminoError, match="no embeddings"):
        load_embeddings(path, ["a"])
    path.write_bytes(b"{}")
    with pytest.raises(DerminoError, match="no embeddings"):
        load_embeddings(path, ["a"])
    with pytest.raises(DerminoError, match="no such file"):
        load_embeddings(tmp_path / "absent", ["a"])
