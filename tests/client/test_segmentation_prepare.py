"""From `[segmentation]` to patch features and masks on disk, and what is refused."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from PIL import Image

from dermino_client.check import check_site
from dermino_client.hospital import hospital_of
from dermino_client.segmentation_prepare import load_masks, prepare_masks
from dermino_client.site import SegmentationSection, Site, read_site
from dermino_core.backbone import load_backbone
from dermino_core.datasets.synthetic import write_site
from dermino_core.errors import DerminoError
from dermino_core.evaluation.segmentation_data import mask_square, read_mask, whole_square
from dermino_core.evaluation.segmentation_turns import turned
from dermino_core.images import decode_image
from dermino_core.manifest import read_manifest

IMAGES, SIZE = 10, 64


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Site]:
    """`make(segmentation={"views": 2})` draws a site with masks and reads its file."""

    def site(**changes: Any) -> Site:
        manifest = write_site(tmp_path / "data", site="synthetic-ph2", images=IMAGES, masks=True)
        content: dict[str, Any] = {
            "site": {"name": "clinic"},
            "data": {"manifest": str(manifest), "min_images": 4},
            "labels": {
                "common nevus": "benign",
                "atypical nevus": "benign",
                "melanoma": "malignant",
            },
            "backbone": {"name": "demo", "precision": "fp32", "device": "cpu"},
            "node": {"cache": str(tmp_path / "cache")},
            "segmentation": {"image_size": SIZE, "views": 3},
        }
        for section, values in changes.items():
            content[section] = content.get(section, {}) | values
        file = tmp_path / "clinic.toml"
        file.write_text(tomli_w.dumps(content))
        return read_site(file)

    return site


def refusal(call: Callable[[], object]) -> DerminoError:
    with pytest.raises(DerminoError) as refused:
        call()
    return refused.value


def rewrite(site: Site, change: Callable[[int, dict[str, str]], None]) -> None:
    """Change the rows of the manifest."""
    with site.manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for place, row in enumerate(rows):
        change(place, row)
    with site.manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_features_are_the_backbones_of_every_view(make: Callable[..., Site]) -> None:
    """Against the backbone itself, image by image."""
    site = make(segmentation={"image_size": SIZE, "views": 3, "heads": ["upernet"]})
    found = prepare_masks(site)
    assert (found.views, found.depths, found.image_size) == (3, 4, SIZE)
    assert len(found.train) + len(found.test) == IMAGES
    backbone = load_backbone("demo", precision="fp32", device="cpu", image_size=SIZE)
    assert found.card.fingerprint == backbone.card.fingerprint
    manifest = read_manifest(site.manifest)
    masks = {}
    for record in manifest.records:
        mask = mask_square(read_mask(manifest.inside(str(record.mask))), SIZE)
        pixels = whole_square(decode_image(manifest.path_of(record)), SIZE, "bicubic")
        masks[mask.tobytes()] = pixels
    for half, views in ((found.train, 3), (found.test, 1)):
        for row, mask in enumerate(half.masks):
            pixels = masks[mask.tobytes()]
            for view in range(views):
                own = backbone.patches(np.ascontiguousarray(turned(pixels, view))[None], 4)[0]
                np.testing.assert_allclose(half.features[row, view], own, atol=0.02)


def test_a_fresh_process_reads_what_was_kept_and_no_torch(make: Callable[..., Site]) -> None:
    site = make()
    first = prepare_masks(site)
    again = prepare_masks(site)
    assert (first.embedded, again.embedded) == (len(first.train) * 3 + len(first.test), 0)
    assert first.digest == again.digest
    code = (
        "import sys; from pathlib import Path; from dermino_client.site import read_site; "
        "from dermino_client.segmentation_prepare import load_masks; "
        "site = load_masks(read_site(Path(sys.argv[1]))); "
        "print(site.digest, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site.file)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [first.digest, "False"], done.stderr
    assert hospital_of(site).masks.digest == first.digest


@pytest.mark.slow
def test_what_changed_is_refused(make: Callable[..., Site]) -> None:
    site = make()
    assert refusal(lambda: load_masks(site)).code == "DATA_CHANGED"
    before = prepare_masks(site).digest
    mask = next((site.manifest.parent / "masks").glob("*.png"))
    Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)
    os.utime(mask, (1, 1))
    changed = refusal(lambda: load_masks(site))
    assert (changed.code, mask.name in changed.what) == ("DATA_CHANGED", True)
    assert prepare_masks(site).digest != before
    other = make(segmentation={"views": 1})
    assert refusal(lambda: load_masks(other)).code == "DATA_CHANGED"
    assert prepare_masks(other).views == 1
    damaged = next((site.cache / "segmentation").glob("*/train-patches.npy"))
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert refusal(lambda: load_masks(other)).code == "DATA_CHANGED"


def test_a_simulation_leaves_the_sites_own_files_alone(make: Callable[..., Site]) -> None:
    site = make()
    own = prepare_masks(site)
    section = SegmentationSection(image_size=SIZE, views=1)
    assert prepare_masks(site, section=section, precision="fp32").views == 1
    assert load_masks(site).digest == own.digest


def test_patients_are_not_torn_and_test_units_are_numbers(make: Callable[..., Site]) -> None:
    site = make(data={"min_images": 2})
    rewrite(site, lambda place, row: row.update(group=f"patient-{place // 5}"))
    found = prepare_masks(site)
    assert (len(found.train), len(found.test)) == (5, 5)
    assert len(set(found.units)) == 1
    assert not any("patient" in unit for unit in found.units)


def test_images_without_a_mask_take_no_part(make: Callable[..., Site]) -> None:
    site = make()
    rewrite(site, lambda place, row: row.update(mask="") if place < 3 else None)
    found = prepare_masks(site)
    assert (len(found.train) + len(found.test), found.left_out) == (IMAGES - 3, 0)


def test_a_site_with_no_masks_is_refused(make: Callable[..., Site]) -> None:
    site = make()
    rewrite(site, lambda place, row: row.update(mask=""))
    found = refusal(lambda: prepare_masks(site))
    assert (found.code, "0 images name a mask" in found.what) == ("DATA_TOO_FEW", True)


def test_a_site_that_takes_no_part_is_refused(make: Callable[..., Site], tmp_path: Path) -> None:
    make()
    file = tmp_path / "clinic.toml"
    file.write_text(file.read_text().partition("[segmentation]")[0])
    site = read_site(file)
    for call in (prepare_masks, load_masks):
        assert refusal(lambda call=call: call(site)).code == "REQUEST_MISMATCH"


def test_an_unusable_mask_is_refused_or_left_out(make: Callable[..., Site]) -> None:
    site = make()
    masks = sorted((site.manifest.parent / "masks").glob("*.png"))
    gray = np.linspace(0, 255, 256 * 256).reshape(256, 256).astype(np.uint8)
    Image.fromarray(gray).save(masks[0])
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(masks[1])
    found = refusal(lambda: prepare_masks(site))
    assert found.code == "IMAGE_UNREADABLE"
    assert "2 of 10" in found.what
    assert "not binary" in found.what
    assert "another size" in found.what
    tolerant = make(data={"max_unreadable": 0.2, "min_images": 4, "split_seed": 0})
    Image.fromarray(gray).save(masks[0])
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(masks[1])
    left = prepare_masks(tolerant)
    assert (len(left.train) + len(left.test), left.left_out) == (IMAGES - 2, 2)


def test_check_tells_what_was_found(
    make: Callable[..., Site], capsys: pytest.CaptureFixture[str]
) -> None:
    check_site(make())
    said = "".join(capsys.readouterr())
    assert "clinic: segmentation:" in said
    assert "in 3 views" in said


def test_keys_of_the_section_are_checked(make: Callable[..., Site]) -> None:
    for wrong in ({"views": 9}, {"heads": ["unet"]}, {"heads": []}, {"masks": "here"}):
        found = refusal(lambda wrong=wrong: make(segmentation=wrong))
        assert (found.code, "segmentation." in found.what) == ("CONFIG_INVALID", True)
