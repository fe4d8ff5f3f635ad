"""The paper's backbones by name: what is said of each holds for the network, and it loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import get_pretrained_cfg
from torch import nn
from typer import Typer
from typer.testing import CliRunner

from dermino_core.backbone import checkpoint_of, describe_backbone, load_backbone, save_backbone
from dermino_core.backbone_card import Preprocessing
from dermino_core.backbone_catalogue import CATALOGUE, CatalogueEntry
from dermino_core.backbone_shelf import weights_here
from dermino_core.backbone_spec import parse_spec
from dermino_core.backbone_weights import build_model, fill_randomly, hub_repository
from dermino_core.demo_backbone import demo_folder
from dermino_core.errors import DerminoError
from dermino_core.features import extract_features
from dermino_server.commands.backbones import backbones

ENTRIES = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=list(CATALOGUE))
BY_HAND = ("medimageinsight", "lvm-med", "lvm-med-r50", "panderm", "panderm-base")


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty shelf; nothing in the hub's cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("DERMINO_BACKBONES", str(tmp_path / "shelf"))
    (tmp_path / "shelf").mkdir()
    return tmp_path / "shelf"


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights as LVM-Med's ResNet-50 has them: torchvision's names, no classifier."""
    model = timm.create_model("resnet50", num_classes=0)
    fill_randomly(model, seed=5)
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith("batches_tracked")}
    for name, tensor in weights.items():
        if name.endswith("running_mean"):
            tensor.fill_(0.1)
        elif name.endswith("bn3.weight"):
            tensor.fill_(0.2)
    file = tmp_path_factory.mktemp("lvm") / "lvmmed_resnet.torch"
    torch.save(weights, file)
    return file


def network(entry: CatalogueEntry, **options: Any) -> nn.Module:
    """Without memory for its weights."""
    with torch.device("meta"):
        if options:
            return timm.create_model(entry.architecture, num_classes=0, **options)
        size = entry.preprocessing.image_size
        return build_model(entry.architecture, size, fixed_size=entry.fixed_size)[0]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@ENTRIES
def test_what_is_said_of_a_network_holds(entry: CatalogueEntry) -> None:
    model: Any = network(entry)
    assert (count(model), model.num_features) == (entry.parameters, entry.width)
    assert entry.name == entry.name.casefold()
    assert not timm.is_model(entry.name)
    pool = model.global_pool if hasattr(model, "global_pool") else model.head.global_pool
    pool = getattr(pool, "pool_type", pool)
    assert {"token": "class token", "avg": "mean", "map": "attention"}[pool] == entry.pooling


@pytest.mark.parametrize(
    ("name", "options", "besides"),
    [
        ("resnext", {}, 0),
        ("vit-base", {"img_size": 672}, 0),
        ("siglip", {"img_size": 672, "global_pool": "avg", "fc_norm": False}, 0),
        # with the projection to the space shared with text, but for one layer norm
        ("clip", {"img_size": 672}, 768 * 512 - 2 * 768),
        ("biomedclip", {"img_size": 672}, 0),
        ("medimageinsight", {}, -2 * 2048),  # without the last layer norm
        ("dinov2", {"img_size": 672, "patch_size": 16}, 0),
        ("lvm-med", {}, 0),
        # timm's keys have a bias, and its class token no position
        ("panderm", {"img_size": 672}, -24 * 1024 + 1024),
        ("dermino", {"img_size": 672, "patch_size": 16}, 0),
    ],
)
def test_the_paper_counts_the_same_networks(name: str, options: dict, besides: int) -> None:
    """Supplementary Data Table 1, to the last weight."""
    entry = CATALOGUE[name]
    assert count(network(entry, **options)) + besides == entry.paper_parameters


def test_every_backbone_of_the_paper_is_there() -> None:
    assert [entry.name for entry in CATALOGUE.values() if entry.paper_use] == [
        "resnext", "vit-base", "siglip", "clip", "biomedclip", "medimageinsight", "dinov2",
        "lvm-med", "panderm", "dermino",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["resnext", "vit-base", "siglip", "clip", "dinov2"])
