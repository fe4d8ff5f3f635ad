"""A checkpoint after every round: one file, whole or not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dermino_core.errors import CODES, DerminoError
from dermino_core.files import write_atomically
from dermino_core.results import RoundRecord, SitePrivacy, SiteStatistics
from dermino_strategies.base import Arrays

_ABSENT = {"NOT_CONNECTED", "DEADLINE_MISSED"}
_RECORDS = TypeAdapter(list[RoundRecord])
_PRIVACY = TypeAdapter(dict[str, SitePrivacy])


@dataclass
class RunState:
    """What the rounds have produced so far. `statistics` has a file of its own."""

    arrays: Arrays
    round: int = 0
    local_heads: dict[str, Arrays] = field(default_factory=dict)
    records: list[RoundRecord] = field(default_factory=list)
    privacy: dict[str, SitePrivacy] = field(default_factory=dict)
    statistics: SiteStatistics | None = None

    @property
    def away(self) -> set[str]:
        """Sites that failed in the last exchange: not waited for, welcome when they are back.

        One that told no statistics, though it was there, has not failed.
        """
        if not self.records:
            return set()
        last = self.records[-1]
        counts = _ABSENT if last.kind == "statistics" else set(CODES)
        return {r.site for r in last.rejected if r.code in counts}


def write_checkpoint(folder: Path, plan_digest: str, state: RunState) -> Path:
    """Write `checkpoints/round-NNNN.safetensors`."""
    tensors = {f"global/{name}": array for name, array in state.arrays.items()}
    for site, arrays in state.local_heads.items():
        tensors |= {f"local/{site}/{name}": array for name, array in arrays.items()}
    metadata = {
        "plan": plan_digest,
        "round": str(state.round),
        "records": _RECORDS.dump_json(state.records).decode(),
        "privacy": _PRIVACY.dump_json(state.privacy).decode(),
    }
    file = folder / "checkpoints" / f"round-{state.round:04d}.safetensors"
    write_atomically(file, save(tensors, metadata))
    return file


def latest_checkpoint(folder: Path, plan_digest: str) -> RunState | None:
    """The newest checkpoint of a run, or None.

    Raises
    ------
    DerminoError
        `CHECKPOINT_INVALID` if it is damaged or belongs to another plan.
    """
    files = sorted((folder / "checkpoints").glob("round-*.safetensors"))
    if not files:
        return None
    file = files[-1]
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        state = RunState(
            arrays={},
            round=int(metadata["round"]),
            records=_RECORDS.validate_json(metadata["records"]),
            privacy=_PRIVACY.validate_json(metadata["privacy"]),
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, ValidationError) as error:
        raise DerminoError(
            "CHECKPOINT_INVALID",
            f"The newest checkpoint is damaged: {error}.",
            where=file,
            fix="Move it away; the run then continues from the round before.",
        ) from error
    if metadata["plan"] != plan_digest:
        raise DerminoError(
            "CHECKPOINT_INVALID",
            "The checkpoint belongs to a run with another configuration.",
            where=file,
            fix="Use the run folder as it was, or start a new run.",
        )
    for name, array in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "global":
            state.arrays[rest] = array
        else:
            site, _, array_name = rest.rpartition("/")
            state.local_heads.setdefault(site, {})[array_name] = array
    return state
