"""Somebody else's Flower app on the real SuperLink: what hospitals do with it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from federation import BIN, CONNECTION, SITES, Federation, until  # beside this file
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import ErrorCode

from dermino_client.runner_bundle import bundle_hash

pytestmark = pytest.mark.slow

WILLING = "synthetic-ph2"

DESCRIPTION = """
[project]
name = "{name}"
version = "1.0.0"
license = {{ text = "Apache-2.0" }}
description = "somebody else's"
dependencies = []
[tool.flwr.app]
publisher = "stranger"
[tool.flwr.app.components]
serverapp = "{name}_server:app"
clientapp = "{name}_client:app"
"""

CLIENT = """
from pathlib import Path
Path({marker!r}).write_text("imported")

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def query(message, context):
    files = sorted(str(key) for key in context.node_config)
    return Message(RecordDict({{"answer": ConfigRecord({{"files": files}})}}), reply_to=message)
"""

SERVER = """
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    names = {{}}
    while len(names) < {sites}:
        names = {{node.node_id: node.name for node in grid.get_nodes()}}
        time.sleep(0.2)
    said = []
    for content in (
        RecordDict({{"body": ConfigRecord({{"kind": "NameRequest", "json": "{{}}"}})}}),
        RecordDict({{"request": ConfigRecord({{"give": "everything"}})}}),
    ):
        asked = {{}}
        for node in names:
            (identifier,) = grid.push_messages([Message(content, node, "query")])
            asked[identifier] = names[node]
        while asked:
            for reply in grid.pull_messages(list(asked)):
                site = asked.pop(reply.metadata.reply_to_message_id)
                record = {{"site": site, "ours": "body" in content}}
                if reply.has_error():
                    record["error"] = [reply.error.code, reply.error.reason]
                else:
                    record["records"] = {{k: dict(v) for k, v in reply.content.items()}}
                said.append(record)
            time.sleep(0.2)
    Path({out!r} + ".part").write_text(json.dumps(said))
    Path({out!r} + ".part").rename({out!r})
"""


@dataclass
class Strange:
    """An app of a stranger: its folder, what its client part leaves behind, and what it heard."""

    folder: Path
    marker: Path
    out: Path

    @property
    def hash(self) -> str:
        return bundle_hash(build_fab_from_disk(self.folder))

    def heard(self) -> list[dict[str, Any]]:
        return json.loads(self.out.read_text())


def strange_app(base: Path, name: str) -> Strange:
    app = Strange(base / "apps" / name, base / f"{name}.marker", base / f"{name}.json")
    app.folder.mkdir(parents=True)
    (app.folder / "pyproject.toml").write_text(DESCRIPTION.format(name=name))
    (app.folder / f"{name}_client.py").write_text(CLIENT.format(marker=str(app.marker)))
    (app.folder / f"{name}_server.py").write_text(SERVER.format(out=str(app.out), sites=len(SITES)))
    return app


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Strange:
    return strange_app(tmp_path_factory.mktemp("allowed"), "allowed")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, allowed: Strange) -> Iterator[Federation]:
    """Three hospitals; one of them allows one app of a stranger."""
    running = Federation(tmp_path_factory.mktemp("federation"))
    running.provision()
    file = running.sites / f"{WILLING}.toml"
    content = tomllib.loads(file.read_text()) | {"policy": {"apps": ["dermino", allowed.hash]}}
    file.write_text(tomli_w.dumps(content))
    running.start_superlink()
    running.register()
    try:
        for name in SITES:
            running.start_client(name)
        for name in SITES:
            assert until(lambda name=name: running.connected(name), seconds=180), running.log(name)
        yield running
    finally:
        running.stop_all()


def submit(federation: Federation, app: Strange) -> list[dict[str, Any]]:
    """Run a stranger's app to its end; what each site answered."""
    done = federation.run(str(BIN / "flwr"), "run", str(app.folder), CONNECTION)
    assert done.returncode == 0, done.stdout + done.stderr
    assert until(app.out.exists, seconds=180), federation.log("superlink")[-3000:]
    return app.heard()


def refused(said: dict[str, Any]) -> bool:
    """In the words that the sender understands, and no others."""
    sentence = "The site does not run this app bundle."
    if said["ours"]:
        body = said["records"]["body"]
        return (body["kind"], json.loads(body["json"])) == (
            "Refusal",
            {"code": "APP_REFUSED", "sentence": sentence},
        )
    return said["error"] == [ErrorCode.INVALID_FAB, sentence]


def test_a_hostile_app_is_refused_and_leaves_nothing(
    federation: Federation, tmp_path: Path
) -> None:
    hostile = strange_app(tmp_path, "hostile")
    heard = submit(federation, hostile)
    assert sorted(said["site"] for said in heard) == sorted([*SITES, *SITES])
    assert all(refused(said) for said in heard), heard
    assert not hostile.marker.exists()
    for name in SITES:
        assert f"SHA-256 {hostile.hash}" in federation.log(name)


def test_an_app_that_a_site_allows_runs_there_only(
    federation: Federation, allowed: Strange
) -> None:
    heard = submit(federation, allowed)
    for said in heard:
        if said["site"] == WILLING:
            assert said["records"]["answer"]["files"] == ["site-file"]
        else:
            assert refused(said), said
    assert allowed.marker.read_text() == "imported"
    assert allowed.hash in federation.log(WILLING)


def test_dermino_s_own_run_works_afterwards(federation: Federation) -> None:
    out = federation.folder / "afterwards"
    done = federation.federate(out)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((out / "results.json").read_text())
    assert [site["name"] for site in results["sites"]] == sorted(SITES)
    assert results["missing_sites"] == []
