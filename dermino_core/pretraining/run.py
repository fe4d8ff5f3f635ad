"""One pretraining run, from its configuration to the exported backbone and its report."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dermino_core import __version__
from dermino_core.backbone import save_backbone
from dermino_core.backbone_card import BackboneCard, Preprocessing
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.pretraining.checkpoint import Identity, Position
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.loader import BatchLoader, worker_deaths_named
from dermino_core.pretraining.loop import Length, train
from dermino_core.pretraining.method import Method
from dermino_core.pretraining.methods import make_method
from dermino_core.pretraining.observer import Observer
from dermino_core.pretraining.probe import Probe
from dermino_core.pretraining.processes import Processes, join_processes
from dermino_core.pretraining.randomness import derived_seed
from dermino_core.pretraining.sources import ImageList, collect_labels, open_sources
from dermino_core.pretraining.start import starting_vit
from dermino_core.pretraining.trackers import check_trackers
from dermino_core.pretraining.views import check_sizes
from dermino_core.pretraining.vocabulary import Vocabulary
from dermino_core.pretraining.whole_state import whole_state


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes
    ----------
    complete
        False if it was told to stop before its end.
    model
        The exported backbone's folder, if complete.
    """

    complete: bool
    model: Path | None


def pretrain(config: PretrainConfig, out: Path, *, resume: bool = False) -> Outcome:
    """Pretrain a backbone.

    Parameters
    ----------
    out
        Run folder: run.json, metrics.jsonl, checkpoints/, and at the end model/ and report.html.
    resume
        Go on from the newest checkpoint in `out`, if there is one.

    Raises
    ------
    DerminoError
        CONFIG_INVALID, OUTPUT_EXISTS, MANIFEST_INVALID, DATA_TOO_FEW, BACKBONE_UNAVAILABLE,
        DEVICE_UNAVAILABLE, DEPENDENCY_MISSING, CHECKPOINT_INVALID, RUN_FAILED.
    """
    with join_processes(config.run.device) as processes:
        taken = processes.leads and (out / "run.json").exists()
        if processes.largest(taken) and not resume:
            raise DerminoError(
                "OUTPUT_EXISTS",
                "There is a run in this folder already.",
                where=out,
                fix="Give another --out, or --resume to go on with it.",
            )
        return _run(config, out, processes, resume=resume)


def _run(config: PretrainConfig, out: Path, processes: Processes, *, resume: bool) -> Outcome:
    torch.manual_seed(derived_seed(config.run.seed, "initial weights"))
    check_batch(config, processes.world_size)
    check_trackers(config.monitor.trackers)
    vit, preprocessing = starting_vit(config.model, seed=config.run.seed)
    check_sizes(config, int(vit.patch_embed.patch_size[0]))
    vocabulary = _vocabulary(config)
    images = open_sources(config.data, vocabulary)
    method = make_method(config, vit, preprocessing, vocabulary, device=processes.device)
    probe = None
    if config.monitor.manifest is not None and config.monitor.probe_every > 0:
        probe = Probe(config.monitor, preprocessing)
    loader = BatchLoader(
        config, images, vocabulary, rank=processes.rank, world_size=processes.world_size
    )
    identity = Identity(config, {**images.identity(), "labels": ", ".join(vocabulary.names)})
    observers: list[Observer] = []

    def observer(length: Length, done: Position | None) -> Observer:
        if processes.leads:
            _write_run(out, config, images, vocabulary, processes)
        observers.append(
            Observer(
                out,
                config,
                preprocessing,
                processes,
                probe,
                first=length.first,
                steps=length.steps,
                images_per_step=length.images_per_step,
                done=done,
            )
        )
        return observers[0]

    try:
        with worker_deaths_named():
            complete = train(
                identity, method, loader, images.n_images, out, processes, observer, resume=resume
            )
    finally:
        for watch in observers:
            watch.close()
    if not complete:
        return Outcome(complete=False, model=None)
    # Killed after the last checkpoint: the map of the features is still to be drawn.
    no_map = processes.leads and not (out / "projection.npz").exists()
    if observers[0].last_result is None and processes.largest(no_map):
        observers[0].look(method)
    card = _export(method, config, preprocessing, out, processes, images)
    if processes.leads:
        _project(method, vocabulary, observers[0], out)
        _report(out)
    return Outcome(complete=True, model=out / "model" if card is not None else None)


