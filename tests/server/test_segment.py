"""`dermino segment`: a mask file, or a sentence why not."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from dermino_core.console import run_command
from dermino_core.evaluation.segmentation import (
    MaskedImage,
    SegmentationSettings,
    segmentation,
)
from dermino_core.evaluation.segmentation_model import segment_image
from dermino_server.commands.segment import segment as command

app = typer.Typer()
app.command()(command)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear head in `linear/`, and an image `lesion.png`."""
    folder = tmp_path_factory.mktemp("trained")
    values = np.full((48, 80, 3), 210, np.uint8)
    values[:, 40:] = 50
    Image.fromarray(values).save(folder / "lesion.png")
    Image.fromarray(values[..., 0] < 100).save(folder / "truth.png")
    lesion = MaskedImage(folder / "lesion.png", folder / "truth.png", "one")
    segmentation(
        "demo",
        [lesion, lesion],
        [lesion],
        settings=SegmentationSettings(image_size=64, epochs=20, learning_rate=1e-2),
        heads=("linear",),
        replicates=2,
        device="cpu",
        save_to=folder,
    )
    return folder


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def segment(*arguments: object) -> Done:
    stdout, stderr = io.StringIO(), io.StringIO()
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        patch.setattr(sys, "argv", ["segment", *map(str, arguments)])
        try:
            run_command(app)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Done(code, stdout.getvalue(), stderr.getvalue())


def test_a_mask_is_written(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "mask.png"
    done = segment(trained / "lesion.png", "--model", trained / "linear", "--out", out)
    assert done.returncode == 0, done.stderr
    written = Image.open(out)
    assert written.size == (80, 48)
    mask = np.asarray(written.convert("L"))
    assert set(np.unique(mask)) == {0, 255}
    expected, _ = segment_image(trained / "lesion.png", trained / "linear")
    np.testing.assert_array_equal(mask == 255, expected)
    truth = np.asarray(Image.open(trained / "truth.png"))
    assert np.mean((mask == 255) == truth) > 0.9
    assert f"{out}: lesion on {100 * expected.mean():.1f} % of the image" in done.stdout
    assert "not for diagnosis" in done.stderr
    assert "has seen drawn lesions only" in done.stderr


def test_without_a_name_it_goes_here_and_replaces_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = (trained / "lesion.png", "--model", trained / "linear")
    assert segment(*arguments).returncode == 0
    file = tmp_path / "lesion-mask.png"
    before = file.read_bytes()
    again = segment(*arguments)
    assert again.returncode == 3
    assert "OUTPUT_EXISTS" in again.stderr
    over_itself = segment(*arguments, "--out", trained / "lesion.png")
    assert over_itself.returncode == 3
    assert file.read_bytes() == before


def test_errors_are_sentences(trained: Path, tmp_path: Path) -> None:
    image, model = trained / "lesion.png", trained / "linear"
    out = ("--out", tmp_path / "m.png")
    for code, word, arguments in (
        (3, "CONFIG_INVALID", (image, "--model", model, "--out", tmp_path / "m.jpg")),
        (4, "IMAGE_UNREADABLE", (tmp_path / "nowhere.png", "--model", model, *out)),
        (8, "MODEL_INVALID", (image, "--model", tmp_path, *out)),
        (
            5,
            "BACKBONE_MISMATCH",
            (image, "--model", model, "--backbone", "random:vit_tiny_patch16_224", *out),
        ),
        (3, "CONFIG_INVALID", (image, "--model", model, "--out", image / "mask.png")),
    ):
        done = segment(*arguments)
        assert done.returncode == code, done.stderr
        assert word in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
