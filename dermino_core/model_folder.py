"""The model folder of a federation: `model.safetensors`, `model.json`, `README.md` (model card).

It holds the head. The backbone is named by its fingerprint, so that a prediction is made with the
very encoder the head was trained on or not at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.heads import LinearHead
from dermino_core.results import BackboneInfo, Estimate, Results


class SiteCount(BaseModel):
    """Training images of one site."""

    model_config = ConfigDict(extra="forbid")

    site: str
    images: int
    classes: dict[str, int]


class ModelInfo(BaseModel):
    """`model.json`: what the head is, what it needs, and what it was trained on."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    kind: Literal["linear-head"] = "linear-head"
    title: str
    task: str
    classes: list[str]
    backbone: BackboneInfo
    backbone_spec: str
    strategy: str
    rounds: int
    seed: int
    created: str
    dermino_version: str
    trained_on: list[SiteCount]


def save_model(folder: Path, head: LinearHead, info: ModelInfo, results: Results) -> None:
    """Write a federated model with the card that its results make; see :func:`write_model`."""
    write_model(folder, head, info, _card(info, results))


def write_model(folder: Path, head: LinearHead, info: ModelInfo, card: str) -> None:
    """Write the three files; `model.json` last, so that a folder with it is complete."""
    from safetensors.numpy import save

    write_atomically(folder / "model.safetensors", save(head.arrays()))
    write_atomically(folder / "README.md", card)
    write_atomically(folder / "model.json", info.model_dump_json(indent=1) + "\n")


def write_card(folder: Path, results: Results) -> None:
    """Write the model card of an existing model folder again."""
    _, info = load_model(folder)
    write_atomically(folder / "README.md", _card(info, results))


def load_model(folder: Path) -> tuple[LinearHead, ModelInfo]:
    """Read a model folder.

    Raises
    ------
    DerminoError
        `MODEL_INVALID` if a file is missing or damaged, an array is missing or superfluous, or
        shapes do not fit the classes and the backbone's width.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        info = ModelInfo.model_validate_json((folder / "model.json").read_text(encoding="utf-8"))
        head = LinearHead.from_arrays(load((folder / "model.safetensors").read_bytes()))
        expected = (len(info.classes), info.backbone.width)
        if head.weight.shape != expected:
            raise ValueError(f"weight has shape {head.weight.shape}, not {expected}")
    except (OSError, SafetensorError, ValidationError, ValueError) as error:
        raise DerminoError(
            "MODEL_INVALID",
            f"This model folder cannot be used: {str(error).splitlines()[0]}",
            where=folder,
            fix="Give the model/ folder of a finished run.",
        ) from error
    return head, info


def interval_of(estimate: Estimate) -> str:
    """A number with its interval, or why there is none; for a model card."""
    if estimate.value is None:
        return f"undefined ({estimate.undefined_because})"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _decisions(results: Results, model: str) -> list[Estimate]:
    """The means that judge decisions: F1 and, of more than two classes, balanced accuracy."""
    mean = results.mean[model]
    if len(results.classes) <= 2:
        return [mean.f1]
    absent = Estimate(value=None, undefined_because="not measured")
    return [mean.f1, mean.balanced_accuracy or absent]


def _card(info: ModelInfo, results: Results) -> str:
    sites = "\n".join(
        f"| {s.site} | {s.images} | "
        + (", ".join(f"{k} {v}" for k, v in s.classes.items()) or "not told")
        + " |"
        for s in info.trained_on
    )
    names = [site.name for site in results.sites]
    scores = "\n".join(
        f"| {model.title} | "
        + " | ".join(interval_of(s.evaluations[model.key].auroc) for s in results.sites)
        + f" | {interval_of(results.mean[model.key].auroc)} | "
        + " | ".join(interval_of(estimate) for estimate in _decisions(results, model.key))
        + " |"
        for model in results.models
        if model.key in results.mean
    )
    means = ["Mean", "Mean F1", *(["Mean balanced accuracy"] if len(results.classes) > 2 else [])]
    tested = ", ".join(f"{site.name} {site.n_test}" for site in results.sites)
    warnings = "\n".join(f"- {text}" for text in results.warnings) or "- none"
    measured = f"""## AUROC on the sites' test halves (95 % interval)

Test images: {tested}. Means are over these sites, each counting the same. The intervals hold the
trained model fixed: another seed gives another model.

| Model | {" | ".join([*names, *means])} |
|{" --- |" * (1 + len(names) + len(means))}
{scores}"""
    if not results.models:
        measured = "## Scores\n\nNone: this model has not been evaluated."
    return f"""# {info.title}

A linear head for the task *{info.task}* (classes: {", ".join(info.classes)}) on the frozen backbone
`{info.backbone.name}` (fingerprint `{info.backbone.fingerprint[:16]}`), trained by {info.strategy}
over {info.rounds} rounds (seed {info.seed}) with dermino {info.dermino_version} on {info.created}.

Intended use: research on federated learning. Not a medical device, not for diagnosis.

## Trained on

| Site | Training images | Classes |
| --- | --- | --- |
{sites}

{measured}

## Read this first

{warnings}

## Use

    dermino predict --model THIS_FOLDER IMAGE...
"""
