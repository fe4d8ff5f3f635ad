"""Every constant of pretraining, in one typed configuration read from TOML.

A configuration names a preset (:mod:`dermino_core.pretraining.presets`) and changes what it likes.
All schedules are fractions of the run, so that 200 steps and 21,132 both make sense.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
"""A share, a probability or a fraction of the run, in 0..1."""

BelowOne = Annotated[float, Field(ge=0, lt=1)]
"""A share of what was before in a moving average that must also take in something new."""

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"must ascend, not {pair[0]:g} to {pair[1]:g}")
    return pair


ShareRange = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
AreaRange = Annotated[tuple[Positive, Share], AfterValidator(_ascending)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]


def _trackers_here() -> tuple[Literal["tensorboard", "wandb", "mlflow"], ...]:
    return ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(_Section):
    """`[model]`: the backbone of student and teacher."""

    architecture: str = Field(
        default="vit_base_patch14_dinov2", description="a ViT by its timm name"
    )
    start: str = Field(
        default="pretrained",
        description="`pretrained` (timm's weights), `random`, or a .safetensors file or folder",
    )
    export_size: Count | None = Field(
        default=None, description="pixels of the exported backbone; default: the architecture's own"
    )
    drop_path: Share = Field(
        default=0.1, description="stochastic depth of the student's last block"
    )
    position_resize: Literal["timm", "dinov2"] = Field(
        default="timm",
        description="bicubic, antialiased; or not antialiased with DINOv2's offset of 0.1",
    )
    frozen_blocks: int = Field(
        default=0, ge=0, description="first blocks never trained, nor patches and mask token"
    )
    activation_checkpointing: bool = False
    compile: Literal["auto", "on", "off"] = Field(default="auto", description="auto: on CUDA")


class HeadsSection(_Section):
    """`[heads]`: what turns tokens into prototype scores."""

    shared: bool = Field(
        default=False, description="one head for image and patch level, or one each"
    )
    prototypes: Count = Field(default=65536, description="K")
    hidden: Count = 2048
    bottleneck: Count = 256
    patch_prototypes: Count | None = Field(default=None, description="default: as `prototypes`")
    patch_bottleneck: Count | None = Field(default=None, description="default: as `bottleneck`")


class CropsSection(_Section):
    """`[crops]`: two global crops, several local ones."""

    global_size: Count = 224
    local_size: Count | None = Field(
        default=None,
        description="default: 7 patches (98 pixels at patch 14), 6 at patch 16 (96 pixels)",
    )
    local_count: int = Field(default=8, ge=0)
    global_scale: AreaRange = (0.32, 1.0)
    local_scale: AreaRange = (0.05, 0.32)
    aspect: PositiveRange = (0.75, 4 / 3)


class AugmentationSection(_Section):
    """`[augmentation]`: computed on the accelerator for a whole batch. Probabilities."""

    horizontal_flip: Share = 0.5
    vertical_flip: Share = 0.5
    right_angles: Share = Field(
        default=0.5, description="transpose; with both flips all 8 orientations"
    )
    jitter: Share = 0.8
    brightness: Share = 0.3
    contrast: Share = 0.3
    saturation: Share = 0.15
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    grayscale: Share = 0.0
    blur: tuple[Share, Share, Share] = Field(
        default=(0.1, 0.1, 0.1),
        description="global crop 1, global crop 2, local crops; DINOv2 as trained: "
        "[0, 0.9, 0.5], as intended: [1, 0.1, 0.5]",
    )
    blur_kernel: Count = 9
    blur_sigma: PositiveRange = (0.1, 2.0)
    solarise: Share = Field(default=0.0, description="of global crop 2; threshold 128")


class MaskingSection(_Section):
    """`[masking]`: block-wise masks of the student's global crops (iBOT)."""

    share_of_crops: Share = 0.5
    ratio: ShareRange = (0.1, 0.5)
    smallest_block: Count = 4
    aspect: Positive = Field(
        default=0.3, description="blocks have aspect ratios from this to its inverse"
    )
    tries: Count = 10


