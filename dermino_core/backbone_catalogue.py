"""The backbones that the paper compares, by one name each, and what is known of each.

The list is Supplementary Data Table 1. Preprocessing is what each release does, but for one thing:
SigLIP, MedImageInsight and LVM-Med squash an image into a square, and here the middle square of
every image is used, so that all backbones see the same pixels. Features are the image tower's own,
pooled as the release pools them, before any projection to a space shared with text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dermino_core import backbone_keys as keys
from dermino_core.backbone_card import Preprocessing

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_PANDERM_STD = (0.228, 0.224, 0.225)  # as in its evaluation code
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)

HUB_FILE = "model.safetensors"
"""The weights file in every timm repository on the hub."""

SAM_ARCHITECTURE = "dermino_samvit_base_patch16"
"""SAM's ViT-B without absolute positions and without neck, as LVM-Med uses it."""


@dataclass(frozen=True)
class CatalogueEntry:
    """What a user wants to know about a backbone before asking for it.

    Attributes
    ----------
    name
        What `--backbone` takes.
    title
        For people.
    architecture
        In timm, or one of our own that `build_model` knows.
    pooling
        How an image becomes one vector.
    width, parameters
        Features per image; weights of the image tower at the size in `preprocessing`.
    where
        Where a person gets the weights.
    file
        The name of the weights file there.
    hub
        Its repository on the Hugging Face hub, from which it is downloaded; None: by hand.
    paper_use
        Its kind in the paper, empty if it is not in the paper.
    paper_parameters
        As in the paper's table, which counts most ViTs at 672 pixels and patches of 16.
    fixed_size
        Whether the network is built for one image size; a CNN takes any.
    own
        Whether `dermino pretrain` makes it.
    convert
        From the names in the file to timm's.
    """

    name: str
    title: str
    architecture: str
    preprocessing: Preprocessing
    pooling: Literal["class token", "mean", "attention"]
    width: int
    parameters: int
    licence: str
    where: str
    file: str = HUB_FILE
    hub: str | None = None
    paper_use: str = ""
    paper_parameters: int | None = None
    fixed_size: bool = True
    own: bool = False
    convert: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]] = keys.as_in_timm

    @property
    def identity(self) -> str:
        """Everything about it that features depend on, besides the file."""
        return f"{self.name} {self.architecture} {self.preprocessing}"


def find_entry(word: str) -> CatalogueEntry | None:
    """The entry of this name, in any case; None if there is none."""
    return CATALOGUE.get(word.casefold())


def _hub(repository: str) -> str:
    return f"https://huggingface.co/{repository}"


def _timm(
    name: str,
    title: str,
    architecture: str,
    preprocessing: Preprocessing,
    pooling: Literal["class token", "mean", "attention"],
    sizes: tuple[int, int],
    licence: str,
    paper: tuple[str, int],
    *,
    repository: str | None = None,
    fixed_size: bool = True,
) -> CatalogueEntry:
    """A backbone whose weights are on the hub as timm names them."""
    hub = f"timm/{repository or architecture}"
    return CatalogueEntry(
        name=name,
        title=title,
        architecture=architecture,
        preprocessing=preprocessing,
        pooling=pooling,
        width=sizes[0],
        parameters=sizes[1],
        licence=licence,
        where=_hub(hub),
        hub=hub,
        paper_use=paper[0],
        paper_parameters=paper[1],
        fixed_size=fixed_size,
    )


