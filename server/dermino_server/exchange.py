"""One exchange with the hospitals: find them, send, wait no longer than the deadline.

Sites are known by the name they were registered under (`grid.get_nodes()`), never by what a
client says of itself. Replies are matched by the message they answer, because an error reply made
by the SuperLink on behalf of a vanished node carries the SuperLink's own node id.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from dermino_core.errors import CODES, DerminoError
from dermino_core.polling import pause
from dermino_core.results import Rejection
from dermino_server.checkpoint import RunState
from dermino_server.plan import RunPlan
from dermino_strategies.protocol import (
    NameRequest,
    SiteName,
    pack,
    refusal_in,
    size_in_bytes,
    unpack,
)

log = logging.getLogger("dermino.server")

POLL_SECONDS = 0.2
"""While sites connect."""

LONGEST_PAUSE = 2.0
"""Between two looks for replies."""


T = TypeVar("T")


@dataclass
class Outcome(Generic[T]):
    """What could be read of the sites' replies, and who gave no usable one and why."""

    replies: dict[str, T] = field(default_factory=dict)
    rejected: list[Rejection] = field(default_factory=list)
    bytes_from_site: dict[str, int] = field(default_factory=dict)

    def reject(self, site: str, code: str, sentence: str | None = None) -> None:
        """Count a site out of this exchange, with a sentence that names what was wrong."""
        sentence = sentence or CODES[code].safe_sentence
        log.warning("site %s does not count in this round: %s: %s", site, code, sentence)
        self.replies.pop(site, None)
        self.rejected.append(Rejection(site=site, code=code, sentence=sentence))


class SiteFinder:
    """Which node is which site, and who is connected."""

    def __init__(self, grid: Grid, *, ask_names: bool = False) -> None:
        self.grid = grid
        self.ask_names = ask_names
        self._asked: dict[int, str] = {}

    def connected(self) -> dict[str, int]:
        """Site name -> node id of every connected node."""
        if self.ask_names:
            return self._ask()
        here: dict[str, int] = {}
        for node in self.grid.get_nodes():
            name = node.name or f"node-{node.node_id}"
            if name in here:
                raise DerminoError(
                    "CONFIG_INVALID",
                    f"Two connected nodes are registered as '{name}'.",
                    fix="Unregister one of them: flwr supernode list, flwr supernode unregister.",
                )
            here[name] = node.node_id
        return here

    def _ask(self) -> dict[str, int]:
        """Simulation engines do not name their nodes: each is asked once."""
        new = [node for node in self.grid.get_node_ids() if node not in self._asked]
        if new:
            messages = [Message(pack(NameRequest()), node, "query") for node in new]
            for reply in self.grid.send_and_receive(messages, timeout=60):
                if not reply.has_error():
                    name = unpack(reply.content, SiteName).name
                    self._asked[reply.metadata.src_node_id] = name
        return {name: node for node, name in self._asked.items()}

    def wait_for(
        self, expected: Iterable[str], *, quorum: int, seconds: float, away: Iterable[str] = ()
    ) -> tuple[dict[str, int], list[str]]:
        """Wait until the expected sites are connected, at most `seconds`.

        A site that is `away`, because it failed before, is welcome but not waited for once the
        quorum is there. Returns the nodes to use and the names of those missing.

        Raises
        ------
        DerminoError
            `QUORUM_LOST` naming the missing sites when fewer than `quorum` are connected.
        """
        wanted, given_up = sorted(expected), set(away)
        end = time.monotonic() + seconds
        while True:
            here = self.connected()
            nodes = {name: here[name] for name in wanted if name in here}
            missing = [name for name in wanted if name not in here]
            complete = len(nodes) >= quorum and given_up.issuperset(missing)
            if complete or time.monotonic() >= end:
                break
            time.sleep(POLL_SECONDS)
        if len(nodes) < quorum:
            raise DerminoError(
                "QUORUM_LOST",
                f"{len(nodes)} of at least {quorum} sites connected within {seconds:g} s; "
                f"missing: {', '.join(missing)}.",
                fix="Ask the missing sites to start `dermino-client --site NAME` and look at "
                "their log, then continue with --resume; or start again with a lower --min-sites.",
            )
        return nodes, missing


