"""What a run collects unless told otherwise."""

from __future__ import annotations

import pytest

from dermino_core.privacy.plan import PrivacyRequest
from dermino_server.plan import MOST_CROSS_SITES, collects_heads
from dermino_strategies.registry import get_strategy


@pytest.mark.parametrize(
    ("method", "sites", "privacy", "secure", "collected"),
    [
        ("fedavg", 3, None, False, True),
        ("fedavg", MOST_CROSS_SITES, None, False, True),
        ("fedavg", MOST_CROSS_SITES + 1, None, False, False),
        ("fedavg", 3, PrivacyRequest(epsilon=3), False, False),
        ("fedavg", 3, None, True, False),
        ("lora", 3, None, False, False),
    ],
)
def test_heads_of_single_sites(
    method: str, sites: int, privacy: PrivacyRequest | None, secure: bool, collected: bool
) -> None:
    strategy = get_strategy(method)
    assert collects_heads(strategy, sites, privacy, secure_aggregation=secure) is collected
