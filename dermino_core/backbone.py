"""A frozen image encoder: named by a specification, described cheaply, loaded once.

`demo`, `clip`, `random:NAME`, a timm NAME, `[NAME@]FILE` or a backbone folder; see
:data:`dermino_core.backbone_spec.SPEC_GRAMMAR`. Features are timm's own pooled values before the
classifier (for DINOv2 the class token after the last norm).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermino_core.backbone_card import (
    BackboneCard,
    CardCache,
    Preprocessing,
    card_to_dict,
    preprocessing_from_dict,
)
from dermino_core.backbone_catalogue import HUB_FILE
from dermino_core.backbone_files import FOLDERS, files_of, hub_weights, source_of
from dermino_core.backbone_spec import BackboneSpec, parse_spec, read_folder_description
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.precision import Precision, resolve_device, resolve_precision, worth_compiling

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "Backbone",
    "BackboneCard",
    "Preprocessing",
    "describe_backbone",
    "load_backbone",
    "load_network",
    "save_backbone",
]

logger = logging.getLogger(__name__)

CPU_BATCH = 16
"""Images per forward pass on a CPU: larger batches fall out of its caches and gain nothing."""

CUDA_BATCH = 256
"""Images per forward pass on a GPU."""


class Backbone:
    """A loaded backbone, frozen, in evaluation mode.

    Attributes
    ----------
    card
        Its identity.
    precision
        `"fp32"` or `"bf16"`: the arithmetic inside. Features are float32 either way.
    device
        `"cpu"` or a CUDA device.
    batch_size
        Images per forward pass.
    compiled
        Whether inductor compiled it.
    """

    def __init__(
        self, model: nn.Module, card: BackboneCard, precision: Precision, device: str
    ) -> None:
        import torch

        self.card = card
        self.precision: Precision = precision
        self.device = device
        self.batch_size = CUDA_BATCH if device.startswith("cuda") else CPU_BATCH
        self.compiled = False
        self._gflops = _gflops(model, card)
        self._type = torch.bfloat16 if precision == "bf16" else torch.float32
        self._model: Callable[[torch.Tensor], torch.Tensor] = (
            model.eval().requires_grad_(requires_grad=False).to(device=device, dtype=self._type)
        )
        mean, std = torch.tensor(card.preprocessing.mean), torch.tensor(card.preprocessing.std)
        self._scale = (1.0 / (255.0 * std)).view(3, 1, 1).to(device)
        self._shift = (-mean / std).view(3, 1, 1).to(device)

    def embed(self, batch: np.ndarray) -> np.ndarray:
        """Features of prepared images: uint8 [B, H, W, 3] -> float32 [B, width].

        An image's features do not depend on its neighbours in the batch; between batches of
        different size they can differ in the last bits.

        Raises
        ------
        ValueError
            If `batch` has another type or shape.
        DerminoError
            DEVICE_UNAVAILABLE if features are not finite (the arithmetic overflowed).
        """
        size = self.card.preprocessing.image_size
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != (size, size, 3):
            raise ValueError(
                f"expected uint8 [B, {size}, {size}, 3], got {batch.dtype} {list(batch.shape)}"
            )
        features = np.empty((len(batch), self.card.width), dtype=np.float32)
        for start in range(0, len(batch), self.batch_size):
            part = batch[start : start + self.batch_size]
            features[start : start + len(part)] = self._forward(part)[: len(part)]
        if not np.isfinite(features).all():
            raise DerminoError(
                "DEVICE_UNAVAILABLE",
                f"The backbone's features are not finite in {self.precision} on {self.device}.",
                fix="Use --precision fp32.",
            )
        return features

    def patches(self, batch: np.ndarray, depths: int = 4) -> np.ndarray:
        """Patch features: uint8 [B, H, W, 3] -> float16 [B, depths, H/patch, W/patch, width].

        See :func:`dermino_core.backbone_patches.patch_features`.
        """
        from dermino_core.backbone_patches import patch_features

        model = getattr(self._model, "_orig_mod", self._model)  # what a compiled one came from
        return patch_features(model, self.card, batch, self._values, self.batch_size, depths)

    def compile(self) -> None:
        """Compile and freeze the forward pass for batches of `batch_size`, if that works here.

        A compiler that fails is logged; the backbone goes on uncompiled.
        """
        import torch
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor import config as inductor
        from torch._inductor.exc import CppCompileError

        plain, size = self._model, self.card.preprocessing.image_size
        blank = np.zeros((self.batch_size, size, size, 3), dtype=np.uint8)
        try:
            with inductor.patch(freezing=True):
                self._model = torch.compile(plain, dynamic=False)
                self.compiled = True
                self._forward(blank)
        except (TorchDynamoException, CppCompileError, OSError) as error:
            logger.info("the backbone runs uncompiled: %s", str(error).splitlines()[0])
            self._model, self.compiled = plain, False

    def _forward(self, part: np.ndarray) -> np.ndarray:
        import torch

        if self.compiled and len(part) < self.batch_size:
            padded = np.zeros((self.batch_size, *part.shape[1:]), dtype=np.uint8)
            padded[: len(part)] = part
            part = padded
        # Freezing needs no_grad: constants folded under inference_mode cannot be traced.
        with torch.no_grad() if self.compiled else torch.inference_mode():
            return self._model(self._values(part)).float().cpu().numpy()

    def _values(self, part: np.ndarray) -> torch.Tensor:
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(part)).to(self.device)
        values = pixels.permute(0, 3, 1, 2).float().mul_(self._scale).add_(self._shift)
        return values.contiguous().to(self._type)

    def compile_for(self, n_images: int | None) -> None:
        """Compile if that pays for this number of images; once is enough."""
        if not self.compiled and worth_compiling(
            self._gflops, n_images, self.precision, self.device
        ):
            logger.info("compiling the backbone for %s images", n_images)
            self.compile()


def describe_backbone(
    spec: str, *, image_size: int | None = None, cache_dir: Path | None
) -> BackboneCard:
    """The card of a backbone. A second call with the same cache imports neither torch nor timm.

    Parameters
    ----------
    spec
        See :data:`dermino_core.backbone_spec.SPEC_GRAMMAR`.
    image_size
        In pixels, instead of the backbone's own.
    cache_dir
        Where cards are remembered; None: nowhere.

    Raises
    ------
    DerminoError
        BACKBONE_UNAVAILABLE, BACKBONE_MISMATCH, CONFIG_INVALID, MODEL_INVALID, CACHE_UNWRITABLE.
    """
    parsed = parse_spec(spec)
    if cache_dir is None:
        return _load_model(parsed, image_size)[1]
    cache = CardCache(cache_dir)
    hub = cache.state["hub"]
    weights: Path | None = None
    if parsed.kind == "hub":
        weights = Path(hub.get(parsed.text, ""))
        if not weights.is_file():
            weights = hub_weights(parsed)
            hub[parsed.text] = str(weights)
    is_random = parsed.kind == "random"
    content = parsed.text if is_random else cache.content(files_of(parsed, weights))
    known = parsed.entry.identity if parsed.entry else parsed.architecture
    key = cache.key(content, known, image_size)
    card = cache.get(key)
    if card is None:
        card = _load_model(parsed, image_size, weights)[1]
        cache.put(key, card)
    return replace(card, name=parsed.text, source=source_of(parsed, weights))


def load_backbone(
    spec: str,
    *,
    precision: str = "auto",
    device: str = "auto",
    image_size: int | None = None,
    n_images: int | None = None,
) -> Backbone:
    """Load a backbone for use.

    Parameters
    ----------
    spec
        See :data:`dermino_core.backbone_spec.SPEC_GRAMMAR`.
    precision
        `auto`, `fp32` or `bf16`; see :func:`dermino_core.precision.resolve_precision`. bf16 holds
        weights and activations in bf16: cosine to fp32 above 0.9999 for DINOv2 ViT-S/14.
    device
        `auto`, `cpu`, `cuda` or `cuda:N`.
    image_size
        In pixels, instead of the backbone's own.
    n_images
        How many images are to come. Decides whether compiling pays; see
        :func:`dermino_core.precision.worth_compiling`.

    Raises
    ------
    DerminoError
        As :func:`describe_backbone`, and DEVICE_UNAVAILABLE.
    """
    place = resolve_device(device)
    arithmetic = resolve_precision(precision, place)
    _check_cuda(place)
    model, card = _load_model(parse_spec(spec), image_size)
    backbone = Backbone(model, card, arithmetic, place)
    backbone.compile_for(n_images)
    return backbone


def checkpoint_of(spec: str) -> Path:
    """The weights file that a specification names.

    Raises
    ------
    DerminoError
        As :func:`describe_backbone`; CONFIG_INVALID for a specification without a file.
    """
    parsed = parse_spec(spec)
    if parsed.kind == "hub":
        return hub_weights(parsed)
    files = files_of(parsed, None)
    if not files:
        raise DerminoError(
            "CONFIG_INVALID",
            f"{spec!r} has no weights file.",
            fix="Name a pretrained timm model, a .safetensors file or a backbone folder.",
        )
    return files[-1]


def save_backbone(
    folder: Path,
    weights: dict[str, torch.Tensor],
    *,
    architecture: str,
    preprocessing: Preprocessing,
    about: dict[str, Any] | None = None,
    half: bool = False,
    name: str | None = None,
) -> BackboneCard:
    """Write a backbone folder, which is a backbone specification by itself.

    Parameters
    ----------
    folder
        Receives model.safetensors and then model.json.
    weights
        Named as in timm, without a classifier, fitting `architecture` at the image size in
        `preprocessing`.
    about
        More for model.json: what it was trained on.
    half
        Keep the weights in half precision: half the size, and other features in the last digits.
    name
        For people; the folder by default.

    Raises
    ------
    DerminoError
        BACKBONE_UNAVAILABLE if the weights do not fit the architecture.
    """
    import torch
    from safetensors.torch import save

    from dermino_core.backbone_weights import build_model, fingerprint_weights, load_checkpoint

    kind = torch.float16 if half else torch.float32
    plain = {key: value.detach().cpu().to(kind).contiguous() for key, value in weights.items()}
    file = folder / HUB_FILE
    write_atomically(file, save(plain, metadata={"architecture": architecture}))
    model, _ = build_model(architecture, preprocessing.image_size)
    kept = load_checkpoint(model, file, architecture)
    identity = fingerprint_weights(architecture, kept, preprocessing)
    card = _card(
        name or str(folder),
        architecture,
        model,
        preprocessing,
        fingerprint=identity,
        pretrained=True,
        source=name or str(file),
    )
    body = {"kind": "backbone", **card_to_dict(card), **(about or {})}
    write_atomically(folder / "model.json", json.dumps(body, indent=1))
    return card


def load_network(spec: str) -> tuple[nn.Module, dict[str, torch.Tensor], BackboneCard]:
    """The network in float32 on the CPU, its weights as they are in their file, and its card.

    The weights differ from the network's own in the position embedding, which is not resized.

    Raises
    ------
    DerminoError
        As :func:`describe_backbone`.
    """
    return _load_network(parse_spec(spec), None)


def _load_model(
    spec: BackboneSpec, image_size: int | None, hub_file: Path | None = None
) -> tuple[nn.Module, BackboneCard]:
    model, _, card = _load_network(spec, image_size, hub_file)
    return model, card


def _load_network(
    spec: BackboneSpec, image_size: int | None, hub_file: Path | None = None
) -> tuple[nn.Module, dict[str, torch.Tensor], BackboneCard]:
    from dermino_core.backbone_keys import as_in_timm
    from dermino_core.backbone_weights import (
        RANDOM_SEED,
        build_model,
        fill_randomly,
        fingerprint_weights,
        infer_architecture,
        load_checkpoint,
    )

    described: dict[str, Any] = {}
    weights_file: Path | None = None
    if spec.kind in FOLDERS and spec.path is not None:
        described = read_folder_description(spec.path)
        architecture, weights_file = str(described["architecture"]), spec.path / HUB_FILE
    elif spec.kind == "file" and spec.path is not None:
        weights_file = spec.path
        architecture = spec.architecture or infer_architecture(weights_file)
    else:
        architecture = str(spec.architecture)
    entry = spec.entry
    wanted = entry.preprocessing if entry else None
    if described:
        wanted = _described_preprocessing(spec, described)
    model, preprocessing = build_model(
        architecture,
        image_size or (wanted.image_size if wanted else None),
        fixed_size=entry is None or entry.fixed_size,
    )
    if wanted:
        preprocessing = replace(wanted, image_size=preprocessing.image_size)
    if spec.kind == "hub":
        weights_file = hub_file or hub_weights(spec)
    if weights_file is None:
        fill_randomly(model, RANDOM_SEED)
        weights = dict(model.state_dict())
    else:
        convert = entry.convert if entry else as_in_timm
        weights = load_checkpoint(model, weights_file, architecture, convert)
    found = fingerprint_weights(architecture, weights, preprocessing)
    if described and wanted == preprocessing and found != described["fingerprint"]:
        raise DerminoError(
            "BACKBONE_MISMATCH",
            "The weights are not the ones that model.json describes (fingerprints differ).",
            where=weights_file,
            fix="Copy the whole folder again from where it was made.",
        )
    card = _card(
        spec.text,
        architecture,
        model,
        preprocessing,
        fingerprint=found,
        pretrained=weights_file is not None,
        source=source_of(spec, weights_file),
    )
    return model, weights, card


def _card(
    name: str,
    architecture: str,
    model: nn.Module,
    preprocessing: Preprocessing,
    *,
    fingerprint: str,
    pretrained: bool,
    source: str,
) -> BackboneCard:
    from dermino_core.backbone_weights import stride_of

    parts: Any = model
    return BackboneCard(
        name=name,
        architecture=architecture,
        width=int(parts.num_features),
        patch_size=stride_of(model),
        preprocessing=preprocessing,
        fingerprint=fingerprint,
        pretrained=pretrained,
        source=source,
    )


def _described_preprocessing(spec: BackboneSpec, described: dict[str, Any]) -> Preprocessing:
    try:
        return preprocessing_from_dict(described["preprocessing"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DerminoError(
            "MODEL_INVALID",
            f"model.json has no valid preprocessing ({error!r}).",
            where=spec.path,
            fix=f"It needs {', '.join(item.name for item in fields(Preprocessing))}.",
        ) from error


def _check_cuda(device: str) -> None:
    import torch

    if not device.startswith("cuda"):
        return
    index = torch.device(device).index or 0
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise DerminoError(
            "DEVICE_UNAVAILABLE",
            f"torch cannot use {device} (driver too old, or no such GPU).",
            fix="Use --device cpu, or correct the driver; `nvidia-smi` shows what is there.",
        )


def _gflops(model: nn.Module, card: BackboneCard) -> float:
    """Of one image; 0 for a network that is no ViT: what compiling gains there is not measured."""
    if not hasattr(model, "patch_embed"):
        return 0.0
    grid = card.preprocessing.image_size // card.patch_size
    tokens = grid * grid + 1
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    blocks: Any = getattr(model, "blocks", ())
    attention = 4 * tokens * tokens * card.width * len(blocks)
    return (2 * tokens * matrices + attention) / 1e9
