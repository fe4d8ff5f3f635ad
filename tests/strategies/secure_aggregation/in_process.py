"""A federation without a network: a coordinator and sites that answer message by message."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import numpy as np

from dermino_core.errors import DerminoError
from dermino_strategies.base import Arrays
from dermino_strategies.secure_aggregation import messages
from dermino_strategies.secure_aggregation.coordinator import Coordinator
from dermino_strategies.secure_aggregation.identity import Identity, PinnedMembers
from dermino_strategies.secure_aggregation.ring import Vector
from dermino_strategies.secure_aggregation.session import Session, default_threshold
from dermino_strategies.secure_aggregation.site import SecureSite
from dermino_strategies.secure_aggregation.store import MemoryStore, SessionStore

TASK = "ab" * 32
LIKE: Arrays = {"weight": np.zeros((2, 3)), "bias": np.zeros(2), "examples": np.zeros(1)}
LIMITS = {"weight": 8.0, "bias": 2.0, "examples": 2.0**24}
STAGES = ("keys", "shares", "masked", "confirm", "unmask")

M = TypeVar("M", bound=messages.Message)


def site_names(count: int) -> list[str]:
    return [f"site-{number:02d}" for number in range(1, count + 1)]


def over_json(message: M) -> M:
    """What arrives of a message."""
    return type(message).model_validate_json(message.model_dump_json())


class Federation:
    """Sites with identities and stores. Each message is answered by a new `SecureSite`."""

    def __init__(
        self,
        count: int = 5,
        *,
        like: Arrays | None = None,
        limits: Mapping[str, float] | None = None,
        store: Callable[[str], SessionStore] = lambda _: MemoryStore(),
        minimum: int = 3,
        seed: int = 0,
    ) -> None:
        self.names = site_names(count)
        self.identities = {name: Identity.generate(name) for name in self.names}
        self.members = PinnedMembers({n: i.public_key for n, i in self.identities.items()})
        self.stores = {name: store(name) for name in self.names}
        self.minimum = minimum
        self.like = LIKE if like is None else like
        self.limits = dict(LIMITS if limits is None else limits)
        rng = np.random.default_rng(seed)
        self.summands: dict[str, Arrays] = {
            name: {
                key: rng.uniform(-self.limits[key], self.limits[key], array.shape)
                for key, array in self.like.items()
            }
            for name in self.names
        }

    def session(
        self, *, run: str = "run", round_: int = 1, attempt: int = 1, threshold: int | None = None
    ) -> Session:
        return Session(
            run=run,
            round=round_,
            purpose="train",
            attempt=attempt,
            task_digest=TASK,
            threshold=threshold or default_threshold(len(self.names)),
        )

    def coordinator(self, session: Session | None = None) -> Coordinator:
        return Coordinator(
            session or self.session(),
            self.names,
            self.members,
            limits=self.limits,
            like=self.like,
        )

    def site(self, name: str) -> SecureSite:
        return SecureSite(
            self.identities[name], self.members, self.stores[name], minimum=self.minimum
        )

    def answer(self, name: str, request: messages.Request) -> tuple[messages.Reply, Vector | None]:
        """What a site answers to a request, both as they travel."""
        site, request = self.site(name), over_json(request)
        vector = None
        if isinstance(request, messages.KeysRequest):
            reply: messages.Reply = site.keys(request)
        elif isinstance(request, messages.SharesRequest):
            reply = site.shares(request)
        elif isinstance(request, messages.MaskedRequest):
            reply, vector = site.masked(
                request,
                lambda: self.summands[name],
                limits=self.limits,
                like=self.like,
                task_digest=TASK,
            )
        elif isinstance(request, messages.ConfirmRequest):
            reply = site.confirm(request)
        elif isinstance(request, messages.UnmaskRequest):
            reply = site.unmask(request)
        else:
            raise TypeError(type(request).__name__)
        return over_json(reply), vector

    def stage(self, coordinator: Coordinator, silent: Collection[str] = ()) -> None:
        """One stage: all that are asked answer, but for the silent ones."""
        for name, request in coordinator.requests().items():
            if name not in silent:
                coordinator.receive(name, *self.answer(name, request))
        coordinator.advance()

    def stage_without(
        self, coordinator: Coordinator, answered: Collection[str], silent: Collection[str] = ()
    ) -> None:
        """As :meth:`stage`, where some have answered before."""
        for name, request in coordinator.requests().items():
            if name not in silent and name not in answered:
                coordinator.receive(name, *self.answer(name, request))
        coordinator.advance()

    def stage_fails(self, coordinator: Coordinator, silent: Collection[str] = ()) -> DerminoError:
        """As :meth:`stage`, and the coordinator gives up."""
        try:
            self.stage(coordinator, silent)
        except DerminoError as error:
            if error.code != "SECURE_ABORTED" or coordinator.stage != "aborted":
                raise
            return error
        raise AssertionError("the coordinator goes on")

    def until(
        self,
        stage: str,
        session: Session | None = None,
        silent: Mapping[str, Collection[str]] | None = None,
    ) -> Coordinator:
        """A coordinator that is about to ask for `stage`, all stages before it done."""
        coordinator = self.coordinator(session)
        while coordinator.stage != stage:
            self.stage(coordinator, (silent or {}).get(coordinator.stage, ()))
        return coordinator

    def expected(self, names: Collection[str]) -> Arrays:
        """The plain sum over these sites."""
        return {
            key: np.sum([self.summands[name][key] for name in sorted(names)], axis=0)
            for key in self.like
        }

    @staticmethod
    def fails(code: str, action: Callable[[], object]) -> None:
        """An action that raises a DerminoError of this code."""
        try:
            action()
        except DerminoError as error:
            if error.code != code:
                raise
            return
        raise AssertionError(f"no {code}")

    def refuses(self, name: str, request: messages.Request) -> str:
        """The code with which a site refuses; the state of its store must not change by it."""
        store = self.stores[name]
        before = dict(store.texts) if isinstance(store, MemoryStore) else None
        try:
            self.answer(name, request)
        except DerminoError as error:
            if before is not None and isinstance(store, MemoryStore) and store.texts != before:
                raise AssertionError("a refused request changed the site's record") from error
            return error.code
        raise AssertionError(f"{name} answered")
