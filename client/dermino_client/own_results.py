"""What a run gave this hospital, kept for the hospital: the whole evaluation, in every mode.

In a private or secure run part of it, or all of it, does not leave the building; here it is.
"""

from __future__ import annotations

from pathlib import Path

from dermino_client.hospital import Hospital
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_strategies.protocol import EvaluateReply, Task


def keep_evaluation(hospital: Hospital, task: Task, reply: EvaluateReply) -> Path:
    """Write `results/RUN.json` in the site's folder.

    Raises
    ------
    DerminoError
        `JOURNAL_UNWRITABLE` if it cannot be written.
    """
    file = hospital.folder / "results" / f"{task.run_id}.json"
    try:
        write_atomically(file, reply.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise DerminoError(
            "JOURNAL_UNWRITABLE",
            f"This site's own results cannot be written: {error.strerror}.",
            where=file,
            fix="Nothing was sent. Check the disk and who owns the folder.",
        ) from error
    return file
