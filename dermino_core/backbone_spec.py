"""The words that name a backbone (`--backbone`), and what they point at."""

from __future__ import annotations

import json
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from dermino_core.backbone_catalogue import HUB_FILE, CatalogueEntry, find_entry
from dermino_core.backbone_shelf import file_on_shelf, folders_on_shelf, not_here
from dermino_core.demo_backbone import demo_folder
from dermino_core.errors import DerminoError

logger = logging.getLogger(__name__)

SPEC_GRAMMAR = """\
demo                        a small ViT that comes with dermino, pretrained on drawn lesions
clip, panderm, ...          a backbone that `dermino backbones` lists, by its short name there
SHORT@/path/FILE            its weights from a file, as released (.pth, .pt, .bin, .safetensors)
random:NAME                 any ViT that timm knows, or a short name, with seeded random weights
NAME                        a pretrained ViT of timm, from the Hugging Face hub or its local cache
/path/FILE.safetensors      a checkpoint; the architecture is read from it
NAME@/path/FILE.safetensors a checkpoint of the timm architecture NAME
/path/FOLDER                a backbone folder (model.json with "kind": "backbone", and
                            model.safetensors), as `dermino pretrain` exports it"""
"""The grammar of a backbone specification."""

HUB_TIMEOUT = 4.0
"""Seconds to wait for the hub before calling it out of reach."""

Kind = Literal["demo", "random", "hub", "file", "folder"]


@dataclass(frozen=True)
class BackboneSpec:
    """A parsed specification: `architecture` is None where the checkpoint has to tell.

    `entry` is what the catalogue knows of it.
    """

    text: str
    kind: Kind
    architecture: str | None = None
    path: Path | None = None
    entry: CatalogueEntry | None = None


def parse_spec(text: str) -> BackboneSpec:
    """Read a backbone specification.

    The grammar is :data:`SPEC_GRAMMAR`. A relative path works too, as long as it has a slash, the
    suffix `.safetensors`, or exists as a folder. A backbone folder of that name in the working
    directory comes before a short name, and a short name before a folder on the shelf
    (:func:`dermino_core.backbone_shelf.backbone_shelf`).

    Raises
    ------
    DerminoError
        CONFIG_INVALID for an empty or malformed specification, BACKBONE_UNAVAILABLE for a file
        that is not there or is not a .safetensors file, and for a short name whose weights have
        to be brought by hand and are not here.
    """
    word = text.strip()
    if not word:
        raise _malformed(text, "The backbone specification is empty.")
    if word == "demo":
        return BackboneSpec(word, "demo", None, demo_folder())
    if word.startswith("random:"):
        name = word.removeprefix("random:")
        if not name:
            raise _malformed(text, "`random:` needs the name of a timm ViT.")
        if entry := find_entry(name):
            return BackboneSpec(f"random:{entry.name}", "random", entry.architecture, entry=entry)
        return BackboneSpec(word, "random", name)
    architecture, at, place = word.partition("@")
    if at and (not architecture or not place):
        raise _malformed(text, "`NAME@FILE` needs both a name and a file.")
    is_folder = not at and (Path(word).expanduser() / "model.json").is_file()
    if (entry := find_entry(architecture)) and not is_folder:
        return _known(entry, Path(place).expanduser() if at else None)
    if not at:
        place, architecture = word, ""
    path = Path(place).expanduser()
    if at or "/" in place or path.suffix == ".safetensors" or path.is_dir():
        if path.is_dir() and not at:
            return BackboneSpec(word, "folder", None, path)
        if not path.is_file():
            raise DerminoError(
                "BACKBONE_UNAVAILABLE",
                "The backbone's weights file does not exist.",
                where=path,
                fix=f"Correct the path. A backbone is one of:\n{SPEC_GRAMMAR}",
            )
        if path.suffix != ".safetensors":
            raise DerminoError(
                "BACKBONE_UNAVAILABLE",
                "Backbone weights are read from .safetensors files only"
                " (other formats can run code when opened).",
                where=path,
                fix="Convert it on a trusted machine with safetensors.torch.save_file.",
            )
        return BackboneSpec(word, "file", architecture or None, path)
    if folder := folders_on_shelf().get(word):
        return BackboneSpec(word, "folder", None, folder)
    return BackboneSpec(word, "hub", word)


