"""MAE, MoCo v3 and SwAV: their losses by hand, and what the loop asks of them."""

from __future__ import annotations

import copy
import importlib.util
import sys
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dermino_core.backbone_card import Preprocessing
from dermino_core.errors import DerminoError
from dermino_core.pretraining.baselines.mae import pixel_loss, read_visible, sample_visible
from dermino_core.pretraining.baselines.mocov3 import contrastive_loss
from dermino_core.pretraining.baselines.swav import Queue
from dermino_core.pretraining.batch import Batch
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.config_file import resolve_config
from dermino_core.pretraining.method import Moment
from dermino_core.pretraining.methods import make_method
from dermino_core.pretraining.packed_vit import PackedViT
from dermino_core.pretraining.randomness import seed_torch
from dermino_core.pretraining.schedules import settings_at
from dermino_core.pretraining.vocabulary import Vocabulary

METHODS = ("mae", "mocov3", "swav")
STEPS = 40
PREPROCESSING = Preprocessing(56, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))

needs_lightly = pytest.mark.skipif(
    importlib.util.find_spec("lightly") is None, reason="install the extra 'baselines'"
)


def configuration(method: str, **sections: Any) -> PretrainConfig:
    base: dict[str, Any] = {
        "method": method,
        "crops": {"global_size": 56, "local_size": 28, "local_count": 2},
        "model": {"drop_path": 0.0},
        "mae": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
        "mocov3": {"hidden": 32, "output": 16},
        "swav": {"hidden": 32, "output": 16, "prototypes": 12, "queue": 9, "queue_from": 0.0},
        "run": {"steps": STEPS, "batch_size": 4},
    }
    for name, fields in sections.items():
        base[name] = {**base.get(name, {}), **fields}
    return resolve_config(base)


def tiny_vit(**options: Any) -> Any:
    shape: dict[str, Any] = {"img_size": 56, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_small_patch14_dinov2", num_classes=0, **shape, **options)


def baseline(config: PretrainConfig) -> Any:
    torch.manual_seed(0)
    return make_method(
        config, tiny_vit(), PREPROCESSING, Vocabulary.from_labels(()), device="cpu"
    )  # fmt: skip


def batch(n: int = 4, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (n, 3, 8, 9), dtype=torch.uint8, generator=generator)
    return Batch(
        images=coarse.repeat_interleave(10, 2).repeat_interleave(10, 3),
        sizes=torch.tensor([[80, 90]] * n),
        targets=torch.zeros(n, 0),
        available=torch.zeros(n, 0),
        positions=torch.arange(n),
    )


def moment(config: PretrainConfig, step: int) -> Moment:
    return Moment(step, STEPS, 0, 0, settings_at(config, step, STEPS, batch_of_all=4))


def advance(method: Any, optimiser: Any, images: Batch, now: Moment) -> dict[str, float]:
    seed_torch(0, now)
    losses = method.losses(images, now, method.trained)
    optimiser.zero_grad()
    losses["loss"].backward()
    optimiser.step()
    method.after_step(now)
    return {name: float(value.detach()) for name, value in losses.items()}


def adam(method: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in method.trained.parameters() if p.requires_grad], lr=3e-3)


@needs_lightly
@pytest.mark.parametrize("name", METHODS)
def test_the_loss_of_one_batch_falls(name: str) -> None:
    config = configuration(name, swav={"queue": 0})
    method = baseline(config)
    optimiser = adam(method)
    now = moment(config, 0)
    found = [advance(method, optimiser, batch(), now)["loss"] for _ in range(30)]
    assert np.isfinite(found).all()
    assert np.mean(found[-3:]) < 0.85 * np.mean(found[:3])


@needs_lightly
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_is_bit_identical(name: str) -> None:
    config = configuration(name, model={"drop_path": 0.5})

    def run(method: Any, optimiser: Any, steps: range) -> list[float]:
        return [
            advance(method, optimiser, batch(seed=step), moment(config, step))["loss"]
            for step in steps
        ]

    method = baseline(config)
    optimiser = adam(method)
    run(method, optimiser, range(4))
    saved = copy.deepcopy(
        {
            "trained": method.trained.state_dict(),
            "optimiser": optimiser.state_dict(),
            "untrained": {k: v.state_dict() for k, v in method.untrained().items()},
        }
    )
    expected = run(method, optimiser, range(4, 7))

    other = baseline(config)
    other_optimiser = adam(other)
    other.trained.load_state_dict(saved["trained"])
    other_optimiser.load_state_dict(saved["optimiser"])
    for key, module in other.untrained().items():
        module.load_state_dict(saved["untrained"][key])
    assert run(other, other_optimiser, range(4, 7)) == expected
    for key, value in method.trained.state_dict().items():
        assert torch.equal(value, other.trained.state_dict()[key]), key