def check_batch(config: PretrainConfig, world_size: int) -> None:
    """Refuse a batch that a loss cannot work with.

    Raises
    ------
    DerminoError
        CONFIG_INVALID.
    """
    if config.method != "hybrid":
        return
    batch, loss = config.run.batch_size, config.loss
    with_heads = loss.image + loss.patch + loss.supervised > 0
    if not with_heads and (loss.koleo + loss.anchor == 0 or config.optimiser.head_warmup > 0):
        nothing = "Every loss has weight 0" if loss.koleo + loss.anchor == 0 else (
            "There is no head to warm up while the backbone is frozen"
        )  # fmt: skip
        raise DerminoError(
            "CONFIG_INVALID",
            f"{nothing}: there is nothing to train.",
            where="loss",
            fix="Give a loss a weight, or set optimiser.head_warmup = 0.",
        )
    if batch < 2 and loss.koleo > 0:
        raise DerminoError(
            "CONFIG_INVALID",
            "KoLeo compares the images of a batch, and run.batch_size is 1.",
            where="run.batch_size",
            fix="Use at least 2 images, or loss.koleo = 0.",
        )
    if batch * world_size < 2 and loss.targets == "sinkhorn" and (loss.image or loss.patch):
        raise DerminoError(
            "CONFIG_INVALID",
            "Sinkhorn-Knopp spreads a batch over the prototypes, and the batch has 1 image.",
            where="run.batch_size",
            fix="Use at least 2 images, or loss.targets = 'centering'.",
        )


def _vocabulary(config: PretrainConfig) -> Vocabulary:
    if config.loss.supervised == 0 or config.method != "hybrid":
        return Vocabulary.from_labels(())
    if config.prototypes.labels is not None:
        return Vocabulary.from_csv(config.prototypes.labels)
    vocabulary = Vocabulary.from_labels(label for label, _ in collect_labels(config.data))
    if not vocabulary.names:
        raise DerminoError(
            "CONFIG_INVALID",
            "The supervised loss is on, and no image has a label.",
            where="loss.supervised",
            fix="Set loss.supervised = 0, or give a source with labels.",
        )
    return vocabulary


def _write_run(
    out: Path,
    config: PretrainConfig,
    images: ImageList,
    vocabulary: Vocabulary,
    processes: Processes,
) -> None:
    packages = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors")
    content = {
        "kind": "pretraining",
        "dermino_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "images": images.n_images,
        "sources": images.counts(),
        "labels": list(vocabulary.names),
        "processes": processes.world_size,
        "device": processes.device,
        "machine": platform.processor() or platform.machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }
    write_atomically(out / "run.json", json.dumps(content, indent=1) + "\n")


def _export(
    method: Method,
    config: PretrainConfig,
    preprocessing: Preprocessing,
    out: Path,
    processes: Processes,
    images: ImageList,
) -> BackboneCard | None:
    weights: dict[str, Any] = whole_state(method.exported())
    if not processes.leads:
        return None
    about = {
        "pretraining": {
            "method": config.method,
            "preset": config.preset,
            "exported": config.export if config.method == "hybrid" else "encoder",
            "start": config.model.start,
            "position_resize": config.model.position_resize,
            "images": images.n_images,
            "sources": images.counts(),
            "dermino_version": __version__,
        }
    }
    return save_backbone(
        out / "model",
        weights,
        architecture=config.model.architecture,
        preprocessing=preprocessing,
        about=about,
    )


def _project(method: Method, vocabulary: Vocabulary, watch: Observer, out: Path) -> None:
    from dermino_core.reporting.pretraining_page import project

    last = watch.last_result
    if last is None:
        return
    prototypes: Any = getattr(method.trained, "prototypes", None)
    vectors = None if prototypes is None else prototypes.matrix().detach().float().cpu().numpy()
    project(
        last.features,
        last.labels,
        vectors,
        vocabulary.names,
        out / "projection.npz",
        classes=last.classes,
    )


def _report(out: Path) -> None:
    from dermino_core.reporting.pretraining_page import write_pretraining_report

    write_pretraining_report(out)
