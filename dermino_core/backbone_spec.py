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

from dermino_core.demo_backbone import demo_folder
from dermino_core.errors import DerminoError

logger = logging.getLogger(__name__)

SPEC_GRAMMAR = """\
demo                        a small ViT that comes with dermino, pretrained on drawn lesions
random:NAME                 any ViT that timm knows, with seeded random weights (to measure speed)
NAME                        a pretrained ViT of timm, from the Hugging Face hub or its local cache
/path/FILE.safetensors      a checkpoint; the architecture is read from it
NAME@/path/FILE.safetensors a checkpoint of the timm architecture NAME
/path/FOLDER                a backbone folder (model.json with "kind": "backbone", and
                            model.safetensors), as `dermino pretrain` exports it"""
"""The grammar of a backbone specification."""

HUB_TIMEOUT = 4.0
"""Seconds to wait for the hub before calling it out of reach."""

HUB_FILE = "model.safetensors"
"""The weights file in every timm repository on the hub."""

Kind = Literal["demo", "random", "hub", "file", "folder"]


@dataclass(frozen=True)
class BackboneSpec:
    """A parsed specification: `architecture` is None where the checkpoint has to tell."""

    text: str
    kind: Kind
    architecture: str | None = None
    path: Path | None = None


def parse_spec(text: str) -> BackboneSpec:
    """Read a backbone specification.

    The grammar is :data:`SPEC_GRAMMAR`. A relative path works too, as long as it has a slash, the
    suffix `.safetensors`, or exists as a folder.

    Raises
    ------
    DerminoError
        CONFIG_INVALID for an empty or malformed specification, BACKBONE_UNAVAILABLE for a file
        that is not there or is not a .safetensors file.
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
        return BackboneSpec(word, "random", name)
    architecture, at, place = word.partition("@")
    if at and (not architecture or not place):
        raise _malformed(text, "`NAME@FILE` needs both a name and a file.")
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
    return BackboneSpec(word, "hub", word)


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


def find_on_hub(repository: str, name: str) -> Path:
    """The weights file of a timm model, from the hub's local cache, else downloaded.

    Does not wait long for a network that is not there, and obeys HF_HUB_OFFLINE.

    Raises
    ------
    DerminoError
        BACKBONE_UNAVAILABLE, saying which file to bring and where.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = repository.partition("@")
    repository = repository if not repository.endswith("/") else repository + name
    wanted = {"repo_id": repository, "filename": HUB_FILE, "revision": revision or None}
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
        where=f"{repository}/{HUB_FILE}",
        fix=(
            f"On a machine with network, download {HUB_FILE} from "
            f"https://huggingface.co/{repository}, bring it here, and say "
            f"--backbone {name}@/path/to/{HUB_FILE}"
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
