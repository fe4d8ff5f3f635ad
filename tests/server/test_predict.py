"""`dermino predict`: the head on the backbone it was trained on, or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import Image

from dermino_core import prediction
from dermino_core.console import run_command
from dermino_core.datasets.synthetic import find_site, write_site
from dermino_core.errors import DerminoError
from dermino_core.features import extract_features
from dermino_core.model_folder import load_model
from dermino_core.prediction import BATCH, predict_images
from dermino_server.cli import app
from dermino_server.simulate import SimulationRequest, simulate

COMMAND = Path(sys.executable).parent / "dermino"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run's `RUN/model` and the images it was made from."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("synthetic-mednode", "synthetic-ph2"):
        manifest = write_site(folder / name, site=name, images=20)
        content = {
            "site": {"name": name},
            "data": {"manifest": str(manifest), "min_images": 4},
            "labels": dict(find_site(name).label_map),
            "backbone": {"name": "demo", "precision": "fp32", "device": "cpu"},
        }
        (folder / "sites").mkdir(exist_ok=True)
        (folder / "sites" / f"{name}.toml").write_text(tomli_w.dumps(content))
    request = SimulationRequest(
        sites=folder / "sites", cache=folder / "cache", settings={"learning_rate": 1e-2}
    )
    simulate(request, folder / "RUN")
    return folder


@pytest.fixture
def images(trained: Path) -> list[Path]:
    return sorted((trained / "synthetic-ph2" / "images").iterdir())


def expected(trained: Path, images: list[Path]) -> np.ndarray:
    table = extract_features(
        images, "demo", cache=trained / "cache", precision="fp32", device="cpu", title="test"
    )
    return load_model(trained / "RUN" / "model")[0].probabilities(table.vectors)


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def predict(*arguments: object) -> Done:
    """`dermino predict` in this process: torch is imported once."""
    stdout, stderr = io.StringIO(), io.StringIO()
    argv = ["dermino", "predict", *map(str, arguments)]
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        patch.setattr(sys, "argv", argv)
        try:
            run_command(app)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Done(code, stdout.getvalue(), stderr.getvalue())


def test_probabilities_are_those_of_training(trained: Path, images: list[Path]) -> None:
    """More images than a batch, in the order given."""
    images = images[::-1]
    assert len(images) > BATCH
    classes, rows = predict_images(images, trained / "RUN" / "model", device="cpu")
    assert classes == ["benign", "malignant"]
    assert [row.image for row in rows] == images
    got = np.array([row.probabilities for row in rows])
    np.testing.assert_allclose(got, expected(trained, images), atol=1e-4)
    np.testing.assert_allclose(got.sum(axis=1), 1)
    assert np.ptp(got[:, 1]) > 0.01


def test_a_large_jpeg_is_seen_as_in_training(trained: Path, tmp_path: Path) -> None:
    """Between two and three times the model's size, where decoders may take a shortcut."""
    rng = np.random.default_rng(0)
    files = []
    for side in (449, 600, 900, 1024, 2500):
        coarse = rng.integers(0, 256, (side // 40, side // 30, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((side * 4 // 3, side))
        files.append(tmp_path / f"{side}.jpg")
        picture.save(files[-1], quality=92)
    _, rows = predict_images(files, trained / "RUN" / "model", device="cpu")
    got = np.array([row.probabilities for row in rows])
    np.testing.assert_allclose(got, expected(trained, files), atol=1e-4)


def test_a_crop_is_taken_as_in_training(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backbone that crops needs more pixels than its input: the same scale is decoded."""
    sizes: list[int | None] = []
    decode = prediction.decode_image

    def noted(image: Path, *, short_side: int | None = None) -> Image.Image:
        sizes.append(short_side)
        return decode(image, short_side=short_side)

    load = prediction.load_backbone

    def cropping(*arguments: object, **options: object) -> object:
        backbone = load(*arguments, **options)
        preprocessing = replace(backbone.card.preprocessing, crop_pct=0.875)
        backbone.card = replace(backbone.card, preprocessing=preprocessing)
        return backbone

    monkeypatch.setattr(prediction, "decode_image", noted)
    monkeypatch.setattr(prediction, "load_backbone", cropping)
    file = tmp_path / "a.jpg"
    Image.new("RGB", (64, 64)).save(file)
    predict_images([file], trained / "RUN" / "model", device="cpu")
    assert sizes == [int(128 / 0.875)]


def test_table_and_json(trained: Path, images: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "notes.jpg"
    bad.write_text("this is no picture")
    missing = tmp_path / "nowhere.png"
    arguments = ("--model", trained / "RUN" / "model", images[0], bad, missing, images[1])
    done = predict(*arguments)
    assert done.returncode == 4, done.stderr
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["image", "benign", "malignant"]
    assert [line.split()[0] for line in lines] == [str(p) for p in arguments[2:]]
    probabilities = expected(trained, images[:2])
    for line, row in zip((lines[0], lines[3]), probabilities, strict=True):
        np.testing.assert_allclose([float(v) for v in line.split()[1:]], row, atol=1e-3)
    assert "unreadable: " in lines[1]
    assert "unreadable: no such file" in lines[2]
    assert "2 of 4 images could not be read" in done.stderr
    assert "not for diagnosis" in done.stderr
    assert "Traceback" not in done.stderr
    done = predict("--json", *arguments)
    assert done.returncode == 4
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["image"] for row in rows] == [str(p) for p in arguments[2:]]
    assert [set(row) for row in rows] == [
        {"image", "probabilities"},
        {"image", "unreadable"},
        {"image", "unreadable"},
        {"image", "probabilities"},
    ]
    assert list(rows[0]["probabilities"]) == ["benign", "malignant"]
    np.testing.assert_allclose(list(rows[3]["probabilities"].values()), probabilities[1], atol=1e-4)


def test_wild_file_names_keep_the_table_whole(
    trained: Path, images: list[Path], tmp_path: Path
) -> None:
    names = [b"two\nlines.jpg", b"latin-\xe9.jpg", "läsion 🙂.jpg".encode(), b"esc\x1b[2J.jpg"]
    files = []
    for name in names:
        path = os.path.join(os.fsencode(tmp_path), name)
        shutil.copy(images[0], path)
        files.append(os.fsdecode(path))
    for extra in ((), ("--json",)):
        done = predict("--model", trained / "RUN" / "model", *extra, *files)
        assert done.returncode == 0, done.stderr
        text = done.stdout.encode("utf-8").decode()  # strict: a terminal takes no less
        assert len(text.splitlines()) == len(names) + (not extra)
        assert "\x1b" not in text


@pytest.mark.slow
def test_the_installed_command(trained: Path, images: list[Path], tmp_path: Path) -> None:
    command = [str(COMMAND), "predict", "--model", str(trained / "RUN" / "model")]
    done = subprocess.run(
        [*command, str(images[0]), str(tmp_path / "nowhere.jpg")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert str(images[0]) in done.stdout
    assert "Traceback" not in done.stderr


def test_other_backbones_are_refused(trained: Path, images: list[Path]) -> None:
    arguments = ("--model", trained / "RUN" / "model", images[0])
    done = predict(*arguments, "--backbone", "random:vit_tiny_patch16_224")
    assert done.returncode == 5, done.stderr
    assert "BACKBONE_MISMATCH" in done.stderr
    assert "weights of demo" in done.stderr
    assert done.stdout == ""
    done = predict(*arguments, "--backbone", "nowhere.safetensors")
    assert done.returncode == 5, done.stderr
    assert "BACKBONE_UNAVAILABLE" in done.stderr


def test_damaged_model_folders_are_refused(
    trained: Path, images: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained / "RUN" / "model", folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    done = predict("--model", folder, images[0])
    assert done.returncode == 8, done.stderr
    assert "MODEL_INVALID" in done.stderr
    assert str(folder) in done.stderr
    with pytest.raises(DerminoError, match="cannot be used") as caught:
        predict_images(images[:1], trained)
    assert caught.value.code == "MODEL_INVALID"


def test_only_unreadable_images(trained: Path, tmp_path: Path) -> None:
    _, rows = predict_images([tmp_path, tmp_path / "x"], trained / "RUN" / "model", device="cpu")
    assert [row.probabilities for row in rows] == [None, None]
    assert all(row.reason for row in rows)