@needs_lightly
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("frozen", [False, True])
def test_every_trainable_parameter_gets_a_finite_gradient(name: str, frozen: bool) -> None:
    config = configuration(name)
    method = baseline(config)
    if frozen:
        method.parts["backbone"].requires_grad_(requires_grad=False)
    with torch.autocast("cpu", torch.bfloat16):
        losses = method.losses(batch(2), moment(config, 5), method.trained)
    losses["loss"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    for key, parameter in method.trained.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
    inside = {id(p) for part in method.parts.values() for p in part.parameters()}
    assert inside == {id(p) for p in method.trained.parameters()}


@needs_lightly
@pytest.mark.parametrize("name", METHODS)
def test_the_exported_vit_is_a_timm_vit(name: str) -> None:
    config = configuration(name)
    method = baseline(config)
    optimiser = adam(method)
    start = copy.deepcopy(method.exported().state_dict())
    for step in range(2):
        advance(method, optimiser, batch(), moment(config, step))
    fresh = tiny_vit()
    fresh.load_state_dict(method.exported().state_dict(), strict=True)
    pixels = torch.randn(3, 3, 56, 56)
    with torch.no_grad():
        expected = fresh.eval()(pixels)
    torch.testing.assert_close(method.embed(pixels), expected, rtol=1e-4, atol=1e-5)
    assert method.trained.training
    assert not torch.equal(start["blocks.0.attn.qkv.weight"], fresh.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2, "no_embed_class": True}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_patches_visible_is_the_plain_vit(
    options: dict[str, Any], *, checkpointing: bool
) -> None:
    torch.manual_seed(0)
    vit = tiny_vit(**options)
    crops = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = vit.eval().forward_features(crops)
    backbone = PackedViT(vit.train(), checkpointing=checkpointing)
    found = read_visible(backbone, crops, torch.arange(16).expand(2, -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_hidden_patches_are_not_seen() -> None:
    torch.manual_seed(0)
    backbone = PackedViT(tiny_vit()).eval()
    visible, hidden = sample_visible(1, 16, 0.75, torch.Generator().manual_seed(3))
    crops = torch.randn(1, 3, 56, 56)
    changed = crops.clone()
    for patch in hidden[0].tolist():
        top, left = 14 * (patch // 4), 14 * (patch % 4)
        changed[..., top : top + 14, left : left + 14] = 9.0
    assert visible.shape == (1, 4)
    one, other = (read_visible(backbone, image, visible) for image in (crops, changed))
    assert one.shape == (1, 5, 24)
    torch.testing.assert_close(one, other)


@settings(max_examples=60, deadline=None)
@given(
    n_crops=st.integers(1, 4),
    n_patches=st.integers(2, 40),
    masked=st.floats(0.001, 0.999),
    seed=st.integers(0, 99),
)
def test_patches_are_visible_or_hidden(
    n_crops: int, n_patches: int, masked: float, seed: int
) -> None:
    visible, hidden = sample_visible(
        n_crops, n_patches, masked, torch.Generator().manual_seed(seed)
    )
    assert visible.shape[1] >= 1
    assert hidden.shape[1] >= 1
    assert abs(hidden.shape[1] - masked * n_patches) <= 1
    every = torch.cat([visible, hidden], dim=1).sort(dim=1).values
    assert torch.equal(every, torch.arange(n_patches).expand(n_crops, -1))


@needs_lightly
def test_pixel_loss_by_hand() -> None:
    generator = np.random.default_rng(0)
    crops = generator.normal(size=(2, 3, 12, 12))
    hidden = np.array([[0, 5, 7], [2, 3, 8]])
    predicted = generator.normal(size=(2, 3, 48))
    errors = []
    for image in range(2):
        for number, patch in enumerate(hidden[image]):
            top, left = 4 * (patch // 3), 4 * (patch % 3)
            pixels = crops[image, :, top : top + 4, left : left + 4].transpose(1, 2, 0).ravel()
            target = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
            errors.append((predicted[image, number] - target) ** 2)
    found = pixel_loss(
        torch.from_numpy(predicted).float(),
        torch.from_numpy(crops).float(),
        torch.from_numpy(hidden),
        4,
    )
    assert float(found) == pytest.approx(np.mean(errors), rel=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_contrastive_loss_by_hand(rank: int) -> None:
    generator = np.random.default_rng(0)
    queries, keys = generator.normal(size=(3, 5)), generator.normal(size=(6, 5))
    losses = []
    for i, query in enumerate(queries):
        cosines = [
            query @ key / np.linalg.norm(query) / np.linalg.norm(key) for key in keys
        ]  # fmt: skip
        logits = np.array(cosines) / 0.2
        losses.append(np.log(np.exp(logits).sum()) - logits[i + 3 * rank])
    found = contrastive_loss(
        torch.from_numpy(queries).float(), torch.from_numpy(keys).float(), 0.2, rank=rank
    )
    assert float(found) == pytest.approx(2 * 0.2 * np.mean(losses), rel=1e-5)


@needs_lightly
def test_the_momentum_encoder_follows_by_average() -> None:
    config = configuration("mocov3")
    method = baseline(config)
    (average,) = method.untrained().values()
    before = {key: value.clone() for key, value in average.named_parameters()}
    now = moment(config, 1)
    advance(method, adam(method), batch(), now)
    trained = dict(method.trained.named_parameters())
    m = now.settings.momentum
    assert m < 1
    for key, value in average.named_parameters():
        assert not value.requires_grad
        torch.testing.assert_close(value, m * before[key] + (1 - m) * trained[key])


def codes(scores: np.ndarray, epsilon: float = 0.05, iterations: int = 3) -> np.ndarray:
    """Algorithm 1 of SwAV's appendix, on [n, K]."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * q.shape[0]
        q /= q.sum(axis=0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


@needs_lightly
@pytest.mark.parametrize("step", [2, 3])
def test_swapped_loss_by_hand(step: int) -> None:
    """The queue of 9 is full after 3 batches of 4."""
    config = configuration("swav")
    method = baseline(config)
    for earlier in range(step):
        method.losses(batch(seed=earlier), moment(config, earlier), method.trained)
    now = moment(config, step)
    views = method.views(batch(), now, local=True)
    with torch.no_grad():
        scores = method.trained(views.global_crops, views.local_crops)[0].double().numpy()
    weight = method.trained.last_layer.heads[0].weight.detach().double().numpy()
    np.testing.assert_allclose(np.linalg.norm(weight, axis=1), 1, rtol=1e-6)
    queue = method.queue.features.double().numpy() @ weight.T
    losses = []
    for view in range(2):
        rows = scores[view] if step < 3 else np.concatenate([scores[view], queue[view]])
        target = codes(rows)[:4]
        for other in range(4):
            if other != view:
                logits = scores[other] / 0.1
                log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
                losses.append(-(target * log_p).sum(axis=1).mean())
    found = method.losses(batch(), now, method.trained)
    loss = float(found["loss"].detach())
    assert loss == pytest.approx(np.mean(losses), rel=1e-4)
    share = loss / np.log(12)
    assert float(found["uniform/image"]) == pytest.approx(share, rel=1e-5)


@needs_lightly
def test_prototypes_stay_on_the_sphere() -> None:
    config = configuration("swav")
    method = baseline(config)
    optimiser = adam(method)
    for step in range(3):
        advance(method, optimiser, batch(), moment(config, step))
    lengths = method.trained.last_layer.heads[0].weight.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(12))
    assert method.last_layers
    assert all(name.startswith("last_layer") for name in method.last_layers)


def test_the_queue_keeps_the_latest() -> None:
    queue = Queue(5, 1)
    for first in (0.0, 3.0, 6.0):
        queue.push(torch.arange(first, first + 3).view(1, 3, 1).expand(2, -1, -1))
    assert queue.features[0, :, 0].tolist() == [6, 7, 8, 3, 4]
    assert [queue.share(rank, 2)[1, :, 0].tolist() for rank in (0, 1)] == [[6, 7], [8, 3]]
    queue.push(torch.arange(8.0).view(1, 8, 1).expand(2, -1, -1))
    assert queue.features[1, :, 0].tolist() == [0, 1, 2, 3, 4]


@needs_lightly
def test_heads_have_the_papers_sizes_by_default() -> None:
    config = resolve_config({"method": "swav", "run": {"steps": 1}})
    weight = baseline(config).trained.last_layer.heads[0].weight
    assert weight.shape == (3000, 128)
    config = resolve_config({"method": "mocov3", "run": {"steps": 1}})
    shapes = [tuple(p.shape) for p in baseline(config).trained.prediction.parameters()]
    assert shapes[0] == (4096, 256)
    assert (256, 4096) in shapes


@pytest.mark.parametrize(
    ("name", "sections", "field"),
    [
        ("mocov3", {"run": {"batch_size": 1}}, "run.batch_size"),
        ("swav", {"run": {"batch_size": 1}}, "run.batch_size"),
        ("mae", {"run": {"sharding": "fsdp"}}, "run.sharding"),
        ("mae", {"mae": {"decoder_width": 18}}, "mae.decoder_width"),
        ("mae", {"crops": {"global_size": 14}}, "crops.global_size"),
    ],
)
def test_what_does_not_suit_is_refused(name: str, sections: dict[str, Any], field: str) -> None:
    with pytest.raises(DerminoError) as caught:
        baseline(configuration(name, **sections))
    assert caught.value.code == "CONFIG_INVALID"
    assert caught.value.where == field
    assert caught.value.fix


@pytest.mark.parametrize("name", METHODS)
def test_without_lightly_it_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [key for key in sys.modules if key.partition(".")[0] == "lightly"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lightly", None)
    with pytest.raises(DerminoError) as caught:
        baseline(configuration(name))
    assert caught.value.code == "DEPENDENCY_MISSING"
    assert "dermino[baselines]" in (caught.value.fix or "")


def test_a_view_of_another_image_is_no_match() -> None:
    """Queries equal to their own keys cost less than shuffled ones."""
    keys = F.normalize(torch.eye(4), dim=1)
    right, wrong = (float(contrastive_loss(q, keys, 0.2)) for q in (keys, keys.roll(1, 0)))
    assert right < wrong
