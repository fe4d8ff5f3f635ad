"""Which arithmetic, and when compiling pays."""

from __future__ import annotations

import pytest

from dermino_core import precision
from dermino_core.errors import DerminoError


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), ({"bf16"}, "bf16"), ({"avx2"}, "fp32")],
)
def test_auto_is_bf16_where_the_cpu_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: str
) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))
    assert precision.resolve_precision("auto", "cpu") == expected
    assert precision.resolve_precision("auto", "cuda") == "bf16"
    assert precision.resolve_precision("bf16", "cpu") == "bf16"
    assert precision.resolve_precision("fp32", "cuda") == "fp32"


def test_unknown_words_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert precision.resolve_device("auto") == "cpu"
    for call in (
        lambda: precision.resolve_precision("fp16", "cpu"),
        lambda: precision.resolve_device("tpu"),
        lambda: precision.resolve_device("cuda"),
    ):
        with pytest.raises(DerminoError) as caught:
            call()
        assert caught.value.code == "DEVICE_UNAVAILABLE"


def test_compiling_waits_for_enough_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DERMINO_COMPILE", raising=False)
    monkeypatch.setattr(precision.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(precision.os, "sched_getaffinity", lambda _: {0, 1})
    vit_small, vit_base = 12.1, 46.1
    for flags, small, base in (({"avx512_bf16"}, 24_000, 6_300), ({"amx_bf16"}, 26_300, 6_900)):
        monkeypatch.setattr(precision, "cpu_flags", lambda flags=flags: frozenset(flags))
        for gflops, enough in ((vit_small, small), (vit_base, base)):
            assert not precision.worth_compiling(gflops, int(enough * 0.9), "bf16", "cpu")
            assert precision.worth_compiling(gflops, int(enough * 1.1), "bf16", "cpu")
    assert not precision.worth_compiling(vit_base, None, "bf16", "cpu")
    assert not precision.worth_compiling(vit_base, 10**9, "fp32", "cpu")
    assert not precision.worth_compiling(vit_base, 10**9, "bf16", "cuda")
    monkeypatch.setattr(precision.shutil, "which", lambda name: None)
    assert not precision.worth_compiling(vit_base, 10**9, "bf16", "cpu")


def test_compiling_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("DERMINO_COMPILE", "1")
    assert precision.worth_compiling(1.0, 1, "bf16", "cpu")
    monkeypatch.setenv("DERMINO_COMPILE", "0")
    assert not precision.worth_compiling(100.0, 10**9, "bf16", "cpu")
