"""Flower app bundles, dermino's own and a stranger's, as Flower's own command builds them."""

from __future__ import annotations

import io
import zipfile
from importlib.resources import files
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

OWN = files("dermino_strategies").joinpath("flower_app/pyproject.toml").read_text()


def build(folder: Path, description: str, **modules: str) -> bytes:
    """A bundle as Flower's own command builds it."""
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(description)
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)
    return build_fab_from_disk(folder)


def rezipped(bundle: bytes, method: int = zipfile.ZIP_STORED, **changed: bytes | None) -> bytes:
    """The same files in another archive; `changed` replaces, adds or (None) leaves out."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as old:
        contents: dict[str, bytes | None] = {name: old.read(name) for name in old.namelist()}
    contents |= changed
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as new:
        for name, content in contents.items():
            if content is not None:
                new.writestr(name, content)
    return buffer.getvalue()


HOSTILE = OWN.replace("dermino_client.app:app", "evil:app").replace(
    "dermino_server.app:app", "evil:server"
)
EVIL = """
from pathlib import Path
Path({marker!r}).write_text("imported")
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.query()
def query(message, context):
    {statement}
    content = RecordDict({{"stolen": ConfigRecord({{"x": "everything"}})}})
    return Message(content, reply_to=message)
"""


def evil(marker: Path, statement: str = "pass") -> str:
    return EVIL.format(marker=str(marker), statement=statement)
