"""What the runner imports while nobody waits is all that the answers of a usual run need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
ANSWERS = """
import sys
from importlib import import_module
from pathlib import Path

from dermino_client.runner import MODULES

for name in MODULES:
    import_module(name)

import dermino_client.runner_flower  # the runner imports it, too
from conftest import cloud_site, hospital
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from dermino_client.app import make_client_app
from dermino_strategies.protocol import (
    EvaluateRequest, StatisticsRequest, Task, TrainRequest, pack, refusal_in,
)
from dermino_strategies.registry import get_strategy

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
site = hospital(cloud_site("alpha", 60, 0), Path(sys.argv[1]))
app = make_client_app(lambda _: site)
strategy = get_strategy("ridge", {})
arrays = {"arrays": strategy.for_sites(strategy.initial_arrays(2, 8, 0))}
task = Task(
    run_id="a" * 32, name="malignancy", classes=["benign", "malignant"], width=8, rounds=1,
    backbone_fingerprint=site.prepared.backbone_fingerprint, strategy="ridge", settings={},
    seed=0, replicates=50,
)
for kind, content in (
    ("query.statistics", pack(StatisticsRequest(task=task, min_count=5))),
    ("train", pack(TrainRequest(task=task, round=1, send_local_head=True), arrays)),
    ("evaluate", pack(EvaluateRequest(task=task, heads=[]), arrays)),
):
    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    known = set(sys.modules) if kind == "query.statistics" else known
    reply = app(Message(content, 2, kind), context)
    assert refusal_in(reply.content) is None, reply.content
print(*sorted(m for m in set(sys.modules) - known if not m.startswith(("_", "encodings"))))
"""


def test_nothing_is_imported_for_an_answer(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS, str(tmp_path)],
        env={"PYTHONPATH": str(TESTS / "server"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
