"""Captioning with a tiny language model of random weights: it learns, and only what it may."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from dermino_core.errors import DerminoError
from dermino_core.evaluation.caption_scores import PACKAGES
from dermino_core.evaluation.captioning import CaptionedImages, captioning
from dermino_core.evaluation.captioning_folder import load_captioner, save_captioner
from dermino_core.evaluation.captioning_language import load_language_model
from dermino_core.evaluation.captioning_model import Captioner, CaptionerShape
from dermino_core.evaluation.captioning_train import CaptioningRecipe, train_captioner
from dermino_core.results import BackboneInfo

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in (*PACKAGES, "peft", "transformers")),
    reason="needs dermino[captioning]",
)

WIDTH = 24
SEEN = ("red", "brown"), ("patch", "nodule", "papule", "plaque"), ("left", "right"), ("arm", "leg")
CAPTIONS = [f"a {c} {lesion} on the {s} {p}" for c, lesion, s, p in itertools.product(*SEEN)]
FEATURES = np.random.default_rng(0).normal(size=(32, WIDTH)).astype(np.float32)
SHAPE = CaptionerShape(WIDTH, longest=10, prompt="describe the skin", targets="all-linear")
QUICK = CaptioningRecipe(1e-2, 1e-2, epochs=3, batch_size=16)
DEMO = BackboneInfo(
    name="demo", architecture="vit", fingerprint="f" * 64, width=WIDTH, precision="fp32",
    pretrained=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE=1, which is read only once; and no Java, which takes seconds to start."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("PATH", "")


def write_language_model(folder: Path, seed: int = 0) -> Path:
    """A Mistral of two layers that knows the words of the captions."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    words = sorted({word for text in (*CAPTIONS, SHAPE.prompt) for word in text.split()})
    places = {word: place for place, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(places, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        MistralForCausalLM(
            MistralConfig(
                vocab_size=len(places),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                initializer_range=0.2,
            )
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("mistral"))


def new(folder: Path, seed: int = 0, **changes) -> Captioner:
    shape = CaptionerShape(**{**vars(SHAPE), **changes})
    return Captioner(load_language_model(str(folder), device="cpu"), shape, seed=seed)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Captioner:
    captioner = new(folder)
    train_captioner(captioner, FEATURES, CAPTIONS, CaptioningRecipe(1e-2, 1e-2, epochs=35), seed=0)
    return captioner


def tensors(captioner: Captioner) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy().copy() for k, v in captioner.matrices().items()}


def hand_made_input(captioner: Captioner, features: np.ndarray, caption: list[int]):
    """Start, image, prompt, caption: embedded one by one."""
    import torch

    language = captioner.language
    table = language.model.get_input_embeddings().weight
    words = language.tokenizer.convert_tokens_to_ids(captioner.shape.prompt.split())
    weight, bias = captioner.projection.weight, captioner.projection.bias
    image = [weight @ torch.from_numpy(vector) + bias for vector in features]
    rows = [table[1], *image, *(table[i] for i in words), *(table[i] for i in caption)]
    return torch.stack(rows)[None], len(rows) - len(caption)


def test_it_learns_32_captions_and_the_language_model_stays(
    trained: Captioner, folder: Path
) -> None:
    from safetensors.numpy import load_file

    right = [a == b for a, b in zip(trained.generate(FEATURES), CAPTIONS, strict=True)]
    assert np.mean(right) >= 0.9
    right = [a == b for a, b in zip(trained.generate(FEATURES, beams=3), CAPTIONS, strict=True)]
    assert np.mean(right) >= 0.9
    frozen = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value
        for name, value in trained.adapted.state_dict().items()
        if "lora_" not in name
    }
    original = load_file(folder / "model.safetensors")
    assert set(original) <= set(frozen)
    for name, value in original.items():
        assert np.array_equal(frozen[name].numpy(), value), name
    start = tensors(new(folder))
    assert {name.partition(".")[0] for name in start} == {"projection", "adapter"}
    for name, value in tensors(trained).items():
        assert not np.array_equal(value, start[name]), name
    trainable = sum(p.numel() for p in trained.adapted.parameters() if p.requires_grad)
    assert trainable == sum(v.size for n, v in start.items() if n.startswith("adapter."))


