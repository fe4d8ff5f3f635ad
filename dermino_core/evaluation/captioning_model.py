"""A captioner: projected image features, read by a frozen language model with LoRA.

Paper, section 4.2.2: features of a frozen image encoder pass a linear projection into the space of
the word embeddings of a frozen language model, which is adapted by low-rank matrices (LoRA, Hu et
al. 2022). The paper does not say which features, which words stand around them, or how large the
matrices are: those are fields here.

The language model reads: its start token, the image (one soft token for each feature vector), the
prompt, and then the caption up to its end token.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from dermino_core.errors import DerminoError
from dermino_core.evaluation.captioning_language import LanguageModel, memory
from dermino_core.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

Float32 = npt.NDArray[np.float32]

PROMPT = "Describe the skin in this image:"

IGNORED = -100
"""Target of a position that is no caption token."""


@dataclass(frozen=True)
class CaptionerShape:
    """What a captioner is, apart from its weights.

    Attributes
    ----------
    width
        D, of a feature vector.
    image_tokens
        k, feature vectors of an image: 1 for the class token.
    prompt
        Between image and caption; may be empty.
    longest
        Most tokens of a caption, its end token included.
    rank, alpha, dropout
        Of the LoRA matrices, which add `alpha / rank * B A x`; 8 as in Hu et al. for language
        models, with their 2 for `alpha / rank`.
    targets
        Modules of the language model that get them: names, or `all-linear`. None: what peft has
        for its architecture, for a Mistral `q_proj` and `v_proj` (Hu et al., section 4.2).
    """

    width: int
    image_tokens: int = 1
    prompt: str = PROMPT
    longest: int = 256
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] | Literal["all-linear"] | None = None

    def __post_init__(self) -> None:
        if min(self.width, self.image_tokens, self.longest, self.rank) < 1:
            raise ValueError(f"width, image tokens, longest and rank are from 1: {self}")
        if not (self.alpha > 0 and 0 <= self.dropout < 1):
            raise ValueError(f"alpha is above 0, dropout from 0 to below 1: {self}")


class Captioner:
    """A projection, LoRA matrices and the language model they belong to.

    Attributes
    ----------
    shape
        With the targets as they were resolved.
    language
        Its weights never change; the matrices sit in its modules.
    """

    def __init__(self, language: LanguageModel, shape: CaptionerShape, *, seed: int) -> None:
        """Start: the projection as `torch.nn.Linear` starts, LoRA's B at zero, A at random.

        Raises
        ------
        DerminoError
            `CONFIG_INVALID` if the language model has no such targets, or reads fewer tokens than
            image, prompt and caption together have.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        if hasattr(language.model, "peft_config"):
            raise ValueError("this language model already has an adapter: load another")
        self.language = language
        tokenizer = language.tokenizer
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        prompt = tokenizer(shape.prompt, add_special_tokens=False).input_ids
        self.prefix = len(start) + shape.image_tokens + len(prompt)
        if language.context is not None and self.prefix + shape.longest > language.context:
            raise DerminoError(
                "CONFIG_INVALID",
                f"The language model reads {language.context} tokens; image and prompt have "
                f"{self.prefix}, captions up to {shape.longest}.",
                fix="Allow only shorter captions, or take another language model.",
            )
        targets = shape.targets if isinstance(shape.targets, str) else list(shape.targets or ())
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=shape.rank,
            lora_alpha=shape.alpha,
            lora_dropout=shape.dropout,
            target_modules=targets or None,
            bias="none",
        )
        with seeded(seed, language.device), memory(), warnings.catch_warnings():
            # peft asks this transformers for an attribute under its former name.
            warnings.simplefilter("ignore", FutureWarning)
            self.projection = torch.nn.Linear(shape.width, language.width).to(language.device)
            try:
                self.adapted: Any = get_peft_model(language.model, config)
            except ValueError as error:
                raise DerminoError(
                    "CONFIG_INVALID",
                    f"LoRA cannot be put into this language model: {str(error).splitlines()[0]}",
                    where=language.name,
                    fix="Name its modules as targets, or use 'all-linear'.",
                ) from error
        found = self.adapted.peft_config["default"].target_modules
        self.shape = replace(shape, targets=shape.targets or tuple(sorted(found)))
        self._start, self._prompt = self._ids(start), self._ids(prompt)
        self.adapted.eval()

    def tokens(self, caption: str) -> tuple[list[int], bool]:
        """Tokens of a caption, and whether it was cut.

        A cut caption has no end token: where it was cut is no place to stop.
        """
        ids = self.language.tokenizer(" ".join(caption.split()), add_special_tokens=False).input_ids
        if len(ids) >= self.shape.longest:
            return ids[: self.shape.longest], True
        return [*ids, self.language.tokenizer.eos_token_id], False

    def loss(self, features: Float32, captions: Sequence[Sequence[int]]) -> Tensor:
        """Cross-entropy of the caption tokens, summed over them; a scalar with a gradient.

        Parameters
        ----------
        features
            [n, k, D], or [n, D] where k is 1.
        captions
            n lists of tokens, from :meth:`tokens`.
        """
        import torch
        from torch.nn import functional as F

        longest = max(map(len, captions))
        ids = torch.zeros(len(captions), longest, dtype=torch.long)
        targets = torch.full((len(captions), longest), IGNORED)
        for row, caption in enumerate(captions):
            ids[row, : len(caption)] = targets[row, : len(caption)] = torch.tensor(caption)
        targets = targets.to(self.language.device)
        words = self._embed(ids.to(self.language.device))
        inputs = torch.cat([self._before_caption(features), words], dim=1)
        read = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        read[:, self.prefix :] = targets != IGNORED
        output = self.adapted(inputs_embeds=inputs, attention_mask=read, use_cache=False)
        # The token at a place is told from the one before it.
        logits = output.logits[:, self.prefix - 1 : -1].float()
        return F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def generate(
        self,
        features: Float32,
        *,
        beams: int = 1,
        longest: int | None = None,
        batch_size: int = 16,
    ) -> list[str]:
        """Captions of images, greedily or by beam search; may be empty.

        Parameters
        ----------
        features
            [n, k, D], or [n, D] where k is 1.
        beams
            1 is greedy.
        longest
            Most tokens; by default as in training.
        """
        import torch
        from transformers import GenerationConfig

        end = self.language.tokenizer.eos_token_id
        settings = GenerationConfig(
            do_sample=False,
            num_beams=beams,
            max_new_tokens=longest or self.shape.longest,
            eos_token_id=end,
            pad_token_id=end,
        )
        texts: list[str] = []
        self.adapted.eval()
        with torch.inference_mode(), progress_bar("writing", len(features), "captions") as bar:
            for first in range(0, len(features), batch_size):
                with memory():
                    inputs = self._before_caption(features[first : first + batch_size])
                    ids = self.adapted.generate(
                        inputs_embeds=inputs,
                        attention_mask=torch.ones(inputs.shape[:2], device=inputs.device).long(),
                        generation_config=settings,
                    )
                found = self.language.tokenizer.batch_decode(ids, skip_special_tokens=True)
                texts += [" ".join(text.split()) for text in found]
                bar.advance(len(found))
        return texts

    def matrices(self) -> dict[str, Any]:
        """Every trainable parameter by name: `projection.*` and `adapter.*`."""
        adapter = {
            f"adapter.{name.removeprefix('base_model.model.').replace('.default.', '.')}": value
            for name, value in self.adapted.named_parameters()
            if value.requires_grad
        }
        return {f"projection.{n}": v for n, v in self.projection.named_parameters()} | adapter

    def _before_caption(self, features: Float32) -> Tensor:
        """Embeddings of start, image and prompt, [n, prefix, E]."""
        import torch

        shape = self.shape
        image = np.array(features, dtype=np.float32)  # a copy: torch wants it writable
        if image.ndim == 2:
            image = image[:, None]
        if image.shape[1:] != (shape.image_tokens, shape.width):
            raise ValueError(
                f"features have shape {list(features.shape)}, not "
                f"[n, {shape.image_tokens}, {shape.width}]"
            )
        soft = self.projection(torch.from_numpy(image).to(self.language.device))
        start, prompt = (
            self._embed(ids).expand(len(image), -1, -1) for ids in (self._start, self._prompt)
        )
        return torch.cat([start, soft.to(start.dtype), prompt], dim=1)

    def _embed(self, ids: Tensor) -> Tensor:
        return self.adapted.get_input_embeddings()(ids)

    def _ids(self, ids: Sequence[int]) -> Tensor:
        import torch

        return torch.tensor(ids, dtype=torch.long, device=self.language.device)[None]


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Inside, torch's random numbers follow from the seed; outside they go on as before."""
    import torch

    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