def test_timm_says_the_same_of_its_own_weights(name: str) -> None:
    entry = CATALOGUE[name]
    cfg: Any = get_pretrained_cfg(entry.architecture)
    said = entry.preprocessing
    assert hub_repository(entry.architecture) == entry.hub
    assert (cfg.mean, cfg.std, cfg.interpolation) == (said.mean, said.std, said.interpolation)
    if entry.name not in ("clip", "siglip"):  # theirs use the whole image; timm cuts a margin off
        assert cfg.crop_pct == said.crop_pct
    if entry.name != "clip":  # OpenAI's own licence is MIT
        assert cfg.license == entry.licence.casefold()


def test_clip_has_the_activation_it_was_trained_with() -> None:
    parts: Any = network(CATALOGUE["clip"])
    values = torch.linspace(-3, 3, 13)
    expected = values * torch.sigmoid(1.702 * values)
    torch.testing.assert_close(parts.blocks[0].mlp.act(values), expected)


def test_dinov2_by_its_short_name_is_the_same_backbone() -> None:
    with torch.device("meta"):
        timms = build_model("vit_base_patch14_dinov2.lvd142m", None)[1]
    assert timms == CATALOGUE["dinov2"].preprocessing


def test_names_in_any_case(resnet_file: Path) -> None:
    for word in ("CLIP", " clip "):
        spec = parse_spec(word)
        assert (spec.kind, spec.text, spec.entry) == ("hub", "clip", CATALOGUE["clip"])
    spec = parse_spec(f"LVM-Med-R50@{resnet_file}")
    assert (spec.kind, spec.path) == ("file", resnet_file)
    assert parse_spec("random:PanDerm").architecture == "deit3_large_patch16_224"


@pytest.mark.parametrize("name", BY_HAND)
def test_absent_weights_say_where_to_get_them(name: str, shelf: Path) -> None:
    entry = CATALOGUE[name]
    with pytest.raises(DerminoError) as caught:
        describe_backbone(name, cache_dir=None)
    assert caught.value.code == "BACKBONE_UNAVAILABLE"
    for part in (entry.where, entry.licence, f"{name}@/path/to/{entry.file}", str(shelf)):
        assert part in str(caught.value)
    with pytest.raises(DerminoError, match="does not exist") as caught:
        describe_backbone(f"{name}@nowhere.pth", cache_dir=None)
    assert entry.where in str(caught.value)


@pytest.mark.parametrize("name", ["clip", "biomedclip"])
def test_absent_weights_of_the_hub_say_the_same(name: str) -> None:
    entry = CATALOGUE[name]
    with pytest.raises(DerminoError) as caught:
        checkpoint_of(name)
    assert caught.value.code == "BACKBONE_UNAVAILABLE"
    for part in (entry.where, entry.licence, f"{name}@/path/to/{entry.file}"):
        assert part in str(caught.value)


def test_weights_in_the_hubs_cache_are_found_without_network(tmp_path: Path) -> None:
    entry = CATALOGUE["biomedclip"]
    assert weights_here(entry) is None
    folder = tmp_path / "hub" / f"models--{str(entry.hub).replace('/', '--')}"
    file = folder / "snapshots" / "0123" / entry.file
    file.parent.mkdir(parents=True)
    file.touch()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")
    assert weights_here(entry) == checkpoint_of("biomedclip") == file


def test_no_network_like_it_names_the_close_ones() -> None:
    with pytest.raises(DerminoError, match="panderm"):
        describe_backbone("pandermm", cache_dir=None)


