"""Views, activations and the loop, on a handful of drawn images and the demo backbone."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dermino_core.datasets.synthetic import write_site
from dermino_core.errors import DerminoError
from dermino_core.tuning import activations as module
from dermino_core.tuning.activations import Wanted, activations
from dermino_core.tuning.adapters import Adaptation
from dermino_core.tuning.network import Frozen, Trained, split_network
from dermino_core.tuning.recipe import Augmentation, Recipe
from dermino_core.tuning.training import class_weights, rate_at, train
from dermino_core.tuning.views import draw_views

WIDTH, SIDE, N = 192, 64, 6
ADAPTATION = Adaptation(blocks=2, rank=2)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    write_site(folder, site="synthetic-mednode", images=N)
    return [path for path in sorted(folder.rglob("*")) if path.suffix in (".jpg", ".png")][:N]


@pytest.fixture(scope="module")
def network() -> tuple[Frozen, Trained]:
    return split_network("demo", ADAPTATION, 2)


def wanted(frozen: Frozen, **changes: object) -> Wanted:
    from dermino_core.backbone import describe_backbone

    plain = Wanted(
        card=describe_backbone("demo", cache_dir=None),
        cut=frozen.cut,
        side=SIDE,
        tokens=frozen.tokens(SIDE),
        views=3,
        augmentation=Augmentation(),
        precision="fp32",
        seed=1,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def start(seed: int = 0) -> dict[str, np.ndarray]:
    head = {"weight": np.zeros((2, WIDTH), np.float32), "bias": np.zeros(2, np.float32)}
    return dict(ADAPTATION.initial(WIDTH, seed)) | head


def tokens_of(n: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    tokens = rng.normal(size=(n, 2, 5, WIDTH)) + 0.3 * labels[:, None, None, None]
    return tokens.astype(np.float16), labels


# --- views ---------------------------------------------------------------------------------


def test_a_view_depends_on_its_image_and_the_seed_only(paths: list[Path]) -> None:
    one, other = (path.read_bytes() for path in paths[:2])
    views = draw_views(one, SIDE, 3, Augmentation(), seed=1)
    assert views.shape == (3, 3, SIDE, SIDE)
    assert views.dtype == torch.float32
    assert 0 <= views.min() <= views.max() <= 1
    draw_views(other, SIDE, 3, Augmentation(), seed=1)
    assert torch.equal(views, draw_views(one, SIDE, 3, Augmentation(), seed=1))
    assert not torch.equal(views, draw_views(one, SIDE, 3, Augmentation(), seed=2))
    assert not torch.equal(views[0], views[1])


def test_without_changes_a_view_is_the_image(paths: list[Path]) -> None:
    plain = Augmentation(smallest_area=1.0, aspect=1.0, turns=False, colour=0.0)
    views = draw_views(paths[0].read_bytes(), SIDE, 2, plain, seed=1)
    torch.testing.assert_close(views[0], views[1])
    turned = draw_views(paths[0].read_bytes(), SIDE, 16, replace(plain, turns=True), seed=1)
    orientations = [torch.rot90(m, k, (1, 2)) for m in (views[0], views[0].mT) for k in range(4)]
    found = {
        min(range(8), key=lambda i: (view - orientations[i]).abs().mean().item()) for view in turned
    }
    for view in turned:
        assert min((view - o).abs().max().item() for o in orientations) < 1e-5
    assert len(found) > 3


# --- activations ---------------------------------------------------------------------------


def test_activations_are_what_the_frozen_blocks_give(
    paths: list[Path], network: tuple[Frozen, Trained], tmp_path: Path
) -> None:
    frozen = network[0]
    found = activations(paths, wanted(frozen), frozen, cache=tmp_path, title="a")
    assert found.shape == (N, 3, 17, WIDTH)
    for row in (0, N - 1):
        views = draw_views(paths[row].read_bytes(), SIDE, 3, Augmentation(), seed=1)
        np.testing.assert_array_equal(found[row], frozen(views).numpy().astype(np.float16))


def test_a_second_call_reads_the_file(
    paths: list[Path],
    network: tuple[Frozen, Trained],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen = network[0]
    first = np.array(activations(paths, wanted(frozen), frozen, cache=tmp_path, title="a"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_compute", lambda *_: pytest.fail("computed again"))
        again = activations(paths, wanted(frozen), frozen, cache=tmp_path, title="a")
        np.testing.assert_array_equal(first, again)
    for other in (
        wanted(frozen, seed=2),
        wanted(frozen, augmentation=Augmentation(colour=0)),
        wanted(frozen, precision="bf16"),
    ):
        activations(paths, other, frozen, cache=tmp_path, title="a")
    activations(paths[:-1], wanted(frozen), frozen, cache=tmp_path, title="a")
    activations(paths[::-1], wanted(frozen), frozen, cache=tmp_path, title="a")
    assert len(list((tmp_path / "tuning").glob("*.f16"))) == 6


def test_a_half_written_file_is_not_read(
    paths: list[Path], network: tuple[Frozen, Trained], tmp_path: Path
) -> None:
    frozen = network[0]
    first = np.array(activations(paths, wanted(frozen), frozen, cache=tmp_path, title="a"))
    (file,) = (tmp_path / "tuning").glob("*.f16")
    file.write_bytes(file.read_bytes()[:-2])
    again = activations(paths, wanted(frozen), frozen, cache=tmp_path, title="a")
    np.testing.assert_array_equal(first, again)


def test_the_oldest_file_makes_room(
    paths: list[Path],
    network: tuple[Frozen, Trained],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen = network[0]
    size = wanted(frozen).bytes_of(N)
    monkeypatch.setattr(module, "LARGEST_BYTES", 2 * size)
    for seed in (1, 2):
        activations(paths, wanted(frozen, seed=seed), frozen, cache=tmp_path, title="a")
    files = sorted((tmp_path / "tuning").glob("*.f16"), key=lambda file: file.stat().st_mtime)
    past = time.time() - 60
    os.utime(files[0], (past, past))
    activations(paths, wanted(frozen, seed=3), frozen, cache=tmp_path, title="a")
    assert not files[0].exists()
    assert files[1].exists()
    monkeypatch.setattr(module, "LARGEST_BYTES", size - 1)
    with pytest.raises(DerminoError, match="GiB") as caught:
        activations(paths, wanted(frozen, seed=4), frozen, cache=tmp_path, title="a")
    assert caught.value.code == "CACHE_UNWRITABLE"


def test_an_image_that_vanished_or_broke(
    paths: list[Path], network: tuple[Frozen, Trained], tmp_path: Path
) -> None:
    frozen, broken = network[0], tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:500])
    for bad in (tmp_path / "none.png", broken):
        with pytest.raises(DerminoError) as caught:
            activations([paths[0], bad], wanted(frozen), frozen, cache=tmp_path, title="a")
        assert caught.value.code == "IMAGE_UNREADABLE"
    assert list((tmp_path / "tuning").glob("*.f16")) == []


# --- the loop ------------------------------------------------------------------------------


def test_the_class_token_alone_is_that_of_the_whole_block(
    network: tuple[Frozen, Trained],
) -> None:
    trained = network[1]
    trained.read(start())
    x = torch.from_numpy(tokens_of()[0][:, 0].astype(np.float32))
    with torch.no_grad():
        xs = [x]
        for block in trained.blocks:
            xs = block(xs)
        torch.testing.assert_close(trained(x), trained.norm(xs[0])[:, 0], atol=1e-4, rtol=1e-4)


def logits_of(network: Trained, leaves: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The last two blocks written out, adapters as products added to the weights."""
    for number, block in ((2, network.blocks[0]), (1, network.blocks[1])):
        parts: Any = block

        def layer(name: str, value: torch.Tensor, n: int = number, b: Any = parts) -> torch.Tensor:
            inner = b.get_submodule(name).layer
            a, up = leaves[f"last{n}.{name}.a"], leaves[f"last{n}.{name}.b"]
            return F.linear(value, inner.weight + 8.0 * up @ a, inner.bias)

        q, k, v = layer("attn.qkv", parts.norm1(x)).view(12, 5, 3, 3, 64).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT) / 8).softmax(-1) @ v
        x = x + parts.ls1(layer("attn.proj", mixed.transpose(1, 2).reshape(12, 5, -1)))
        x = x + parts.ls2(layer("mlp.fc2", F.gelu(layer("mlp.fc1", parts.norm2(x)))))
    return F.linear(network.norm(x)[:, 0], leaves["weight"], leaves["bias"])


