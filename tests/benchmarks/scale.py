"""How rounds grow with the number of sites: seconds and peak memory, each row a fresh process.

python -m tests.benchmarks.scale --sites 10 100 1000
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from flwr.app import Context, Message, RecordDict

from tests.benchmarks.machine import describe, load_line, module, run_child
from tests.benchmarks.tables import goal, table

IMAGES, WIDTH, ROUNDS = 40, 768, 3
FLAT_KIB_PER_SITE = 20.0
"""Growth that still counts as flat: a row of every record, a message, a name, a transfer."""


@dataclass(frozen=True)
class Cost:
    """One federation. Seconds per round of training, in all and without the sites' own work.

    `start_mib` before the first message, `rounds_mib` the peak of training, `peak_mib` of all.
    """

    sites: int
    method: str
    engine: str
    seconds: float
    coordinator: float | None
    evaluation: float
    start_mib: float
    rounds_mib: float
    peak_mib: float


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_one(sites: int, method: str, engine: str, folder: Path, *, cross_site: bool) -> Cost:
    """One federation of `sites` drawn hospitals in this process."""
    from dermino_client.app import make_client_app
    from dermino_client.hospital import Hospital
    from dermino_client.policy import PolicySection
    from dermino_client.prepare import PreparedSite
    from dermino_core import __version__
    from dermino_core.backbone_card import BackboneCard, Preprocessing
    from dermino_core.results import BackboneInfo
    from dermino_server.app import RunEnd, make_server_app
    from dermino_server.inprocess import InProcessGrid
    from dermino_server.plan import RunPlan

    card = BackboneCard(
        name="drawn",
        architecture="none",
        width=WIDTH,
        patch_size=1,
        preprocessing=Preprocessing(8, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        fingerprint="f" * 64,
        pretrained=True,
        source="drawn",
    )
    names = [f"site-{number:04d}" for number in range(sites)]

    def drawn(name: str) -> PreparedSite:
        rng = np.random.default_rng(crc32(name.encode()))
        labels = np.arange(IMAGES) // 2 % 2
        features = rng.normal(size=(IMAGES, WIDTH)) + 0.1 * labels[:, None]
        return PreparedSite(
            name=name,
            task="malignancy",
            classes=["benign", "malignant"],
            features=features.astype(np.float32),
            labels=labels.astype(np.int64),
            split=np.array(["train", "test"])[np.arange(IMAGES) % 2],
            groups=[str(i) for i in range(IMAGES)],
            images_total=IMAGES,
            left_out={},
            unreadable=0,
            card=card,
            precision="fp32",
        )

    def hospital(name: str) -> Hospital:
        """Made anew for every message, as in a deployment: nothing of a site stays in memory."""
        return Hospital(name, PolicySection(), folder / "sites" / name, lambda: drawn(name))

    plan = RunPlan.model_validate(
        {
            "title": "scale",
            "task": "malignancy",
            "classes": ["benign", "malignant"],
            "strategy": method,
            "rounds": ROUNDS,
            "sites": names,
            "min_sites": sites,
            "engine": engine,
            "replicates": 2,
            "wait_seconds": 600,
            "deadline_seconds": 3600,
            "cross_site": cross_site,
            "backbone": BackboneInfo.of(card, "fp32"),
            "backbone_spec": "drawn",
            "created": "2026-01-01T00:00:00+00:00",
            "dermino_version": __version__,
        }
    )

    class Watched(InProcessGrid):
        """Notes what the sites' work takes, and the peak when training ends."""

        working = evaluating = 0.0
        rounds_mib = 0.0

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            if self.rounds_mib == 0 and any(
                m.metadata.message_type == "evaluate" for m in messages
            ):
                self.rounds_mib = peak_mib()
            return super().push_messages(messages)

        def _ask(self, number: int, message: Message) -> Message:
            start = time.perf_counter()
            reply = super()._ask(number, message)
            if message.metadata.message_type == "train":
                self.working += time.perf_counter() - start
            return reply

    end = RunEnd()
    server_app = make_server_app(plan, folder, resume=False, end=end)
    start_mib = peak_mib()
    if engine == "ray":
        from flwr.simulation import run_simulation

        run_simulation(
            server_app=server_app,
            client_app=make_client_app(
                lambda context: hospital(names[int(context.node_config["partition-id"])])
            ),
            num_supernodes=sites,
            backend_name="ray",
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )
        working, rounds_mib = None, peak_mib()
    else:
        grid = Watched({n: make_client_app(lambda _, n=n: hospital(n)) for n in names})
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
        server_app(grid, context)
        working, rounds_mib = grid.working, grid.rounds_mib
    records = end.results_or_raise().rounds
    training = sum(record.seconds for record in records if record.kind == "train")
    return Cost(
        sites=sites,
        method=method,
        engine=engine,
        seconds=training / ROUNDS,
        coordinator=None if working is None else (training - working) / ROUNDS,
        evaluation=records[-1].seconds,
        start_mib=start_mib,
        rounds_mib=rounds_mib,
        peak_mib=peak_mib(),
    )