def test_a_cnn_goes_the_whole_way(resnet_file: Path, tmp_path: Path) -> None:
    """From the release's file over `extract_features` to the values of torch's own arithmetic."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{n}.png" for n in range(2)]
    pixels = rng.integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    for path, values in zip(paths, pixels, strict=True):
        Image.fromarray(values).save(path)
    spec = f"lvm-med-r50@{resnet_file}"
    table = extract_features(
        paths, spec, cache=tmp_path / "cache", precision="fp32", device="cpu", title="two"
    )
    assert (table.card.width, table.card.patch_size, table.card.pretrained) == (2048, 32, True)
    model = timm.create_model("resnet50", num_classes=0).eval()
    model.load_state_dict(torch.load(resnet_file), strict=False)
    said = table.card.preprocessing
    values = (pixels.astype(np.float64) / 255 - said.mean) / said.std
    with torch.inference_mode():
        reference = model(torch.from_numpy(values).permute(0, 3, 1, 2).float()).numpy()
    assert reference.std(axis=0).max() > 1e-3
    np.testing.assert_allclose(table.vectors, reference, rtol=1e-3, atol=1e-4)
    code = (
        "import sys; from pathlib import Path\n"
        "from dermino_core.backbone import describe_backbone\n"
        f"card = describe_backbone({spec!r}, cache_dir=Path({str(tmp_path / 'cache')!r}))\n"
        "print(card.fingerprint)\n"
        "assert not {'torch', 'timm', 'huggingface_hub'} & set(sys.modules), 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == table.card.fingerprint, done.stderr


def test_a_release_is_loaded_strictly(resnet_file: Path, tmp_path: Path) -> None:
    weights = torch.load(resnet_file)
    spoilt = {**weights, "fc.weight": torch.ones(1000, 2048), "layer9.weight": torch.ones(1)}
    del spoilt["layer2.0.conv1.weight"]
    torch.save({"state_dict": spoilt}, tmp_path / "spoilt.pth")
    with pytest.raises(DerminoError) as caught:
        load_backbone(f"lvm-med-r50@{tmp_path / 'spoilt.pth'}", device="cpu")
    assert caught.value.code == "BACKBONE_UNAVAILABLE"
    assert "missing: layer2.0.conv1.weight; unexpected: layer9.weight." in str(caught.value)


def test_an_image_size_has_to_fit_the_stride() -> None:
    with pytest.raises(DerminoError, match="multiple of the stride 32"):
        build_model("resnet50", 200, fixed_size=False)


def test_files_and_folders_on_the_shelf(
    shelf: Path, resnet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shelf / resnet_file.name).symlink_to(resnet_file)
    spec = parse_spec("lvm-med-r50")
    assert (spec.kind, spec.path, spec.text) == ("file", shelf / resnet_file.name, "lvm-med-r50")
    demo = describe_backbone("demo", cache_dir=None)
    for name in ("skin-1", "dermino"):
        (shelf / name).symlink_to(demo_folder())
        assert describe_backbone(name, cache_dir=None).fingerprint == demo.fingerprint
    card = describe_backbone(f"dermino@{demo_folder()}", cache_dir=None)
    assert card.fingerprint == demo.fingerprint
    (tmp_path / "clip").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_spec("clip").kind == "hub"
    (tmp_path / "clip" / "model.json").touch()
    assert parse_spec("clip").kind == "folder"


def test_the_command_lists_them(shelf: Path, resnet_file: Path, tmp_path: Path) -> None:
    (shelf / resnet_file.name).symlink_to(resnet_file)
    model, _ = build_model("test_vit", 32)
    fill_randomly(model, seed=0)
    save_backbone(
        shelf / "mine",
        dict(model.state_dict()),
        architecture="test_vit",
        preprocessing=Preprocessing(32, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3),
    )
    (shelf / "broken").mkdir()
    (shelf / "broken" / "model.json").write_text("{")
    app = Typer()
    app.command()(backbones)
    done = CliRunner().invoke(app, ["--json"])
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert list(rows) == ["demo", *CATALOGUE, "broken", "mine"]
    here = {name: row["here"] for name, row in rows.items() if row["here"]}
    assert here == {
        "demo": str(demo_folder()),
        "lvm-med-r50": str(shelf / resnet_file.name),
        "mine": str(shelf / "mine"),
    }
    assert (rows["mine"]["parameters"], rows["mine"]["width"]) == (count(model), 64)
    assert "not JSON" in rows["broken"]["problem"]
    assert rows["panderm"]["licence"] == "CC-BY-NC-ND-4.0"
    table = CliRunner().invoke(app, []).stdout
    assert all(name in table for name in rows)
    assert "303,349,760" in table
    assert "https://github.com/SiyuanYan1/PanDerm" in table


@pytest.mark.slow
@ENTRIES
def test_every_network_embeds(entry: CatalogueEntry) -> None:
    backbone = load_backbone(f"random:{entry.name}", precision="bf16", device="cpu")
    size = entry.preprocessing.image_size
    batch = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    features = backbone.embed(batch)
    assert features.shape == (2, entry.width)
    assert features.std(axis=0).max() > 0
    assert backbone.card.preprocessing == entry.preprocessing
