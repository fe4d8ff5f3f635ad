"""`make demo-backbone`: draw pictures, pretrain, and put the result into the package.

python -m dermino_core.demo_backbone.rebuild WORK
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dermino_core.console import run_command, say
from dermino_core.demo_backbone import demo_folder
from dermino_core.files import write_atomically
from dermino_core.manifest import Manifest, read_manifest, write_manifest

PICTURES = 1500
"""Of each hospital."""

PRETRAINING_SEED, MONITOR_SEED = 1, 2
"""The demo's own hospitals are drawn with seed 0."""

KEPT = ("step", "knn_auroc", "linear_auroc", "rank_me")


def rebuild(work: Path, package: Path) -> None:
    """Make the backbone in `work` and write its folder `package`.

    An interrupted run goes on where it was.
    """
    from dermino_core.datasets.synthetic import SITES, write_site
    from dermino_core.pretraining.config_file import read_config
    from dermino_core.pretraining.run import pretrain
    from dermino_core.pretraining.tracking import read_metrics

    for site in SITES:
        write_site(work / site.name, site=site.name, images=PICTURES, seed=PRETRAINING_SEED)
    drawn = write_site(
        work / "monitor", site="synthetic-fitzpatrick", images=600, seed=MONITOR_SEED
    )
    _label_by_task(read_manifest(drawn))
    recipe = (demo_folder() / "pretrain.toml").read_text(encoding="utf-8")
    write_atomically(work / "pretrain.toml", recipe)
    pretrain(read_config(work / "pretrain.toml"), work / "run", resume=True)
    run = json.loads((work / "run" / "run.json").read_text(encoding="utf-8"))
    probes = [
        {name: record[name] for name in KEPT}
        for record in read_metrics(work / "run" / "metrics.jsonl")
        if record["kind"] == "probe"
    ]
    record = {name: run[name] for name in ("created", "images", "machine", "versions")}
    write_atomically(
        package / "record.json", json.dumps({**record, "probes": probes}, indent=1) + "\n"
    )
    _save_half(work / "run" / "model", package, run["config"]["run"]["epochs"])


def _label_by_task(drawn: Manifest) -> None:
    """The monitor measures what the demo's task asks: benign or malignant."""
    from dermino_core.datasets.synthetic_sites import find_site

    names = find_site("synthetic-fitzpatrick").label_map
    write_manifest(
        drawn.file,
        [type(r)(r.image, names[str(r.label)], group=r.group) for r in drawn.records],
    )


def _save_half(model: Path, package: Path, epochs: float) -> None:
    from safetensors.torch import load_file

    from dermino_core.backbone import save_backbone
    from dermino_core.backbone_card import preprocessing_from_dict

    card: dict[str, Any] = json.loads((model / "model.json").read_text(encoding="utf-8"))
    about = {**card["pretraining"], "start": "random", "epochs": epochs}
    save_backbone(
        package,
        load_file(model / "model.safetensors"),
        architecture=card["architecture"],
        preprocessing=preprocessing_from_dict(card["preprocessing"]),
        about={"pretraining": about},
        half=True,
        name="demo",
    )


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for pictures and the run")
    parser.add_argument("--package", type=Path, default=demo_folder(), help="where to write it")
    arguments = parser.parse_args()
    rebuild(arguments.work, arguments.package)
    say(f"written: {arguments.package}")


if __name__ == "__main__":
    run_command(main)
