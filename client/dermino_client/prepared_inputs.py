"""What a preparation was made from, so that what changed since is noticed before it is used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dermino_client.site import Site


def inputs_digest(site: Site) -> str:
    """SHA-256 of the site file and the manifest.

    Raises
    ------
    OSError
        If one of them cannot be read.
    """
    digest = hashlib.sha256(site.file.read_bytes())
    digest.update(site.manifest.read_bytes())
    return digest.hexdigest()


def sizes_and_times(paths: Sequence[Path]) -> npt.NDArray[np.int64]:
    """Size and modification time of each file, shape [n, 2]; -1 where it is missing."""
    result = np.full((len(paths), 2), -1, dtype=np.int64)
    for i, path in enumerate(paths):
        try:
            info = os.stat(path)
        except OSError:
            continue
        result[i] = info.st_size, info.st_mtime_ns
    return result


def how_to_prepare(site: Site) -> str:
    """What to do where a preparation is missing or no longer fits."""
    return f"Run `dermino-client check --site {site.name}`, then start the client again."
