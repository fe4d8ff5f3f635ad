"""Five sites, three needed: every way in which sites can be lost, one after the other."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from in_process import Federation

from dermino_core.errors import DerminoError
from dermino_strategies.secure_aggregation.coordinator import Coordinator
from dermino_strategies.secure_aggregation.store import MemoryStore

NEEDED = 3
AFTER_KEYS = ("shares", "masked", "confirm", "unmask")


def subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    for size in range(len(names) + 1):
        yield from itertools.combinations(names, size)


class Tree:
    """All 5^5 fates: each site is lost before its 2nd, 3rd, 4th or 5th answer, or never.

    What a site answers depends on who was lost before, not on who is lost with it, so that the
    fates are the leaves of a tree in which every answer is computed once.
    """

    def __init__(self) -> None:
        self.federation = Federation(5)
        self.fates = self.sums = self.aborted = 0
        coordinator = self.federation.until("shares", self.federation.session(threshold=NEEDED))
        self.grow(coordinator, [])

    def grow(self, coordinator: Coordinator, lost_before: list[str]) -> None:
        answers = {
            name: self.federation.answer(name, request)
            for name, request in coordinator.requests().items()
        }
        memory = {name: self.texts(name).copy() for name in self.federation.names}
        for silent in subsets(list(answers)):
            branch = copy.deepcopy(coordinator)
            for name in self.federation.names:
                self.texts(name).update(memory[name])
            for name, (reply, vector) in answers.items():
                if name not in silent:
                    branch.receive(name, reply, vector)
            self.end_stage(branch, [*lost_before, *silent], len(answers) - len(silent))

    def end_stage(self, branch: Coordinator, lost: list[str], left: int) -> None:
        stage = branch.stage
        if left < NEEDED:
            self.check_abort(branch, stage, lost)
            # All fates that the sites which are left could still have had end here.
            later = len(AFTER_KEYS) - 1 - AFTER_KEYS.index(stage)
            self.fates += (later + 1) ** left
            self.aborted += (later + 1) ** left
            return
        branch.advance()
        if branch.stage == "done":
            self.check_sum(branch, lost)
            self.fates += 1
            self.sums += 1
        else:
            self.grow(branch, lost)

    def check_abort(self, branch: Coordinator, stage: str, lost: list[str]) -> None:
        with pytest.raises(DerminoError) as caught:
            branch.advance()
        assert caught.value.code == "SECURE_ABORTED"
        assert f"stage '{stage}'" in caught.value.what
        assert f"{NEEDED} are needed" in caught.value.what
        assert all(name in caught.value.what for name in lost)
        assert branch.stage == "aborted"
        assert branch.repeatable == (stage in ("shares", "masked"))

    def check_sum(self, branch: Coordinator, lost: list[str]) -> None:
        assert set(branch.lost) == set(lost)
        gone = {name for name, stage in branch.lost.items() if stage in ("shares", "masked")}
        assert branch.participants == [n for n in self.federation.names if n not in gone]
        wanted = self.federation.expected(branch.participants)
        for key, array in branch.total().items():
            np.testing.assert_allclose(array, wanted[key], rtol=1e-12, atol=1e-12)

    def texts(self, name: str) -> dict[str, str]:
        store = self.federation.stores[name]
        assert isinstance(store, MemoryStore)
        return store.texts


def test_every_combination_of_losses() -> None:
    tree = Tree()
    assert tree.fates == 5**5
    # At least three sites answer to the end: sum over k = 3, 4, 5 of C(5, k) 4^(5 - k).
    assert tree.sums == 10 * 16 + 5 * 4 + 1
    assert tree.aborted == 5**5 - 181


def test_losses_before_the_first_answer() -> None:
    for silent in subsets([f"site-{i:02d}" for i in range(1, 6)]):
        federation = Federation(5)
        coordinator = federation.coordinator(federation.session(threshold=NEEDED))
        if len(silent) > 2:
            error = federation.stage_fails(coordinator, silent)
            assert all(f"{name} (keys)" in error.what for name in silent)
            continue
        federation.stage(coordinator, silent)
        while coordinator.stage != "done":
            federation.stage(coordinator)
        wanted = federation.expected(set(federation.names) - set(silent))
        for key, array in coordinator.total().items():
            np.testing.assert_allclose(array, wanted[key], rtol=1e-12, atol=1e-12)
