"""A region's sum as one file: from one coordinator to another that has no SuperLink with it.

A safetensors file: the parts of the sum as :mod:`dermino_strategies.regional` cuts them, three
times the size of what one site sends, and in the metadata a JSON that names the study, the sites,
how many images each has and the digest of what each sent. No site's own sum is in it. Whoever
reads such a file has it from somebody else, so all that can be checked is, before any of it is
used. It is not signed: that the sum is that of these sites is the sender's word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dermino_core.errors import DerminoError
from dermino_core.names import check_name
from dermino_core.private_files import write_new
from dermino_core.results import BackboneInfo
from dermino_server.region_study import Study, Word
from dermino_strategies.base import Additive, Arrays, SiteUpdate
from dermino_strategies.protocol import RegionalHeader
from dermino_strategies.regional import Region, RegionalSum

FORMAT = 1
_METADATA_KEY = "dermino.region"
_ONE_OF_ALL = "(top)"
"""No region can be called so: of a sum that does not travel."""


def _as_name(what: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            return check_name(text, what=what)
        except DerminoError as error:
            raise ValueError(error.what) from None

    return check


_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_SiteName = Annotated[str, AfterValidator(_as_name("site"))]
_RegionName = Annotated[str, AfterValidator(_as_name("region"))]


class RegionInfo(BaseModel):
    """All that a region file says beside the numbers of the sum."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1] = FORMAT
    region: _RegionName
    study: Study
    images: dict[_SiteName, Annotated[int, Field(ge=1, le=2**40)]] = Field(
        min_length=1, description="site -> its training images"
    )
    digests: dict[_SiteName, _Digest] = Field(description="site -> SHA-256 of what it sent")
    backbone: BackboneInfo
    backbone_spec: Word = Field(description="where the region's coordinator has the backbone")
    created: Word
    dermino_version: Word

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> RegionInfo:
        if set(self.images) != set(self.digests):
            raise ValueError("it counts images of other sites than it has digests of")
        if (self.backbone.fingerprint, self.backbone.width) != (
            self.study.backbone,
            self.study.width,
        ):
            raise ValueError("it names two backbones")
        words = (self.backbone.name, self.backbone.architecture, self.backbone.precision)
        if not all(word.isprintable() for word in words):
            raise ValueError("its backbone has no printable name")
        return self

    @property
    def header(self) -> RegionalHeader:
        """As the region would send it over a network; the study stands for the run."""
        return RegionalHeader(
            region=self.region,
            run_id=self.study.digest[:32],
            round=self.study.rounds,
            digests=dict(self.digests),
        )


@dataclass(frozen=True)
class RegionFile:
    """A region file that was read or written."""

    file: Path
    sha256: str
    info: RegionInfo
    sum: RegionalSum


def new_region(name: str | None, study: Study, strategy: Additive) -> Region:
    """An empty sum of a study; `name` is None at the top, whose sum goes nowhere."""
    return Region.of(
        _ONE_OF_ALL if name is None else name,
        strategy,
        study.start(strategy),
        run_id=study.digest[:32],
        round_=study.rounds,
    )


def write_region(file: Path, info: RegionInfo, parts: Arrays) -> RegionFile:
    """Write a region file for its owner's eyes only; whole or not at all, over nothing.

    Raises
    ------
    DerminoError
        `OUTPUT_EXISTS` if the file is there; `CONFIG_INVALID` if it cannot be written.
    """
    refuse_existing_file(file)
    content = save(parts, {_METADATA_KEY: info.model_dump_json()})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_new(file, content)
    except OSError as error:
        raise DerminoError(
            "CONFIG_INVALID",
            f"The region file could not be written: {error.strerror or error}.",
            where=file,
            fix="Choose a folder of this machine's own disk with --out.",
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    return RegionFile(file, digest, info, RegionalSum(info.header, parts))


def refuse_existing_file(file: Path) -> None:
    """Raise `OUTPUT_EXISTS` if something has the name of the region file that is to be."""
    if file.exists() or file.is_symlink():
        raise DerminoError(
            "OUTPUT_EXISTS",
            "There is something of this name already.",
            where=file,
            fix="Choose another --out, or move away what is there.",
        )


def read_region(file: Path) -> RegionFile:
    """Read a region file of somebody else, and check all that can be checked.

    Raises
    ------
    DerminoError
        `CONFIG_NOT_FOUND` if it is missing; `CHECKPOINT_INVALID` if it is damaged, of another
        kind or version, contradicts itself, or holds numbers that are no sum of such sites.
    """
    if not file.is_file():
        raise DerminoError(
            "CONFIG_NOT_FOUND",
            "There is no such region file.",
            where=file,
            fix="Give the file that `dermino region sum` wrote at the region's coordinator.",
        )
    try:
        content = file.read_bytes()
        parts = load(content)
        info = _read_info(file, content)
        strategy = info.study.strategy_of()
        result = RegionFile(
            file,
            hashlib.sha256(content).hexdigest(),
            info,
            RegionalSum(info.header, parts),
        )
        region = new_region(None, info.study, strategy)
        region.add_region(result.sum)
        check_total(strategy, info.study, region.total(), info.images)
    except DerminoError as error:
        raise _damaged(file, error.what.rstrip(".")) from error
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(file, str(error).splitlines()[0]) from error
    except (RecursionError, MemoryError, OverflowError) as error:
        raise _damaged(file, "it claims to be larger than it can be") from error
    return result


def check_total(strategy: Additive, study: Study, total: Arrays, images: Mapping[str, int]) -> None:
    """Hold a sum to what it is said to be, and to what a site's own update would have to be.

    Raises
    ------
    ValueError
        In words without a path.
    """
    told = sum(images.values())
    if (examples := float(total["examples"][0])) != told:
        raise ValueError(f"its sites are said to have {told} images, and its sum has {examples:g}")
    if float(total.get("noise", np.zeros(1))[0]) != 0.0:
        raise ValueError("its sum holds noise of a private run")
    start = study.start(strategy)
    like = strategy.update_like(start)
    with np.errstate(over="ignore"):  # infinity is refused below
        arrays = {name: total[name].astype(array.dtype) for name, array in like.items()}
    strategy.check_update(start, SiteUpdate(arrays, examples=told))


def _read_info(file: Path, content: bytes) -> RegionInfo:
    """The metadata of a file that is a whole safetensors file."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    if _METADATA_KEY not in metadata:
        raise ValueError("it is no region file")
    values = json.loads(metadata[_METADATA_KEY])
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise ValueError(f"it has the format {found!r}, and this version of dermino reads {FORMAT}")
    try:
        return RegionInfo.model_validate_json(metadata[_METADATA_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{key}: {message}" if key else message) from error


def _damaged(file: Path, why: str) -> DerminoError:
    shown = "".join(c if c.isprintable() else "?" for c in why)[:300]
    return DerminoError(
        "CHECKPOINT_INVALID",
        f"This region file cannot be used: {shown}.",
        where=file,
        fix="Have the region's coordinator make it anew with `dermino region sum`, with the same "
        "version of dermino, and send it again.",
    )
