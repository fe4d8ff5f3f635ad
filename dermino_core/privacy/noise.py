"""Random numbers that nobody can foresee: for the noise, and for who takes part in a step.

A pseudo-random generator for simulations (numpy's, torch's) can be wound back from what it gave
out, and with it the noise taken off. Here the bits are the key stream of AES-256 in counter mode,
keyed once from the operating system, so that undoing the noise means breaking AES.

A Gaussian made from one floating-point draw betrays its sum in its last bits: not every float can
be reached (Mironov 2012, "On significance of the least significant bits for differential privacy";
Jin et al. 2022, arXiv:2112.05307). As Holohan & Braghin 2021 ("Secure random sampling in
differential privacy", arXiv:2107.10138, section 5.1) propose, each Gaussian here is the sum of four
independent ones over two, which an attacker cannot search.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from scipy import special

Float64 = npt.NDArray[np.float64]

DRAWS = 4
"""Gaussians in the sum that makes one: 2n with n = 2, as Holohan & Braghin advise."""

SECURE_LIBRARY = "torchcsprng"
"""What Opacus' own secure mode needs. It is not published for current versions of torch."""

_CHUNK = 1 << 20


def secure_library_present() -> bool:
    """Whether Opacus can run in its own secure mode here."""
    return find_spec(SECURE_LIBRARY) is not None


def secure_generator_name() -> str:
    """Which generator draws the noise on this machine, for the records."""
    if secure_library_present():
        return f"{SECURE_LIBRARY} (secure mode of Opacus)"
    return "AES-256-CTR keyed by the operating system"


class SecureGenerator:
    """Uniform and Gaussian numbers from a key stream. It cannot be seeded; one for each thread.

    A process that forks leaves its child with another key: two processes never draw the same.
    """

    def __init__(self) -> None:
        self._stream: CipherContext | None = None
        self._owner = -1

    def random_bytes(self, size: int) -> bytes:
        """The next `size` bytes of the key stream."""
        if self._stream is None or self._owner != os.getpid():
            cipher = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(os.urandom(16)))
            self._stream, self._owner = cipher.encryptor(), os.getpid()
        return self._stream.update(bytes(size))

    def uniform(self, shape: int | tuple[int, ...]) -> Float64:
        """Uniform in the open interval (0, 1): the midpoints of 2^52 equal parts, unrounded."""
        count = int(np.prod(shape))
        words = np.frombuffer(self.random_bytes(8 * count), dtype="<u8")
        places = (words >> np.uint64(12)).astype(np.float64)
        return ((places + 0.5) * 2.0**-52).reshape(shape)

    def normal(self, shape: int | tuple[int, ...]) -> Float64:
        """Gaussian with mean 0 and variance 1, hardened as the module says.

        Each part is the inverse of the normal distribution at a uniform number (Devroye 1986,
        section II.2): monotone, so that no two bits of it are worth more than the others.
        """
        count = int(np.prod(shape))
        result = np.empty(count)
        for start in range(0, count, _CHUNK):
            stop = min(start + _CHUNK, count)
            parts = special.ndtri(self.uniform((DRAWS, stop - start)))
            result[start:stop] = parts.sum(axis=0) / np.sqrt(DRAWS)
        return result.reshape(shape)