_DINOV2 = Preprocessing(224, 1.0, "bicubic", IMAGENET_MEAN, IMAGENET_STD)
_LVM_MED = Preprocessing(224, 1.0, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
_CLIP = Preprocessing(224, 1.0, "bicubic", _CLIP_MEAN, _CLIP_STD)
_PANDERM = Preprocessing(224, 0.875, "bilinear", IMAGENET_MEAN, _PANDERM_STD)
_BIOMEDCLIP_HUB = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
_PANDERM_PAGE = "https://github.com/SiyuanYan1/PanDerm (README, table of model weights)"
_LVM_MED_PAGE = "https://github.com/duyhominhnguyen/LVM-Med (README, table of pre-trained models)"

_ENTRIES = (
    _timm(
        "resnext",
        "ResNeXt-101 32x8d, ImageNet",
        "resnext101_32x8d.tv_in1k",
        Preprocessing(224, 0.875, "bilinear", IMAGENET_MEAN, IMAGENET_STD),
        "mean",
        (2048, 86_742_336),
        "BSD-3-Clause",
        ("general, supervised", 86_742_336),
        fixed_size=False,
    ),
    _timm(
        "vit-base",
        "ViT-B/16, ImageNet-21k and -1k",
        "vit_base_patch16_224.augreg_in21k_ft_in1k",
        Preprocessing(224, 0.9, "bicubic", _HALF, _HALF),
        "class token",
        (768, 85_798_656),
        "Apache-2.0",
        ("general, supervised", 87_002_880),
    ),
    _timm(
        "siglip",
        "SigLIP ViT-B/16",
        "vit_base_patch16_siglip_224.webli",
        Preprocessing(224, 1.0, "bicubic", _HALF, _HALF),
        "attention",
        (768, 92_884_224),
        "Apache-2.0",
        ("general, vision and language", 87_001_344),
    ),
    _timm(
        "clip",
        "CLIP ViT-B/16",
        "vit_base_patch16_clip_quickgelu_224.openai",
        _CLIP,
        "class token",
        (768, 85_799_424),
        "MIT",
        ("general, vision and language", 87_395_328),
        repository="vit_base_patch16_clip_224.openai",
    ),
    CatalogueEntry(
        name="biomedclip",
        title="BiomedCLIP ViT-B/16",
        architecture="vit_base_patch16_224",
        preprocessing=_CLIP,
        pooling="class token",
        width=768,
        parameters=85_798_656,
        licence="MIT",
        where=_hub(_BIOMEDCLIP_HUB),
        file="open_clip_pytorch_model.bin",
        hub=_BIOMEDCLIP_HUB,
        paper_use="medical, vision and language",
        paper_parameters=87_002_880,
        convert=keys.open_clip_tower,
    ),
    CatalogueEntry(
        name="medimageinsight",
        title="MedImageInsight DaViT",
        architecture="davit_huge_fl",
        preprocessing=Preprocessing(480, 1.0, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
        pooling="mean",
        width=2048,
        parameters=360_636_416,
        licence="MIT",
        where="the Azure AI model catalogue (MedImageInsight), or its copy "
        "https://huggingface.co/lion-ai/MedImageInsights (2024.09.27/vision_model)",
        file="medimageinsigt-v1.0.0.pt",
        paper_use="medical, vision and language",
        paper_parameters=360_632_320,
        fixed_size=False,
        convert=keys.unicl_davit,
    ),
    _timm(
        "dinov2",
        "DINOv2 ViT-B/14",
        "vit_base_patch14_dinov2.lvd142m",
        _DINOV2,
        "class token",
        (768, 85_724_928),
        "Apache-2.0",
        ("general, self-supervised", 87_021_312),
    ),
    CatalogueEntry(
        name="lvm-med",
        title="LVM-Med ViT-B/16 (SAM)",
        architecture=SAM_ARCHITECTURE,
        preprocessing=_LVM_MED,
        pooling="mean",
        width=768,
        parameters=85_737_728,
        licence="CC-BY-NC-ND-2.0",
        where=_LVM_MED_PAGE,
        file="lvmmed_vit.pth",
        paper_use="medical, self-supervised",
        paper_parameters=85_737_728,
        convert=keys.sam_encoder,
    ),
    CatalogueEntry(
        name="lvm-med-r50",
        title="LVM-Med ResNet-50",
        architecture="resnet50",
        preprocessing=_LVM_MED,
        pooling="mean",
        width=2048,
        parameters=23_508_032,
        licence="CC-BY-NC-ND-2.0",
        where=_LVM_MED_PAGE,
        file="lvmmed_resnet.torch",
        fixed_size=False,
    ),
    CatalogueEntry(
        name="panderm",
        title="PanDerm ViT-L/16",
        architecture="deit3_large_patch16_224",
        preprocessing=_PANDERM,
        pooling="class token",
        width=1024,
        parameters=303_349_760,
        licence="CC-BY-NC-ND-4.0",
        where=_PANDERM_PAGE,
        file="panderm_ll_data6_checkpoint-499.pth",
        paper_use="medical, self-supervised",
        paper_parameters=304_931_840,
        convert=keys.cae_encoder,
    ),
    CatalogueEntry(
        name="panderm-base",
        title="PanDerm ViT-B/16",
        architecture="deit3_base_patch16_224",
        preprocessing=_PANDERM,
        pooling="class token",
        width=768,
        parameters=85_816_320,
        licence="CC-BY-NC-ND-4.0",
        where=_PANDERM_PAGE,
        file="panderm_bb_data6_checkpoint-499.pth",
        convert=keys.cae_encoder,
    ),
    CatalogueEntry(
        name="dermino",
        title="DermINO ViT-B/14",
        architecture="vit_base_patch14_dinov2",
        preprocessing=_DINOV2,
        pooling="class token",
        width=768,
        parameters=85_724_928,
        licence="yours",
        where="`dermino pretrain`; the paper names no place for its own weights",
        file="dermino.safetensors",
        paper_use="medical, hybrid (the paper's own)",
        paper_parameters=87_021_312,
        own=True,
        convert=keys.dino_teacher,
    ),
)

CATALOGUE: dict[str, CatalogueEntry] = {entry.name: entry for entry in _ENTRIES}
"""All entries by name, in the paper's order."""
