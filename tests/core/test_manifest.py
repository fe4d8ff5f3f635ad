"""Tables of images: what is read, what is refused, and with which words."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dermino_core.errors import DerminoError
from dermino_core.manifest import FIELDS, Manifest, Record, read_manifest, write_manifest
from dermino_core.manifest_table import printable


def _read(folder: Path, content: str | bytes, **options: object) -> Manifest:
    file = folder / "manifest.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_manifest(file, **options)  # pyright: ignore[reportArgumentType]


def _refused(folder: Path, content: str | bytes, **options: object) -> DerminoError:
    with pytest.raises(DerminoError) as caught:
        _read(folder, content, **options)
    assert caught.value.code in {"MANIFEST_INVALID", "CONFIG_INVALID"}
    assert "manifest.csv" in (caught.value.where or "")
    return caught.value


def test_every_column_is_read(tmp_path: Path) -> None:
    header = "image,label,split,group,skin_type,sex,age,mask,caption,extra"
    manifest = _read(tmp_path, f'{header}\na.jpg,nv,train,p1,III,f,61.5,m.png,"a, ""b""",x\n')
    expected = Record("a.jpg", "nv", "train", "p1", "III", "f", 61.5, "m.png", 'a, "b"')
    assert manifest.records == [expected]
    assert manifest.root == tmp_path
    assert manifest.notes == ()


@pytest.mark.parametrize(
    ("text", "labels", "splits"),
    [
        ("image,label,split\na.jpg,nv,train\n", ["nv"], ["train"]),
        ("image,binary_label,split\na.jpg,1,val\nb.jpg,0,test\n", ["1", "0"], ["val", "test"]),
        ("image,binary_label,label,split\na.jpg,1,nv,test\n", ["nv"], ["test"]),
        (",image,label\n0,a.jpg,3\n", ["3"], [None]),
        ("image,label\na.jpg,\nb.jpg,  \n", [None, None], [None, None]),
    ],
)
def test_tables_of_panderm_unchanged(
    tmp_path: Path, text: str, labels: list[str], splits: list[str]
) -> None:
    records = _read(tmp_path, text).records
    assert [record.label for record in records] == labels
    assert [record.split for record in records] == splits


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_dialects(tmp_path: Path, delimiter: str, encoding: str, newline: str) -> None:
    rows = [["Image", "LABEL", "note, or; other"], ["ü.jpg", "nævus", ""], ["", "", ""]]
    quoted = [[f'"{cell}"' if " " in cell else cell for cell in row] for row in rows]
    text = newline.join(delimiter.join(row) for row in quoted) + newline * 2
    records = _read(tmp_path, text.encode(encoding)).records
    assert records == [Record("ü.jpg", "nævus")]


def test_a_single_column_and_names_with_newlines(tmp_path: Path) -> None:
    records = _read(tmp_path, 'image\n"a\nb.jpg"\n" c.jpg"\n"d\r\n.jpg"\n').records
    assert [record.image for record in records] == ["a\nb.jpg", " c.jpg", "d\r\n.jpg"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("TRAIN", "train"),
        ("valid", "val"),
        ("Validation", "val"),
        ("val", "val"),
        (" test", "test"),
    ],
)
def test_splits_are_normalised(tmp_path: Path, written: str, read: str) -> None:
    assert _read(tmp_path, f"image,split\na.jpg,{written}\n").records[0].split == read


