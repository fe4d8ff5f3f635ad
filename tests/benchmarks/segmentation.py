"""Lesion outlines learned together, alone and pooled, on real images with masks.

Two workloads, DINOv2 ViT-S/14 at 224 pixels: `isic`, ISIC 2017 dealt out to three hospitals of
different sizes (one distribution), and `shift`, PH2 beside ISIC 2017 (two clinics).

    DERMINO_SHARED=... python -m tests.benchmarks.segmentation --work DIR [--workload isic]
        [--head linear] [--rounds 10] [--set KEY=VALUE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import tomli_w

from dermino_core.machine import describe_machine
from dermino_core.manifest import Record, read_manifest, write_manifest
from dermino_core.segmentation_results import Overlap, SegmentationResults
from dermino_server.commands.options import parse_settings
from dermino_server.segmentation_simulate import SegmentationRequest, simulate_segmentation
from tests.benchmarks.workload import shared_folder

SHARES = {"isic-large": 0.56, "isic-medium": 0.28, "isic-small": 0.16}


def write_sites(shared: Path, work: Path, workload: str) -> Path:
    """Site files and manifests of a workload; the images stay where they are."""
    folder = work / workload
    folder.mkdir(parents=True, exist_ok=True)
    isic = shared / "data" / "isic2017_seg"
    records = read_manifest(isic / "labels.csv", root=isic).records
    if workload == "shift":
        ph2 = shared / "data" / "ph2"
        _write_site(folder, "ph2", ph2, read_manifest(ph2 / "labels.csv", root=ph2).records)
        _write_site(folder, "isic2017", isic, records)
        return folder
    order = np.random.default_rng(0).permutation(len(records))
    ends = np.round(np.cumsum(list(SHARES.values())) * len(records)).astype(int)
    for name, part in zip(SHARES, np.split(order, ends[:-1]), strict=True):
        _write_site(folder, name, isic, [records[i] for i in sorted(part)])
    return folder


def _write_site(folder: Path, name: str, root: Path, records: list[Record]) -> None:
    manifest = folder / f"{name}.csv"
    write_manifest(manifest, records)
    content = {
        "site": {"name": name},
        "data": {"manifest": str(manifest), "images": str(root)},
        "labels": {str(r.label): "benign" for r in records if r.label is not None},
        "segmentation": {"image_size": 224, "heads": ["linear", "upernet"], "views": 4},
    }
    (folder / f"{name}.toml").write_text(tomli_w.dumps(content), encoding="utf-8")


def shown(results: SegmentationResults) -> dict[str, object]:
    """What a table needs."""
    out = [t for record in results.rounds for t in record.transfers]
    return {
        "machine": describe_machine(),
        "head": results.head,
        "settings": results.settings,
        "rounds": results.rounds_done,
        "sites": {s.name: [s.n_train, s.n_test] for s in results.sites},
        "dice": {
            site.name: {key: _line(found) for key, found in site.scores.items()}
            for site in results.sites
        },
        "mean": {key: _line(found) for key, found in results.mean.items()},
        "federated minus": {key: _line(found) for key, found in results.mean_global_minus.items()},
        "by round": [
            round(float(np.mean([v for v in record.dice.values() if v is not None])), 4)
            for record in results.rounds
            if record.dice
        ],
        "bytes from sites": sum(t.bytes_from_site for t in out),
        "bytes to sites": sum(t.bytes_to_site for t in out),
        "seconds": results.seconds,
    }


def _line(found: Overlap) -> str:
    one = found.dice
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def main() -> None:
    """Run one workload and print what was found, as JSON."""
    parser = argparse.ArgumentParser(prog="segmentation")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workload", choices=["isic", "shift"], default="isic")
    parser.add_argument("--head", choices=["linear", "upernet"], default="linear")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    wanted = parser.parse_args()
    shared = shared_folder()
    if shared is None:
        parser.error("no real images: set DERMINO_SHARED")
    request = SegmentationRequest(
        sites=write_sites(shared, wanted.work, wanted.workload),
        backbone=str(shared / "weights" / "dinov2_vits14.safetensors"),
        precision="fp32",
        settings={"head": wanted.head, **parse_settings(wanted.set)},
        rounds=wanted.rounds,
        seed=wanted.seed,
        cache=wanted.work / "cache",
    )
    number = len(list(wanted.work.glob("run-*")))
    folder, results = simulate_segmentation(request, wanted.work / f"run-{number:03d}")
    print(json.dumps({"run": str(folder), **shown(results)}, indent=1))


if __name__ == "__main__":
    main()
