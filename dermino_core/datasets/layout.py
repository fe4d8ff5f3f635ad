"""What to say when a download does not look as its publisher packs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dermino_core.errors import DerminoError

_SHOWN = 6


def check_root(raw: Path, expected: str, fits: Callable[[Path], bool]) -> None:
    """Make sure that `fits(raw)`; otherwise say what is there and which level was meant.

    Looks at the folder above and two levels below, so that someone who gives the folder around
    the data set, or one inside it, is told the right one.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT`.
    """
    if raw.is_dir() and fits(raw):
        return
    if not raw.is_dir():
        what = "is not a folder" if raw.exists() else "does not exist"
        raise DerminoError(
            "DATASET_LAYOUT",
            f"The folder of the download {what}.",
            where=raw,
            fix=f"Unpack the download and give the folder that holds {expected}.",
        )
    meant = _nearby(raw, fits)
    raise DerminoError(
        "DATASET_LAYOUT",
        f"Expected {expected}; found {found_in(raw)}.",
        where=raw,
        fix=(
            f"You probably meant: {meant}"
            if meant
            else "Give the folder of the unpacked download that holds them."
        ),
    )


def found_in(folder: Path) -> str:
    """A few of the names in a folder, in words."""
    names = sorted(
        entry.name + ("/" if entry.is_dir() else "")
        for entry in folder.iterdir()
        if not entry.name.startswith(".")
    )
    if not names:
        return "an empty folder"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def child(folder: Path, name: str) -> Path | None:
    """The entry called `name`, in any case: archives differ in `Melanoma` and `melanoma`."""
    exact = folder / name
    if exact.exists():
        return exact
    wanted = name.casefold()
    return next((e for e in sorted(folder.iterdir()) if e.name.casefold() == wanted), None)


def _nearby(raw: Path, fits: Callable[[Path], bool]) -> Path | None:
    below = [entry for entry in sorted(raw.iterdir()) if entry.is_dir()][:200]
    deeper = [e for d in below[:20] for e in sorted(d.iterdir())[:200] if e.is_dir()]
    above = raw.resolve().parent
    for folder in (*below, *deeper, above, above.parent):
        try:
            if fits(folder):
                return folder
        except PermissionError:
            continue
    return None
