"""From JPEG files to cached vectors, against what the processor can multiply.

The bound is this machine's matrix-multiply peak, measured in this process right before and right
after each row, in the row's precision: best of several shapes, the ViT's own among them. The share
is (images/s x FLOP per image) / peak. FLOP are counted by torch, not estimated.

    python -m tests.benchmarks.extraction --images 96 --out FILE
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np

from dermino_core import features
from dermino_core.backbone import Backbone, describe_backbone, load_backbone
from dermino_core.datasets.synthetic import SITES, write_site
from dermino_core.manifest import read_manifest

if TYPE_CHECKING:
    import torch

SPECS = {
    "ViT-S/14": "random:vit_small_patch14_dinov2",
    "ViT-B/14": "random:vit_base_patch14_dinov2",
}
ARITHMETIC = {"fp32": ("fp32", False), "bf16": ("bf16", False), "bf16 compiled": ("bf16", True)}
TOKENS = 257
SECONDS_PER_SHAPE = 0.6


@dataclass(frozen=True)
class Row:
    """One backbone in one arithmetic. Rates in images/s, peaks and FLOP in 1e9."""

    backbone: str
    arithmetic: str
    images: int
    gflop_per_image: float
    peak_before: float
    peak_after: float
    forward_rate: float
    files_rate: float
    files_rate_with_start: float
    start_seconds: float

    @property
    def bound(self) -> float:
        """Images/s if every floating-point operation ran at the peak."""
        return max(self.peak_before, self.peak_after) / self.gflop_per_image


def gemm_peak(precision: str, device: str, batch: int) -> float:
    """Best sustained GFLOP/s of `x W^T` over shapes that a ViT uses and a large square one."""
    import torch

    rows = batch * TOKENS
    shapes = [
        *((rows, width, k * width) for width in (384, 768) for k in (3, 4)),
        *((rows, 4 * width, width) for width in (384, 768)),
        (2048, 2048, 2048),
        (4096, 4096, 4096),
    ]
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    with torch.inference_mode():
        for m, k, n in shapes:
            x = torch.randn(m, k, device=device).to(kind)
            w = torch.randn(n, k, device=device).to(kind)
            seconds = _best_seconds(lambda x=x, w=w: torch.nn.functional.linear(x, w), device)
            best = max(best, 2e-9 * m * k * n / seconds)
    return best


def _best_seconds(work: Callable[[], torch.Tensor], device: str) -> float:
    work()
    best, end = float("inf"), time.perf_counter() + SECONDS_PER_SHAPE
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def _wait(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


def count_gflop(spec: str) -> float:
    """1e9 floating-point operations (a multiply-add is two) of one forward pass of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dermino_core.backbone_weights import build_model

    model, preprocessing = build_model(spec.removeprefix("random:"), None)
    size = preprocessing.image_size
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        model.eval()(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() / 1e9


def forward_rate(backbone: Backbone, images: int) -> float:
    """Images/s of prepared pixels through the backbone, best of two passes."""
    size = backbone.card.preprocessing.image_size
    whole = max(1, images // backbone.batch_size) * backbone.batch_size
    pixels = np.random.default_rng(0).integers(0, 256, (whole, size, size, 3), dtype=np.uint8)
    backbone.embed(pixels[: backbone.batch_size])
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        backbone.embed(pixels)
        seconds.append(time.perf_counter() - start)
    return whole / min(seconds)


def files_seconds(paths: list[Path], spec: str, backbone: Backbone) -> float:
    """Seconds from JPEG files to a fresh cache, with the backbone and its card at hand."""
    with tempfile.TemporaryDirectory(prefix="dermino-bench-") as folder:
        cache = Path(folder)
        describe_backbone(spec, cache_dir=cache)
        with patch.object(features, "load_backbone", return_value=backbone):
            start = time.perf_counter()
            table = features.extract_features(
                paths, spec, cache=cache, precision=backbone.precision, title="benchmark"
            )
            seconds = time.perf_counter() - start
    if table.decoded != len(paths):
        raise RuntimeError(f"{table.decoded} of {len(paths)} images were decoded")
    return seconds


def measure(name: str, arithmetic: str, paths: list[Path], import_seconds: float) -> Row:
    """All the numbers of one row."""
    precision, compiled = ARITHMETIC[arithmetic]
    spec = SPECS[name]
    start = time.perf_counter()
    describe_backbone(spec, cache_dir=None)
    backbone = load_backbone(spec, precision=precision)
    if compiled:
        backbone.compile()
    start_seconds = import_seconds + time.perf_counter() - start
    before = gemm_peak(precision, backbone.device, backbone.batch_size)
    rate = forward_rate(backbone, len(paths))
    seconds = min(files_seconds(paths, spec, backbone) for _ in range(2))
    after = gemm_peak(precision, backbone.device, backbone.batch_size)
    return Row(
        backbone=name,
        arithmetic=arithmetic + ("" if backbone.compiled == compiled else " (failed)"),
        images=len(paths),
        gflop_per_image=count_gflop(spec),
        peak_before=before,
        peak_after=after,
        forward_rate=rate,
        files_rate=len(paths) / seconds,
        files_rate_with_start=len(paths) / (seconds + start_seconds),
        start_seconds=start_seconds,
    )


def write_images(folder: Path, images: int) -> list[Path]:
    """JPEG files drawn as a synthetic hospital's."""
    site = max(SITES, key=lambda site: site.images).name
    manifest = read_manifest(write_site(folder, site=site, images=images))
    return [manifest.path_of(record) for record in manifest.records]


def main() -> None:
    """Measure every row and write them as JSON."""
    parser = argparse.ArgumentParser(prog="extraction")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--backbones", nargs="+", choices=list(SPECS), default=list(SPECS))
    parser.add_argument(
        "--arithmetic", nargs="+", choices=list(ARITHMETIC), default=list(ARITHMETIC)
    )
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()
    start = time.perf_counter()
    import timm  # noqa: F401

    import_seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory(prefix="dermino-bench-") as folder:
        paths = write_images(Path(folder), wanted.images)
        rows = [
            measure(name, arithmetic, paths, import_seconds)
            for name in wanted.backbones
            for arithmetic in wanted.arithmetic
        ]
    content = [asdict(row) | {"bound": row.bound} for row in rows]
    wanted.out.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
