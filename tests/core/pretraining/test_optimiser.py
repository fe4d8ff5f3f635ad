"""Parameter groups and clipping, by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.config_file import resolve_config
from dermino_core.pretraining.network import Student
from dermino_core.pretraining.optimiser import (
    apply_settings,
    clip_gradients,
    group_of,
    make_optimiser,
)
from dermino_core.pretraining.schedules import settings_at

SMALL = {"prototypes": 16, "hidden": 12, "bottleneck": 8}


def student(config: PretrainConfig) -> Student:
    vit = timm.create_model(
        "vit_small_patch14_dinov2", img_size=56, embed_dim=24, depth=4, num_heads=2, num_classes=0
    )
    return Student(config, vit, None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "ndim", "part", "scale", "decayed"),
    [
        ("backbone.vit.blocks.3.attn.qkv.weight", 2, "backbone", 0.9, True),
        ("backbone.vit.blocks.0.mlp.fc1.bias", 1, "backbone", 0.9**4, False),
        ("backbone.vit.blocks.0.ls1.gamma", 1, "backbone", 0.9**4, False),
        ("backbone.vit.norm.weight", 1, "backbone", 1.0, False),
        ("backbone.vit.patch_embed.proj.weight", 4, "backbone", 0.2 * 0.9**5, True),
        ("backbone.vit.pos_embed", 3, "backbone", 0.9**5, False),
        ("backbone.vit.cls_token", 3, "backbone", 0.9**5, False),
        ("mask_token", 2, "backbone", 0.9**5, False),
        ("decoder.vit.mask_token", 3, "head", 1.0, False),
        ("image_head.mlp.0.weight", 2, "head", 1.0, True),
        ("image_head.last_layer.weight", 2, "last_layer", 1.0, True),
        ("prototypes.prototypes", 2, "head", 1.0, True),
    ],
)
def test_groups(name: str, ndim: int, part: str, scale: float, *, decayed: bool) -> None:
    key = group_of(
        name,
        torch.zeros([1] * ndim),
        depth=4,
        section=resolve_config({"preset": "dinov2"}).optimiser,
        last_layers=frozenset({"image_head.last_layer.weight"}),
    )
    assert (key.part, key.decayed) == (part, decayed)
    assert key.rate_scale == pytest.approx(scale)


def test_every_parameter_is_in_one_group_and_gets_its_rate() -> None:
    config = resolve_config({"heads": SMALL})
    model = student(config)
    last = frozenset(n for n, _ in model.named_parameters() if "last_layer" in n)
    optimiser = make_optimiser(model, config.optimiser, last, depth=4)
    grouped = [id(p) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    settings = settings_at(config, 60, 100, batch_of_all=64)
    apply_settings(optimiser, settings)
    rates = {group["part"]: set() for group in optimiser.param_groups}
    for group in optimiser.param_groups:
        rates[group["part"]].add(group["lr"] / group["rate_scale"])
        assert group["weight_decay"] == (settings.weight_decay if group["decayed"] else 0.0)
    assert {p: len(found) for p, found in rates.items() if p != "backbone"} == {
        "head": 1,
        "last_layer": 1,
    }


def test_each_part_is_clipped_by_itself() -> None:
    parts = {"one": nn.Linear(3, 3, bias=False), "two": nn.Linear(2, 2, bias=False)}
    parts["one"].weight.grad = torch.full((3, 3), 4.0)
    parts["two"].weight.grad = torch.full((2, 2), 0.5)
    norms = clip_gradients(parts, 3.0)
    assert float(norms["gradient/one"]) == pytest.approx(12.0)
    assert float(norms["gradient/two"]) == pytest.approx(1.0)
    assert float(parts["one"].weight.grad.norm()) == pytest.approx(3.0, rel=1e-4)
    assert float(parts["two"].weight.grad.norm()) == pytest.approx(1.0)
    assert float(clip_gradients(parts, 0.0)["gradient/one"]) == pytest.approx(3.0, rel=1e-4)


def test_a_parameter_beside_a_part_is_clipped_with_it() -> None:
    parts = {"backbone": nn.Linear(2, 2, bias=False), "head": nn.Linear(2, 2, bias=False)}
    token, frozen = nn.Parameter(torch.zeros(1, 4)), nn.Parameter(torch.zeros(2))
    parts["backbone"].weight.grad = torch.full((2, 2), 4.0)
    parts["head"].weight.grad = torch.full((2, 2), 0.5)
    token.grad = torch.full((1, 4), 3.0)
    norms = clip_gradients(parts, 2.0, {"backbone": [token, frozen]})
    assert float(norms["gradient/backbone"]) == pytest.approx(10.0)
    assert float(norms["gradient/head"]) == pytest.approx(1.0)
    assert float(token.grad.norm()) == pytest.approx(6.0 / 5, rel=1e-4)
    assert float(parts["backbone"].weight.grad.norm()) == pytest.approx(8.0 / 5, rel=1e-4)
