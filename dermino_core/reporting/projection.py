"""t-SNE of features and prototypes (the paper's Extended Data Fig. 5 and 4), kept in one file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically

Floats = npt.NDArray[np.floating]

PERPLEXITY = 30.0
MOST_IMAGES = 2000
"""t-SNE of more takes minutes; evenly spaced ones are taken."""


@dataclass(frozen=True)
class Projection:
    """What `projection.npz` holds; arrays of length 0 where there was nothing to project.

    `cls_xy` [n, 2] and `cls_label` [n], class names as text; `prototype_xy` [C, 2] and
    `prototype_name` [C].
    """

    cls_xy: Floats
    cls_label: npt.NDArray[np.str_]
    prototype_xy: Floats
    prototype_name: npt.NDArray[np.str_]


def project(
    features: Floats,
    labels: npt.NDArray[np.integer] | Sequence[str],
    prototypes: Floats | None,
    names: Sequence[str],
    out: Path,
    *,
    classes: Sequence[str] | None = None,
) -> None:
    """Project features and prototypes to the plane, each by itself, and write `out` (.npz).

    Directions count, not lengths: vectors are L2-normalised, as the cosine of retrieval does.
    The result depends on the arguments alone. Rows that are not finite are left out.

    Parameters
    ----------
    features
        Class tokens [n, D].
    labels
        Class of each, [n]: a name, or an index into `classes`.
    prototypes
        [C, D'], or None.
    names
        Of the prototypes, C of them.
    classes
        Names for integer labels; without it they are called by their numbers.
    """
    said = [str(classes[int(value)] if classes is not None else value) for value in labels]
    rows = np.flatnonzero(np.isfinite(features).all(axis=1))
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_IMAGES)).astype(int)]
    matrix = np.zeros((0, 1)) if prototypes is None else np.asarray(prototypes)
    known = np.flatnonzero(np.isfinite(matrix).all(axis=1))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        cls_xy=to_plane(features[rows]),
        cls_label=np.array([said[row] for row in rows], dtype=np.str_),
        prototype_xy=to_plane(matrix[known]),
        prototype_name=np.array([names[int(row)] for row in known], dtype=np.str_),
    )
    write_atomically(out, buffer.getvalue())


def read_projection(path: Path) -> Projection:
    """Read what :func:`project` wrote.

    Raises
    ------
    DerminoError
        RESULTS_INVALID if the file is damaged or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = Projection(
                arrays["cls_xy"].reshape(-1, 2),
                arrays["cls_label"].astype(np.str_),
                arrays["prototype_xy"].reshape(-1, 2),
                arrays["prototype_name"].astype(np.str_),
            )
        if (len(found.cls_xy), len(found.prototype_xy)) != (
            len(found.cls_label),
            len(found.prototype_name),
        ):
            raise ValueError("lengths differ")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DerminoError(
            "RESULTS_INVALID",
            "The projection of this run cannot be read.",
            where=path,
            fix="Remove the file: the report is then written without its maps.",
        ) from error
    return found


def to_plane(vectors: Floats) -> npt.NDArray[np.float32]:
    """t-SNE (van der Maaten & Hinton 2008) of vectors [n, D] as [n, 2], from their two main axes.

    Fewer than four vectors, or vectors that are all the same, are placed by those axes alone.
    """
    if not len(vectors):
        return np.zeros((0, 2), np.float32)
    x = vectors.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-12)
    start = _main_axes(x)
    if len(x) < 4 or not start.any():
        return start.astype(np.float32)
    from sklearn.manifold import TSNE

    spread = start / start[:, 0].std().clip(min=1e-12) * 1e-4
    tsne = TSNE(
        init=spread.astype(np.float32),
        perplexity=min(PERPLEXITY, (len(x) - 1) / 3),
        random_state=0,
        method="exact" if len(x) <= 100 else "barnes_hut",
        n_jobs=1,
    )
    return np.asarray(tsne.fit_transform(x.astype(np.float32)), dtype=np.float32)


def _main_axes(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Coordinates along the first two principal axes, their signs fixed; noise becomes 0."""
    left, values, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    axes = np.zeros((len(x), 2))
    for place in range(min(2, len(values))):
        if values[place] > 1e-9:
            column = left[:, place] * values[place]
            axes[:, place] = column * np.sign(column[np.abs(column).argmax()])
    return axes
