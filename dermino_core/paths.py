"""Where dermino keeps things on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """`$DERMINO_CACHE`, else `$XDG_CACHE_HOME/dermino`, else `~/.cache/dermino`."""
    if configured := os.environ.get("DERMINO_CACHE"):
        return Path(configured).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dermino"
