"""One thread for small matrices, and as many as before for large ones and afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from dermino_core.blas_threads import SMALL, threads_for


def threads() -> set[int]:
    """Of numpy's linear algebra."""
    return {lib["num_threads"] for lib in threadpool_info() if "numpy" in lib["filepath"]}


@pytest.fixture(autouse=True)
def _two():
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(2, "blas"):
        yield


def test_little_work_gets_one_thread_and_gives_them_back() -> None:
    assert threads() == {2}
    with threads_for(SMALL):
        assert threads() == {1}
        with threads_for(1):
            assert threads() == {1}
        assert threads() == {1}
    assert threads() == {2}


def test_much_work_keeps_its_threads() -> None:
    with threads_for(1.01 * SMALL):
        assert threads() == {2}


def test_an_error_gives_them_back() -> None:
    with pytest.raises(ValueError, match="singular"), threads_for(1):
        raise ValueError("singular")
    assert threads() == {2}
