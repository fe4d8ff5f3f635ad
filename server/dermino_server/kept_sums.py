"""`sums/` in a run folder: what every site sent, kept so that one can leave and others can join.

Only of methods whose updates depend on nothing but a site's own images (`Strategy.keeps_sums`),
and never under secure aggregation, where no site's part is seen. A file per site, as it came;
`index.json` says which of them are in the model, and is written when a round is whole. The folder
is for the coordinator's eyes: whoever has a hospital's sums knows what it sent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.names import check_name
from dermino_core.private_files import KEY_MODE, private_folder
from dermino_core.results import SitePrivacy
from dermino_strategies.base import Arrays, SiteUpdate

SUMS_FOLDER = "sums"
INDEX_FILE = "index.json"


class KeptSite(BaseModel):
    """What is known of one site's sums beside the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the file")
    run: str = Field(pattern=r"^[0-9a-f]{32}$", description="the run it sent them in")
    as_sent: dict[str, str] = Field(description="array -> SHA-256 of it as it travelled")
    privacy: SitePrivacy | None = None


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    sites: dict[str, KeptSite]


class KeptSums:
    """The sums in a run folder."""

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / SUMS_FOLDER
        self._written: dict[str, str] = {}
        self._as_sent: dict[str, dict[str, str]] = {}

    def file(self, site: str) -> Path:
        """Where the sums of a site are."""
        return self.folder / f"{check_name(site)}.safetensors"

    @property
    def index(self) -> dict[str, KeptSite]:
        """The sites whose sums are in the model; none before a round is whole.

        Raises
        ------
        DerminoError
            `CHECKPOINT_INVALID` if the index is damaged.
        """
        file = self.folder / INDEX_FILE
        try:
            return _Index.model_validate_json(file.read_bytes()).sites
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            raise _damaged(file, "the list of kept sums cannot be read") from error

    def write_index(self, sites: Mapping[str, KeptSite]) -> None:
        """Say which sums count; files of other sites are deleted."""
        private_folder(self.folder)
        index = _Index(sites=dict(sorted(sites.items())))
        write_atomically(self.folder / INDEX_FILE, index.model_dump_json(indent=1) + "\n")
        for file in self.folder.glob("*.safetensors"):
            if file.stem not in sites:
                file.unlink()

    def write(self, site: str, update: SiteUpdate) -> None:
        """Keep a checked update as it came.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        private_folder(self.folder)
        metadata = {"examples": str(update.examples), "metrics": json.dumps(update.metrics)}
        content = save(update.arrays, metadata)
        file = self.file(site)
        write_atomically(file, content)
        file.chmod(KEY_MODE)
        self._written[site] = hashlib.sha256(content).hexdigest()
        self._as_sent[site] = digests_as_sent(update.arrays)

    def read(self, site: str, sha256: str) -> SiteUpdate:
        """The update of a site, if its file is what it was.

        Raises
        ------
        DerminoError
            `CHECKPOINT_INVALID` if it is missing or was changed.
        """
        file = self.file(site)
        try:
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise _damaged(file, f"the kept sums of {site} are not what was written")
            with safe_open(file, framework="numpy") as opened:
                metadata = opened.metadata()
            return SiteUpdate(
                load(content), int(metadata["examples"]), json.loads(metadata["metrics"])
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise _damaged(file, f"the kept sums of {site} cannot be read") from error

    def take_over(self, old: KeptSums, sites: Iterable[str]) -> None:
        """Have the files of `sites` from another run folder, as links where the disk has them.

        Raises
        ------
        OSError
            If one is missing or cannot be written.
        """
        private_folder(self.folder)
        for site in sites:
            target = self.file(site)
            target.unlink(missing_ok=True)
            try:
                os.link(old.file(site), target)
            except OSError:  # another disk, or one without links
                write_atomically(target, old.file(site).read_bytes())
                target.chmod(KEY_MODE)

    def updates(self, sites: Collection[str] | None = None) -> KeptUpdates:
        """The updates of `sites`, of all in the index if not given, each read when asked for.

        Raises
        ------
        DerminoError
            `CHECKPOINT_INVALID` if one is not known; reading them as :meth:`read`.
        """
        index = self.index
        known = {site: kept.sha256 for site, kept in index.items()} | self._written
        wanted = index if sites is None else sites
        if lost := sorted(set(wanted) - set(known)):
            raise _damaged(self.folder, f"there are no sums of {', '.join(lost)}")
        return KeptUpdates(self, {site: known[site] for site in wanted})

    def close_round(
        self,
        run: str,
        sites: Collection[str],
        earlier: Collection[str],
        privacy: Mapping[str, SitePrivacy],
    ) -> dict[str, SitePrivacy]:
        """Write the index: what `sites` sent in this run, and `earlier` ones before it.

        Returns what privacy the earlier ones spent.
        """
        before = {site: kept for site, kept in self.index.items() if site in earlier}
        now = {
            site: KeptSite(
                sha256=self._written[site],
                run=run,
                as_sent=self._as_sent[site],
                privacy=privacy.get(site),
            )
            for site in sites
        }
        self.write_index(before | now)
        return {site: kept.privacy for site, kept in before.items() if kept.privacy}


class KeptUpdates(Mapping[str, SiteUpdate]):
    """Updates on disk, one in memory at a time."""

    def __init__(self, kept: KeptSums, digests: Mapping[str, str]) -> None:
        self._kept, self._digests = kept, dict(digests)

    def __getitem__(self, site: str) -> SiteUpdate:
        return self._kept.read(site, self._digests[site])

    def __iter__(self) -> Iterator[str]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, site: object) -> bool:
        return site in self._digests


def digests_as_sent(arrays: Arrays) -> dict[str, str]:
    """Array -> SHA-256 of its bytes, row by row: as a hospital's audit log has it."""
    return {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in sorted(arrays.items())}


def _damaged(file: Path, what: str) -> DerminoError:
    return DerminoError(
        "CHECKPOINT_INVALID",
        f"In this run folder {what}.",
        where=file,
        fix="Bring the file back from a backup; without it, run again with the sites that stay.",
    )
