"""A sum over sites that does not depend on who answered first, and holds few of them at a time.

Floating-point addition is not associative, so a resumed run would differ in the last bit if
summands were added as they come. They are added in the order of the sites' names; one that is
early waits for those before it. Sites that answer in order leave nothing behind but the sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt


class RunningSum:
    """The sum of named arrays over `sites`.

    Examples
    --------
    >>> running = RunningSum(["b", "a"])
    >>> running.add("b", {"x": np.array([2.0])})
    >>> running.total()["x"]
    array([2.])
    """

    def __init__(self, sites: Iterable[str]) -> None:
        self._left = sorted(sites, reverse=True)
        self._early: dict[str, Mapping[str, npt.NDArray]] = {}
        self._sum: dict[str, npt.NDArray[np.float64]] = {}

    def add(self, site: str, summand: Mapping[str, npt.NDArray]) -> None:
        """Add a site's summand, once."""
        self._early[site] = summand
        self._advance()

    def _advance(self) -> None:
        while self._left and self._left[-1] in self._early:
            summand = self._early.pop(self._left.pop())
            for name, array in summand.items():
                if name in self._sum:
                    self._sum[name] += array
                else:
                    self._sum[name] = np.array(array, dtype=np.float64)

    def total(self) -> dict[str, npt.NDArray[np.float64]]:
        """The sum over the sites that came; the others are given up."""
        self._left = [site for site in self._left if site in self._early]
        self._advance()
        return self._sum
