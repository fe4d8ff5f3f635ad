"""Disease prototypes, which start from a language model: DermINO, equation (5), section 4.1.4.

The logit of a disease is the agreement of an image's class token with the embedding of the
disease's name. The paper's form, CLS W^T, saturates: a normalised-layer CLS of width 768 has length
28, and an embedding of CODER is of the same order. `cosine` normalises both and learns the scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.losses.numerics import float32_island

SCALE = 10.0
"""What the cosine is multiplied by at the start."""

_EPSILON = 1e-6
_AGAIN = "Write the embeddings again: dermino labels embed labels.csv --encoder NAME"


class DiseasePrototypes(nn.Module):
    """Logits of C diseases from class tokens.

    `cosine`: scale * cos(CLS, W_c) + bias, with a learned scale that starts at 10 (kept positive
    by learning its logarithm) and a learned bias that starts at -ln(max(C, 2) - 1), so that an
    unrelated image is given each disease with probability 1 / C, one disease in all. `literal`:
    CLS W^T, equation (5) as printed.

    W holds the embeddings themselves where they are as wide as the class token. Where they are
    not, W = E P^T with a learned P [D, D_text] that starts with orthonormal columns (or rows). If
    D_text < D every inner product between two diseases is kept. If D_text > D the rows of P are
    the leading right singular vectors of E, the best of all projections of that rank, and exact
    for up to D diseases.

    Parameters
    ----------
    n_labels
        C; 0 is allowed, for a run without labels.
    width
        D, of the class token.
    form
        Which logits.
    embeddings
        E, [C, D_text]; None: random directions of length 1.
    trainable
        Whether the prototypes themselves (W or E) learn; projection, scale and bias always do.
    seed
        Of what is random at the start.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if the embeddings are not [C, D_text], not finite, or zero somewhere.

    Example
    -------
    >>> prototypes = DiseasePrototypes(
    ...     7, 384, form="cosine", embeddings=None, trainable=True, seed=0
    ... )
    >>> prototypes(torch.randn(2, 16, 384)).shape
    torch.Size([2, 16, 7])
    """

    def __init__(
        self,
        n_labels: int,
        width: int,
        *,
        form: Literal["cosine", "literal"],
        embeddings: Tensor | None,
        trainable: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self.form = form
        self.width = width
        generator = torch.Generator().manual_seed(seed)
        if embeddings is None:
            start = F.normalize(torch.randn(n_labels, width, generator=generator), dim=-1)
        else:
            start = _checked(embeddings, n_labels)
        self.prototypes = nn.Parameter(start, requires_grad=trainable)
        self.projection: nn.Parameter | None = None
        if start.shape[1] != width:
            self.projection = nn.Parameter(_projection(start, width, generator))
        if form == "cosine":
            self.log_scale = nn.Parameter(torch.tensor([math.log(SCALE)]))
            self.bias = nn.Parameter(torch.tensor([-math.log(max(n_labels, 2) - 1)]))

    def matrix(self) -> Tensor:
        """W, float32 [C, D]: the prototypes in the space of the class token."""
        with float32_island(self.prototypes):
            rows = self.prototypes.float()
            return rows if self.projection is None else rows @ self.projection.float().T

    def forward(self, cls: Tensor) -> Tensor:
        """Logits, float32 [..., C], of class tokens [..., D].

        Raises
        ------
        DerminoError
            `CONFIG_INVALID` if D is not `width`.
        """
        if cls.shape[-1] != self.width:
            raise DerminoError(
                "CONFIG_INVALID",
                f"The prototypes are {self.width} wide, the class token is {cls.shape[-1]}.",
                fix="Build the prototypes for the width of this backbone.",
            )
        with float32_island(cls):
            matrix, tokens = self.matrix(), cls.float()
            if self.form == "literal":
                return tokens @ matrix.T
            unit = F.normalize(tokens, dim=-1, eps=_EPSILON)
            cosine = unit @ F.normalize(matrix, dim=-1, eps=_EPSILON).T
            return self.log_scale.float().exp() * cosine + self.bias.float()


def save_embeddings(
    path: Path, names: Sequence[str], embeddings: NDArray[np.floating], *, encoder: str
) -> None:
    """Write embeddings [C, D_text] of `names` as safetensors, with the names in it. Atomic."""
    from safetensors.numpy import save

    content = np.ascontiguousarray(embeddings, dtype=np.float32)
    metadata = {"names": json.dumps(list(names), ensure_ascii=False), "encoder": encoder}
    write_atomically(path, save({"embeddings": content}, metadata=metadata))


def load_embeddings(path: Path, names: Sequence[str]) -> Tensor:
    """Embeddings of `names`, float32 [C, D_text], in that order.

    Raises
    ------
    DerminoError
        `CONFIG_NOT_FOUND` without the file; `CONFIG_INVALID` if it is damaged, or its names are
        not exactly `names`, in any order.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DerminoError(
            "CONFIG_NOT_FOUND", "There is no such file of embeddings.", where=path, fix=_AGAIN
        )
    try:
        with safe_open(path, framework="pt") as file:
            written = json.loads((file.metadata() or {})["names"])
            embeddings = file.get_tensor("embeddings").float()
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DerminoError(
            "CONFIG_INVALID",
            "The file holds no embeddings of labels, or is damaged.",
            where=path,
            fix=_AGAIN,
        ) from error
    if sorted(written) != sorted(names) or len(embeddings) != len(written):
        lacking = sorted(set(names) - set(written)) or sorted(set(written) - set(names))
        raise DerminoError(
            "CONFIG_INVALID",
            f"The file holds embeddings of {len(written)} names, which are not the {len(names)} "
            f"of the labels; the first that differ: {', '.join(map(repr, lacking[:5])) or 'none'}.",
            where=path,
            fix=_AGAIN,
        )
    place = {name: row for row, name in enumerate(written)}
    return embeddings[[place[name] for name in names]]


def _checked(embeddings: Tensor, n_labels: int) -> Tensor:
    if embeddings.ndim != 2 or len(embeddings) != n_labels:
        raise DerminoError(
            "CONFIG_INVALID",
            f"There are {n_labels} labels, but the embeddings are {list(embeddings.shape)}: one "
            "row for each label is needed.",
            fix=_AGAIN,
        )
    start = embeddings.detach().float().clone()
    lengths = start.norm(dim=1)
    if not bool(torch.isfinite(lengths).all()) or bool((lengths == 0).any()):
        raise DerminoError(
            "CONFIG_INVALID", "An embedding of a label is zero or not finite.", fix=_AGAIN
        )
    return start


def _projection(start: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """P, [D, D_text]: orthonormal columns if it widens, orthonormal rows if it narrows."""
    text_width = start.shape[1]
    if text_width < width:
        random = torch.randn(width, text_width, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(random).Q.float()
    leading = torch.linalg.svd(start.double(), full_matrices=False).Vh[:width]
    # Fewer diseases than dimensions: the rest is random, orthogonal to what they span.
    rest = torch.randn(text_width, width, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(torch.cat([leading.T, rest], dim=1)).Q[:, :width].T.float().contiguous()
