"""The site file: every mistake is named with file, key, value and what is allowed."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dermino_client.site import Site, find_site, read_site, read_sites
from dermino_core.errors import DerminoError

MINIMAL = """
[site]
name = "ward"
[data]
manifest = "table.csv"
[labels]
mole = "benign"
"""
COORDINATOR = '[coordinator]\naddress = "{}"\nroot_certificates = "ca.crt"\nprivate_key = "k"\n'


def written(folder: Path, text: str | bytes, name: str = "ward") -> Path:
    file = folder / f"{name}.toml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def use(site: Site) -> None:
    """Everything that later code asks of a site file."""
    assert site.manifest.is_absolute()
    assert site.cache.is_absolute()
    assert site.images is None or site.images.is_absolute()
    assert len(set(site.classes)) == len(site.classes) >= 2
    assert isinstance(site.backbone_spec, str)
    if site.coordinator is not None:
        assert site.resolve(site.coordinator.private_key).is_absolute()
        assert site.resolve(site.coordinator.root_certificates).is_absolute()


def test_a_short_file_gets_safe_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DERMINO_CACHE", str(tmp_path / "cache"))
    site = read_site(written(tmp_path, MINIMAL))
    use(site)
    assert (site.name, site.classes) == ("ward", ["benign", "malignant"])
    assert (site.data.max_unreadable, site.data.min_images) == (0.0, 20)
    assert (site.data.train_share, site.data.split_seed) == (0.5, 0)
    assert (site.backbone.name, site.backbone.precision) == ("demo", "auto")
    assert site.coordinator is None
    assert site.cache == tmp_path / "cache"


@pytest.mark.parametrize("number", range(3))
def test_the_examples_in_deploy_are_valid(number: int) -> None:
    folder = Path(__file__).resolve().parents[2] / "deploy" / "sites"
    files = sorted(folder.glob("*.toml"))
    assert len(files) == 3
    site = read_site(files[number])
    use(site)
    assert site.folder.is_absolute()


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "etc"
    weights = tmp_path / "weights" / "vit.safetensors"
    weights.parent.mkdir()
    weights.touch()
    text = MINIMAL.replace('"table.csv"', '"../data/table.csv"\nimages = "~/pictures"')
    text += '[backbone]\nname = "vit_small@../weights/vit.safetensors"\n[node]\ncache = "c"\n'
    file = written(folder, text)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for site in (read_site(file), read_site(file.relative_to(tmp_path))):
        assert os.path.normpath(site.manifest) == str(tmp_path / "data" / "table.csv")
        assert site.images == tmp_path / "home" / "pictures"
        assert site.cache == folder / "c"
        architecture, _, path = site.backbone_spec.partition("@")
        assert architecture == "vit_small"
        assert Path(path).samefile(weights)
        assert Path(path).is_absolute()


def test_a_backbone_folder_is_relative_to_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "weights" / "ours"
    folder.mkdir(parents=True)
    (folder / "model.json").touch()
    text = MINIMAL + '[backbone]\nname = "../weights/ours"\n'
    spec = read_site(written(tmp_path / "sites", text)).backbone_spec
    assert Path(spec).is_absolute()
    assert Path(spec).samefile(folder)


@pytest.mark.parametrize(
    "name",
    ["demo", "vit_small_patch14_dinov2", "arch@missing.safetensors", "x" * 300, "\0", "~nobody/x"],
)
def test_a_backbone_that_is_no_file_stays_a_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "demo").mkdir()
    text = MINIMAL + tomli_w.dumps({"backbone": {"name": name}})
    assert read_site(written(tmp_path, text)).backbone_spec == name


MISTAKES = {
    "unknown key": (
        MINIMAL.replace("[labels]", "min_image = 30\n[labels]"),
        ["data.min_image", "30", "min_images"],
    ),
    "unknown section": (MINIMAL + "[train]\nlr = 1\n", ["train", "lr", "[backbone]", "[node]"]),
    "no manifest": (MINIMAL.replace('manifest = "table.csv"', ""), ["data.manifest", "required"]),
    "no labels": (MINIMAL.partition("[labels]")[0], ["labels", "required"]),
    "text for a number": (
        MINIMAL.replace("[labels]", 'min_images = "many"\n[labels]'),
        ["data.min_images", "'many'", "integer"],
    ),
    "truth for a share": (
        MINIMAL.replace("[labels]", "max_unreadable = true\n[labels]"),
        ["data.max_unreadable", "True", "number"],
    ),
    "share above one": (
        MINIMAL.replace("[labels]", "max_unreadable = 5\n[labels]"),
        ["data.max_unreadable", "5", "less than or equal to 1"],
    ),
    "share that is no number": (
        MINIMAL.replace("[labels]", "train_share = nan\n[labels]"),
        ["data.train_share", "nan", "less than 1"],
    ),
    "number for a path": (
        MINIMAL.replace('"table.csv"', "7"),
        ["data.manifest", "7", "path"],
    ),
    "bad name": (
        MINIMAL.replace('"ward"', '"../ward"'),
        ["site.name", "'../ward'", "letters, digits"],
    ),
    "bad precision": (
        MINIMAL + '[backbone]\nprecision = "fp16"\n',
        ["backbone.precision", "'fp16'", "auto|fp32|bf16"],
    ),
    "port out of range": (MINIMAL + "[node]\nport = 70000\n", ["node.port", "70000", "65535"]),
    "incomplete coordinator": (
        MINIMAL + '[coordinator]\naddress = "c.example:443"\n',
        ["coordinator.root_certificates", "coordinator.private_key", "required"],
    ),
    "label onto no class": (
        MINIMAL + 'bcc = "malign"\n',
        ["[labels]", "'malign'", "benign, malignant", "leave the images out"],
    ),
    "unknown task": (
        MINIMAL.replace('"ward"', '"ward"\ntask = "diagnosis"'),
        ["site", "diagnosis", "malignancy", "classes"],
    ),
    "one class": (
        MINIMAL.replace('"ward"', '"ward"\nclasses = ["benign"]'),
        ["site.classes", "benign", "at least 2"],
    ),
    "class twice": (
        MINIMAL.replace('"ward"', '"ward"\nclasses = ["benign", "mel", "mel"]'),
        ["site", "mel", "twice"],
    ),
    "class without a name": (
        MINIMAL.replace('"ward"', '"ward"\nclasses = ["benign", ""]'),
        ["site", "empty"],
    ),
    "home of nobody": (
        MINIMAL.replace('"table.csv"', '"~nobody-of-this-name/table.csv"'),
        ["data.manifest", "~nobody-of-this-name"],
    ),
    "not TOML": ("[site\nname = ward", ["TOML", "line 1"]),
    "section twice": (MINIMAL + "[site]\nname = 'x'\n", ["TOML", "site"]),
    "number of 5000 digits": (MINIMAL + "x = " + "9" * 5000, ["TOML"]),
    "nested without end": (MINIMAL + "x = " + "[" * 20000, ["TOML"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(tmp_path: Path, mistake: str) -> None:
    text, words = MISTAKES[mistake]
    file = written(tmp_path, text)
    with pytest.raises(DerminoError) as caught:
        read_site(file)
    assert caught.value.code == "CONFIG_INVALID"
    assert caught.value.exit_code == 3
    message = str(caught.value)
    for word in [str(file), *words]:
        assert word in message, message
    assert len(message) < 2000


@pytest.mark.parametrize(
    "address",
    [
        *("coordinator", "https://c.example:443", ":443", "c.example:", "c.example:0"),
        *("c.example:65536", "c.example:http", "c.example:²", "c..example:443", "c example:443"),
        *("c.example:443/fleet", "c.example:443\n", f"{'c' * 64}.example:443", "[::1:443"),
    ],
)
def test_bad_addresses_are_refused(tmp_path: Path, address: str) -> None:
    text = MINIMAL + COORDINATOR.format(address.replace("\n", "\\n"))
    with pytest.raises(DerminoError, match=r"coordinator\.address: .*HOST:PORT"):
        read_site(written(tmp_path, text))


@pytest.mark.parametrize("address", ["c.example:443", "127.0.0.1:9092", "[::1]:9092", "host_1:1"])
def test_good_addresses_are_taken(tmp_path: Path, address: str) -> None:
    site = read_site(written(tmp_path, MINIMAL + COORDINATOR.format(address)))
    assert site.coordinator is not None
    assert site.coordinator.address == address


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = written(tmp_path, MINIMAL.replace("mole", '"Nävus"').encode("latin-1"))
    with pytest.raises(DerminoError, match=r"utf-8[^$]*UTF-8") as caught:
        read_site(latin)
    assert caught.value.code == "CONFIG_INVALID"
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    with pytest.raises(DerminoError, match="cannot be read") as caught:
        read_site(folder)
    assert caught.value.code == "CONFIG_INVALID"
    with pytest.raises(DerminoError, match="dermino-client init") as caught:
        read_site(tmp_path / "nowhere.toml")
    assert caught.value.code == "CONFIG_NOT_FOUND"


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--sites-dir` alone if given; else $DERMINO_SITES, then ./sites."""
    for where in ("given", "environment", "sites"):
        text = MINIMAL.replace("table.csv", f"{where}.csv")
        written(tmp_path / where, text)
        written(tmp_path / where, text.replace("ward", where), where)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DERMINO_SITES", str(tmp_path / "environment"))
    assert find_site("ward", tmp_path / "given").manifest.name == "given.csv"
    assert find_site("ward").manifest.name == "environment.csv"
    assert find_site("sites").manifest.name == "sites.csv"
    with pytest.raises(DerminoError, match=r"no sites\.toml"):
        find_site("sites", tmp_path / "given")
    monkeypatch.delenv("DERMINO_SITES")
    assert find_site("ward").manifest.name == "sites.csv"


