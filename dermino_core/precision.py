"""Which device and which arithmetic a machine does best, decided without importing torch.

The answer is part of every cached feature's key, and a start that finds everything in the cache
must not pay for importing torch. So the hardware is asked directly.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Literal

from dermino_core.errors import DerminoError

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]

BF16_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""`flags` (x86) or `Features` (ARM) of /proc/cpuinfo that mean real bf16 arithmetic."""

COMPILE_SECONDS = 35.0
"""Compiling and freezing a ViT with inductor: 12 s (warm) to 30 s (first time on a machine)."""

COMPILE_GAIN = 0.07
"""Share of the bf16 forward pass that compiling saves on AVX-512 (7 % ViT-S, 10 % ViT-B)."""

COMPILE_GAIN_AMX = 0.22
"""The same where AMX makes matrix products so fast that everything between them counts."""

COMPILE_SAFETY = 2.0
"""Compile only if the expected saving is this many times the cost."""


def resolve_device(device: str) -> str:
    """`"cpu"` or `"cuda"` for `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`.

    Raises
    ------
    DerminoError
        DEVICE_UNAVAILABLE for a device that this machine or this torch does not have.
    """
    if device == "auto":
        return "cuda" if _has_cuda() else "cpu"
    if device == "cpu":
        return device
    if re.fullmatch(r"cuda(:\d+)?", device):
        if _has_cuda():
            return device
        raise DerminoError(
            "DEVICE_UNAVAILABLE",
            f"Device {device!r} was asked for, but there is no NVIDIA GPU that torch can use.",
            fix="Use --device cpu (or auto), or install the driver and a CUDA build of torch.",
        )
    raise DerminoError(
        "DEVICE_UNAVAILABLE",
        f"Device {device!r} is not known.",
        fix="Use auto, cpu, cuda or cuda:N.",
    )


def resolve_precision(precision: str, device: str) -> Precision:
    """`"fp32"` or `"bf16"` for `"auto"`, `"fp32"` or `"bf16"` on a resolved device.

    `auto` is bf16 on CUDA and on CPUs that compute in it (AVX512-BF16, AMX, ARM bf16), else fp32.
    bf16 on any other CPU is obeyed with a warning: it is right, but slower than fp32.

    Raises
    ------
    DerminoError
        DEVICE_UNAVAILABLE for any other word.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise DerminoError(
            "DEVICE_UNAVAILABLE",
            f"Precision {precision!r} is not known.",
            fix="Use auto, fp32 or bf16.",
        )
    able = device.startswith("cuda") or bool(cpu_flags() & BF16_CPU_FLAGS)
    if precision == "auto":
        return "bf16" if able else "fp32"
    if precision == "bf16" and not able:
        logger.warning("this CPU has no bf16 arithmetic: --precision fp32 will be faster")
    return "bf16" if precision == "bf16" else "fp32"


def worth_compiling(gflops: float, n_images: int | None, precision: Precision, device: str) -> bool:
    """Whether compiling the forward pass pays for `n_images` images of `gflops` (1e9) each.

    The rule: the seconds that compiling is expected to save exceed what it costs, twice over. On
    two AVX512-BF16 cores (0.3 TFLOP/s sustained) that is about 24,000 images for ViT-S/14 and
    6,000 for ViT-B/14 at 224 pixels. In fp32 compiling gains nothing; on CUDA inductor's gain is
    small beside decoding. `DERMINO_COMPILE=1` or `0` overrides it. Without a C++ compiler the
    answer is no.
    """
    forced = os.environ.get("DERMINO_COMPILE")
    if forced == "0" or device != "cpu" or precision != "bf16":
        return False
    if forced != "1":
        amx = "amx_bf16" in cpu_flags()
        gain = COMPILE_GAIN_AMX if amx else COMPILE_GAIN
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        eager = gflops / (cores * (500.0 if amx else 145.0))
        if (n_images or 0) * eager * gain < COMPILE_SECONDS * COMPILE_SAFETY:
            return False
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        logger.info("no C++ compiler found: the backbone runs uncompiled")
        return False
    return True


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of this CPU; empty where Linux's /proc/cpuinfo is not there."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    key = "Features" if platform.machine() in ("aarch64", "arm64") else "flags"
    found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def _has_cuda() -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    devices = list(Path("/dev").glob("nvidia[0-9]*")) or list(Path("/dev").glob("dxg"))
    return bool(devices) and _torch_has_cuda()


def _torch_has_cuda() -> bool:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    found = re.search(r"^cuda\b[^=\n]*=\s*(.+)$", text, re.MULTILINE)
    return found is not None and found.group(1).strip() != "None"
