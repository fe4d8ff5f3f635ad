"""One step of the hybrid objective, put together from its parts by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

from dermino_core.backbone_card import Preprocessing
from dermino_core.losses.image_level import image_level_loss
from dermino_core.losses.koleo import koleo_loss
from dermino_core.losses.patch_level import patch_level_loss
from dermino_core.losses.supervised import supervised_loss
from dermino_core.losses.teacher_scores import sinkhorn_knopp
from dermino_core.pretraining.batch import Batch
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.config_file import resolve_config
from dermino_core.pretraining.hybrid import Hybrid
from dermino_core.pretraining.method import Moment
from dermino_core.pretraining.network import follow
from dermino_core.pretraining.optimiser import apply_settings, clip_gradients, make_optimiser
from dermino_core.pretraining.prototypes import DiseasePrototypes
from dermino_core.pretraining.schedules import settings_at

PREPROCESSING = Preprocessing(56, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
N_LABELS = 3


def configuration(**sections: Any) -> PretrainConfig:
    base: dict[str, Any] = {
        "heads": {"prototypes": 16, "hidden": 12, "bottleneck": 8},
        "crops": {"global_size": 56, "local_size": 28, "local_count": 3},
        "model": {"drop_path": 0.0},
        "run": {"steps": 10, "batch_size": 4},
    }
    for name, fields in sections.items():
        base[name] = {**base.get(name, {}), **fields}
    return resolve_config(base)


def hybrid(config: PretrainConfig, device: str = "cpu") -> Hybrid:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_small_patch14_dinov2", img_size=56, embed_dim=24, depth=2, num_heads=2, num_classes=0
    )
    prototypes = DiseasePrototypes(
        N_LABELS, 24, form="cosine", embeddings=None, trainable=True, seed=0
    )
    with_labels = prototypes if config.loss.supervised else None
    return Hybrid(config, vit, PREPROCESSING, with_labels, device=device)  # pyright: ignore


def batch(n: int = 4, *, labelled: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(1)
    targets = F.one_hot(torch.arange(n) % N_LABELS, N_LABELS).float()
    return Batch(
        images=torch.randint(0, 256, (n, 3, 80, 90), dtype=torch.uint8, generator=generator),
        sizes=torch.tensor([[80, 90]] * n),
        targets=targets,
        available=torch.full((n, N_LABELS), float(labelled)),
        positions=torch.arange(n),
    )


def moment(config: PretrainConfig, step: int = 3) -> Moment:
    return Moment(step, 10, 0, 0, settings_at(config, step, 10, batch_of_all=4))


def test_losses_are_those_of_the_parts() -> None:
    config = configuration()
    method = hybrid(config)
    now = moment(config)
    found = method.losses(batch(), now, method.trained)

    views = method._views(batch(), now)
    masks, masked, crop_of = method._masks(8, views, now)
    assert masks is not None
    assert 0 < len(masked) < masks.numel()
    with torch.no_grad():
        teacher = method.teacher
        tokens = teacher.backbone([views.global_crops.flatten(0, 1)])[0]
        cls_scores = teacher.image_head(tokens[:, 0])  # pyright: ignore[reportOptionalCall]
        patches = tokens[:, 1:].reshape(-1, 24)[masks.flatten()]
        patch_scores = teacher.patch_head(patches)  # pyright: ignore[reportOptionalCall]
    temperature = now.settings.teacher_temperature
    scores = method.trained(views.global_crops, views.local_crops, masks, masked)
    image = image_level_loss(
        scores.image_global,
        scores.image_local,
        sinkhorn_knopp(cls_scores, temperature).view(2, 4, -1),
    )
    patch = patch_level_loss(scores.patches, sinkhorn_knopp(patch_scores, temperature), crop_of, 8)
    koleo = koleo_loss(scores.cls)
    supervised = supervised_loss(scores.diseases, batch().targets, batch().available)
    weights = config.loss
    expected = (
        weights.image * image
        + weights.patch * patch
        + weights.koleo * koleo
        + weights.supervised * supervised
    )
    torch.testing.assert_close(found["loss"], expected)
    torch.testing.assert_close(found["uniform/image"], (image / math.log(16)).detach())


def test_the_same_moment_draws_the_same_and_another_does_not() -> None:
    config = configuration(model={"drop_path": 0.5})
    losses = []
    for step in (3, 3, 4):
        method = hybrid(config)
        torch.manual_seed(0)
        losses.append(float(method.losses(batch(), moment(config, step), method.trained)["loss"]))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    "sections",
    [
        {"loss": {"image": 0.0}},
        {"loss": {"patch": 0.0}},
        {"loss": {"image": 0.0, "patch": 0.0, "koleo": 0.0}},
        {"loss": {"supervised": 0.0, "anchor": 1.0}},
        {"loss": {"targets": "centering"}},
        {"heads": {"shared": True}},
        {"crops": {"local_count": 0}},
        {"masking": {"share_of_crops": 0.0}},
        {"export": {}},
    ],
)
def test_every_choice_trains_all_its_parameters(sections: dict[str, Any]) -> None:
    sections = dict(sections)
    sections.pop("export", None)
    config = configuration(**sections)
    method = hybrid(config)
    losses = method.losses(batch(), moment(config), method.trained)
    losses["loss"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    without = [n for n, p in method.trained.named_parameters() if p.grad is None]
    assert not without


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_small_or_unlabelled_batches_give_finite_gradients(n: int, *, labelled: bool) -> None:
    config = configuration()
    method = hybrid(config)
    one = batch(n, labelled=labelled)
    same = Batch(one.images[:1].expand_as(one.images), one.sizes, one.targets, one.available,
                 one.positions)  # fmt: skip
    for current in (one, same):
        with torch.autocast("cpu", torch.bfloat16):
            losses = method.losses(current, moment(config), method.trained)
        losses["loss"].backward()
        assert all(torch.isfinite(value) for value in losses.values())
        assert all(torch.isfinite(p.grad).all() for p in method.trained.parameters())  # pyright: ignore


def test_the_teacher_is_an_exponential_moving_average() -> None:
    method = hybrid(configuration())
    before = copy.deepcopy(method.teacher.state_dict())
    with torch.no_grad():
        for parameter in method.trained.parameters():
            parameter.add_(1.0)
    follow(method.teacher, method.trained, 0.9)
    student = method.trained.state_dict()
    for name, value in method.teacher.state_dict().items():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * student[name])


def test_anchor_is_zero_at_the_start_without_masks() -> None:
    config = configuration(loss={"anchor": 1.0}, masking={"share_of_crops": 0.0})
    method = hybrid(config)
    method.trained.eval()
    assert float(method.losses(batch(), moment(config), method.trained)["loss/anchor"]) < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mean_over", ["masked_crops", "all_crops"])
@pytest.mark.parametrize("targets", ["sinkhorn", "centering"])
def test_a_step_does_not_wait_for_the_device(targets: str, mean_over: str) -> None:
    config = configuration(
        loss={"targets": targets, "patch_mean_over": mean_over, "anchor": 0.5},
        model={"drop_path": 0.2},
    )
    method = hybrid(config, "cuda")
    optimiser = make_optimiser(method.trained, config.optimiser, method.last_layers, depth=2)
    images = batch().to("cuda")

    def step(number: int) -> None:
        now = moment(config, number)
        apply_settings(optimiser, now.settings)
        with torch.autocast("cuda", torch.bfloat16):
            losses = method.losses(images, now, method.trained)
        losses["loss"].backward()
        clip_gradients(method.parts, config.optimiser.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        method.after_step(now)

    step(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