@pytest.mark.parametrize("k", [1, 3])
def test_the_loss_is_that_of_the_caption_alone(folder: Path, k: int) -> None:
    """Three captions of different length in one batch, against transformers' own loss, one by
    one and without padding."""
    import torch

    captioner = new(folder, image_tokens=k)
    with torch.no_grad():
        for value in captioner.matrices().values():  # LoRA's B starts at zero: move it
            value.add_(0.05 * torch.ones_like(value))
    features = np.random.default_rng(1).normal(size=(3, k, WIDTH)).astype(np.float32)
    ids = [captioner.tokens(text)[0] for text in ("a red patch", CAPTIONS[5], "leg")]
    expected = 0.0
    for image, caption in zip(features, ids, strict=True):
        inputs, before = hand_made_input(captioner, image, caption)
        labels = torch.tensor([[-100] * before + caption])
        alone = captioner.language.model(inputs_embeds=inputs, labels=labels).loss
        expected += float(alone.detach()) * len(caption)
    assert captioner.loss(features, ids).item() == pytest.approx(expected, rel=1e-5)
    if k == 1:
        assert captioner.loss(features[:, 0], ids).item() == pytest.approx(expected, rel=1e-5)
    else:
        turned = captioner.loss(features[:, ::-1], ids).item()
        assert turned != pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="features have shape"):
        captioner.loss(features[..., 1:], ids)


def test_greedy_is_the_likeliest_word_again_and_again(folder: Path) -> None:
    import torch

    captioner = new(folder)
    train_captioner(captioner, FEATURES, CAPTIONS, QUICK, seed=0)
    texts = captioner.generate(FEATURES[:4], longest=6)
    for image, text in zip(FEATURES, texts, strict=False):
        words: list[int] = []
        while len(words) < 6 and 2 not in words:
            inputs, _ = hand_made_input(captioner, image[None], words)
            with torch.no_grad():
                words.append(
                    int(captioner.language.model(inputs_embeds=inputs).logits[0, -1].argmax())
                )
        expected = captioner.language.tokenizer.convert_ids_to_tokens(words)
        assert text == " ".join(word for word in expected if not word.startswith("<"))


@pytest.mark.slow
def test_accumulation_is_one_large_batch(folder: Path) -> None:
    large, small = new(folder), new(folder)
    texts = [text if row % 3 else "red" for row, text in enumerate(CAPTIONS)]
    train_captioner(large, FEATURES, texts, CaptioningRecipe(epochs=2, batch_size=16), seed=0)
    recipe = CaptioningRecipe(epochs=2, batch_size=5, accumulate=3)
    train_captioner(small, FEATURES[:30], texts[:30], recipe, seed=0)
    other = new(folder)
    recipe = CaptioningRecipe(epochs=2, batch_size=15)
    train_captioner(other, FEATURES[:30], texts[:30], recipe, seed=0)
    expected = tensors(other)
    for name, value in tensors(small).items():
        assert np.allclose(value, expected[name], atol=1e-6), name
    assert any(not np.allclose(v, expected[n], atol=1e-6) for n, v in tensors(large).items())


def test_the_first_step_has_the_papers_learning_rates(folder: Path) -> None:
    """Adam's first step is the learning rate, whatever the size of the gradient."""
    captioner = new(folder)
    before = tensors(captioner)
    recipe = CaptioningRecipe(epochs=1, batch_size=32, weight_decay=0.0)
    train_captioner(captioner, FEATURES, CAPTIONS, recipe, seed=0)
    moved = {name: np.abs(value - before[name]) for name, value in tensors(captioner).items()}
    assert np.median(moved["projection.weight"]) == pytest.approx(4e-4, rel=1e-3)
    for name, step in moved.items():
        if "lora_B" in name:
            assert np.median(step) == pytest.approx(8e-5, rel=1e-3), name
        if "lora_A" in name:  # its gradient is zero while B is
            assert step.max() == 0, name


