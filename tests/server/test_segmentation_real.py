"""A segmentation federation on a real SuperLink on loopback."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from federation import BIN, CONNECTION, Federation, until

from dermino_core.datasets.synthetic import write_site
from dermino_core.evaluation.segmentation_model import load_segmentation_model
from dermino_core.segmentation_results import read_segmentation_results

pytestmark = [pytest.mark.slow, pytest.mark.long]

MASKED = {"synthetic-mednode": 16, "synthetic-ph2": 20}


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    found = Federation(tmp_path / "federation", images=dict(MASKED))
    found.folder.mkdir()
    try:
        yield found
    finally:
        found.stop_all()


def test_hospitals_outline_lesions_over_a_superlink(federation: Federation) -> None:
    federation.provision()
    for name in MASKED:
        manifest = write_site(
            federation.folder / "masked" / name, site=name, images=MASKED[name], masks=True
        )
        file = federation.sites / f"{name}.toml"
        content = tomllib.loads(file.read_text())
        content["data"] = {
            "manifest": str(manifest),
            "images": str(manifest.parent),
            "min_images": 4,
        }
        content["policy"] = {"min_images": 4, "min_per_class": 1}
        content["segmentation"] = {"image_size": 128, "views": 1}
        file.write_text(tomli_w.dumps(content))
    federation.start_superlink()
    federation.register()
    for name in MASKED:
        federation.start_client(name)
    assert until(lambda: all(map(federation.connected, MASKED)), seconds=600), [
        federation.log(name)[-2000:] for name in MASKED
    ]
    out = federation.folder / "RUN"
    named = [part for name in MASKED for part in ("--site", name)]
    done = federation.run(
        *(str(BIN / "dermino"), "segmentation", "--superlink", CONNECTION, "--backbone", "demo"),
        *(*named, "--rounds", "1", "--set", "image_size=128", "--precision", "fp32"),
        *("--out", str(out)),
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr + federation.log("superlink")[-3000:]
    results = read_segmentation_results(out)
    assert results.engine == "deployment"
    assert [site.name for site in results.sites] == sorted(MASKED)
    assert results.rounds_done == 1
    assert load_segmentation_model(out / "model")[1].n_train == sum(MASKED.values()) // 2
    assert (out / "report.html").is_file()
