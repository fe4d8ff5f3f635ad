"""Freed memory stays in the process while it is wanted there, and goes back afterwards."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

from dermino_core.allocator import freed_memory_kept

PROGRAM = """
import ctypes, json, resource
from pathlib import Path
from dermino_core.allocator import freed_memory_kept

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
SIZE = 64 << 20

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = {"first": faults(), "plain": faults()}
with freed_memory_kept("cpu"):
    with freed_memory_kept("cpu"):
        faults()
    found["kept"] = faults()
    found["inside"] = resident()
found["after"] = resident()
found["plain again"] = faults()
print(json.dumps(found))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again_until_the_end_of_the_block():
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True)
    found = json.loads(done.stdout)
    assert found["kept"] < found["plain"] / 10
    assert found["after"] < found["inside"] - (32 << 20)
    assert found["plain again"] > found["kept"] * 10


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_elsewhere_nothing_happens(monkeypatch, device):
    monkeypatch.setattr(sys, "platform", "darwin")
    with freed_memory_kept(device):
        pass