def test_rates_are_annealed_over_all_steps(folder: Path) -> None:
    """Two steps of equal gradient sign: the cosine's second is half its first."""
    steps = {}
    for schedule in ("cosine", "constant"):
        captioner = new(folder)
        before = tensors(captioner)["projection.bias"]
        recipe = CaptioningRecipe(
            4e-6, 8e-7, epochs=2, batch_size=32, weight_decay=0.0, schedule=schedule
        )
        train_captioner(captioner, FEATURES, CAPTIONS, recipe, seed=0)
        steps[schedule] = np.abs(tensors(captioner)["projection.bias"] - before)
    assert np.median(steps["constant"]) == pytest.approx(8e-6, rel=0.05)
    assert np.median(steps["cosine"]) == pytest.approx(6e-6, rel=0.05)


def test_the_same_seed_gives_the_same_captioner(folder: Path) -> None:
    import torch

    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(runs))  # what ran before does not matter
        captioner = new(folder, seed=seed, dropout=0.1)
        train_captioner(captioner, FEATURES, CAPTIONS, QUICK, seed=seed)
        untouched = torch.random.get_rng_state()
        torch.manual_seed(len(runs))
        assert torch.equal(untouched, torch.random.get_rng_state())
        runs.append(tensors(captioner))
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(np.array_equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_long_captions_are_cut_without_an_end(folder: Path) -> None:
    captioner = new(folder, longest=8)
    ids, cut = captioner.tokens(CAPTIONS[0])
    assert (len(ids), ids[-1], cut) == (8, 2, False)
    ids, cut = captioner.tokens(f"{CAPTIONS[0]} red")
    assert (len(ids), cut) == (8, True)
    assert 2 not in ids


def test_the_task_scores_leaves_out_what_has_no_caption_and_says_so(folder: Path) -> None:
    captions = [None if row in (1, 4) else " " if row == 6 else t for row, t in enumerate(CAPTIONS)]
    units = [f"patient {row // 2}" for row in range(32)]
    train = CaptionedImages(FEATURES, captions, units, rows=range(2, 34))
    test = CaptionedImages(FEATURES[:9], [*CAPTIONS[:8], None], units[:9])
    result = captioning(
        train,
        test,
        language_model=str(folder),
        shape={"longest": 7, "prompt": SHAPE.prompt, "targets": "all-linear"},
        recipe=QUICK,
        device="cpu",
        replicates=40,
    )
    notes = " ".join(result.outcome.notes)
    assert "3 of 32 training images have no caption and were left out (rows 3, 6, 8)." in notes
    assert "1 of 9 test images has no caption and was left out (row 8)." in notes
    assert "29 training captions were cut to 7 tokens." in notes
    assert (result.trained_on, list(result.test_rows)) == (29, list(range(8)))
    assert result.references == tuple(CAPTIONS[:8])
    assert list(result.generated) == result.captioner.generate(FEATURES[:8])
    found = {measure.metric: measure for measure in result.outcome.measures}
    assert list(found) == [
        "bleu-1", "bleu-2", "bleu-4", "meteor", "cider", "rouge-1", "rouge-2", "rouge-l",
    ]  # fmt: skip
    assert found["meteor"].value is None
    assert {measure.n for measure in found.values()} == {8}
    assert {m.method for m in found.values()} == {f"{folder.name}, greedy"}
    assert 0 < (found["bleu-1"].value or 0) < 1
    assert found["rouge-l"].replicates is not None
    assert len(found["rouge-l"].replicates) == 40


def test_without_any_caption_there_is_nothing_to_do(folder: Path) -> None:
    images = CaptionedImages(FEATURES, CAPTIONS, ["p"] * 32)
    blank = CaptionedImages(FEATURES[:3], [None, "", " "], ["p"] * 3)
    for train, test, half in ((blank, images, "training"), (images, blank, "test")):
        with pytest.raises(DerminoError, match=f"None of the 3 {half} images") as error:
            captioning(train, test, language_model=str(folder))
        assert error.value.code == "DATA_TOO_FEW"


def test_empty_generated_captions_are_scored_and_counted(folder: Path) -> None:
    """Words that the tokenizer does not know come out as nothing."""
    train = CaptionedImages(FEATURES, ["xyz"] * 32, ["p"] * 32)
    test = CaptionedImages(FEATURES[:5], CAPTIONS[:5], ["p"] * 5)
    result = captioning(
        train, test, language_model=str(folder), recipe=QUICK, device="cpu", replicates=10,
        shape={"longest": 5, "targets": "all-linear"},
    )  # fmt: skip
    assert result.generated == ("",) * 5
    assert "5 generated captions are empty." in result.outcome.notes
    assert result.outcome.measures[0].value == 0.0
    assert result.captioner.generate(FEATURES[:0]) == []


def test_what_cannot_work_is_said_before_training(folder: Path, tmp_path: Path) -> None:
    for code, words, attempt in (
        ("CONFIG_INVALID", "reads 512 tokens", lambda: new(folder, longest=512)),
        ("CONFIG_INVALID", "LoRA cannot be put", lambda: new(folder, targets=("no_such",))),
        ("DEVICE_UNAVAILABLE", "NVIDIA", lambda: load_language_model(str(folder), weights="4bit")),
        ("BACKBONE_UNAVAILABLE", "no config.json", lambda: load_language_model(str(tmp_path))),
        ("BACKBONE_UNAVAILABLE", "no such folder", lambda: load_language_model("/no/such")),
        (
            "BACKBONE_UNAVAILABLE",
            "hf download Some/Model",
            lambda: load_language_model("Some/Model"),
        ),
    ):
        with pytest.raises(DerminoError, match=words) as error:
            attempt()
        assert error.value.code == code
    captioner = new(folder)
    with pytest.raises(ValueError, match="already has an adapter"):
        Captioner(captioner.language, SHAPE, seed=0)
    with pytest.raises(DerminoError) as error:
        train_captioner(captioner, FEATURES[:0], [], seed=0)
    assert error.value.code == "DATA_TOO_FEW"
    broken = np.full_like(FEATURES, np.inf)
    with pytest.raises(DerminoError, match="not finite"):
        train_captioner(captioner, broken, CAPTIONS, QUICK, seed=0)


def saved(captioner: Captioner, folder: Path) -> Path:
    save_captioner(folder, captioner, backbone=DEMO, backbone_spec="demo", trained_on=32, seed=0)
    return folder


def test_a_saved_captioner_says_the_same(trained: Captioner, tmp_path: Path) -> None:
    place = saved(trained, tmp_path / "captioner")
    assert {file.name for file in place.iterdir()} == {
        "model.safetensors", "model.json", "README.md",
    }  # fmt: skip
    again = load_captioner(place, backbone_fingerprint=DEMO.fingerprint, device="cpu")
    assert again.shape == trained.shape
    assert again.generate(FEATURES) == trained.generate(FEATURES)
    assert set(tensors(again)) == set(tensors(trained))
    # The language model itself is not in the file.
    assert (place / "model.safetensors").stat().st_size < 4 * 1.1 * sum(
        value.size for value in tensors(trained).values()
    ) + 5000


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t: t.pop("projection.bias"), "projection.bias is missing"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), "extra is superfluous"),
        (lambda t: t.update({"projection.bias": np.zeros(3, np.float32)}), r"\[3\]"),
        (lambda t: t["projection.bias"].fill(np.nan), "NaN"),
        (lambda t: t.update({"projection.bias": np.zeros(64)}), "float64"),
    ],
)
def test_a_damaged_folder_is_refused(trained: Captioner, tmp_path: Path, damage, words) -> None:
    from safetensors.numpy import load_file, save_file

    place = saved(trained, tmp_path)
    values = load_file(place / "model.safetensors")
    damage(values)
    save_file(values, place / "model.safetensors")
    with pytest.raises(DerminoError, match=words) as error:
        load_captioner(place, backbone_fingerprint=DEMO.fingerprint, device="cpu")
    assert error.value.code == "MODEL_INVALID"


