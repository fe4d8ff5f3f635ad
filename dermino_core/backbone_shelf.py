"""Which backbones are on this machine: the hub's cache, and a shelf for files brought by hand.

The shelf is a folder. On it, under the name that its release gives it, a weights file is found by
its backbone's name (`panderm`); and a backbone folder is found by its own name, so that what
`dermino pretrain` exported is `--backbone NAME` everywhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from dermino_core.backbone_catalogue import CatalogueEntry
from dermino_core.errors import DerminoError


def backbone_shelf() -> Path:
    """`$DERMINO_BACKBONES`, else `dermino/backbones` in `$XDG_DATA_HOME` or `~/.local/share`."""
    if configured := os.environ.get("DERMINO_BACKBONES"):
        return Path(configured).absolute()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "dermino" / "backbones"


def folders_on_shelf() -> dict[str, Path]:
    """The backbone folders on the shelf by name: those that hold a model.json."""
    try:
        found = sorted(path.parent for path in backbone_shelf().glob("*/model.json"))
    except OSError:
        return {}
    return {folder.name: folder for folder in found}


def file_on_shelf(entry: CatalogueEntry) -> Path | None:
    """The weights file of a backbone that is brought by hand, if it is on the shelf."""
    file = backbone_shelf() / entry.file
    return file if entry.hub is None and file.is_file() else None


def weights_here(entry: CatalogueEntry) -> Path | None:
    """The weights of a backbone on this machine, None if they are not. Asks no network."""
    if entry.hub is None:
        return file_on_shelf(entry) or folders_on_shelf().get(entry.name)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(entry.hub, entry.file)
    return Path(found) if isinstance(found, str) else None


def not_here(entry: CatalogueEntry) -> DerminoError:
    """The error for weights that have to be brought: where they are, under which licence, how."""
    shelf = backbone_shelf()
    if entry.own:
        return DerminoError(
            "BACKBONE_UNAVAILABLE",
            f"There is no {entry.title} on this machine, and the paper names no place for its own.",
            where=entry.name,
            fix="`dermino pretrain` makes one: say --backbone RUN/model, or copy that folder to "
            f"{shelf / entry.name}. For a checkpoint: --backbone {entry.name}@/path/to/FILE",
        )
    return DerminoError(
        "BACKBONE_UNAVAILABLE",
        f"The weights of {entry.title} are not on this machine.",
        where=entry.name,
        fix=f"Get {entry.file} from {entry.where}; licence: {entry.licence}. Then say --backbone "
        f"{entry.name}@/path/to/{entry.file}, or put the file into {shelf}",
    )
