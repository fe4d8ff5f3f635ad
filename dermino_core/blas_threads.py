"""How many threads numpy's linear algebra may use where more of them only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

SMALL = 5e9
"""Multiplications that one thread does in a fraction of a second.

Measured with the eigendecomposition of a matrix with 385 columns (0.5e9): 22 ms on one thread and
15 ms on two, but 300 ms on two threads when three hospitals share the two cores. With 1025 columns
(10e9) 122 ms on one and 106 ms on two.
"""


@contextmanager
def threads_for(multiplications: float) -> Iterator[None]:
    """One thread inside, if there is little to do."""
    if multiplications > SMALL:
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> ThreadpoolController:
    """Looking for the libraries takes some milliseconds; numpy's is there from its import on."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
