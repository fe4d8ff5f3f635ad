"""Who was followed for how long, and what happened: the data of a survival analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dermino_core.errors import DerminoError
from dermino_core.evaluation.columns import (
    bad_row,
    cell,
    manifest_columns,
    number,
    read_columns,
    yes_or_no,
)
from dermino_core.manifest import Record, read_manifest


@dataclass(frozen=True)
class FollowUp:
    """Images of people who were followed.

    Attributes
    ----------
    features
        [n, D].
    time
        From the image to the event, or to when it was last known not to have happened, [n], in
        any unit, 0 or more.
    event
        Whether it happened, bool [n].
    units
        Patient or lesion of each image.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` for a time that is negative or not finite.
    ValueError
        If lengths differ, features are not finite, or `event` is not bool.
    """

    features: npt.NDArray[np.floating]
    time: npt.NDArray[np.float64]
    event: npt.NDArray[np.bool_]
    units: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = len(self.features), len(self.time), len(self.event), len(self.units)
        if len(set(lengths)) > 1:
            raise ValueError("{} features, {} times, {} events, {} units".format(*lengths))
        if self.event.dtype != np.bool_:
            raise ValueError(f"event must be bool, not {self.event.dtype}")
        if not np.isfinite(self.features).all():
            raise ValueError("features hold NaN or infinite values")
        wrong = np.flatnonzero(~(np.isfinite(self.time) & (self.time >= 0)))
        if len(wrong):
            raise DerminoError(
                "MANIFEST_INVALID",
                f"The follow-up of {self.units[wrong[0]]!r} lasts {self.time[wrong[0]]:g}: a time "
                "must be 0 or more.",
            )

    def __len__(self) -> int:
        return len(self.time)

    def cases(self) -> FollowUp:
        """One row for each unit and outcome: its images' features averaged, in order.

        Several images of one course of disease are one observation, not several.
        """
        keys = list(zip(self.units, self.time.tolist(), self.event.tolist(), strict=True))
        place = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        rows = np.array([place[key] for key in keys], dtype=np.int64)
        total = np.zeros((len(place), self.features.shape[1]))
        np.add.at(total, rows, self.features)
        return FollowUp(
            total / np.bincount(rows, minlength=len(place))[:, None],
            np.array([time for _, time, _ in place], dtype=np.float64),
            np.array([event for _, _, event in place], dtype=np.bool_),
            tuple(unit for unit, _, _ in place),
        )


def read_follow_up(
    file: Path, *, root: Path | None = None, columns: Mapping[str, str] | None = None
) -> tuple[list[Record], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Read a manifest with the columns `time` (a number) and `event` (yes or no).

    Returns
    -------
    Its records, and time and event of each.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` with the row's number for a time that is empty, negative or no number
        and an event that is neither yes nor no; and as for
        :func:`dermino_core.manifest.read_manifest`.
    """
    records = read_manifest(file, root=root, columns=manifest_columns(columns)).records
    _, rows = read_columns(file, required=("image", "time", "event"), columns=columns)
    times, events = [], []
    for row in rows:
        cell(row, "time", file)
        cell(row, "event", file)
        time = number(row, "time", file)
        if time is None or time < 0:
            raise bad_row(row, f"time is {time:g}, below 0", file)
        times.append(time)
        events.append(bool(yes_or_no(row, "event", file)))
    return records, np.array(times), np.array(events, dtype=np.bool_)
