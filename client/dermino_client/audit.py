"""What came to this site, what it answered and what left the building: one line per message.

The log holds sizes, shapes and SHA-256 digests of what was sent, never the content, and no name,
path or label of an image: a hospital may show all of it to its data protection officer. With the
digests it can prove later which arrays left and which did not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dermino_client.journal import Entry, Journal, Verified
from dermino_core.errors import CODES, DerminoError

ALLOWED = "allowed"
"""The decision about a message that was not refused."""

_LONGEST_NAME = 200
_LONGEST_NOTE = 2000


class ArrayDigest(BaseModel):
    """What is known of an array that travelled: enough to recognise it, not to rebuild it."""

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    dtype: str
    shape: tuple[int, ...]
    bytes: int = Field(ge=0)


class AuditRecord(BaseModel):
    """One line of the audit log.

    `bytes` is the size of the whole message; `decision` is `allowed` or the code of a refusal;
    `epsilon` is what this message cost the site's privacy budget, None without that protection.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    time: datetime
    direction: Literal["in", "out", "note"]
    kind: str = Field(max_length=_LONGEST_NAME)
    run: str | None = Field(default=None, max_length=_LONGEST_NAME)
    round: int | None = None
    bytes: int = Field(default=0, ge=0)
    digests: dict[str, ArrayDigest] = {}
    decision: str = ALLOWED
    epsilon: float | None = Field(default=None, ge=0)
    note: str = Field(default="", max_length=_LONGEST_NOTE)


def digest_of(data: bytes, dtype: str, shape: Sequence[int]) -> ArrayDigest:
    """The digest of an array's bytes, row by row, as `array.tobytes()` gives them.

    `dtype` and `shape` are what the message says they are.
    """
    return ArrayDigest(
        sha256=hashlib.sha256(data).hexdigest(), dtype=dtype, shape=tuple(shape), bytes=len(data)
    )


class AuditLog:
    """The audit log of a site, in a folder of its own; many processes may write at once.

    Every method that writes returns when the line is on the disk, and raises `JOURNAL_UNWRITABLE`
    or `AUDIT_INVALID` when it cannot be. So a reply is sent after :meth:`sent` returned, not
    before. Texts from the other side are cut where they are too long, so that no message is too
    odd to be recorded.
    """

    def __init__(self, folder: Path, *, rotate_bytes: int = 8 * 2**20) -> None:
        self._journal = Journal(folder, rotate_bytes=rotate_bytes, invalid="AUDIT_INVALID")

    @property
    def folder(self) -> Path:
        """Where the log is."""
        return self._journal.folder

    def received(
        self,
        kind: str,
        *,
        run: str | None = None,
        round_: int | None = None,
        size: int = 0,
        digests: Mapping[str, ArrayDigest] | None = None,
        decision: str = ALLOWED,
        note: str = "",
    ) -> Entry:
        """A message of `size` bytes came in; `decision` says whether it is answered."""
        return self._write(
            "in", kind, run, round_, note, decision=decision, size=size, digests=digests
        )

    def sent(
        self,
        kind: str,
        *,
        run: str | None = None,
        round_: int | None = None,
        size: int = 0,
        digests: Mapping[str, ArrayDigest] | None = None,
        decision: str = ALLOWED,
        epsilon: float | None = None,
        note: str = "",
    ) -> Entry:
        """A message of `size` bytes is about to leave; a refusal leaves with its code."""
        return self._write(
            "out",
            kind,
            run,
            round_,
            note,
            decision=decision,
            size=size,
            digests=digests,
            epsilon=epsilon,
        )

    def noted(
        self,
        note: str,
        *,
        kind: str = "note",
        run: str | None = None,
        round_: int | None = None,
        decision: str = ALLOWED,
    ) -> Entry:
        """Something else that belongs into the log: a start, a change of the policy, an enrolment.

        `note` must name no image, path or label.
        """
        return self._write("note", kind, run, round_, note, decision=decision)

    def records(self) -> Iterator[tuple[Entry, AuditRecord]]:
        """All lines, the oldest first, each checked against the one before.

        Raises
        ------
        DerminoError
            `AUDIT_INVALID`.
        """
        for entry in self._journal.entries():
            try:
                yield entry, AuditRecord.model_validate(entry.record)
            except ValidationError as error:
                raise DerminoError(
                    "AUDIT_INVALID",
                    f"Entry {entry.seq} is not a line of an audit log: {error.errors()[0]['msg']}.",
                    where=self.folder,
                    fix="If a newer dermino wrote it, read it with that version.",
                ) from None

    def verify(self) -> Verified:
        """Check every line. Raises `AUDIT_INVALID`, naming file and line."""
        return self._journal.verify()

    def _write(
        self,
        direction: Literal["in", "out", "note"],
        kind: str,
        run: str | None,
        round_: int | None,
        note: str,
        *,
        decision: str,
        size: int = 0,
        digests: Mapping[str, ArrayDigest] | None = None,
        epsilon: float | None = None,
    ) -> Entry:
        if decision != ALLOWED and decision not in CODES:
            raise ValueError(f"{decision!r} is neither {ALLOWED!r} nor the code of a refusal")
        record = AuditRecord(
            time=datetime.now(UTC),
            direction=direction,
            kind=_cut(kind, _LONGEST_NAME),
            run=None if run is None else _cut(run, _LONGEST_NAME),
            round=round_,
            bytes=size,
            digests={_cut(name, _LONGEST_NAME): d for name, d in (digests or {}).items()},
            decision=decision,
            epsilon=epsilon,
            note=_cut(note, _LONGEST_NOTE),
        )
        return self._journal.append(record.model_dump(mode="json"))


def _cut(text: str, longest: int) -> str:
    """`text` as it can be written to a file, and no longer than `longest` characters."""
    clean = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"
