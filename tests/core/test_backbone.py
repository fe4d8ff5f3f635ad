"""Backbones: what names them, what loads, what is refused, and what describing them costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dermino_core.backbone import describe_backbone, load_backbone, save_backbone
from dermino_core.backbone_weights import fill_randomly, infer_architecture
from dermino_core.errors import DerminoError

TINY = "vit_tiny_patch16_224"
DEMO_SIZE = 128
RANDOM_FINGERPRINT = "f16ce6883249"


@pytest.fixture(scope="module")
def tiny_weights() -> dict[str, torch.Tensor]:
    """Seeded weights of a ViT-Ti/16, as timm names them."""
    import timm

    model = timm.create_model(TINY, num_classes=0)
    fill_randomly(model, seed=3)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def tiny_file(tmp_path: Path, tiny_weights: dict[str, torch.Tensor]) -> Path:
    file = tmp_path / "tiny.safetensors"
    save_file(tiny_weights, file)
    return file


def images(count: int, size: int = 224) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_random_weights_are_the_same_on_every_machine() -> None:
    card = describe_backbone("random:test_vit", cache_dir=None)
    assert (card.width, card.patch_size, card.pretrained) == (64, 16, False)
    assert card.fingerprint.startswith(RANDOM_FINGERPRINT)


def test_demo_embeds_and_rows_do_not_depend_on_neighbours() -> None:
    backbone = load_backbone("demo", precision="fp32", device="cpu")
    batch = images(19, DEMO_SIZE)
    features = backbone.embed(batch)
    assert features.shape == (19, 192)
    assert features.dtype == np.float32
    assert features.std(axis=0).min() > 0
    np.testing.assert_allclose(backbone.embed(batch[4:5])[0], features[4], atol=1e-5)
    np.testing.assert_allclose(backbone.embed(batch[::-1])[::-1], features, atol=1e-5)


def test_embedding_equals_timm_on_normalised_pixels(tiny_file: Path) -> None:
    import timm

    backbone = load_backbone(str(tiny_file), precision="fp32", device="cpu")
    batch = images(3)
    model = timm.create_model(TINY, num_classes=0).eval()
    model.load_state_dict(load_file(tiny_file))
    wanted = backbone.card.preprocessing
    pixels = (batch.astype(np.float64) / 255 - wanted.mean) / wanted.std
    with torch.inference_mode():
        reference = model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float()).numpy()
    np.testing.assert_allclose(backbone.embed(batch), reference, atol=2e-4)


@pytest.mark.parametrize(
    "batch",
    [images(1, DEMO_SIZE).astype(np.float32), images(1, 112), images(1, DEMO_SIZE)[0]],
)
def test_embed_refuses_other_batches(batch: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[B, 128, 128, 3\]"):
        load_backbone("demo", precision="fp32", device="cpu").embed(batch)


def test_architecture_from_shapes_and_classifier_dropped(
    tmp_path: Path, tiny_weights: dict[str, torch.Tensor], tiny_file: Path
) -> None:
    assert infer_architecture(tiny_file) == TINY
    file = tmp_path / "with_head.safetensors"
    save_file({**tiny_weights, "head.weight": torch.ones(7, 192), "head.bias": torch.ones(7)}, file)
    plain, headed = (describe_backbone(str(f), cache_dir=None) for f in (tiny_file, file))
    assert plain.fingerprint == headed.fingerprint
    named = describe_backbone(f"{TINY}@{file}", cache_dir=None)
    assert named.fingerprint == plain.fingerprint


def test_the_original_register_naming_loads_like_timms(tmp_path: Path) -> None:
    import timm

    name = "vit_small_patch14_reg4_dinov2"
    model = timm.create_model(name, num_classes=0, img_size=28)
    fill_randomly(model, seed=1)
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    original = dict(weights)
    original["register_tokens"] = original.pop("reg_token")
    zero = torch.zeros(1, 1, 384)
    original["pos_embed"] = torch.cat([zero, original["pos_embed"]], dim=1)
    original["mask_token"] = torch.zeros(1, 384)
    save_file(weights, tmp_path / "timm.safetensors")
    save_file(original, tmp_path / "original.safetensors")
    cards = [
        describe_backbone(str(tmp_path / f"{kind}.safetensors"), image_size=28, cache_dir=None)
        for kind in ("timm", "original")
    ]
    assert cards[0].architecture == name
    assert cards[0].fingerprint == cards[1].fingerprint


def test_position_embedding_is_resized_and_size_is_part_of_the_fingerprint(tiny_file: Path) -> None:
    small = load_backbone(str(tiny_file), precision="fp32", device="cpu", image_size=112)
    assert small.embed(images(2, 112)).shape == (2, 192)
    large = describe_backbone(str(tiny_file), cache_dir=None)
    assert small.card.fingerprint != large.fingerprint
    with pytest.raises(DerminoError, match="multiple of the patch size 16") as caught:
        describe_backbone(str(tiny_file), image_size=100, cache_dir=None)
    assert caught.value.code == "CONFIG_INVALID"


def spoil_missing(weights: dict[str, torch.Tensor]) -> None:
    del weights["blocks.3.attn.qkv.weight"]


def spoil_unexpected(weights: dict[str, torch.Tensor]) -> None:
    weights["surprise.weight"] = torch.ones(2)


def spoil_shape(weights: dict[str, torch.Tensor]) -> None:
    weights["norm.weight"] = torch.ones(191)


def spoil_nan(weights: dict[str, torch.Tensor]) -> None:
    weights["blocks.1.mlp.fc1.bias"][5] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (spoil_missing, "missing: blocks.3.attn.qkv.weight"),
        (spoil_unexpected, "unexpected: surprise.weight"),
        (spoil_shape, r"wrong shapes: norm.weight \[191\] instead of \[192\]"),
        (spoil_nan, "not finite: blocks.1.mlp.fc1.bias"),
    ],
)
def test_loading_is_strict(tmp_path: Path, tiny_weights, spoil, named: str) -> None:
    weights = {key: tensor.clone() for key, tensor in tiny_weights.items()}
    spoil(weights)
    file = tmp_path / "spoilt.safetensors"
    save_file(weights, file)
    with pytest.raises(DerminoError, match=named) as caught:
        describe_backbone(f"{TINY}@{file}", cache_dir=None)
    assert caught.value.code == "BACKBONE_UNAVAILABLE"


def test_another_patch_size_is_refused_not_resampled(tiny_file: Path) -> None:
    with pytest.raises(DerminoError, match=r"patch_embed.proj.weight \[192, 3, 16, 16\]"):
        describe_backbone(f"vit_small_patch14_dinov2@{tiny_file}", cache_dir=None)


@pytest.mark.parametrize(
    ("spec", "code", "text"),
    [
        ("", "CONFIG_INVALID", "random:NAME"),
        ("random:", "CONFIG_INVALID", "needs the name"),
        ("@x.safetensors", "CONFIG_INVALID", "needs both"),
        ("/nowhere/x.safetensors", "BACKBONE_UNAVAILABLE", "does not exist"),
        ("vit_smal_patch14_dinov2", "BACKBONE_UNAVAILABLE", "vit_small_patch14_dinov2"),
        ("random:vit_bas_patch16_224", "BACKBONE_UNAVAILABLE", "vit_base_patch16_224"),
        ("random:resnet18", "BACKBONE_UNAVAILABLE", "not a ViT"),
    ],
)
def test_bad_specifications_say_what_to_do(spec: str, code: str, text: str) -> None:
    with pytest.raises(DerminoError) as caught:
        describe_backbone(spec, cache_dir=None)
    assert caught.value.code == code
    assert text in str(caught.value)


def test_offline_hub_names_the_file_to_bring(tmp_path: Path) -> None:
    code = (
        "from dermino_core.backbone import describe_backbone\n"
        "describe_backbone('vit_small_patch14_dinov2.lvd142m', cache_dir=None)\n"
    )
    done = run_python(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode != 0
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert "https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m" in done.stderr
    assert "vit_small_patch14_dinov2.lvd142m@/path/to/model.safetensors" in done.stderr


def test_other_files_are_refused(tmp_path: Path) -> None:
    pickle = tmp_path / "weights.pth"
    pickle.write_bytes(b"x")
    with pytest.raises(DerminoError, match=r"\.safetensors files only"):
        describe_backbone(str(pickle), cache_dir=None)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a safetensors file at all")
    with pytest.raises(DerminoError, match="cannot be read"):
        describe_backbone(str(broken), cache_dir=None)


def test_cards_are_cached_by_content(tmp_path: Path, tiny_file: Path) -> None:
    cache = tmp_path / "cache"
    first = describe_backbone(str(tiny_file), cache_dir=cache)
    copy = tmp_path / "copy.safetensors"
    shutil.copy(tiny_file, copy)
    code = (
        "import sys; from pathlib import Path\n"
        "from dermino_core.backbone import describe_backbone\n"
        f"print(describe_backbone({str(copy)!r}, cache_dir=Path({str(cache)!r})).fingerprint)\n"
        "assert not {'torch', 'timm', 'safetensors'} & set(sys.modules), 'imported'\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == first.fingerprint
    weights = load_file(copy)
    weights["norm.bias"] += 1
    save_file(weights, copy)
    assert describe_backbone(str(copy), cache_dir=cache).fingerprint != first.fingerprint
    (cache / "backbones.json").write_text("{ damaged")
    assert describe_backbone(str(tiny_file), cache_dir=cache) == first


def test_a_backbone_folder_comes_back(tmp_path: Path, tiny_weights, tiny_file: Path) -> None:
    wanted = describe_backbone(str(tiny_file), cache_dir=None)
    folder = tmp_path / "exported"
    saved = save_backbone(
        folder, tiny_weights, architecture=TINY, preprocessing=wanted.preprocessing
    )
    card = describe_backbone(str(folder), cache_dir=tmp_path / "cache")
    assert card.fingerprint == saved.fingerprint == wanted.fingerprint
    assert describe_backbone(str(folder), cache_dir=tmp_path / "cache") == card
    changed = load_file(folder / "model.safetensors")
    changed["norm.bias"] += 1
    save_file(changed, folder / "model.safetensors")
    with pytest.raises(DerminoError) as caught:
        describe_backbone(str(folder), cache_dir=tmp_path / "cache")
    assert caught.value.code == "BACKBONE_MISMATCH"
    model = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**model, "kind": "head"}))
    with pytest.raises(DerminoError) as caught:
        describe_backbone(str(folder), cache_dir=None)
    assert caught.value.code == "MODEL_INVALID"


@pytest.mark.slow
def test_compiled_and_frozen_gives_the_same_features(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = images(5, DEMO_SIZE)
    plain = load_backbone("demo", precision="bf16", device="cpu").embed(batch)
    monkeypatch.setenv("DERMINO_COMPILE", "1")
    backbone = load_backbone("demo", precision="bf16", device="cpu")
    if not backbone.compiled:
        pytest.skip("no working C++ compiler")
    assert cosines(backbone.embed(batch), plain).min() > 0.999


def test_a_broken_compiler_leaves_the_backbone_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise torch._inductor.exc.InductorError(RuntimeError("no compiler"), None)

    from dermino_core import backbone as module

    monkeypatch.setattr(module, "worth_compiling", lambda *_: True)
    monkeypatch.setattr(torch, "compile", broken)
    backbone = load_backbone("demo", precision="fp32", device="cpu")
    assert not backbone.compiled
    assert backbone.embed(images(2, DEMO_SIZE)).shape == (2, 192)


@pytest.mark.slow
@pytest.mark.long
def test_bf16_holds_to_fp32_on_ph2(shared_data: Path, dinov2_small: Path) -> None:
    """Cosine above 0.999 for every image; AUROC of a linear classifier within 0.002."""
    import csv

    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from dermino_core.images import decode_image, prepare_image

    with (shared_data / "ph2" / "labels.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    batch = np.stack(
        [prepare_image(decode_image(shared_data / "ph2" / row["image"]), 224) for row in rows]
    )
    target = np.array([row["label"] == "melanoma" for row in rows])
    features = {
        precision: load_backbone(str(dinov2_small), precision=precision, device="cpu").embed(batch)
        for precision in ("fp32", "bf16")
    }
    assert cosines(features["bf16"], features["fp32"]).min() > 0.999
    train, test = train_test_split(
        np.arange(len(rows)), test_size=0.5, stratify=target, random_state=0
    )
    auroc = {}
    for precision, values in features.items():
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        scores = model.fit(values[train], target[train]).predict_proba(values[test])[:, 1]
        auroc[precision] = roc_auc_score(target[test], scores)
    assert auroc["fp32"] > 0.8
    assert abs(auroc["fp32"] - auroc["bf16"]) <= 0.002


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