def test_missing_site_says_where_it_looked_and_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "sites", MINIMAL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DERMINO_SITES", str(tmp_path / "elsewhere"))
    with pytest.raises(DerminoError) as caught:
        find_site("warden")
    assert caught.value.code == "CONFIG_NOT_FOUND"
    for word in (tmp_path / "elsewhere", tmp_path / "sites", "/etc/dermino/sites"):
        assert str(word) in str(caught.value)
    assert "Sites found there: ward." in str(caught.value)
    assert "init --site warden" in str(caught.value)
    with pytest.raises(DerminoError) as caught:
        find_site("ward", tmp_path / "empty")
    assert "Sites found" not in str(caught.value)


def test_file_and_name_must_agree(tmp_path: Path) -> None:
    written(tmp_path, MINIMAL, "other")
    with pytest.raises(DerminoError, match="describes the site 'ward', not 'other'"):
        find_site("other", tmp_path)
    with pytest.raises(DerminoError, match="cannot name a site"):
        find_site("../ward", tmp_path)


def test_a_folder_of_sites(tmp_path: Path) -> None:
    with pytest.raises(DerminoError, match="no site files"):
        read_sites(tmp_path)
    for name in ("b", "a"):
        written(tmp_path, MINIMAL.replace("ward", name), f"9-{name}")
    (tmp_path / "notes.txt").write_text("not a site")
    assert [site.name for site in read_sites(tmp_path)] == ["a", "b"]
    written(tmp_path, MINIMAL.replace("ward", "a"), "again")
    with pytest.raises(DerminoError, match="Two site files describe a"):
        read_sites(tmp_path)


