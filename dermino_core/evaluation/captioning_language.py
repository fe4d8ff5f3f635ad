"""A causal language model: loaded from a folder or the hub, frozen, and recognised again."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dermino_core.errors import DerminoError
from dermino_core.evaluation.caption_scores import require_packages
from dermino_core.precision import resolve_device, resolve_precision

logger = logging.getLogger(__name__)

BIOMISTRAL = "BioMistral/BioMistral-7B"
"""The paper's language model (section 4.2.2)."""

PACKAGES = ("transformers", "peft")
"""What the model imports."""

Weights = Literal["auto", "fp32", "bf16", "4bit"]
"""How the frozen weights are held. `auto`: bf16 on a GPU, fp32 elsewhere. `4bit`: NF4 by
bitsandbytes, on a GPU only; a model of 7 billion weights then takes 5 GB instead of 15."""

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_BRING = (
    "Bring a folder with config.json, the tokenizer's files and the weights, such as "
    "`hf download {name} --local-dir FOLDER` writes on a machine with a connection, and give it: "
    "--language-model FOLDER."
)


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model. It serves one captioner: the adapter is put into it.

    Attributes
    ----------
    name
        As it was asked for.
    model, tokenizer
        Of transformers. No weight has a gradient.
    width
        E, of its word embeddings.
    context
        Most tokens it reads, or None where it does not say.
    weights
        `fp32`, `bf16` or `4bit`.
    device
        `cpu` or a CUDA device.
    fingerprint
        Sha256 (hex) of its vocabulary and, in bf16, of its word embeddings, norms and biases: the
        same in every precision, and another for another model, also for one of the same shape.
    """

    name: str
    model: Any
    tokenizer: Any
    width: int
    context: int | None
    weights: str
    device: str
    fingerprint: str


def load_language_model(
    name: str = BIOMISTRAL, *, weights: Weights = "auto", device: str = "auto"
) -> LanguageModel:
    """Load any causal language model that transformers knows. Code that comes with it never runs.

    Parameters
    ----------
    name
        A folder, or OWNER/NAME; the latter from the local cache or over the network.

    Raises
    ------
    DerminoError
        `DEPENDENCY_MISSING`; `BACKBONE_UNAVAILABLE` if the model is not there, is damaged, or does
        not generate text; `DEVICE_UNAVAILABLE` for a device or a precision this machine lacks.
    """
    require_packages(PACKAGES)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging as transformers_logging

    place = resolve_device(device)
    held = _resolve(weights, place)
    folder = Path(name).expanduser()
    source = str(folder) if folder.is_dir() else name
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise _unavailable(name, "The language model's folder holds no config.json.")
    if not folder.is_dir() and not _HUB_NAME.fullmatch(name):
        raise _unavailable(name, "There is no such folder of a language model.")
    transformers_logging.disable_progress_bar()
    kind = torch.float32 if held == "fp32" else torch.bfloat16
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, dtype=kind, **_quantised(held, place)
        )
    except torch.OutOfMemoryError as error:
        raise out_of_memory() from error
    except Exception as error:
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise _unavailable(name, f"The language model cannot be loaded: {said[:200]}") from error
    if tokenizer.eos_token_id is None:
        raise _unavailable(name, "The language model's tokenizer has no token for the end.")
    if held != "4bit":
        with memory():
            model.to(place)
    model.eval().requires_grad_(requires_grad=False)
    # A checkpoint's own settings may sample, or punish repetition: captions are reproducible.
    end = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    context = getattr(model.config, "max_position_embeddings", None)
    return LanguageModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        width=int(model.get_input_embeddings().weight.shape[1]),
        context=context if isinstance(context, int) else None,
        weights=held,
        device=place,
        fingerprint=_fingerprint(model, tokenizer),
    )


@contextmanager
def memory() -> Iterator[None]:
    """Inside, a GPU that is too small is an error with advice.

    Raises
    ------
    DerminoError
        `DEVICE_UNAVAILABLE`.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory() from error


def out_of_memory() -> DerminoError:
    """What to do when the GPU is full."""
    return DerminoError(
        "DEVICE_UNAVAILABLE",
        "The GPU's memory is too small for this language model with this batch.",
        fix="Use 4-bit weights, or a smaller batch size with more accumulation.",
    )


def _resolve(weights: str, device: str) -> str:
    if weights == "4bit":
        if not device.startswith("cuda"):
            raise DerminoError(
                "DEVICE_UNAVAILABLE",
                "4-bit weights need an NVIDIA GPU.",
                fix="Use bf16 or fp32 weights, or a machine with a GPU.",
            )
        require_packages(("bitsandbytes", "accelerate"))
        return weights
    if weights == "auto" and device == "cpu":
        return "fp32"
    return resolve_precision(weights, device)


def _quantised(weights: str, device: str) -> dict[str, Any]:
    if weights != "4bit":
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def _unavailable(name: str, what: str) -> DerminoError:
    fix = _BRING.format(name=name if _HUB_NAME.fullmatch(name) else BIOMISTRAL)
    return DerminoError("BACKBONE_UNAVAILABLE", what, where=name, fix=fix)


def _fingerprint(model: Any, tokenizer: Any) -> str:
    import torch

    digest = hashlib.sha256(b"dermino language model 1\0")
    for word, number in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{word}\0{number}\0".encode(errors="surrogatepass"))
    embeddings = model.get_input_embeddings().weight
    vectors = [value for _, value in sorted(model.named_parameters()) if value.ndim == 1]
    for value in (embeddings, *vectors):
        plain = value.detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(plain.view(torch.int16).numpy().data)
    return digest.hexdigest()