def measure(counts: list[int], method: str, engine: str, *, cross_site: bool) -> list[Cost]:
    """Run and print one federation per count."""
    found: list[Cost] = []
    with tempfile.TemporaryDirectory(prefix="dermino-bench-") as work:
        for count in counts:
            out = Path(work) / f"{method}-{engine}-{count}.json"
            arguments = ["--one", str(count), "--method", method, "--engine", engine]
            more = ["--cross-site"] if cross_site else []
            folder = ["--folder", str(Path(work) / f"run-{count}"), "--out", str(out)]
            run_child(module("scale", *arguments, *more, *folder))
            content: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
            found.append(Cost(**content))
    own = " with every site's own head" if cross_site else ""
    print(
        f"\n{method}, {engine}{own}: {IMAGES} drawn images of width {WIDTH} a site, {ROUNDS} rounds"
    )
    rows = [
        [
            str(cost.sites),
            f"{cost.seconds:.2f}",
            "" if cost.coordinator is None else f"{1000 * cost.coordinator / cost.sites:.2f}",
            f"{cost.evaluation:.1f}",
            *(f"{mib:.0f}" for mib in (cost.start_mib, cost.rounds_mib, cost.peak_mib)),
        ]
        for cost in found
    ]
    header = ["sites", "s/round", "coordinator ms/site", "evaluation s"]
    print(table([*header, "start MiB", "rounds MiB", "peak MiB"], rows))
    if len(found) > 1 and engine == "inprocess":
        _show_growth(found)
    return found


def _show_growth(found: list[Cost]) -> None:
    """What a further site costs: memory of training, memory of all, the coordinator's time."""
    first, last = found[0], found[-1]
    sites = last.sites - first.sites
    training = 1024 * (last.rounds_mib - first.rounds_mib) / sites
    text = f"training flat in memory (under {FLAT_KIB_PER_SITE:g} KiB a site)"
    print(goal(text, f"{training:.1f} KiB a site", reached=training < FLAT_KIB_PER_SITE))
    whole = 1024 * (last.peak_mib - first.peak_mib) / sites
    print(f"  the whole run, with every site's evaluation in its results: {whole:.0f} KiB a site")
    per_site = [1000 * (cost.coordinator or 0) / cost.sites for cost in found]
    measured = f"{per_site[0]:.2f} to {per_site[-1]:.2f} ms a site"
    reached = per_site[-1] < 2 * per_site[0]
    print(goal("coordinator's time linear in the sites", measured, reached=reached))


def main() -> int:
    """The table, or with `--one` a single federation in this process."""
    parser = argparse.ArgumentParser(prog="scale")
    parser.add_argument("--sites", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--methods", nargs="+", default=["fedavg", "median"])
    parser.add_argument("--ray", type=int, nargs="*", default=[], help="counts to run on Ray")
    parser.add_argument("--cross-site", action="store_true", help="collect each site's own head")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    one = parser.add_argument_group("one federation in this process")
    one.add_argument("--one", type=int)
    one.add_argument("--method", default="fedavg")
    one.add_argument("--engine", default="inprocess")
    one.add_argument("--folder", type=Path)
    wanted = parser.parse_args()
    if wanted.one is not None:
        cost = run_one(
            wanted.one,
            wanted.method,
            wanted.engine,
            wanted.folder,
            cross_site=wanted.cross_site,
        )
        wanted.out.write_text(json.dumps(asdict(cost)), encoding="utf-8")
        return 0
    print(", ".join(f"{key} {value}" for key, value in describe().items()))
    print(load_line())
    found = []
    for method in wanted.methods:
        found += measure(wanted.sites, method, "inprocess", cross_site=wanted.cross_site)
    if wanted.ray:
        found += measure(wanted.ray, "fedavg", "ray", cross_site=wanted.cross_site)
    if wanted.out:
        content = {"machine": describe(), "costs": [asdict(cost) for cost in found]}
        wanted.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