KEYS = st.sampled_from(
    [
        *("site", "data", "labels", "backbone", "coordinator", "node", "name", "task", "classes"),
        *("manifest", "images", "columns", "max_unreadable", "min_images", "train_share", "cache"),
        *("split_seed", "precision", "device", "address", "root_certificates", "private_key"),
        *("port", "health_address", "mole", ""),
    ]
)
SCALARS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["ward", "benign", "malignancy", "demo", "auto", "a:1", "~", "~x/y", "\0"]),
    st.text("x/", min_size=250, max_size=300),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.datetimes(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
VALID: dict[str, Any] = tomllib.loads(MINIMAL + COORDINATOR.format("c.example:443"))


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    """A valid file with some keys changed or added, so that checks past the first are reached."""
    content = {section: dict(values) for section, values in VALID.items()}
    for _ in range(draw(st.integers(0, 3))):
        section = draw(KEYS)
        if draw(st.booleans()):
            content[section] = draw(VALUES)
        elif isinstance(content.setdefault(section, {}), dict):
            content[section][draw(KEYS)] = draw(VALUES)
    return content


def read_or_refuse(folder: Path, text: bytes) -> None:
    file = folder / "ward.toml"
    file.write_bytes(text)
    refusal = None
    try:
        use(read_site(file))
    except DerminoError as error:
        refusal = error
    if refusal is not None:
        assert refusal.code == "CONFIG_INVALID"
        assert str(file) in str(refusal)


@given(contents())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_wild_contents_never_crash(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    read_or_refuse(folder, tomli_w.dumps(content).encode("utf-8", "surrogatepass"))


@given(
    st.one_of(
        st.binary(max_size=200),
        st.text("[]{}=.,'\"#\n\\ \tabe019-:T_+~", max_size=120).map(str.encode),
        st.tuples(st.integers(0, len(MINIMAL)), st.text(max_size=6)).map(
            lambda cut: (MINIMAL[: cut[0]] + cut[1] + MINIMAL[cut[0] :]).encode(
                "utf-8", "surrogatepass"
            )
        ),
    )
)
@settings(max_examples=300, deadline=None)
def test_wild_text_never_crashes(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    read_or_refuse(tmp_path_factory.getbasetemp(), text)