def test_steps_are_adamw_on_the_gradient_of_the_whole_network() -> None:
    """Against torch's own AdamW on plain tensors: three steps, each on all images."""
    steps, rate = 3, 1e-3
    recipe = Recipe(epochs=steps, learning_rate=rate, head_learning_rate=rate, batch_size=12)
    recipe = replace(recipe, clip=0.5)
    tokens, labels = tokens_of()
    _, trained = split_network("demo", ADAPTATION, 2)
    rng = np.random.default_rng(3)
    arrays = {
        name: (value + 0.1 * rng.normal(size=value.shape)).astype(np.float32)
        for name, value in start().items()
    }
    got, _ = train(trained, arrays, tokens[:, :1], labels, recipe, seed=(0,))
    _, plain = split_network("demo", ADAPTATION, 2)
    leaves = {
        name: torch.tensor(value, requires_grad=not name.endswith(".a"))
        for name, value in arrays.items()
    }
    x = torch.from_numpy(tokens[:, 0].astype(np.float32))
    chosen = [leaf for leaf in leaves.values() if leaf.requires_grad]
    optimiser = torch.optim.AdamW(chosen, weight_decay=0.01)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * rate_at(step, steps, 0.1)
        optimiser.zero_grad()
        F.cross_entropy(logits_of(plain, leaves, x), torch.from_numpy(labels)).backward()
        nn.utils.clip_grad_norm_(chosen, 0.5)
        optimiser.step()
    for name, leaf in leaves.items():
        moved = leaf.detach().numpy() - arrays[name]
        gap = np.abs(got[name] - arrays[name] - moved)
        # Adam's first step is the gradient's sign: noise decides where it is next to 0.
        assert np.mean(gap <= 0.02 * rate) > 0.98, name
        assert moved.any() != name.endswith(".a")


