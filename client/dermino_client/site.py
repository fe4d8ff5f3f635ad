"""The site file: what a hospital says about itself, its images and its limits.

A TOML file named after the site. Relative paths are relative to the file. Every mistake is
reported with file, key, value and what is allowed.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from dermino_client.policy import PolicySection
from dermino_core.errors import DerminoError
from dermino_core.labels import TASKS
from dermino_core.names import check_address, check_name
from dermino_core.paths import default_cache

DEFAULT_FOLDERS = (Path("sites"), Path("/etc/dermino/sites"))


def _rule(check: Callable[[str], str]) -> Callable[[str], str]:
    """A rule for names as pydantic wants it: its error becomes one about a key of the file."""

    def validate(value: str) -> str:
        try:
            return check(value)
        except DerminoError as error:
            raise ValueError(f"{error.what} {error.fix}") from None

    return validate


def _expandable(value: Path) -> Path:
    try:
        value.expanduser()
    except RuntimeError:
        raise ValueError("there is no such home folder") from None
    return value


SiteName = Annotated[str, AfterValidator(_rule(check_name))]
Address = Annotated[str, AfterValidator(_rule(check_address))]
FilePath = Annotated[Path, AfterValidator(_expandable)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SiteSection(_Section):
    """`[site]`: who this is and what it takes part in."""

    name: SiteName
    task: str = "malignancy"
    classes: list[str] | None = Field(default=None, min_length=2)

    @model_validator(mode="after")
    def _task_or_classes(self) -> SiteSection:
        if self.classes is None and self.task not in TASKS:
            raise ValueError(
                f"task '{self.task}' is not built in ({', '.join(sorted(TASKS))}): "
                "name its classes with 'classes'"
            )
        if self.classes and "" in self.classes:
            raise ValueError("a class has an empty name")
        if self.classes and len(set(self.classes)) < len(self.classes):
            raise ValueError("a class is named twice")
        return self


class DataSection(_Section):
    """`[data]`: the table of images, and how much may be wrong with it."""

    manifest: FilePath
    images: FilePath | None = None
    columns: dict[str, str] = {}
    max_unreadable: float = Field(default=0.0, strict=True, ge=0, le=1)
    min_images: int = Field(default=20, strict=True, ge=2)
    train_share: float = Field(default=0.5, strict=True, gt=0, lt=1)
    split_seed: int = Field(default=0, strict=True, ge=0)


class BackboneSection(_Section):
    """`[backbone]`: the frozen encoder, the same at every site."""

    name: str = "demo"
    precision: str = Field(default="auto", pattern="^(auto|fp32|bf16)$")
    device: str = Field(default="auto", pattern="^(auto|cpu|cuda)$")


class SegmentationSection(_Section):
    """`[segmentation]`: take part in runs that learn to outline lesions.

    Masks are named by the manifest's column `mask`; images without one take no part.
    """

    image_size: int = Field(default=224, strict=True, ge=16, le=2048)
    heads: list[Literal["linear", "upernet"]] = Field(default=["linear"], min_length=1)
    views: int = Field(default=4, strict=True, ge=1, le=8)


class CoordinatorSection(_Section):
    """`[coordinator]`: where to connect and with which key."""

    address: Address
    root_certificates: FilePath
    private_key: FilePath


class NodeSection(_Section):
    """`[node]`: this machine."""

    folder: FilePath | None = None
    cache: FilePath | None = None
    port: int = Field(default=9094, strict=True, ge=1, le=65535)
    health_address: Address | None = None


class Site(_Section):
    """A checked site file."""

    site: SiteSection
    data: DataSection
    labels: dict[str, str]
    backbone: BackboneSection = BackboneSection()
    coordinator: CoordinatorSection | None = None
    policy: PolicySection = PolicySection()
    node: NodeSection = NodeSection()
    segmentation: SegmentationSection | None = None
    _file: Path = PrivateAttr(default=Path())

    @property
    def file(self) -> Path:
        """The site file this was read from."""
        return self._file

    @property
    def name(self) -> str:
        """The site's name."""
        return self.site.name

    @property
    def classes(self) -> list[str]:
        """The classes of the task, the positive one last."""
        return list(self.site.classes or TASKS[self.site.task])

    @property
    def manifest(self) -> Path:
        """The table of images, absolute."""
        return self.resolve(self.data.manifest)

    @property
    def images(self) -> Path | None:
        """The folder that image paths are relative to, absolute; None: the manifest's folder."""
        return None if self.data.images is None else self.resolve(self.data.images)

    @property
    def backbone_spec(self) -> str:
        """The backbone, with a path made absolute where it names a file or a backbone folder."""
        architecture, at, file = self.backbone.name.rpartition("@")
        try:
            candidate = self.resolve(Path(file))
        except RuntimeError:  # "~name" of nobody
            return self.backbone.name
        there = os.path.isfile(candidate) or os.path.isfile(candidate / "model.json")
        return f"{architecture}{at}{candidate}" if there else self.backbone.name

    @property
    def folder(self) -> Path:
        """What this site keeps: keys, audit log, privacy ledger. Private to its user."""
        if self.node.folder is not None:
            return self.resolve(self.node.folder)
        return self._file.parent / f"{self.name}.site"

    @property
    def cache(self) -> Path:
        """Where features are kept."""
        if self.node.cache is not None:
            return self.resolve(self.node.cache)
        return default_cache()

    def resolve(self, path: Path) -> Path:
        """A path of the site file, absolute."""
        return (self._file.parent / path.expanduser()).absolute()