def test_columns_can_be_mapped(tmp_path: Path) -> None:
    text = "Path,label,Diagnosis,binary\na.jpg,x,nv,benign\n"
    manifest = _read(tmp_path, text, columns={"image": "path", "label": "diagnosis"})
    assert manifest.records == [Record("a.jpg", "nv")]
    manifest = _read(tmp_path, text.replace(",", ";"), columns={"image": "path", "label": "binary"})
    assert manifest.records == [Record("a.jpg", "benign")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\na.jpg,nv\n", "no column image; the columns found are: file, label"),
        ("image,label,Label\na.jpg,nv,nv\n", "Two columns are called 'Label'"),
        ("image,label\na.jpg,nv\nb.jpg\n", "Row 3 has 1 cells, the header has 2"),
        ("image,label\na.jpg,nv,x\n", "Row 2 has 3 cells"),
        ("image,split\na.jpg,dev\n", "Row 2: split is 'dev'"),
        ("image,label\n,nv\n", "Row 2 names no image"),
        ('image,label\na.jpg,nv\n"b.jpg,nv\n', "Row 3 cannot be read"),
        ('image,label\n"a"x.jpg,nv\n', "Row 2 cannot be read"),
        ("image,label\na\0.jpg,nv\n", "null byte in line 2"),
        ("image,label\na.jpg," + "x" * 200_000 + "\n", "Row 2 cannot be read: field larger"),
        ("", "empty"),
        (" \n\n", "empty"),
        ("\ufeff", "empty"),
        (",,\n", "no column image"),
        ("image,label\na.jpg,n\xe4vus\n".encode("latin-1"), "byte 0xe4 in line 2"),
        ("image,label\na.jpg,nv\n".encode("utf-16"), "UTF-16"),
        (b"PAR1 and then nothing", "Parquet file is damaged"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    error = _refused(tmp_path, text)
    assert error.code == "MANIFEST_INVALID"
    assert said in error.what


def test_wrong_mappings(tmp_path: Path) -> None:
    text = "image,label\na.jpg,nv\n"
    error = _refused(tmp_path, text, columns={"label": "diagnosis"})
    assert error.what == "There is no column 'diagnosis' (for label)."
    assert "image, label" in (error.fix or "")
    assert _refused(tmp_path, text, columns={"disease": "label"}).code == "CONFIG_INVALID"


def test_files_that_are_none(tmp_path: Path) -> None:
    for name in ("absent.csv", "", "nul\0.csv"):
        with pytest.raises(DerminoError) as caught:
            read_manifest(tmp_path / name)
        assert caught.value.code == "MANIFEST_INVALID"
    (tmp_path / "text.parquet").write_text("image\na.jpg\n")
    with pytest.raises(DerminoError, match="named like a Parquet file"):
        read_manifest(tmp_path / "text.parquet")


def test_ages(tmp_path: Path) -> None:
    ages = ["61", "61.5", '"61,5"', "", "nan", "unknown", "85+", "-1", "inf", "1e9"]
    text = "image,age\n" + "".join(f"{index}.jpg,{age}\n" for index, age in enumerate(ages))
    manifest = _read(tmp_path, text)
    assert [record.age for record in manifest.records] == [61.0, 61.5, 61.5] + [None] * 7
    assert manifest.notes == ("5 ages are no number of years and left out ('unknown', row 7)",)


def test_paths_stay_inside(tmp_path: Path) -> None:
    root = tmp_path / "images"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "up").symlink_to("..")
    (root / "out").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to(root)
    manifest = _read(tmp_path, "image\na.jpg\n", root=tmp_path / "alias")
    for inside in (
        "a.jpg",
        "deep/../a.jpg",
        "deep/up/a.jpg",
        f"{root}/a.jpg",
        f"{root.parent}/alias/a.jpg",
    ):
        assert manifest.path_of(Record(inside)) == root.resolve() / "a.jpg"
    for outside in ("../a.jpg", "/etc/passwd", "out/a.jpg", "deep/up/../a.jpg", f"{root}2/a.jpg"):
        with pytest.raises(DerminoError, match="outside the image folder") as caught:
            manifest.path_of(Record(outside))
        assert caught.value.code == "MANIFEST_INVALID"
    with pytest.raises(DerminoError, match="not a usable path"):
        manifest.path_of(Record("a\0.jpg"))


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = {
        "Image": ["a.jpg", "b\n.jpg", "c.jpg"],
        "binary_label": [1.0, None, 0.0],  # as pandas writes integers with a gap
        "group": [7, 8, 9],
        "age": [61.5, float("nan"), 40.0],
        "split": pa.array(["train", "Valid", "test"]).dictionary_encode(),
    }
    file = tmp_path / "manifest.parquet"
    pq.write_table(pa.table(table), file)
    assert read_manifest(file).records == [
        Record("a.jpg", "1", "train", "7", age=61.5),
        Record("b\n.jpg", None, "val", "8"),
        Record("c.jpg", "0", "test", "9", age=40.0),
    ]
    for bad, said in (
        ({"image": [["a.jpg"]]}, "Row 2: image is not text"),
        ({"image": [b"a.jpg"]}, "Row 2: image is not text"),
        ({"image": ["a.jpg", "a\0.jpg"]}, "Row 3: image holds a null byte"),
        ({"image": ["a.jpg", None]}, "Row 3 names no image"),
        ({"label": ["nv"]}, "no column image"),
    ):
        pq.write_table(pa.table(bad), file)
        with pytest.raises(DerminoError, match=said):
            read_manifest(file)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
FILLED = TEXT.map(str.strip).filter(bool)
RECORDS = st.lists(
    st.builds(
        Record,
        image=TEXT.filter(str.strip),
        label=st.none() | FILLED,
        split=st.sampled_from([None, "train", "val", "test"]),
        group=st.none() | FILLED,
        age=st.none() | st.floats(0, 120),
        caption=st.none() | FILLED,
    ),
    max_size=6,
)


@given(records=RECORDS)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_written_is_read(tmp_path: Path, records: list[Record]) -> None:
    write_manifest(tmp_path / "written.csv", records)
    assert read_manifest(tmp_path / "written.csv").records == records


def test_only_columns_in_use_are_written(tmp_path: Path) -> None:
    file = tmp_path / "new" / "manifest.csv"
    write_manifest(file, iter([Record("a.jpg", "nv", age=60.0), Record("b.jpg")]))
    assert file.read_bytes() == b"image,label,age\r\na.jpg,nv,60\r\nb.jpg,,\r\n"
    with pytest.raises(DerminoError, match="UTF-8"):
        write_manifest(file, [Record("a\udcff.jpg")])
    assert file.read_text().startswith("image,label,age")


def test_printable() -> None:
    assert printable("ü 皮膚\n\x1b\u202e\udcff") == "ü 皮膚\\n\\x1b\\u202e\\udcff"
    assert FIELDS[0] == "image"


def _reads_or_explains(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        manifest = read_manifest(file)
    except DerminoError:
        return
    for record in manifest.records:
        assert record.image
        try:
            path = manifest.path_of(record)
        except DerminoError:
            continue
        assert path.is_relative_to(file.parent.resolve())


WILD_TEXT = st.lists(
    st.sampled_from(
        ["image", "label", "split", "age", "a.jpg", "../", "/", "train", "1", ".", "é", " "]
    )
    | st.sampled_from([",", ";", "\t", "\n", "\r", '"', "\ufeff", "\0", "\u2028"]),
    max_size=30,
).map("".join)


@given(text=WILD_TEXT | st.text(max_size=60).map(lambda text: "image,label\n" + text))
@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_text_is_a_table_or_an_explanation(tmp_path: Path, text: str) -> None:
    _reads_or_explains(tmp_path / "wild.csv", text.encode("utf-8", "surrogatepass"))


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_parquet_is_a_table_or_an_explanation(tmp_path: Path, data: st.DataObject) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": ["a.jpg", "b.jpg"], "label": [1, None]}), buffer)
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(4, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    _reads_or_explains(tmp_path / "wild.parquet", bytes(damaged))


@pytest.mark.slow
def test_a_million_rows(tmp_path: Path) -> None:
    file = tmp_path / "large.csv"
    rows = "".join(f"images/{index:07}.jpg,nv,p{index // 3}\n" for index in range(1_000_000))
    file.write_text("image,label,group\n" + rows)
    manifest = read_manifest(file)
    assert len(manifest.records) == 1_000_000
    assert manifest.records[-1] == Record("images/0999999.jpg", "nv", group="p333333")


def test_real_tables(shared_data: Path) -> None:
    manifest = read_manifest(
        shared_data / "ham10000" / "labels.csv", columns={"group": "lesion_id"}
    )
    assert len(manifest.records) == 800
    assert all(record.group and record.label for record in manifest.records)
    assert all(manifest.path_of(record).is_file() for record in manifest.records)