class LossSection(_Section):
    """`[loss]`: weights, and every reading on which paper and code differ."""

    image: Annotated[float, Field(ge=0)] = 0.5
    patch: Annotated[float, Field(ge=0)] = 0.5
    koleo: Annotated[float, Field(ge=0)] = 0.01
    supervised: Annotated[float, Field(ge=0)] = 1.0
    anchor: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="1 - cosine of the class token to the initial backbone's"
    )
    student_temperature: Positive = 0.1
    pairs: Literal["other", "same"] = "other"
    patch_mean_over: Literal["masked_crops", "all_crops"] = "masked_crops"
    supervised_mean_over: Literal["labelled_images", "all_images"] = "labelled_images"
    supervised_form: Literal["cosine", "literal"] = "cosine"
    targets: Literal["sinkhorn", "centering"] = "sinkhorn"
    sinkhorn_iterations: Count = 3
    sinkhorn_after: Literal["logits", "softmax"] = "logits"
    centre_momentum: BelowOne = 0.9


class PrototypesSection(_Section):
    """`[prototypes]`: the diseases of the supervised loss."""

    labels: Path | None = Field(
        default=None,
        description="CSV of `dermino labels build`, reviewed; default: labels as written",
    )
    embeddings: Path | None = Field(
        default=None,
        description=".safetensors of `dermino labels build`; default: random directions",
    )
    negatives: Literal["source", "all"] = Field(
        default="source",
        description="which labels an image is known not to have: those its source uses, or all",
    )
    trainable: bool = True


class TeacherSection(_Section):
    """`[teacher]`: exponential moving average of the student."""

    momentum: tuple[Share, Share] = Field(
        default=(0.992, 1.0), description="cosine from first to second"
    )
    horizon: Share = Field(
        default=0.1,
        description="caps the momentum so that the average reaches back at most this fraction of "
        "the run; 0: as `momentum` says",
    )
    temperature: PositiveRange = (0.04, 0.07)
    temperature_warmup: Share = 0.3


class OptimiserSection(_Section):
    """`[optimiser]`: AdamW."""

    learning_rate: Positive = 6e-4
    scaling: Literal["sqrt", "none"] = Field(
        default="sqrt", description="sqrt: x sqrt(batch / 1024)"
    )
    head_learning_rate: Annotated[float, Field(ge=0)] = Field(
        default=3e-3, description="of heads and prototypes, not scaled; 0: as the backbone's"
    )
    final_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    warmup: Share = 0.1
    head_warmup: Share = Field(default=0.05, description="fraction with a frozen backbone")
    freeze_last_layer: Share = 0.01
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    weight_decay: tuple[Share, Share] = (0.04, 0.4)
    layer_decay: Share = 0.9
    patch_embed_scale: Share = 0.2
    clip: Annotated[float, Field(ge=0)] = Field(
        default=3.0, description="norm per submodule; 0: none"
    )


class SourceSection(_Section):
    """`[[data.sources]]`: one table of images, or one folder of prepared shards."""

    name: str
    manifest: Path | None = None
    images: Path | None = Field(
        default=None, description="image folder; default: the manifest's own"
    )
    shards: Path | None = Field(default=None, description="folder written by `dermino data shards`")
    columns: dict[str, str] = Field(
        default={}, description="our column -> the one in this manifest"
    )
    splits: tuple[str, ...] = Field(default=("train", ""), description="rows used; '' is no split")
    weight: Positive = Field(default=1.0, description="times its images: how often it is drawn")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.manifest is None) == (self.shards is None):
            raise ValueError(f"source {self.name!r} needs either manifest or shards")
        return self


class DataSection(_Section):
    """`[data]`: what is drawn, and how it is read."""

    sources: tuple[SourceSection, ...] = ()
    labelled_share: Share | None = Field(
        default=None, description="of every batch; default: as it comes, by the sources' weights"
    )
    image_side: Count = Field(default=512, description="short side that images are decoded to")
    workers: int = Field(
        default=2, ge=0, description="decoding processes for each training process"
    )
    prefetch: Count = Field(default=4, description="batches ahead, of each worker")


