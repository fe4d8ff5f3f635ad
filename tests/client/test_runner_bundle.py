"""Which Flower app bundle is dermino's own, and which may run: real bundles, and damaged ones."""

from __future__ import annotations

import hashlib
import io
import os
import tomllib
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from app_bundles import HOSTILE, OWN, build, evil, rezipped
from flwr.cli.build import build_fab_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_client.runner_bundle import bundle_hash, is_own, judge
from dermino_core import __version__
from dermino_core.errors import DerminoError


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build(tmp_path_factory.mktemp("own") / "dermino", OWN)


@pytest.fixture
def hostile(tmp_path: Path) -> bytes:
    return build(tmp_path / "hostile", HOSTILE, evil=evil(tmp_path / "marker"))


def test_what_flower_builds_of_the_app_is_dermino_s_own(own: bytes, tmp_path: Path) -> None:
    assert is_own(own)
    assert judge(own, ["dermino"]) == "own"
    assert bundle_hash(own) == hashlib.sha256(own).hexdigest()
    again = tmp_path / "again" / "dermino"
    again.mkdir(parents=True)
    (again / "pyproject.toml").write_text(OWN)
    os.utime(again / "pyproject.toml", (0, 0))
    assert build_fab_from_disk(again) == own


def test_the_description_is_that_of_this_package() -> None:
    """The same version as the package, no code and no dependencies of its own."""
    described = tomllib.loads(OWN)
    assert described["project"]["version"] == __version__
    assert described["project"]["dependencies"] == []
    components = described["tool"]["flwr"]["app"]["components"]
    assert components["clientapp"] == "dermino_client.app:app"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_another_way_of_packing_is_still_the_same_bundle(own: bytes, method: int) -> None:
    """Another zlib, another order, other dates: same description, another hash."""
    packed = rezipped(own, method)
    assert bundle_hash(packed) != bundle_hash(own)
    assert is_own(packed)


def test_another_version_is_left_to_the_protocol(tmp_path: Path) -> None:
    newer = OWN.replace('version = "', 'version = "9.')
    assert newer != OWN
    assert is_own(build(tmp_path / "app", newer))


DIFFERENT = {
    "another client app": OWN.replace("dermino_client.app:app", "evil:app"),
    "another server app": OWN.replace("dermino_server.app:app", "evil:app"),
    "a dependency": OWN.replace("dependencies = []", 'dependencies = ["evil"]'),
    "a configuration key": OWN + "\nshell = true\n",
    "a section": OWN + '\n[tool.uv.sources]\nevil = { url = "https://evil.example" }\n',
    "another publisher": OWN.replace('publisher = "dermino"', 'publisher = "evil"'),
    "another name": OWN.replace('name = "dermino"', 'name = "evil"'),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_changed_description_is_not(tmp_path: Path, what: str) -> None:
    assert DIFFERENT[what] != OWN
    assert not is_own(build(tmp_path / "app", DIFFERENT[what]))


def test_code_beside_the_description_is_not(own: bytes, tmp_path: Path) -> None:
    assert not is_own(build(tmp_path / "app", OWN, dermino_client="print('hello')"))
    assert not is_own(rezipped(own, **{"sitecustomize.py": b"import evil"}))
    assert not is_own(rezipped(own, **{"../../outside.py": b"import evil"}))
    assert not is_own(rezipped(own, **{".info/CONTENT": None}))
    assert not is_own(rezipped(own, **{"pyproject.toml": None}))
    with io.BytesIO(own) as twice, zipfile.ZipFile(twice, "a") as archive:
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("pyproject.toml", HOSTILE)
        archive.close()
        assert not is_own(twice.getvalue())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"x = " + b"[" * 12_000,
        b"project = 3\n",
        b"[project]\nname = 'dermino'\n",
        b"[" + b"a." * 7_000 + b"a]\n",
    ],
)
def test_nonsense_is_not(own: bytes, text: bytes) -> None:
    assert not is_own(rezipped(own, zipfile.ZIP_DEFLATED, **{"pyproject.toml": text}))


def test_a_bomb_is_not_unpacked(own: bytes) -> None:
    bomb = rezipped(own, zipfile.ZIP_DEFLATED, **{"pyproject.toml": b"#" * 12_000_000})
    assert len(bomb) < 16 * 1024
    tracemalloc.start()
    try:
        assert not is_own(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_is_an_error(own: bytes, data: st.DataObject) -> None:
    """Whatever bytes come: yes or no, and yes only to what says the same as dermino's own."""
    damaged = bytearray(own)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 40))
    bundle = bytes(damaged[: len(damaged) - cut])
    if is_own(bundle):
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            assert archive.read("pyproject.toml") == zipfile.ZipFile(io.BytesIO(own)).read(
                "pyproject.toml"
            )


def test_who_may_run(own: bytes, hostile: bytes) -> None:
    assert judge(hostile, ["dermino", bundle_hash(hostile)]) == "listed"
    assert judge(own, [bundle_hash(own)]) == "own"
    refused: list[tuple[bytes, list[str], str]] = [
        (hostile, ["dermino"], "not dermino's own"),
        (hostile, ["dermino", bundle_hash(own)], "not dermino's own"),
        (hostile + b"\0", [bundle_hash(hostile)], "not dermino's own"),
        (own, [bundle_hash(hostile)], "'dermino' is not in"),
        (b"", ["dermino"], "not dermino's own"),
    ]
    for bundle, apps, words in refused:
        with pytest.raises(DerminoError, match=words) as caught:
            judge(bundle, apps)
        assert caught.value.code == "APP_REFUSED"
        assert bundle_hash(bundle) in str(caught.value)