def read_site(file: Path) -> Site:
    """Read and check a site file.

    Raises
    ------
    DerminoError
        `CONFIG_NOT_FOUND` or `CONFIG_INVALID`, naming file, key, value and what is allowed.
    """
    try:
        text = file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise DerminoError(
            "CONFIG_NOT_FOUND",
            "There is no such site file.",
            where=file,
            fix="Make one with: dermino-client init --site NAME --images DIR --labels CSV",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DerminoError(
            "CONFIG_INVALID",
            f"The site file cannot be read: {error}.",
            where=file,
            fix="It must be a readable TOML file in UTF-8.",
        ) from None
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # beside TOMLDecodeError: huge, deeply nested
        raise DerminoError(
            "CONFIG_INVALID",
            f"The site file is not valid TOML: {error}.",
            where=file,
            fix="Mend it there; deploy/sites/ has examples.",
        ) from None
    try:
        site = Site.model_validate(content)
    except ValidationError as error:
        raise _invalid(file, error) from None
    site._file = file.absolute()
    unknown = sorted({c for c in site.labels.values() if c and c not in site.classes})
    if unknown:
        raise DerminoError(
            "CONFIG_INVALID",
            f"[labels] maps onto {', '.join(map(repr, unknown))}, which the task does not have.",
            where=f"{file}, [labels]",
            fix=f'Use one of {", ".join(site.classes)}, or "" to leave the images out.',
        )
    return site


def _invalid(file: Path, error: ValidationError) -> DerminoError:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "the file"
        given = _shown(problem["input"]) if problem["type"] != "missing" else "nothing"
        lines.append(f"{key}: {problem['msg']} (given: {given})")
    if any(problem["type"] == "extra_forbidden" for problem in error.errors()):
        lines.append(f"known keys: {_known_keys()}")
    return DerminoError(
        "CONFIG_INVALID",
        "The site file is not valid:\n  " + "\n  ".join(lines),
        where=file,
        fix="Mend the keys named above; deploy/sites/ has examples.",
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _known_keys() -> str:
    sections = {
        "site": SiteSection,
        "data": DataSection,
        "backbone": BackboneSection,
        "coordinator": CoordinatorSection,
        "policy": PolicySection,
        "node": NodeSection,
        "segmentation": SegmentationSection,
    }
    parts = [f"[{name}] {', '.join(kind.model_fields)}" for name, kind in sections.items()]
    return "; ".join([*parts, "[labels] any label"])


def find_site(name: str, sites_dir: Path | None = None) -> Site:
    """Find and read `NAME.toml`.

    Looks in `sites_dir`; without it in `$DERMINO_SITES`, `./sites` and `/etc/dermino/sites`.

    Raises
    ------
    DerminoError
        `CONFIG_NOT_FOUND` listing where it looked and which sites are there; `CONFIG_INVALID` if
        the file names another site.
    """
    check_name(name)
    folders = [sites_dir] if sites_dir else _default_folders()
    for folder in folders:
        if (file := folder / f"{name}.toml").is_file():
            site = read_site(file)
            if site.name != name:
                raise DerminoError(
                    "CONFIG_INVALID",
                    f"This file describes the site '{site.name}', not '{name}'.",
                    where=f"{file}, site.name",
                    fix="Give the file and [site] name the same name.",
                )
            return site
    present = sorted({f.stem for folder in folders for f in folder.glob("*.toml")})
    raise DerminoError(
        "CONFIG_NOT_FOUND",
        f"There is no {name}.toml.",
        where="looked in " + ", ".join(str(f.absolute()) for f in folders),
        fix=(f"Sites found there: {', '.join(present)}. " if present else "")
        + f"Make one with: dermino-client init --site {name} --images DIR --labels CSV",
    )


def _default_folders() -> list[Path]:
    configured = os.environ.get("DERMINO_SITES")
    return ([Path(configured)] if configured else []) + list(DEFAULT_FOLDERS)


def read_sites(folder: Path) -> list[Site]:
    """Every site file in a folder, sorted by name.

    Raises
    ------
    DerminoError
        `CONFIG_NOT_FOUND` if there is none, `CONFIG_INVALID` if two share a name.
    """
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise DerminoError(
            "CONFIG_NOT_FOUND",
            "There are no site files (*.toml) in this folder.",
            where=folder,
            fix="Make one per hospital: dermino-client init --site NAME --images DIR --labels CSV",
        )
    sites = [read_site(file) for file in files]
    names = [site.name for site in sites]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DerminoError(
            "CONFIG_INVALID", f"Two site files describe {', '.join(twice)}.", where=folder
        )
    return sorted(sites, key=lambda site: site.name)
