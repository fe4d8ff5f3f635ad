"""Student and teacher: a packed ViT, its projection heads, and the student's own parts."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.packed_vit import PackedViT
from dermino_core.pretraining.projection_head import ProjectionHead
from dermino_core.pretraining.prototypes import DiseasePrototypes


@dataclass(frozen=True)
class StudentScores:
    """What the student says of a batch; None for what the configuration leaves out.

    Attributes
    ----------
    cls
        Class tokens of the global crops before the heads, [N_g, B, D].
    image_global, image_local
        Image-level scores, [N_g, B, K] and [N_l, B, K].
    patches
        Patch-level scores of the masked patches, [M, K].
    diseases
        Logits of the disease prototypes, [N_g, B, C].
    """

    cls: Tensor
    image_global: Tensor | None
    image_local: Tensor | None
    patches: Tensor | None
    diseases: Tensor | None


class Encoder(nn.Module):
    """The part that student and teacher share: the ViT and the projection heads.

    With `heads.shared` the image head also reads patches, and there is no patch head.
    """

    def __init__(self, config: PretrainConfig, vit: VisionTransformer) -> None:
        super().__init__()
        self.backbone = PackedViT(
            vit,
            drop_path=config.model.drop_path,
            position_resize=config.model.position_resize,
            checkpointing=config.model.activation_checkpointing,
        )
        heads, loss, width = config.heads, config.loss, self.backbone.width
        with_image = loss.image > 0 or (heads.shared and loss.patch > 0)
        self.image_head = (
            ProjectionHead(
                width, heads.prototypes, hidden=heads.hidden, bottleneck=heads.bottleneck
            )
            if with_image
            else None
        )
        self.patch_head = (
            ProjectionHead(
                width,
                heads.patch_prototypes or heads.prototypes,
                hidden=heads.hidden,
                bottleneck=heads.patch_bottleneck or heads.bottleneck,
            )
            if loss.patch > 0 and not heads.shared
            else None
        )
        self.reads_patches = loss.patch > 0
        self.reads_images = loss.image > 0

    def image_scores(self, cls: Tensor) -> Tensor | None:
        """[..., D] -> [..., K]; None without an image-level loss."""
        return self.image_head(cls) if self.reads_images and self.image_head else None

    def patch_scores(self, patches: Tensor) -> Tensor | None:
        """[M, D] -> [M, K]; None without a patch-level loss."""
        if not self.reads_patches:
            return None
        head = self.patch_head or self.image_head
        return None if head is None else head(patches)

    def masked_patches(self, tokens: Tensor, masked: Tensor) -> Tensor:
        """Of tokens [N, prefix + P, D], those patches whose place n P + p is in `masked` [M]."""
        return tokens[:, self.backbone.prefix :].flatten(0, 1).index_select(0, masked)


class Student(Encoder):
    """What is trained: the encoder, a mask token and the disease prototypes."""

    def __init__(
        self, config: PretrainConfig, vit: VisionTransformer, prototypes: DiseasePrototypes | None
    ) -> None:
        super().__init__(config, vit)
        self.mask_token = None
        if self.reads_patches:
            self.mask_token = nn.Parameter(torch.zeros(1, self.backbone.width))
        self.prototypes = prototypes

    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor | None,
        masks: Tensor | None,
        masked: Tensor,
    ) -> StudentScores:
        """Read all crops in one pass.

        Parameters
        ----------
        global_crops, local_crops
            [N_g, B, 3, S, S] and [N_l, B, 3, s, s].
        masks
            bool [N_g B, patches].
        masked
            Where `masks` is true, in its flattened form, int64 [M].
        """
        n_global, batch = global_crops.shape[:2]
        crops = [global_crops.flatten(0, 1)]
        if local_crops is not None and self.reads_images:
            crops.append(local_crops.flatten(0, 1))
        tokens = self.backbone(
            crops, masks=[masks, *[None] * (len(crops) - 1)], mask_token=self.mask_token
        )
        cls = [part[:, 0] for part in tokens]
        scores = self.image_scores(torch.cat(cls))
        global_scores = local_scores = None
        if scores is not None:
            global_scores = scores[: len(cls[0])].unflatten(0, (n_global, batch))
            if len(cls) > 1:
                local_scores = scores[len(cls[0]) :].unflatten(0, (-1, batch))
        cls_global = cls[0].unflatten(0, (n_global, batch))
        return StudentScores(
            cls=cls_global,
            image_global=global_scores,
            image_local=local_scores,
            patches=self.patch_scores(self.masked_patches(tokens[0], masked)),
            diseases=None if self.prototypes is None else self.prototypes(cls_global),
        )


def make_teacher(student: Student, config: PretrainConfig) -> Encoder:
    """A frozen copy of the student's encoder, in evaluation mode."""
    teacher = Encoder(config, copy.deepcopy(student.backbone.vit))
    own = teacher.state_dict()
    teacher.load_state_dict({k: v for k, v in student.state_dict().items() if k in own})
    return teacher.requires_grad_(requires_grad=False).eval()


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum x teacher + (1 - momentum) x student, for all parameters at once."""
    gather_no_more(teacher)
    theirs = dict(student.named_parameters())
    mine = [(_local(p), _local(theirs[name])) for name, p in teacher.named_parameters()]
    average: Any = torch
    average._foreach_lerp_([a for a, _ in mine], [b for _, b in mine], 1.0 - momentum)


def gather_no_more(module: nn.Module) -> None:
    """Give back what a sharded module gathered for a forward pass; FSDP2 keeps an outermost one."""
    for part in module.modules():
        reshard = getattr(part, "reshard", None)
        if reshard is not None:
            reshard()


def _local(parameter: Tensor) -> Tensor:
    """The part of a sharded parameter that this process holds; a whole one as it is."""
    to_local = getattr(parameter, "to_local", None)
    return (to_local() if to_local is not None else parameter).detach()
