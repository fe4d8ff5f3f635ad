"""Errors that a person can act on.

Every failure that dermino expects is a :class:`DerminoError`: what happened, where, and what to
do. Its `code` is one of :data:`CODES`, which fixes the exit code of a command and the sentence
that may cross the network. The other fields may hold paths and file names and never leave the
machine they were raised on.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CodeInfo:
    """What a code means outside the process that raised it."""

    exit_code: int
    safe_sentence: str


EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "unexpected error: please report it, with the output of --debug",
    2: "wrong command line",
    3: "a configuration file or option is not valid",
    4: "a problem with images, labels or a data set",
    5: "a problem with the backbone, its weights or the device",
    6: "no connection, or not allowed to connect",
    7: "the federation could not finish: sites missing or their replies not usable",
    8: "a file that dermino wrote is damaged or belongs to something else",
    9: "refused by a site's policy, its privacy budget or secure aggregation",
    130: "interrupted",
}
"""Exit codes of `dermino` and `dermino-client`."""

CODES: dict[str, CodeInfo] = {
    "INTERNAL": CodeInfo(1, "An unexpected error happened at the site; its own log has details."),
    "CONFIG_INVALID": CodeInfo(3, "The site's configuration is not valid."),
    "CONFIG_NOT_FOUND": CodeInfo(3, "The site's configuration was not found."),
    "OUTPUT_EXISTS": CodeInfo(3, "The output folder is already in use."),
    "DEPENDENCY_MISSING": CodeInfo(3, "A software package is missing."),
    "LABEL_UNMAPPED": CodeInfo(3, "The site has labels not mapped onto the classes of the task."),
    "CACHE_UNWRITABLE": CodeInfo(3, "The site's feature cache cannot be written."),
    "MANIFEST_INVALID": CodeInfo(4, "The site's table of images is not valid."),
    "DATA_CHANGED": CodeInfo(4, "The site's images vanished or changed since it was prepared."),
    "DATA_TOO_FEW": CodeInfo(4, "The site has too few usable images for this task."),
    "IMAGE_UNREADABLE": CodeInfo(4, "More images are unreadable than the site allows."),
    "DATASET_LAYOUT": CodeInfo(4, "The data set does not have the expected layout."),
    "DOWNLOAD_FAILED": CodeInfo(4, "Some files could not be downloaded."),
    "BACKBONE_UNAVAILABLE": CodeInfo(5, "The backbone's weights are not on the site's machine."),
    "BACKBONE_MISMATCH": CodeInfo(5, "The site's backbone is not the one this run asks for."),
    "DEVICE_UNAVAILABLE": CodeInfo(5, "The requested device or precision is not available."),
    "CONNECTION_FAILED": CodeInfo(6, "The other side could not be reached."),
    "TLS_INVALID": CodeInfo(6, "A certificate or key is missing or not valid."),
    "QUORUM_LOST": CodeInfo(7, "Too few sites gave a usable reply."),
    "RUN_FAILED": CodeInfo(7, "The run failed."),
    "DEADLINE_MISSED": CodeInfo(7, "No reply came before the deadline of the round."),
    "NOT_CONNECTED": CodeInfo(7, "The site was not connected."),
    "REPLY_INVALID": CodeInfo(7, "The site's reply was not usable."),
    "REQUEST_INVALID": CodeInfo(7, "The request from the coordinator is not valid."),
    "REQUEST_MISMATCH": CodeInfo(7, "The request does not fit the site's task or classes."),
    "CHECKPOINT_INVALID": CodeInfo(8, "A checkpoint is damaged or belongs to another run."),
    "CACHE_CORRUPT": CodeInfo(8, "The site's feature cache is damaged."),
    "MODEL_INVALID": CodeInfo(8, "A model folder is damaged or incomplete."),
    "RESULTS_INVALID": CodeInfo(8, "A results file is damaged or of another version."),
    "AUDIT_INVALID": CodeInfo(8, "The site's audit log is damaged or was changed."),
    "LEDGER_INVALID": CodeInfo(8, "The site's privacy ledger is damaged."),
    "ENROLMENT_INVALID": CodeInfo(8, "An enrolment file is damaged or of another federation."),
    "RECEIPT_INVALID": CodeInfo(8, "A receipt was changed, or is not the coordinator's."),
    "JOURNAL_UNWRITABLE": CodeInfo(9, "The site cannot write its audit log or privacy ledger."),
    "POLICY_REFUSED": CodeInfo(9, "The site's policy does not allow this request."),
    "OUTSIDE_HOURS": CodeInfo(9, "The site answers at other hours only."),
    "APP_REFUSED": CodeInfo(9, "The site does not run this app bundle."),
    "BUDGET_EXCEEDED": CodeInfo(9, "The request would exceed the site's privacy budget."),
    "MEMBER_UNKNOWN": CodeInfo(9, "A participant's identity is not one that the site trusts."),
    "SECURE_REFUSED": CodeInfo(9, "The secure aggregation's messages are not consistent."),
    "SECURE_ABORTED": CodeInfo(9, "Too few sites are left for secure aggregation."),
}
"""Every code, its exit code, and the only sentence about it that may leave the building."""


class DerminoError(Exception):
    """An expected failure, in the words of the person who has to act on it.

    Parameters
    ----------
    code
        One of :data:`CODES`.
    what
        What happened, one sentence. May name files; stays on this machine.
    where
        File, key, row or address it happened at.
    fix
        What to do about it.

    Raises
    ------
    KeyError
        If `code` is not in :data:`CODES`.
    """

    def __init__(
        self, code: str, what: str, *, where: object | None = None, fix: str | None = None
    ) -> None:
        info = CODES[code]
        self.code = code
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        self.exit_code = info.exit_code
        self.safe_sentence = info.safe_sentence
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f" [{self.where}]" if self.where else ""
        advice = f"\n  To do: {self.fix}" if self.fix else ""
        return f"{self.what}{place}{advice}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.code, self.what, self.where, self.fix))


def _rebuild(code: str, what: str, where: str | None, fix: str | None) -> DerminoError:
    return DerminoError(code, what, where=where, fix=fix)