class RunSection(_Section):
    """`[run]`: length, batch, arithmetic."""

    steps: Count | None = Field(default=None, description="optimiser steps; or `epochs`")
    epochs: Positive | None = Field(default=None, description="passes over the images; or `steps`")
    batch_size: Count = Field(default=256, description="images of each process in each pass")
    accumulate: Count = Field(default=1, description="passes for one optimiser step")
    seed: int = Field(default=0, ge=0, lt=2**31)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    sharding: Literal["ddp", "fsdp"] = Field(default="ddp", description="of several processes")
    checkpoint_every: Share = Field(
        default=0.02, description="fraction of the run; 0: only at the end"
    )
    keep_checkpoints: Count = 2

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either run.steps or run.epochs")
        return self


class MonitorSection(_Section):
    """`[monitor]`: what is watched while it trains."""

    log_every: Count = Field(default=10, description="steps")
    probe_every: Share = Field(default=0.1, description="fraction of the run; 0: never")
    manifest: Path | None = Field(
        default=None, description="small labelled table with train and test"
    )
    images: Path | None = None
    columns: dict[str, str] = {}
    max_images: Count = Field(default=1000, description="images of the monitor's table used")
    neighbours: Count = 5
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default_factory=_trackers_here, description="beside metrics.jsonl; default: what is there"
    )


class MAESection(_Section):
    """`[mae]`: He et al. 2022, section 3."""

    masked: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.75, description="share of the patches that is hidden"
    )
    decoder_width: Count = Field(default=512, description="a multiple of 4 and of `decoder_heads`")
    decoder_depth: Count = 8
    decoder_heads: Count = 16


class MoCoV3Section(_Section):
    """`[mocov3]`: Chen et al. 2021, section 3; the momentum is `teacher.momentum`."""

    temperature: Positive = 0.2
    hidden: Count = 4096
    output: Count = 256


class SwAVSection(_Section):
    """`[swav]`: Caron et al. 2020, sections 3 and 4, appendix A."""

    prototypes: Count = 3000
    hidden: Count = 2048
    output: Count = 128
    temperature: Positive = 0.1
    epsilon: Positive = Field(default=0.05, description="smoothness of the codes")
    iterations: Count = Field(default=3, description="of Sinkhorn-Knopp")
    queue: int = Field(
        default=3840, ge=0, description="earlier crops that codes are made with; 0: none"
    )
    queue_from: Share = Field(
        default=0.075, description="fraction of the run after which it is used"
    )


class PretrainConfig(_Section):
    """The whole configuration; `preset` says what filled the fields that the file left out."""

    preset: Literal["recommended", "paper", "dinov2"] = "recommended"
    method: Literal["hybrid", "mae", "mocov3", "swav"] = Field(
        default="hybrid",
        description="hybrid: DermINO; the others are the paper's baselines (Table 2)",
    )
    export: Literal["teacher", "student"] = "teacher"
    model: ModelSection = ModelSection()
    heads: HeadsSection = HeadsSection()
    crops: CropsSection = CropsSection()
    augmentation: AugmentationSection = AugmentationSection()
    masking: MaskingSection = MaskingSection()
    loss: LossSection = LossSection()
    prototypes: PrototypesSection = PrototypesSection()
    teacher: TeacherSection = TeacherSection()
    mae: MAESection = MAESection()
    mocov3: MoCoV3Section = MoCoV3Section()
    swav: SwAVSection = SwAVSection()
    optimiser: OptimiserSection = OptimiserSection()
    data: DataSection = DataSection()
    run: RunSection = RunSection(epochs=100)
    monitor: MonitorSection = MonitorSection()

    @property
    def images_per_step(self) -> int:
        """Of one process."""
        return self.run.batch_size * self.run.accumulate