def test_training_learns_and_is_repeatable() -> None:
    recipe = Recipe(epochs=15, learning_rate=3e-3, head_learning_rate=1e-2, batch_size=4)
    tokens, labels = tokens_of()
    results = []
    for _ in range(2):
        _, trained = split_network("demo", ADAPTATION, 2)
        results.append(train(trained, start(), tokens, labels, recipe, seed=(1, 2)))
    (first, loss), (again, _) = results
    assert loss < 0.3
    assert all((first[name] == again[name]).all() for name in first)
    assert all((first[n] == start()[n]).all() for n in first if n.endswith(".a"))
    assert all((first[n] != 0).any() for n in first if n.endswith(".b"))
    _, trained = split_network("demo", ADAPTATION, 2)
    other, _ = train(trained, start(), tokens, labels, recipe, seed=(1, 3))
    assert (other["weight"] != first["weight"]).any()


@pytest.mark.parametrize("freeze_a", [False, True])
def test_blocks_and_a_train_where_they_are_asked_to(freeze_a: bool) -> None:
    how = Adaptation(method="lora" if not freeze_a else "blocks", blocks=1, freeze_a=freeze_a)
    _, trained = split_network("demo", how, 2)
    head = {"weight": np.zeros((2, WIDTH), np.float32), "bias": np.zeros(2, np.float32)}
    arrays = dict(how.initial(WIDTH, 0)) | head
    recipe = Recipe(epochs=3, learning_rate=1e-3, batch_size=4)
    tokens, labels = tokens_of()
    got, _ = train(trained, arrays, tokens, labels, recipe, seed=(0,))
    assert set(got) == set(arrays)
    assert all((got[name] != arrays[name]).any() for name in got)


def test_a_loss_that_is_not_finite_is_told() -> None:
    tokens, labels = tokens_of()
    tokens[0, :] = np.inf
    _, trained = split_network("demo", ADAPTATION, 2)
    with pytest.raises(DerminoError, match="not finite"):
        train(trained, start(), tokens, labels, Recipe(epochs=1), seed=(0,))


def test_rates_rise_and_fall() -> None:
    rates = [rate_at(step, 20, 0.2) for step in range(20)]
    np.testing.assert_allclose(rates[:3], [0.25, 0.5, 0.75])
    assert max(rates) == 1.0 or rates[3] > 0.99
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.05
    assert rate_at(0, 1, 0.0) > 0


def test_class_weights_make_classes_equal() -> None:
    labels = np.array([0, 0, 0, 2])
    weights = class_weights(labels, 3)
    np.testing.assert_allclose(weights, [4 / 6, 0, 2])
