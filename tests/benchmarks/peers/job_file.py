"""The job as every contestant is told it: dermino's selection, classes and halves, as JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from dermino_client.prepare import select_records, split_selection
from dermino_client.site import Site, read_sites
from dermino_core.heads import LinearHead
from tests.benchmarks.workload import Workload

WIDTH = 384
"""Of a ViT-S."""

SCHEDULE = {"rounds": 2, "epochs": 2, "rate": 2e-4, "batch": 32}
"""The paper's, section 4.2.4; batch size ours."""


def describe_job(workload: Workload, backbone: Path, work: Path) -> dict[str, object]:
    """What all contestants share: images by site and half, backbone file, initial head, schedule.

    `backbone` is a file that timm loads; the initial head is written beside it, into `work`.
    """
    sites, classes = [], 2
    for site in read_sites(workload.sites):
        sites.append(_site(site))
        classes = len(site.classes)
    initial = work / "initial.safetensors"
    save_file(LinearHead.initial(classes, WIDTH, seed=0).arrays(), initial)
    return {
        "backbone": str(backbone),
        "classes": classes,
        "width": WIDTH,
        "initial": str(initial),
        "seed": 0,
        "sites": sites,
    } | SCHEDULE


def write_job(shared: dict[str, object], folder: Path, settings: dict[str, object]) -> Path:
    """One contestant's own copy, with its settings and the folder it writes into."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "job.json"
    file.write_text(json.dumps(shared | settings | {"folder": str(folder)}), encoding="utf-8")
    return file


def _site(site: Site) -> dict[str, object]:
    chosen = select_records(site)
    paths = [chosen.manifest.path_of(record) for record in chosen.records]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    groups, halves = split_selection(site, chosen, digests)
    found: dict[str, object] = {"name": site.name}
    for half in ("train", "test"):
        rows = np.flatnonzero(np.array(halves) == half)
        found[half] = {
            "paths": [str(paths[row]) for row in rows],
            "labels": [chosen.labels[row] for row in rows],
            "groups": [groups[row] for row in rows],
        }
    return found


def random_backbone(work: Path, name: str) -> Path:
    """dermino's seeded random weights of a timm ViT as a file, for machines without real ones."""
    import timm
    from safetensors.torch import save_file as save_torch

    from dermino_core.backbone_weights import RANDOM_SEED, fill_randomly

    model = timm.create_model(name, pretrained=False, num_classes=0, img_size=224)
    fill_randomly(model, RANDOM_SEED)
    file = work / f"{name}.safetensors"
    save_torch(model.state_dict(), file)
    return file
