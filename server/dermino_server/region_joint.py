"""A sum that grows: a kept run and region files, one after the other, and what must not mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dermino_core import __version__
from dermino_core.errors import DerminoError
from dermino_core.results import BackboneInfo
from dermino_server.kept_run import KeptRun, read_kept_run
from dermino_server.region_file import (
    RegionFile,
    RegionInfo,
    check_total,
    new_region,
    read_region,
)
from dermino_server.region_study import Study, study_of
from dermino_strategies.base import Additive
from dermino_strategies.regional import Region, digest_of


class JoinedFile(BaseModel):
    """A region file that a model was joined from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    sha256: str
    region: str
    sites: list[str]
    created: str
    dermino_version: str


@dataclass
class Joint:
    """A sum that takes in one thing after the other."""

    region: Region
    study: Study
    strategy: Additive
    backbone: BackboneInfo
    backbone_spec: str
    images: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    through: dict[str, str] = field(default_factory=dict)
    """Site -> what it came with, in words."""
    files: list[JoinedFile] = field(default_factory=list)
    run: KeptRun | None = None

    @property
    def sites(self) -> list[str]:
        """All sites in the sum, sorted."""
        return sorted(self.images)

    def info(self, name: str) -> RegionInfo:
        """What a region file of this sum says."""
        return RegionInfo(
            region=name,
            study=self.study,
            images=dict(sorted(self.images.items())),
            digests=dict(sorted(self.digests.items())),
            backbone=self.backbone,
            backbone_spec=self.backbone_spec,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            dermino_version=__version__,
        )


def joint_of_run(kept: KeptRun, name: str | None) -> Joint:
    """The sum over the sites of a run; `name` as of :func:`new_region`.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` as :func:`study_of`; `CHECKPOINT_INVALID` if the kept sums are damaged.
    """
    study, strategy = study_of(kept)
    joint = Joint(
        new_region(name, study, strategy),
        study,
        strategy,
        kept.plan.backbone,
        kept.plan.backbone_spec,
        run=kept,
    )
    try:
        for site, update in kept.sums.updates(kept.sites).items():
            strategy.check_update(study.start(strategy), update)
            summand = strategy.summand(update)
            joint.region.add(site, summand)
            joint.digests[site] = digest_of(summand)
            joint.images[site] = update.examples
            joint.through[site] = f"the run {kept.folder}"
        check_total(strategy, study, joint.region.total(), joint.images)
    except ValueError as error:
        raise DerminoError(
            "CHECKPOINT_INVALID",
            f"The kept sums of this run cannot be added up over regions: {error}.",
            where=kept.sums.folder,
            fix="Bring the folder back from a backup, or run again.",
        ) from error
    return joint


def gather(files: Sequence[Path], run: Path | None, name: str | None) -> Joint:
    """The sum over region files and a kept run; `name` as of :func:`new_region`.

    Raises
    ------
    DerminoError
        As :func:`read_region` and :func:`read_kept_run`; `CONFIG_INVALID` if they belong to
        different studies, or a site, a region or a file is there twice.
    """
    joint = None if run is None else joint_of_run(read_kept_run(run), name)
    for file in files:
        found = read_region(file)
        if joint is None:
            strategy = found.info.study.strategy_of()
            joint = Joint(
                new_region(name, found.info.study, strategy),
                found.info.study,
                strategy,
                found.info.backbone,
                found.info.backbone_spec,
            )
        _add_file(joint, found, name)
    if joint is None:
        raise DerminoError(
            "CONFIG_INVALID", "There is nothing to join.", fix="Name at least one region file."
        )
    return joint


def _add_file(joint: Joint, found: RegionFile, name: str | None) -> None:
    info = found.info
    if different := joint.study.differences(info.study):
        here = joint.files[0].file if joint.files else f"the run {joint.run and joint.run.folder}"
        raise DerminoError(
            "CONFIG_INVALID",
            f"The region {info.region} belongs to another study than {here}: "
            f"{'; '.join(different)}.",
            where=found.file,
            fix="Join what was made with the same task, classes, weights of the backbone, method, "
            "settings and seed; the others have to run again.",
        )
    _refuse_twice(joint, found, name)
    try:
        joint.region.add_region(found.sum)
    except ValueError as error:
        raise DerminoError(
            "CHECKPOINT_INVALID",
            f"This region file cannot be joined: {error}.",
            where=found.file,
            fix="Have the region's coordinator make it anew with `dermino region sum`.",
        ) from error
    joint.images |= info.images
    joint.digests |= info.digests
    joint.through |= dict.fromkeys(info.images, f"the region {info.region}")
    joint.files.append(
        JoinedFile(
            file=str(found.file),
            sha256=found.sha256,
            region=info.region,
            sites=sorted(info.images),
            created=info.created,
            dermino_version=info.dermino_version,
        )
    )


def _refuse_twice(joint: Joint, found: RegionFile, name: str | None) -> None:
    info = found.info
    known = {digest: site for site, digest in joint.digests.items()}
    again = sorted(joint.images.keys() & info.images.keys())
    renamed = [(site, known[d]) for site, d in sorted(info.digests.items()) if d in known]
    what = fix = None
    if any(file.sha256 == found.sha256 for file in joint.files):
        what, fix = "This file is there twice.", "Name each region's file once."
    elif any(file.region == info.region for file in joint.files):
        what = f"There are two files of the region {info.region}."
        fix = "Join the newer one only, or have one of the regions take another name."
    elif info.region == name:
        what = f"The region of regions cannot be called {name}: a part of it is."
        fix = "Choose another name with --as."
    elif again:
        others = sorted({joint.through[site] for site in again})
        what = f"{', '.join(again)} would count twice: in {info.region} and in {', '.join(others)}."
        fix = "Leave one of them away, or have a region run again without the site."
    elif renamed:
        site, other = renamed[0]
        what = (
            f"{site} of {info.region} and {other} of {joint.through[other]} sent the very same: "
            "one site under two names would count twice."
        )
        fix = "Ask both coordinators; one of the regions has to run again without it."
    if what is not None:
        raise DerminoError("CONFIG_INVALID", what, where=found.file, fix=fix)


def refuse_few(sites: list[str], fewest: int, *, where: Path) -> None:
    """Refuse a sum that is to travel and is over too few sites.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID`.
    """
    if len(sites) < fewest:
        raise DerminoError(
            "CONFIG_INVALID",
            f"The region has {len(sites)} of at least {fewest} sites ({', '.join(sites)}): "
            "whoever gets a sum of few reads more of each than of many, and of one reads its own.",
            where=where,
            fix="Let more sites join the run with --extend. If these agree, "
            "`dermino region sum --min-sites` with a smaller number.",
        )