def test_other_models_are_refused(trained: Captioner, tmp_path: Path) -> None:
    place = saved(trained, tmp_path / "captioner")
    with pytest.raises(DerminoError, match="backbone") as error:
        load_captioner(place, backbone_fingerprint="0" * 64, device="cpu")
    assert error.value.code == "BACKBONE_MISMATCH"
    other = write_language_model(tmp_path / "other", seed=1)
    with pytest.raises(DerminoError, match="language model") as error:
        load_captioner(
            place, backbone_fingerprint=DEMO.fingerprint, language_model=str(other), device="cpu"
        )
    assert error.value.code == "BACKBONE_MISMATCH"
    (place / "model.json").write_text('{"kind": "linear-head"}')
    with pytest.raises(DerminoError) as error:
        load_captioner(place, backbone_fingerprint=DEMO.fingerprint, device="cpu")
    assert error.value.code == "MODEL_INVALID"


def test_half_precision_is_of_the_frozen_weights_only(folder: Path) -> None:
    import torch

    full = new(folder, targets=None)
    assert full.shape.targets == ("q_proj", "v_proj")
    language = load_language_model(str(folder), weights="bf16", device="cpu")
    assert language.fingerprint == full.language.fingerprint
    half = Captioner(language, full.shape, seed=0)
    assert half.language.model.lm_head.weight.dtype == torch.bfloat16
    ids = [full.tokens(text)[0] for text in CAPTIONS]
    expected = full.loss(FEATURES, ids).item()
    assert half.loss(FEATURES, ids).item() == pytest.approx(expected, rel=0.02)
    done = train_captioner(half, FEATURES, CAPTIONS, QUICK, seed=0)
    assert done.loss < expected / sum(map(len, ids))
    assert {value.dtype for value in half.matrices().values()} == {torch.float32}


