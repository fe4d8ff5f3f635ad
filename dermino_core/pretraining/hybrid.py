"""DermINO's objective: image level, patch level, KoLeo and disease prototypes (section 4.1)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dermino_core.backbone_card import Preprocessing
from dermino_core.losses.image_level import image_level_loss, share_of_uniform
from dermino_core.losses.koleo import koleo_loss
from dermino_core.losses.numerics import float32_island
from dermino_core.losses.patch_level import patch_level_loss
from dermino_core.losses.supervised import supervised_loss
from dermino_core.losses.teacher_scores import SoftmaxCentering, sinkhorn_knopp
from dermino_core.pretraining.batch import Batch
from dermino_core.pretraining.colour import to_device
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.masking import sample_masks
from dermino_core.pretraining.method import Moment
from dermino_core.pretraining.network import Student, StudentScores, follow, make_teacher
from dermino_core.pretraining.packed_vit import PackedViT
from dermino_core.pretraining.prototypes import DiseasePrototypes
from dermino_core.pretraining.randomness import numpy_generator, torch_generator
from dermino_core.pretraining.views import Views, make_views


class Hybrid:
    """A :class:`~dermino_core.pretraining.method.Method`: student, teacher, and their losses.

    Parameters
    ----------
    vit
        The starting ViT; the student trains it in place.
    preprocessing
        Its mean and standard deviation normalise the crops.
    prototypes
        Of the supervised loss; None without it.
    """

    def __init__(
        self,
        config: PretrainConfig,
        vit: VisionTransformer,
        preprocessing: Preprocessing,
        prototypes: DiseasePrototypes | None,
        *,
        device: str,
    ) -> None:
        self.config = config
        self.preprocessing = preprocessing
        self.initial = None
        if config.loss.anchor > 0:
            initial = PackedViT(copy.deepcopy(vit), position_resize=config.model.position_resize)
            self.initial = initial.requires_grad_(requires_grad=False).eval().to(device)
        self.trained = Student(config, vit, prototypes).to(device)
        self.teacher = make_teacher(self.trained, config).to(device)
        self.centering = nn.ModuleDict()
        if config.loss.targets == "centering":
            heads, momentum = config.heads, config.loss.centre_momentum
            patch = heads.prototypes if heads.shared else heads.patch_prototypes
            self.centering = nn.ModuleDict(
                {
                    "image": SoftmaxCentering(heads.prototypes, momentum=momentum),
                    "patch": SoftmaxCentering(patch or heads.prototypes, momentum=momentum),
                }
            ).to(device)
        self.parts: dict[str, nn.Module] = {
            name: part
            for name in ("backbone", "image_head", "patch_head", "prototypes")
            if (part := getattr(self.trained, name)) is not None
        }
        self.last_layers = frozenset(
            name for name, _ in self.trained.named_parameters() if "last_layer" in name
        )

    def losses(
        self, batch: Batch, moment: Moment, call: Callable[..., StudentScores]
    ) -> dict[str, Tensor]:
        """The losses of one batch, weighted into `loss`."""
        views = self._views(batch, moment)
        n_global, n_images = views.global_crops.shape[:2]
        masks, masked, crop_of = self._masks(n_global * n_images, views, moment)
        targets = self._targets(views.global_crops, masked, moment)
        scores = call(views.global_crops, views.local_crops, masks, masked)
        loss = self.config.loss
        parts: dict[str, Tensor] = {}
        if scores.image_global is not None:
            parts["image"] = image_level_loss(
                scores.image_global,
                scores.image_local,
                targets["image"],
                temperature=loss.student_temperature,
                pairs=loss.pairs,
            )
        if scores.patches is not None:
            parts["patch"] = patch_level_loss(
                scores.patches,
                targets["patch"],
                crop_of,
                n_global * n_images,
                temperature=loss.student_temperature,
                mean_over=loss.patch_mean_over,
            )
        if loss.koleo > 0:
            parts["koleo"] = koleo_loss(scores.cls)
        if scores.diseases is not None:
            parts["supervised"] = supervised_loss(
                scores.diseases,
                batch.targets,
                batch.available,
                mean_over=loss.supervised_mean_over,
            )
        if self.initial is not None:
            parts["anchor"] = _anchor_loss(self.initial, views.global_crops, scores.cls)
        total = torch.stack([getattr(loss, name) * value for name, value in parts.items()]).sum()
        return {
            "loss": total,
            **{f"loss/{name}": value.detach() for name, value in parts.items()},
            **self._shares(parts, targets),
        }

    def after_step(self, moment: Moment) -> None:
        """The teacher follows the student."""
        follow(self.teacher, self.trained, moment.settings.momentum)

    def untrained(self) -> dict[str, nn.Module]:
        """Teacher and centres."""
        return {"teacher": self.teacher, "centering": self.centering}

    def exported(self) -> VisionTransformer:
        """The teacher's ViT, or the student's if the configuration says so."""
        return self._exported_backbone().vit

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """Class tokens of the exported ViT."""
        backbone = self._exported_backbone()
        was_training = backbone.training
        (tokens,) = backbone.eval()([pixels])
        backbone.train(was_training)
        return tokens[:, 0]

    def _exported_backbone(self) -> PackedViT:
        kept = self.teacher if self.config.export == "teacher" else self.trained
        return kept.backbone

    def _views(self, batch: Batch, moment: Moment) -> Views:
        return make_views(
            batch.images,
            batch.sizes,
            self.config,
            self.trained.backbone.patch_size,
            torch_generator(self.config.run.seed, "views", moment),
            mean=self.preprocessing.mean,
            std=self.preprocessing.std,
        )

    def _masks(
        self, n_crops: int, views: Views, moment: Moment
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Masks [n, P] or None, where they are true [M], and the crop of each [M]."""
        crops = views.global_crops
        if not self.trained.reads_patches:
            nothing = torch.zeros(0, dtype=torch.int64, device=crops.device)
            return None, nothing, nothing
        side = crops.shape[-1] // self.trained.backbone.patch_size
        masks = sample_masks(
            n_crops,
            (side, side),
            self.config.masking,
            numpy_generator(self.config.run.seed, "masks", moment),
        )
        masked = np.flatnonzero(masks)
        crop_of = masked // masks.shape[1]
        return (
            to_device(torch.from_numpy(masks), crops),
            to_device(torch.from_numpy(masked), crops),
            to_device(torch.from_numpy(crop_of), crops),
        )

    @torch.no_grad()
    def _targets(self, global_crops: Tensor, masked: Tensor, moment: Moment) -> dict[str, Tensor]:
        if not (self.trained.reads_images or self.trained.reads_patches):
            return {}
        n_global, n_images = global_crops.shape[:2]
        (tokens,) = self.teacher.backbone([global_crops.flatten(0, 1)])
        targets: dict[str, Tensor] = {}
        image = self.teacher.image_scores(tokens[:, 0])
        if image is not None:
            targets["image"] = self._normalised("image", image, moment).unflatten(
                0, (n_global, n_images)
            )
        patches = self.teacher.patch_scores(self.teacher.masked_patches(tokens, masked))
        if patches is not None:
            targets["patch"] = self._normalised("patch", patches, moment)
        return targets

    def _normalised(self, level: str, scores: Tensor, moment: Moment) -> Tensor:
        loss, temperature = self.config.loss, moment.settings.teacher_temperature
        if loss.targets == "sinkhorn":
            return sinkhorn_knopp(
                scores,
                temperature,
                iterations=loss.sinkhorn_iterations,
                after=loss.sinkhorn_after,
            )
        centering: Any = self.centering[level]
        targets = centering(scores, temperature)
        centering.update(scores)
        return targets

    @torch.no_grad()
    def _shares(self, parts: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses and the teacher's entropy as shares of ln K; prototypes in use."""
        shares: dict[str, Tensor] = {}
        for level in ("image", "patch"):
            if level in targets:
                n_prototypes = targets[level].shape[-1]
                shares[f"uniform/{level}"] = share_of_uniform(parts[level].detach(), n_prototypes)
        if "image" in targets:
            rows = targets["image"].flatten(0, 1)
            entropy = -(rows * rows.clamp(min=1e-12).log()).sum(dim=-1).mean()
            shares["teacher/entropy"] = share_of_uniform(entropy, rows.shape[-1])
            winners = torch.zeros(rows.shape[-1], device=rows.device)
            winners.scatter_(0, rows.argmax(dim=-1), 1.0)
            # Of as many prototypes as the batch could use.
            shares["teacher/prototypes_in_use"] = winners.sum() / min(rows.shape)
        return shares


def _anchor_loss(initial: PackedViT, global_crops: Tensor, cls: Tensor) -> Tensor:
    """1 - cosine of the student's class tokens [N_g, B, D] to the initial backbone's."""
    with torch.no_grad():
        (tokens,) = initial([global_crops.flatten(0, 1)])
    with float32_island(cls):
        first = tokens[:, 0].float()
        return (1 - F.cosine_similarity(cls.flatten(0, 1).float(), first, dim=-1)).mean()
