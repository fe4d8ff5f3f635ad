"""How long to wait before one looks again for what another process will leave."""

from __future__ import annotations

SHARE = 0.1
SHORTEST = 0.1


def pause(waited: float, longest: float) -> float:
    """Seconds until the next look: a tenth of the seconds waited so far.

    So the answer lies there for a tenth of the waiting at most, and a wait of hours costs one look
    every `longest` seconds.
    """
    return min(longest, max(SHORTEST, SHARE * waited))
