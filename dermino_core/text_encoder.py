"""A language model turns names of diseases into vectors: CODER or any other.

Needs the extra `text` (transformers). Weights are read by transformers as safetensors or as plain
tensors; code that comes with a model is never run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dermino_core.errors import DerminoError
from dermino_core.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

CODER = "GanjinZero/UMLSBert_ENG"
"""The paper's medical language model (section 4.1.4): a BERT, 768 wide."""

LONGEST = 128
"""Tokens of a name; the rest is cut off."""

_BRING = (
    "Bring a folder with config.json, the tokenizer's files and the weights, such as "
    "`hf download {name} --local-dir FOLDER` writes on a machine with a connection, and give it: "
    "--encoder FOLDER."
)
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True)
class TextEncoder:
    """A loaded encoder.

    `name`: as it was asked for. `width`: D, of its vectors. `pooling`: `cls` (the first token, as
    CODER was trained), `mean` or `max` (over the tokens of the name), as a sentence encoder's own
    files say. `unit`: whether its vectors have length 1.
    """

    name: str
    width: int
    pooling: str
    unit: bool
    model: Any
    tokenizer: Any

    def embed(self, names: Sequence[str], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Vectors of `names`, float32 [n, D], in their order.

        Names are embedded in batches of similar length, with padding masked, so that a vector
        depends on its name alone, up to rounding.
        """
        import torch

        out = np.zeros((len(names), self.width), dtype=np.float32)
        order = sorted(range(len(names)), key=lambda index: (len(names[index]), names[index]))
        with torch.inference_mode(), progress_bar("names", len(names), "names") as bar:
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                inputs = self.tokenizer(
                    [names[index] for index in chosen],
                    padding=True,
                    truncation=True,
                    max_length=LONGEST,
                    return_tensors="pt",
                )
                hidden = self.model(**inputs).last_hidden_state.float()
                pooled = _pool(hidden, inputs["attention_mask"], self.pooling)
                if self.unit:
                    pooled = torch.nn.functional.normalize(pooled, dim=1)
                out[chosen] = pooled.numpy()
                bar.advance(len(chosen))
        return out


def load_text_encoder(name: str = CODER) -> TextEncoder:
    """Load an encoder by its name on the Hugging Face hub, or from a folder.

    A folder or repository with the files of sentence-transformers (`modules.json`) is pooled as
    these say; any other by its first token, as CODER.

    Parameters
    ----------
    name
        A folder, or OWNER/NAME; the latter from the local cache or over the network.

    Raises
    ------
    DerminoError
        `DEPENDENCY_MISSING` without transformers; `BACKBONE_UNAVAILABLE` if the encoder is not
        there, is damaged, or is of a kind that is not understood here (GPT, CLIP).
    """
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise DerminoError(
            "DEPENDENCY_MISSING",
            "A text encoder needs the package transformers.",
            fix="Install it: pip install 'dermino[text]'",
        ) from error
    folder = Path(name).expanduser()
    place = str(folder) if folder.is_dir() else name
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise _unavailable(name, "The text encoder's folder holds no config.json.")
    if not folder.is_dir() and not _HUB_NAME.fullmatch(name):
        raise _unavailable(name, "There is no such folder of a text encoder.")
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        model = AutoModel.from_pretrained(place, trust_remote_code=False, dtype="float32")
    except Exception as error:
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise _unavailable(name, f"The text encoder cannot be loaded: {said[:200]}") from error
    width = getattr(model.config, "hidden_size", None)
    if not isinstance(width, int):
        raise _of_another_kind(name, "The model's config.json gives no hidden_size")
    if tokenizer.pad_token is None:
        raise _of_another_kind(name, "The model's tokenizer has no token for padding")
    pooling, unit = _pooling(place, name)
    return TextEncoder(name, width, pooling, unit, model.eval(), tokenizer)


def _unavailable(name: str, what: str) -> DerminoError:
    fix = _BRING.format(name=name if _HUB_NAME.fullmatch(name) else CODER)
    return DerminoError("BACKBONE_UNAVAILABLE", what, where=name, fix=fix)


def _of_another_kind(name: str, what: str) -> DerminoError:
    return DerminoError(
        "BACKBONE_UNAVAILABLE",
        f"{what}, so it is no text encoder of the kind of BERT.",
        where=name,
        fix=f"Give a BERT, such as {CODER}, or a sentence encoder.",
    )


def _pooling(place: str, name: str) -> tuple[str, bool]:
    """How tokens become one vector, and whether it is normalised."""
    try:
        modules = _read_json(place, "modules.json")
        if modules is None:
            return "cls", False
        kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
        settings = _read_json(place, f"{kinds['Pooling']}/config.json") or {}
        active = [mode for key, mode in _MODES.items() if settings.get(key)]
        chosen = settings.get("pooling_mode") or active
        modes = [chosen] if isinstance(chosen, str) else list(chosen)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _unavailable(name, "modules.json of the text encoder names no pooling.") from error
    others = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if len(modes) != 1 or modes[0] not in _MODES.values() or others:
        found = ", ".join([*others, *modes]) or "no pooling"
        raise _unavailable(name, f"The text encoder pools in a way not known here: {found}.")
    return modes[0], "Normalize" in kinds


def _read_json(place: str, file: str) -> Any:
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(place, file)
    except OSError:
        return None
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def _pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """[n, L, D] and [n, L] -> [n, D]."""
    if pooling == "cls":
        return hidden[:, 0]
    kept = mask.unsqueeze(-1).bool()
    if pooling == "max":
        return hidden.masked_fill(~kept, float("-inf")).amax(dim=1)
    return hidden.masked_fill(~kept, 0.0).sum(dim=1) / kept.sum(dim=1)