@pytest.mark.parametrize("patches", [False, True])
def test_the_command_captions_image_files(folder: Path, tmp_path: Path, patches: bool) -> None:
    from PIL import Image

    from dermino_core.backbone import load_backbone
    from dermino_core.evaluation.captioning_images import patch_tokens
    from dermino_core.features import extract_features
    from dermino_server.commands.caption import caption

    files = []
    for name, colour in (("red", (200, 30, 30)), ("brown", (120, 70, 40))):
        files.append(tmp_path / f"{name}.png")
        Image.new("RGB", (96, 64), colour).save(files[-1])
    backbone = load_backbone("demo", precision="fp32", device="cpu")
    if patches:
        features, reasons = patch_tokens(files, backbone)
        assert reasons == [None, None]
    else:
        features = extract_features(
            files, "demo", cache=tmp_path / "cache", precision="fp32", device="cpu", title="t"
        ).vectors
    tokens = features.shape[1] if patches else 1
    language = load_language_model(str(folder), device="cpu")
    shape = CaptionerShape(
        features.shape[-1], image_tokens=tokens, longest=10, targets="all-linear", prompt=""
    )
    captioner = Captioner(language, shape, seed=0)
    texts = ["a red patch", "a brown nodule"]
    train_captioner(captioner, features, texts, CaptioningRecipe(1e-2, 1e-2, epochs=15), seed=0)
    info = BackboneInfo.of(backbone.card, "fp32")
    place = tmp_path / "captioner"
    save_captioner(place, captioner, backbone=info, backbone_spec="demo", trained_on=2, seed=0)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    app = Typer()
    app.command()(caption)
    names = [str(files[1]), str(bad), str(files[0])]
    done = CliRunner().invoke(app, [*names, "--model", str(place), "--device", "cpu"])
    assert isinstance(done.exception, DerminoError)
    assert done.exception.code == "IMAGE_UNREADABLE"
    lines = done.stdout.splitlines()
    assert lines[0] == f"{files[1]}: a brown nodule"
    assert lines[1].startswith(f"{bad}: unreadable: ")
    assert lines[2] == f"{files[0]}: a red patch"