def _known(entry: CatalogueEntry, path: Path | None) -> BackboneSpec:
    """A short name, with or without a file. What is in the file decides its format, not its end."""
    name = entry.name
    if path is not None:
        if entry.own and path.is_dir():
            return BackboneSpec(f"{name}@{path}", "folder", None, path)
        if not path.is_file():
            raise DerminoError(
                "BACKBONE_UNAVAILABLE",
                f"The weights file of {entry.title} does not exist.",
                where=path,
                fix=f"Correct the path. {not_here(entry).fix}",
            )
        return BackboneSpec(f"{name}@{path}", "file", entry.architecture, path, entry)
    if file := file_on_shelf(entry):
        return BackboneSpec(name, "file", entry.architecture, file, entry)
    if folder := folders_on_shelf().get(name):
        return BackboneSpec(name, "folder", None, folder)
    if entry.hub is None:
        raise not_here(entry)
    return BackboneSpec(name, "hub", entry.architecture, entry=entry)


def read_folder_description(folder: Path) -> dict[str, Any]:
    """The model.json of a backbone folder.

    Raises
    ------
    DerminoError
        MODEL_INVALID if it is missing, not JSON, lacks a key, or is not a backbone.
    """
    file = folder / "model.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DerminoError(
            "MODEL_INVALID",
            f"The backbone folder has no readable model.json ({error.strerror}).",
            where=folder,
            fix=f"A backbone is one of:\n{SPEC_GRAMMAR}",
        ) from error
    except ValueError as error:
        raise DerminoError(
            "MODEL_INVALID", f"model.json is not JSON: {error}.", where=file, fix="Copy it again."
        ) from error
    needed = {"architecture", "preprocessing", "fingerprint"}
    if not isinstance(values, dict) or values.get("kind") != "backbone" or needed - set(values):
        raise DerminoError(
            "MODEL_INVALID",
            'model.json does not describe a backbone ("kind": "backbone", and '
            f"{', '.join(sorted(needed))}).",
            where=file,
            fix="Point --backbone at a folder that `dermino pretrain` exported.",
        )
    return values


def find_on_hub(repository: str, name: str, file: str = HUB_FILE, licence: str = "") -> Path:
    """The weights file of a hub repository, from the hub's local cache, else downloaded.

    Does not wait long for a network that is not there, and obeys HF_HUB_OFFLINE. `name` is what
    the backbone is called here.

    Raises
    ------
    DerminoError
        BACKBONE_UNAVAILABLE, saying which file to bring and where.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = repository.partition("@")
    repository = repository if not repository.endswith("/") else repository + name
    wanted = {"repo_id": repository, "filename": file, "revision": revision or None}
    try:
        return Path(hf_hub_download(**wanted, local_files_only=True))
    except LocalEntryNotFoundError:
        logger.info("%s is not in the hub's local cache", repository)
    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set"
    elif not _reachable(constants.ENDPOINT):
        why = f"{constants.ENDPOINT} cannot be reached"
    else:
        try:
            return Path(hf_hub_download(**wanted, etag_timeout=HUB_TIMEOUT))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            why = str(error).splitlines()[0]
    raise DerminoError(
        "BACKBONE_UNAVAILABLE",
        f"The weights of {name!r} are not on this machine, and they could not be downloaded: "
        f"{why}.",
        where=f"{repository}/{file}",
        fix=(
            f"On a machine with network, download {file} from "
            f"https://huggingface.co/{repository}{licence and f' (licence: {licence})'}, "
            f"bring it here, and say --backbone {name}@/path/to/{file}"
        ),
    )


def _reachable(endpoint: str) -> bool:
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True
    address = urlsplit(endpoint)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=HUB_TIMEOUT).close()
    except OSError:
        return False
    return True


def _malformed(text: str, what: str) -> DerminoError:
    return DerminoError(
        "CONFIG_INVALID", what, where=repr(text), fix=f"A backbone is one of:\n{SPEC_GRAMMAR}"
    )
