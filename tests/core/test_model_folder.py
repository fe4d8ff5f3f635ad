"""The model folder: complete, or refused with its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dermino_core.errors import DerminoError
from dermino_core.heads import LinearHead
from dermino_core.model_folder import ModelInfo, SiteCount, load_model, save_model
from dermino_core.results import (
    BackboneInfo,
    Estimate,
    Evaluation,
    ModelDescription,
    ModelSummary,
    Results,
    SiteResult,
)

BACKBONE = BackboneInfo(
    name="demo",
    architecture="vit",
    fingerprint="ab" * 32,
    width=4,
    precision="fp32",
    pretrained=False,
)
HEAD = LinearHead(
    np.arange(8, dtype=np.float32).reshape(2, 4) / 7, np.array([0.5, -1e-30], np.float32)
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    info = ModelInfo(
        title="malignancy: a, b",
        task="malignancy",
        classes=["benign", "malignant"],
        backbone=BACKBONE,
        backbone_spec="demo",
        strategy="fedavg",
        rounds=2,
        seed=3,
        created="2026-01-01T00:00:00+00:00",
        dermino_version="0",
        trained_on=[SiteCount(site="a", images=7, classes={"benign": 4, "malignant": 3})],
    )
    undefined = Estimate(value=None, undefined_because="one class only")
    results = Results(
        **info.model_dump(include={"title", "task", "classes", "strategy", "seed", "created"}),
        dermino_version="0",
        engine="inprocess",
        rounds_planned=2,
        rounds_done=2,
        backbone=BACKBONE,
        machine="a machine",
        models=[
            ModelDescription(key="global", title="Federated", description=""),
            ModelDescription(key="local", title="Alone", description=""),
        ],
        sites=[
            SiteResult(
                name="a",
                images_total=12,
                images_used=12,
                unreadable=0,
                n_train=7,
                n_test=5,
                train_class_counts={"benign": 4, "malignant": 3},
                evaluations={
                    "global": Evaluation(
                        n=5,
                        class_counts={"benign": 3, "malignant": 2},
                        auroc=Estimate(value=0.71, low=0.55, high=0.9),
                        f1=Estimate(value=0.4),
                    ),
                    "local": Evaluation(
                        n=5,
                        class_counts={"benign": 5, "malignant": 0},
                        auroc=undefined,
                        f1=undefined,
                    ),
                },
            )
        ],
        mean={
            "global": ModelSummary(
                auroc=Estimate(value=0.61234, low=0.5, high=0.7), f1=Estimate(value=0.4)
            ),
            "local": ModelSummary(auroc=undefined, f1=undefined),
        },
        rounds=[],
        warnings=["random weights"],
    )
    save_model(tmp_path / "model", HEAD, info, results)
    return tmp_path / "model"


def test_round_trip(model: Path) -> None:
    head, info = load_model(model)
    np.testing.assert_array_equal(head.weight, HEAD.weight)
    np.testing.assert_array_equal(head.bias, HEAD.bias)
    assert head.weight.dtype == head.bias.dtype == np.float32
    assert info.classes == ["benign", "malignant"]
    assert info.backbone == BACKBONE
    assert info.trained_on[0].classes == {"benign": 4, "malignant": 3}
    assert {p.name for p in model.iterdir()} == {"model.safetensors", "model.json", "README.md"}


def test_model_card(model: Path) -> None:
    card = (model / "README.md").read_text()
    for text in (
        "# malignancy: a, b",
        "not for diagnosis",
        "fingerprint `abababababababab`",
        "| a | 7 | benign 4, malignant 3 |",
        "| Model | a | Mean | Mean F1 |",
        "| Federated | 0.710 (0.550 to 0.900) | 0.612 (0.500 to 0.700) | 0.400 |",
        "| Alone | undefined (one class only) | undefined (one class only) |",
        "- random weights",
        "dermino predict --model",
    ):
        assert text in card
    assert not re.search(r"\b(nan|None|inf)\b", card)


def arrays(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def info(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "model.json").read_text())
        content["backbone"] |= values.pop("backbone", {})
        (folder / "model.json").write_text(json.dumps(content | values))

    return apply


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no head": (lambda f: (f / "model.safetensors").unlink(), "No such file"),
    "no model.json": (lambda f: (f / "model.json").unlink(), "No such file"),
    "truncated head": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-4]
        ),
        "",
    ),
    "empty head": (lambda f: (f / "model.safetensors").write_bytes(b""), ""),
    "truncated json": (lambda f: (f / "model.json").write_text('{"format": 1'), ""),
    "not UTF-8": (lambda f: (f / "model.json").write_bytes(b"\xff\xfe{"), ""),
    "missing array": (arrays(lambda t: t.pop("bias")), "weight and bias"),
    "further array": (arrays(lambda t: t.update(extra=t["bias"])), "weight and bias"),
    "NaN": (arrays(lambda t: t["weight"].fill(np.nan)), "NaN"),
    "infinite": (arrays(lambda t: t["bias"].fill(np.inf)), "NaN or infinite"),
    "double precision": (arrays(lambda t: t.update(bias=t["bias"].astype(np.float64))), "float32"),
    "flat weight": (arrays(lambda t: t.update(weight=t["weight"].ravel())), "shapes"),
    "other number of classes": (info(classes=["a", "b", "c"]), r"\(2, 4\), not \(3, 4\)"),
    "other width": (info(backbone={"width": 5}), r"\(2, 4\), not \(2, 5\)"),
    "other format": (info(format=2), ""),
    "other kind": (info(kind="backbone"), ""),
    "unknown key": (info(surprise=1), ""),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused(model: Path, kind: str) -> None:
    change, words = DAMAGE[kind]
    change(model)
    with pytest.raises(DerminoError, match=f"cannot be used: .*{words}") as caught:
        load_model(model)
    assert (caught.value.code, caught.value.exit_code) == ("MODEL_INVALID", 8)
    assert caught.value.where == str(model)
    assert len(str(caught.value).splitlines()) == 2


def test_the_run_folder_is_not_the_model_folder(model: Path) -> None:
    with pytest.raises(DerminoError, match="model/ folder"):
        load_model(model.parent)
