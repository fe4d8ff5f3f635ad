"""A hospital leaves, or one more joins, after the run: the model without it, or with it.

A ridge is decided by a sum over the hospitals. A coordinator that keeps what each of them sent
adds up the others' sums again; the result is to the last bit that of a run in which the hospital
was never asked. Where only the total was kept, the hospital sends its sums once more, to be taken
out of it: exact to rounding, some 1e-15 of the sums. After secure aggregation, where nobody keeps a
hospital's sums but itself, only this second way is left, and it shows them to the coordinator. A
total that once went to the sites cannot be called back.

Not for `logistic`: its sums belong to the points it looked at, which the hospital had a part in
choosing. Without it the run has to be made again, at six rounds. Going on with the others from
where it stopped takes three or four, and finds their optimum, but in coordinates (mean and spread
of the features, weights of the classes) that the hospital still has a share in. Not for the
methods that average trained heads either: what a hospital did to them cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dermino_core.errors import DerminoError
from dermino_strategies.base import Additive, Arrays, SiteUpdate, Strategy


def without_site(
    strategy: Strategy, arrays: Arrays, kept: Mapping[str, SiteUpdate], site: str
) -> Arrays:
    """The global arrays as if a site had never taken part.

    Parameters
    ----------
    strategy
        One that `keeps_sums`.
    arrays
        Global arrays of the run: for their shapes.
    kept
        What every site sent, the leaving one included. Of a method that adds, one is looked up at
        a time.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if there is nothing of this site, or nothing but it.
    """
    if site not in kept:
        known = ", ".join(sorted(kept)) or "none"
        raise DerminoError(
            "CONFIG_INVALID", f"There are no sums of the site '{site}'.", fix=f"Known: {known}."
        )
    rest = _Others(kept, site)
    if not rest:
        raise DerminoError("CONFIG_INVALID", f"Without '{site}' no site is left.")
    return strategy.aggregate(arrays, rest)


class _Others(Mapping[str, SiteUpdate]):
    """All but one, looked up when asked for: they may lie on a disk."""

    def __init__(self, kept: Mapping[str, SiteUpdate], without: str) -> None:
        self._kept = kept
        self._names = [name for name in kept if name != without]

    def __getitem__(self, name: str) -> SiteUpdate:
        if name not in self._names:
            raise KeyError(name)
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def with_site(
    strategy: Strategy,
    arrays: Arrays,
    kept: Mapping[str, SiteUpdate],
    site: str,
    update: SiteUpdate,
) -> Arrays:
    """The global arrays as if one more site had taken part, or one had sent other sums.

    Raises
    ------
    ValueError
        If its sums are not usable.
    """
    strategy.check_update(arrays, update)
    return strategy.aggregate(arrays, {**kept, site: update})


def taken_out(strategy: Additive, arrays: Arrays, total: Arrays, update: SiteUpdate) -> Arrays:
    """As :func:`without_site`, from the sum over all sites and what the leaving one sent.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if the sum holds fewer images than the site has.
    """
    rest = {name: total[name] - part for name, part in strategy.summand(update).items()}
    # Fixed point may leave a hair below 0.
    if (rest["total.counts"] < -0.5).any() or rest["total.counts"].sum() < 0.5:
        raise DerminoError(
            "CONFIG_INVALID",
            "The sum does not hold this site's images, or no others.",
            fix="Give the sum over all sites and what this site sent to it.",
        )
    return strategy.from_sum(arrays, rest)
