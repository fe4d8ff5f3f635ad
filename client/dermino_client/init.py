"""`dermino-client init`: look at the data, propose a site file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.labels import TASKS, propose_label_map
from dermino_core.manifest import read_manifest
from dermino_core.names import check_address, check_name


@dataclass(frozen=True)
class Proposal:
    """What the user told `init`."""

    name: str
    images: Path
    table: Path
    task: str = "malignancy"
    columns: Mapping[str, str] = field(default_factory=dict)
    backbone: str | None = None
    coordinator: str | None = None


def write_proposal(proposal: Proposal, folder: Path) -> tuple[Path, list[str]]:
    """Write `folder/NAME.toml`; return it with what was noticed.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for a bad name, task or address, `OUTPUT_EXISTS` if the file is there,
        `MANIFEST_INVALID` if the table cannot be read.
    """
    check_name(proposal.name)
    if proposal.task not in TASKS:
        raise DerminoError(
            "CONFIG_INVALID",
            f"There is no built-in task '{proposal.task}'.",
            fix=f"Use one of {', '.join(sorted(TASKS))}, and name your own classes in the site "
            "file afterwards.",
        )
    if proposal.coordinator is not None:
        check_address(proposal.coordinator)
    file = folder / f"{proposal.name}.toml"
    if file.exists():
        raise DerminoError(
            "OUTPUT_EXISTS",
            "There is a site file of this name already; it is not overwritten.",
            where=file,
            fix="Edit it, or move it away.",
        )
    manifest = read_manifest(proposal.table, root=proposal.images, columns=proposal.columns)
    counts = Counter(record.label for record in manifest.records)
    unlabelled = counts.pop(None, 0)
    labels = {str(label): count for label, count in counts.items()}
    classes = TASKS[proposal.task]
    proposed = propose_label_map(labels, classes, proposal.task)
    notes = [f"{len(manifest.records)} images, {len(labels)} labels, {unlabelled} without a label"]
    missing = sum(not os.path.exists(proposal.images / r.image) for r in manifest.records)
    if missing:
        notes.append(f"{missing} images are not in {proposal.images}")
    if open_labels := sorted(label for label, target in proposed.items() if target is None):
        notes.append(f"you must decide about: {', '.join(open_labels)}")
    if proposal.backbone is None:
        notes.append("you must decide about: [backbone] name; 'demo' knows drawn lesions only")
    groups = sum(record.group is not None for record in manifest.records)
    if not groups:
        notes.append(
            "no 'group' column: if a patient or lesion has several images, name the column in "
            "[data] columns, or the test half is not independent"
        )
    write_atomically(file, _text(proposal, labels, proposed))
    return file, notes


def _text(proposal: Proposal, labels: Mapping[str, int], proposed: Mapping[str, str | None]) -> str:
    classes = TASKS[proposal.task]
    columns = ", ".join(f"{name} = {_quoted(value)}" for name, value in proposal.columns.items())
    lines = []
    for label in sorted(labels):
        target = proposed[label]
        entry = f"{_quoted(label)} = {_quoted(target or '')}"
        count = f"{labels[label]} images"
        if target is None:
            lines.append(f'# DECIDE: {count}. One of {", ".join(classes)}, or "" to leave out.')
            lines.append(f"# {entry}")
        else:
            lines.append(f"{entry}  # {count}")
    backbone = (
        f"name = {_quoted(proposal.backbone)}   # the same at every site"
        if proposal.backbone
        else '# DECIDE: the file or name the coordinator gave. "demo" knows drawn lesions only.\n'
        'name = "demo"'
    )
    address = proposal.coordinator or "coordinator.example.org:443"
    comment = "" if proposal.coordinator else "# "
    return f"""# Site file of {proposal.name}, proposed by `dermino-client init`. Read every line.

[site]
name = {_quoted(proposal.name)}
task = {_quoted(proposal.task)}            # classes: {", ".join(classes)}

[data]
manifest = {_quoted(str(proposal.table.absolute()))}
images = {_quoted(str(proposal.images.absolute()))}
columns = {{ {columns} }}              # our name = the table's column, e.g. group = "lesion_id"
max_unreadable = 0.0                # share of images that may be unreadable
min_images = 20                     # refuse to take part with fewer usable images

# This site's labels -> the task's classes. An empty text leaves the images out.
# Have a dermatologist check this table: it decides what the model learns.
[labels]
{chr(10).join(lines)}

[backbone]
{backbone}
precision = "auto"                  # auto, fp32 or bf16

# The coordinator sends you these.
{comment}[coordinator]
{comment}address = {_quoted(address)}
{comment}root_certificates = "ca.crt"
{comment}private_key = {_quoted(proposal.name + ".key")}
"""


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's, save for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