def find_sites(
    finder: SiteFinder, plan: RunPlan, state: RunState
) -> tuple[dict[str, int], list[str]]:
    """The sites of a plan that are connected, and those that are not; see `wait_for`.

    Sites that an earlier run left the sums of are welcome, and not waited for.
    """
    away = state.away.union(plan.earlier_sites)
    return finder.wait_for(plan.sites, quorum=plan.min_sites, seconds=plan.wait_seconds, away=away)


class Exchange(Generic[T]):
    """One message to each site, sent at once, and the replies, read as they come.

    No reply is trusted: what `read` cannot make sense of (it raises) is rejected by name. Only
    what `read` returns is kept, so that memory does not grow with what the sites send.

    It is over when nobody is silent any more or the deadline has passed; early when the quorum is
    out of reach, and when only sites that are `away` (they failed before) are still silent although
    the quorum has answered.
    """

    def __init__(
        self,
        grid: Grid,
        kind: str,
        contents: Mapping[str, RecordDict],
        nodes: Mapping[str, int],
        *,
        read: Callable[[str, RecordDict], T],
        deadline: float,
        quorum: int,
        group: str,
        away: Iterable[str] = (),
    ) -> None:
        self.outcome: Outcome[T] = Outcome()
        self.seconds = 0.0
        """From sending until it was over."""
        self._grid, self._read = grid, read
        self._deadline, self._quorum, self._away = deadline, quorum, set(away)
        self._start = time.monotonic()
        self._waiting: dict[str, str] = {}
        self._over = False
        for site in sorted(contents):
            message = Message(contents[site], nodes[site], kind, ttl=deadline + 60, group_id=group)
            pushed = [message_id for message_id in grid.push_messages([message]) if message_id]
            self._waiting |= dict.fromkeys(pushed, site)
            if not pushed:
                self.outcome.reject(site, "NOT_CONNECTED")

    def wait(self, *beside: Exchange) -> Outcome[T]:
        """Until it is over. Replies to exchanges that were sent before it are taken meanwhile."""
        while True:
            for other in beside:
                other.look()
            if self.look():
                return self.outcome
            time.sleep(pause(time.monotonic() - self._start, LONGEST_PAUSE))

    def look(self) -> bool:
        """Take what has come; whether it is over."""
        if self._over:
            return True
        if self._waiting:
            for reply in self._grid.pull_messages(list(self._waiting)):
                site = self._waiting.pop(reply.metadata.reply_to_message_id, None)
                if site is not None:
                    _file(self.outcome, site, reply, self._read)
        waited = time.monotonic() - self._start
        replied, silent = len(self.outcome.replies), set(self._waiting.values())
        hopeless = replied + len(silent) < self._quorum
        enough = replied >= self._quorum and silent <= self._away
        if silent and not (hopeless or enough or waited >= self._deadline):
            return False
        self._over, self.seconds = True, waited
        for site in self._waiting.values():
            words = f"No reply within {min(self._deadline, waited):.3g} s."
            self.outcome.reject(site, "DEADLINE_MISSED", words)
        return True


def _file(
    outcome: Outcome[T], site: str, reply: Message, read: Callable[[str, RecordDict], T]
) -> None:
    if reply.has_error():
        log.debug("site %s: Flower error %s", site, reply.error)
        outcome.reject(site, "NOT_CONNECTED", "The site was lost before it could reply.")
        return
    outcome.bytes_from_site[site] = size_in_bytes(reply.content)
    try:
        refusal = refusal_in(reply.content)
        if refusal is not None:
            outcome.reject(site, refusal.code, refusal.sentence)
        else:
            outcome.replies[site] = read(site, reply.content)
        return
    except (DerminoError, ValueError) as error:
        what = error.what if isinstance(error, DerminoError) else str(error)
    except Exception as error:
        log.exception("reading the reply of %s", site)
        what = f"reading it failed ({type(error).__name__})"
    outcome.reject(site, "REPLY_INVALID", f"Its reply is not usable: {what.rstrip('.')}.")


def require_quorum(outcome: Outcome[T], quorum: int, what: str) -> None:
    """Raise `QUORUM_LOST`, naming who is missing and why, if too few replies are left."""
    if len(outcome.replies) >= quorum:
        return
    reasons = "\n".join(f"  {r.site}: {r.sentence} ({r.code})" for r in outcome.rejected)
    raise DerminoError(
        "QUORUM_LOST",
        f"{what}: {len(outcome.replies)} usable replies, at least {quorum} are needed.\n{reasons}",
        fix="Mend what the sites' own logs report, then continue with --resume; or start "
        "again with a lower --min-sites.",
    )
