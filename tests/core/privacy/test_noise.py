"""The noise: is it Gaussian, is it the cipher's, and can nobody repeat it?"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from Crypto.Cipher import AES
from Crypto.Util import Counter
from scipy import stats

from dermino_core.privacy.noise import (
    DRAWS,
    SecureGenerator,
    secure_generator_name,
    secure_library_present,
)

N = 200_000
SURE = 6.5
"""Standard errors beyond which chance (1 in 10^10) is no explanation."""


def test_normal_numbers_are_normal() -> None:
    x = SecureGenerator().normal(N)
    assert stats.kstest(x, "norm").pvalue > 1e-9
    assert abs(x.mean()) < SURE / np.sqrt(N)
    assert abs(x.var() - 1) < SURE * np.sqrt(2 / N)
    assert abs((x**3).mean()) < SURE * np.sqrt(15 / N)
    assert abs((x**4).mean() - 3) < SURE * np.sqrt(96 / N)
    for far in (2, 3, 4):
        expected = 2 * stats.norm.sf(far)
        assert abs((np.abs(x) > far).mean() - expected) < SURE * np.sqrt(expected / N)


def test_neighbours_have_nothing_to_do_with_each_other() -> None:
    x = SecureGenerator().normal((N // 2, 2)).ravel()
    for lag in (1, 2, 3, 4, 7, 1000):
        assert abs((x[lag:] * x[:-lag]).mean()) < SURE / np.sqrt(N - lag)
        assert abs((x[lag:] ** 2 * x[:-lag] ** 2).mean() - 1) < SURE * np.sqrt(8 / N)


def test_uniform_numbers_are_uniform_and_inside() -> None:
    u = SecureGenerator().uniform(N)
    assert stats.kstest(u, "uniform").pvalue > 1e-9
    assert ((u > 0) & (u < 1)).all()


@pytest.mark.parametrize(("byte", "expected"), [(b"\x00", 2.0**-53), (b"\xff", 1 - 2.0**-53)])
def test_the_ends_of_the_uniform_numbers(byte: bytes, expected: float) -> None:
    class Constant(SecureGenerator):
        def random_bytes(self, size: int) -> bytes:
            return byte * size

    assert Constant().uniform(3).tolist() == [expected] * 3
    assert np.isfinite(Constant().normal(3)).all()


def test_bytes_are_the_key_stream_of_aes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return bytes(range(size))

    monkeypatch.setattr(os, "urandom", urandom)
    generator = SecureGenerator()
    ours = generator.random_bytes(100) + generator.random_bytes(1000)
    counter = Counter.new(128, initial_value=int.from_bytes(bytes(range(16)), "big"))
    theirs = AES.new(bytes(range(32)), AES.MODE_CTR, counter=counter).encrypt(bytes(1100))
    assert ours == theirs
    assert asked == [32, 16]


def test_a_normal_number_is_the_sum_of_four() -> None:
    """Holohan & Braghin 2021: one draw for one number would betray it in its last bits."""
    bits = np.random.default_rng(5).bytes(8 * DRAWS * 50)

    class Given(SecureGenerator):
        def random_bytes(self, size: int) -> bytes:
            return bits[:size]

    words = np.frombuffer(bits, "<u8").reshape(DRAWS, 50)
    uniforms = ((words >> np.uint64(12)).astype(float) + 0.5) / 2**52
    expected = stats.norm.ppf(uniforms).sum(axis=0) / 2
    np.testing.assert_allclose(Given().normal(50), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(), 1, 0, (0, 5), (3, 4), (2, 3, 4)])
def test_shapes(shape: int | tuple[int, ...]) -> None:
    assert SecureGenerator().normal(shape).shape == np.zeros(shape).shape
    assert SecureGenerator().uniform(shape).shape == np.zeros(shape).shape


def test_seeds_mean_nothing_to_it() -> None:
    drawn = []
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002 - what a careless program does
        random.seed(0)
        drawn.append(SecureGenerator().normal(4).tobytes())
    assert drawn[0] != drawn[1]


def test_two_processes_with_the_same_seeds_differ() -> None:
    code = (
        "import random, numpy as np; random.seed(0); np.random.seed(0);"
        "from dermino_core.privacy.noise import SecureGenerator;"
        "print(SecureGenerator().random_bytes(16).hex())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    drawn = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for _ in range(2)
    }
    assert len(drawn) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_draws_otherwise() -> None:
    generator = SecureGenerator()
    generator.random_bytes(8)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, generator.random_bytes(16))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 16) != generator.random_bytes(16)
    os.close(reader)
    os.close(writer)


def test_nothing_comes_twice() -> None:
    one, other = SecureGenerator(), SecureGenerator()
    words = np.frombuffer(b"".join(g.random_bytes(8 * 50_000) for g in (one, other, one)), "<u8")
    assert len(np.unique(words)) == 3 * 50_000


def test_the_name_of_the_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if secure_library_present():
        pytest.skip("torchcsprng is installed here")
    assert "AES-256" in secure_generator_name()
    (tmp_path / "torchcsprng.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert secure_library_present()
    assert "torchcsprng" in secure_generator_name()
