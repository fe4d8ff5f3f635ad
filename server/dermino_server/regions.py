"""Regions: coordinators that share no SuperLink make one model of all their hospitals.

Each runs a method that adds, such as ridge, with its own hospitals, and hands on one file with the
sum over them (:mod:`dermino_server.region_file`). Any of them, or somebody else, joins the files:
the result has the same bits however the hospitals are divided into regions and whoever joins, also
by regions of regions (:mod:`dermino_strategies.regional`).

A sum over two hospitals is to each of them the other's own sum, and two files of one region, with
and without a hospital, tell its sum apart. A hospital that withdraws is still in the files made
before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from dermino_core import __version__
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.heads import LinearHead
from dermino_core.machine import describe_machine
from dermino_core.model_folder import ModelInfo, SiteCount, save_model
from dermino_core.names import check_name
from dermino_core.results import Results
from dermino_server.kept_run import read_kept_run
from dermino_server.plan import versions
from dermino_server.region_file import RegionFile, refuse_existing_file, write_region
from dermino_server.region_joint import JoinedFile, Joint, gather, joint_of_run, refuse_few
from dermino_server.region_study import Study

FEWEST_SITES = 2
"""Sites of a region whose sum is no site's own."""

JOIN_FILE = "join.json"


class OwnRun(BaseModel):
    """The kept run that was joined with the files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    sites: list[str]


class JoinRecord(BaseModel):
    """`join.json`: what a joined model was made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    created: str
    dermino_version: str
    versions: dict[str, str]
    study: Study
    files: list[JoinedFile]
    run: OwnRun | None
    images: dict[str, int]
    digests: dict[str, str]
    """Site -> SHA-256 of its summand, as the regions tell it."""


@dataclass(frozen=True)
class JoinedModel:
    """What a join made."""

    folder: Path
    record: JoinRecord
    backbone_spec: str


def sum_run(run: Path, name: str, out: Path, *, min_sites: int = FEWEST_SITES) -> RegionFile:
    """Write the region file of a finished run: the sum over its sites, and of no single one.

    Raises
    ------
    DerminoError
        As :func:`dermino_server.kept_run.read_kept_run`; `CONFIG_INVALID` if the run was private,
        has fewer than `min_sites` sites or the name is none; `OUTPUT_EXISTS` if `out` is there.
    """
    check_name(name, what="region")
    refuse_existing_file(out)
    joint = joint_of_run(read_kept_run(run), name)
    refuse_few(joint.sites, min_sites, where=run)
    return write_region(out, joint.info(name), joint.region.sum().parts)


def join_regions(
    files: Sequence[Path], name: str, out: Path, *, run: Path | None = None
) -> RegionFile:
    """Join region files, and a kept run, into the file of a larger region.

    Raises
    ------
    DerminoError
        As :func:`join_model`; `CONFIG_INVALID` if the name is that of a part, or there are fewer
        than two sites.
    """
    check_name(name, what="region")
    refuse_existing_file(out)
    joint = gather(files, run, name)
    refuse_few(joint.sites, FEWEST_SITES, where=out)
    return write_region(out, joint.info(name), joint.region.sum().parts)


def join_model(files: Sequence[Path], out: Path, *, run: Path | None = None) -> JoinedModel:
    """Make the model of all sites of some region files, and of a kept run.

    Raises
    ------
    DerminoError
        As :func:`dermino_server.region_file.read_region` and
        :func:`dermino_server.kept_run.read_kept_run`; `CONFIG_INVALID` if they belong to different
        studies, or a site, a region or a file is there twice, or the folder cannot be written;
        `CHECKPOINT_INVALID` if their sum makes no model; `OUTPUT_EXISTS` if `out` holds something.
    """
    out = out.absolute()
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise DerminoError(
            "OUTPUT_EXISTS",
            "The output folder is not empty.",
            where=out,
            fix="Choose another --out.",
        )
    joint = gather(files, run, None)
    head = _head(joint)
    record = JoinRecord(
        created=_now(),
        dermino_version=__version__,
        versions=versions(),
        study=joint.study,
        files=joint.files,
        run=joint.run and OwnRun(run_id=joint.run.plan.run_id, sites=joint.run.sites),
        images=dict(sorted(joint.images.items())),
        digests=dict(sorted(joint.digests.items())),
    )
    partial = out.with_name(f".{out.name}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        write_atomically(partial / JOIN_FILE, record.model_dump_json(indent=1) + "\n")
        _save_model(partial / "model", joint, record, head)
        with suppress(FileNotFoundError):
            out.rmdir()
        os.rename(partial, out)
    except OSError as error:
        raise DerminoError(
            "CONFIG_INVALID",
            f"The model could not be written: {error.strerror or error}.",
            where=out,
            fix="Choose another folder with --out.",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return JoinedModel(out, record, joint.backbone_spec)


def _head(joint: Joint) -> LinearHead:
    try:
        arrays = joint.strategy.from_sum(joint.study.start(joint.strategy), joint.region.total())
        head = joint.strategy.head(arrays)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        raise _no_model(str(error)) from error
    if not all(np.isfinite(array).all() for array in head.arrays().values()):
        raise _no_model("its weights are not finite")
    return head


def _no_model(why: str) -> DerminoError:
    return DerminoError(
        "CHECKPOINT_INVALID",
        f"These sums make no model: {why}.",
        fix="Join fewer regions at a time to find the one whose sum is wrong.",
    )


def _save_model(folder: Path, joint: Joint, record: JoinRecord, head: LinearHead) -> None:
    study, sites = joint.study, sorted(joint.images)
    own = {c.site: c.classes for c in joint.run.counts(joint.run.sites)} if joint.run else {}
    info = ModelInfo(
        title=f"{study.task}: {', '.join(sites)}",
        task=study.task,
        classes=study.classes,
        backbone=joint.backbone,
        backbone_spec=joint.backbone_spec,
        strategy=study.strategy,
        rounds=study.rounds,
        seed=study.seed,
        created=record.created,
        dermino_version=__version__,
        trained_on=[
            SiteCount(site=site, images=joint.images[site], classes=own.get(site, {}))
            for site in sites
        ],
    )
    results = Results(
        dermino_version=__version__,
        created=record.created,
        title=info.title,
        task=study.task,
        classes=study.classes,
        strategy=study.strategy,
        engine="deployment",
        rounds_planned=study.rounds,
        rounds_done=study.rounds,
        seed=study.seed,
        backbone=joint.backbone,
        machine=describe_machine(),
        models=[],
        sites=[],
        mean={},
        rounds=[],
        warnings=[
            "No test images have been evaluated with this model, and none of the regions' own "
            "scores are its own.",
            f"Joined from sums of regions ({_parts_of(joint)}), which are believed: nothing "
            "proves that a sum is that of its sites.",
            *([f"The backbone {why}."] if (why := joint.backbone.unfit_because) else []),
        ],
    )
    save_model(folder, head, info, results)


def _parts_of(joint: Joint) -> str:
    parts = [f"{file.region}: {', '.join(file.sites)}" for file in joint.files]
    if joint.run is not None:
        parts.append(f"the coordinator's own run: {', '.join(joint.run.sites)}")
    return "; ".join(parts)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
