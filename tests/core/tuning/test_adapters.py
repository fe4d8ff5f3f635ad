"""Adapters against peft, against plain numpy, and against the network they are merged into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dermino_core.backbone import load_backbone, load_network
from dermino_core.errors import DerminoError
from dermino_core.tuning.adapters import Adaptation, Arrays, depth_of, in_timm, merged
from dermino_core.tuning.backbone import check_backbone, write_tuned_backbone
from dermino_core.tuning.network import split_network, view_side

WIDTH, DEPTH = 192, 6
HOW = [Adaptation(blocks=2, rank=3), Adaptation(blocks=3, rank=2, freeze_a=False)]
HOW.append(Adaptation(method="blocks", blocks=2))


def drawn(adaptation: Adaptation, scale: float = 0.05) -> Arrays:
    """Arrays in which nothing is 0."""
    rng = np.random.default_rng(5)
    return {
        name: (scale * rng.normal(size=shape)).astype(np.float32)
        for name, shape in adaptation.shapes(WIDTH).items()
    }


def with_head(arrays: Arrays) -> Arrays:
    return arrays | {"weight": np.zeros((2, WIDTH), np.float32), "bias": np.zeros(2, np.float32)}


@pytest.mark.parametrize("adaptation", HOW)
def test_merged_weights_give_the_features_of_the_adapters(
    adaptation: Adaptation, tmp_path: Path
) -> None:
    arrays = drawn(adaptation)
    write_tuned_backbone(tmp_path / "tuned", "demo", adaptation, arrays)
    backbone = load_backbone(str(tmp_path / "tuned"), precision="fp32", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    frozen, trained = split_network("demo", adaptation, 2)
    trained.read(with_head(arrays))
    views = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        features = trained(frozen(views)).numpy()
    np.testing.assert_allclose(backbone.embed(pixels), features, atol=2e-5)
    plain = load_backbone("demo", precision="fp32", device="cpu").embed(pixels)
    assert np.abs(plain - features).max() > 0.01


@pytest.mark.parametrize("adaptation", HOW)
def test_the_start_is_the_backbone_as_it_was(adaptation: Adaptation, tmp_path: Path) -> None:
    arrays = adaptation.initial(WIDTH, seed=3)
    card = write_tuned_backbone(tmp_path, "demo", adaptation, arrays)
    _, weights, before = load_network("demo")
    after = load_network(str(tmp_path))[1]
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert card.fingerprint == before.fingerprint


def test_only_the_named_weights_change() -> None:
    adaptation = HOW[0]
    _, weights, _ = load_network("demo")
    arrays = drawn(adaptation)
    result = merged(adaptation, arrays, weights, WIDTH)
    changed = {name for name in weights if not torch.equal(result[name], weights[name])}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert changed == {f"blocks.{n}.{layer}.weight" for n in (4, 5) for layer in layers}
    expected = weights["blocks.5.mlp.fc1.weight"].numpy() + 16 / 3 * (
        arrays["last1.mlp.fc1.b"] @ arrays["last1.mlp.fc1.a"]
    )
    np.testing.assert_allclose(result["blocks.5.mlp.fc1.weight"].numpy(), expected, atol=1e-5)


@pytest.mark.slow
def test_an_adapter_is_that_of_peft() -> None:
    peft: Any = pytest.importorskip("peft")
    adaptation = Adaptation(blocks=1, rank=3, alpha=12.0)
    arrays = drawn(adaptation)
    _, trained = split_network("demo", adaptation, 2)
    ours = trained.blocks[0].get_submodule("mlp.fc1")
    trained.read(with_head(arrays))
    model, _, _ = load_network("demo")
    config = peft.LoraConfig(r=3, lora_alpha=12, target_modules=[r"blocks.5.mlp.fc1"])
    theirs = peft.get_peft_model(model, config).get_submodule("base_model.model.blocks.5.mlp.fc1")
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(torch.from_numpy(arrays["last1.mlp.fc1.a"]))
        theirs.lora_B["default"].weight.copy_(torch.from_numpy(arrays["last1.mlp.fc1.b"]))
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_the_mean_of_frozen_a_is_exact_and_of_both_is_not() -> None:
    one, other = drawn(HOW[0]), drawn(HOW[0])
    rng = np.random.default_rng(9)
    for name in other:
        other[name] = rng.normal(size=other[name].shape).astype(np.float32)
    same_a = {k: one[k] if k.endswith(".a") else v for k, v in other.items()}

    def gap(a: Arrays, b: Arrays) -> float:
        mean: Arrays = {name: (a[name] + b[name]) / 2 for name in a}
        part = "last1.attn.qkv.weight"
        exact = (HOW[0].change(a, part) + HOW[0].change(b, part)) / 2
        return float(np.abs(HOW[0].change(mean, part) - exact).max())

    assert gap(one, same_a) < 1e-5
    assert gap(one, other) > 0.1


def test_names_do_not_depend_on_depth() -> None:
    assert in_timm("last1.attn.qkv.weight", 12) == "blocks.11.attn.qkv.weight"
    assert in_timm("last4.mlp.fc2.bias", 6) == "blocks.2.mlp.fc2.bias"
    assert depth_of(load_network("demo")[1]) == DEPTH


def test_a_start_is_the_same_everywhere() -> None:
    first, again = HOW[0].initial(8, seed=1), HOW[0].initial(8, seed=1)
    assert all((first[name] == again[name]).all() for name in first)
    assert (HOW[0].initial(8, seed=2)["last1.attn.qkv.a"] != first["last1.attn.qkv.a"]).any()
    wide = Adaptation(blocks=1, rank=64).initial(1000, seed=0)["last1.attn.proj.a"]
    assert wide.var() == pytest.approx(1 / 1000, rel=0.05)


@pytest.mark.parametrize(
    ("spec", "adaptation", "words"),
    [
        ("demo", Adaptation(blocks=7), "has 6 blocks"),
        ("demo", Adaptation(blocks=1, mlp_ratio=2), r"mlp.fc1.weight is \[768, 192\]"),
        ("random:eva02_tiny_patch14_224", Adaptation(), "cannot be tuned"),
    ],
)
def test_a_backbone_that_does_not_fit(spec: str, adaptation: Adaptation, words: str) -> None:
    with pytest.raises(DerminoError, match=words) as caught:
        check_backbone(spec, adaptation)
    assert caught.value.code == "CONFIG_INVALID"


def test_the_side_of_a_view_is_a_multiple_of_the_patch() -> None:
    assert view_side(0.625, 224, 14) == 140
    assert view_side(0.625, 128, 16) == 80
    assert view_side(1.0, 224, 14) == 224
    assert view_side(0.01, 224, 14) == 14
