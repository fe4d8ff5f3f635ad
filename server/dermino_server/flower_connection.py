"""Flower's own configuration file, with one more connection in it and all else left whole."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.names import check_address, check_name


def write_connection(
    flwr_home: Path, name: str, address: str, root_certificates: Path | None
) -> Path:
    """Add or replace `[superlink.NAME]` in `flwr_home/config.toml`; all else stays, byte for byte.

    Parameters
    ----------
    flwr_home
        Flower's folder, `$FLWR_HOME` or `~/.flwr`.
    name
        Of the connection, as `flwr` commands take it.
    address
        HOST:PORT of the SuperLink.
    root_certificates
        The authority's certificate, or None for a SuperLink without TLS (`insecure = true`).

    Returns
    -------
    Path
        The configuration file. A new one also makes `name` the default connection.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for a bad name or address, or a file that is not TOML or holds the
        connection in a form that cannot be replaced by table.
    """
    if check_name(name, what="connection") == "default":
        raise DerminoError(
            "CONFIG_INVALID", "'default' cannot name a connection", fix="choose another name"
        )
    entry: dict[str, Any] = {"address": check_address(address)}
    if root_certificates is None:
        entry["insecure"] = True
    else:
        entry["root-certificates"] = str(root_certificates.resolve())
    file = (flwr_home / "config.toml").resolve()
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    before = _parse_toml(text, file)
    if not text:
        text = f"[superlink]\ndefault = {json.dumps(name)}\n"
        before = _parse_toml(text, file)
    links = before.setdefault("superlink", {})
    if not isinstance(links, dict):
        raise _not_by_table(file)
    if links.get(name) == entry:
        return file
    header = f"[superlink.{json.dumps(name) if '.' in name else name}]\n"
    after = _replace_table(text, name, header + tomli_w.dumps(entry))
    links[name] = entry
    if _parse_toml(after, file, changed=True) != before:
        raise _not_by_table(file)
    write_atomically(file, after)
    return file


def _parse_toml(text: str, file: Path, *, changed: bool = False) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        if changed:
            raise _not_by_table(file) from error
        raise DerminoError(
            "CONFIG_INVALID",
            f"not valid TOML: {error}",
            where=file,
            fix="correct the file, or move it away for Flower to write a new one",
        ) from error


def _not_by_table(file: Path) -> DerminoError:
    return DerminoError(
        "CONFIG_INVALID",
        "the connection cannot be written without disturbing the rest of the file",
        where=file,
        fix="write connections as tables of their own, [superlink.NAME], and run this again",
    )


def _replace_table(text: str, name: str, table: str) -> str:
    """`text` with the tables of `[superlink.name]` replaced by `table`, or `table` at its end."""
    spelled = "|".join(re.escape(form) for form in (name, f'"{name}"', f"'{name}'"))
    own = re.compile(rf"\s*\[\s*superlink\s*\.\s*(?:{spelled})\s*(?:\.[^\]]*)?\]\s*(?:#.*)?")
    kept: list[str] = []
    waiting: list[str] = []
    inside = placed = False
    for line in text.splitlines(keepends=True):
        if re.match(r"\s*\[", line):
            inside = own.fullmatch(line.rstrip("\r\n")) is not None
            if inside and not placed:
                kept.append(table)
                placed = True
        if not inside:
            kept += [*waiting, line]
            waiting = []
        elif not line.strip() or line.lstrip().startswith("#"):
            waiting.append(line)
        else:
            waiting = []
    kept += waiting
    result = "".join(kept)
    if placed:
        return result
    return result + ("" if result.endswith("\n") else "\n") + "\n" + table
