"""The pure parts of `tests.benchmarks.peers`: bytes, judge, process trees, table and picture."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from safetensors.numpy import load_file, save_file
from sklearn.metrics import roc_auc_score

from dermino_server.inprocess import InProcessGrid
from dermino_strategies.protocol import size_in_bytes
from tests.benchmarks.peers import flower_app, in_memory, task
from tests.benchmarks.peers.contest import Contest, why_not_nvflare
from tests.benchmarks.peers.contestants import CONTESTANTS, OURS, PAPER, RIDGE, Contestant
from tests.benchmarks.peers.judge import scores_of
from tests.benchmarks.peers.plot import draw
from tests.benchmarks.peers.show import Row, goals, markdown, notes
from tests.benchmarks.peers.traffic import largest, of_peer
from tests.benchmarks.peers.tree import Failed, below, measure
from tests.benchmarks.workload import drawn_workload

WIDTH, RATE = 6, 0.01


def test_a_message_counts_its_npy_files_and_8_bytes_a_number(tmp_path: Path) -> None:
    arrays = {"weight": np.zeros((2, 384), np.float32), "bias": np.zeros(2, np.float32)}
    wanted = 0
    for name, array in arrays.items():
        np.save(tmp_path / name, array)
        wanted += (tmp_path / f"{name}.npy").stat().st_size
    assert task.payload(arrays) == wanted
    assert task.payload(arrays, numbers=3) == wanted + 24


def test_flower_peers_are_counted_as_dermino_is() -> None:
    record = ArrayRecord({"weight": Array(np.ones((2, 5), np.float32))})
    content = RecordDict({"arrays": record, "metrics": MetricRecord({"loss": 1.0, "images": 2})})
    assert flower_app._size(content) == size_in_bytes(content)
    with_config = RecordDict({"arrays": record, "config": ConfigRecord({"server-round": 1})})
    assert flower_app._size(with_config) == size_in_bytes(RecordDict({"arrays": record})) + 8


def test_noted_exchanges_add_up_by_site(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    task.log_traffic(job, "a", down=10, up=1)
    task.log_traffic(job, "a", down=5, up=2, test=True)
    task.log_traffic(job, "b", down=16, up=3)
    found = of_peer(tmp_path)
    assert found == {
        "a": {"down": 15, "up": 3, "rounds": 11},
        "b": {"down": 16, "up": 3, "rounds": 19},
    }
    assert largest(found) == 19


def judged() -> tuple[dict, dict]:
    rng = np.random.default_rng(3)
    tests = {}
    for site, n in {"a": 40, "b": 23}.items():
        labels = np.arange(n) % 2
        vectors = rng.normal(size=(n, WIDTH)) + 0.7 * labels[:, None]
        tests[site] = (vectors, labels, [str(i // 2) for i in range(n)])
    heads = {
        key: {"weight": rng.normal(size=(2, WIDTH)).astype(np.float32), "bias": np.zeros(2)}
        for key in (PAPER, RIDGE, "peer")
    }
    heads["copy"] = heads[RIDGE]
    return heads, tests


def test_the_judge_agrees_with_scikit_learn_and_pairs_differences() -> None:
    heads, tests = judged()
    found = scores_of(heads, tests, replicates=200)
    for key, head in heads.items():
        values = []
        for site, (vectors, labels, _) in tests.items():
            score = vectors @ (head["weight"][1] - head["weight"][0])
            values.append(roc_auc_score(labels, score))
            assert found[key]["auroc"][site]["value"] == pytest.approx(values[-1])
        mean = found[key]["auroc"]["mean"]
        assert mean["value"] == pytest.approx(np.mean(values))
        low, value, high = numbers(mean)
        assert low < value < high
    assert found["copy"]["minus"][RIDGE] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert RIDGE not in found[RIDGE]["minus"]
    low, value, high = numbers(found["peer"]["minus"][PAPER])
    peer, ours = (numbers(found[key]["auroc"]["mean"])[1] for key in ("peer", PAPER))
    assert value == pytest.approx(peer - ours)
    assert low < value < high


def numbers(found: dict[str, float | None]) -> tuple[float, float, float]:
    """Low end, value and high end, of a score that is defined."""
    low, value, high = found["low"], found["value"], found["high"]
    assert low is not None
    assert value is not None
    assert high is not None
    return low, value, high


def test_the_judge_draws_groups_whole_and_bears_a_single_class() -> None:
    heads, tests = judged()
    vectors, labels, _ = tests["a"]
    alone = scores_of(heads, {"a": (vectors, labels, [str(i) for i in range(40)])})
    blocks = scores_of(heads, {"a": (vectors, labels, [str(i % 4) for i in range(40)])})
    assert alone["peer"]["auroc"]["a"] != blocks["peer"]["auroc"]["a"]
    single = scores_of(heads, {"a": (vectors, np.zeros(40, int), ["0"] * 40)})
    assert single["peer"]["auroc"]["a"] == {"value": None, "low": None, "high": None}


def make_job(folder: Path, **settings: object) -> task.Job:
    """Two sites whose vectors are in files; one step of an epoch: Adam has a closed form."""
    rng = np.random.default_rng(0)
    sites = []
    for name, n in {"a": 12, "b": 30}.items():
        site: dict[str, object] = {"name": name}
        for half in ("train", "test"):
            labels = [int(label) for label in rng.integers(0, 2, n - 2)] + [0, 1]
            vectors = rng.normal(size=(n, WIDTH)).astype(np.float32)
            save_file({"vectors": vectors}, folder / f"{name}-{half}.safetensors")
            site[half] = {"paths": [], "labels": labels, "groups": [str(i) for i in range(n)]}
        sites.append(site)
    initial = {"weight": rng.normal(size=(2, WIDTH)), "bias": rng.normal(size=2)}
    initial_file = folder / "initial.safetensors"
    save_file({name: array.astype(np.float32) for name, array in initial.items()}, initial_file)
    content = {
        "folder": str(folder),
        "backbone": "none",
        "classes": 2,
        "width": WIDTH,
        "initial": str(initial_file),
        "seed": 0,
        "sites": sites,
        "rounds": 1,
        "epochs": 1,
        "rate": RATE,
        "batch": 64,
        "features": str(folder),
        "threads": 1,
    }
    file = folder / "job.json"
    file.write_text(json.dumps(content | settings))
    return task.Job.read(file)


def closed_form(job: task.Job) -> dict[str, np.ndarray]:
    """One step of Adam moves every parameter by the rate against its gradient's sign."""
    head = load_file(job.initial)
    moved = {name: np.zeros_like(array) for name, array in head.items()}
    images = [len(site["train"]["labels"]) for site in job.sites]
    for site, n in zip(job.sites, images, strict=True):
        x = load_file(job.folder / f"{site['name']}-train.safetensors")["vectors"]
        scores = np.exp(x @ head["weight"].T + head["bias"])
        error = scores / scores.sum(axis=1, keepdims=True) - np.eye(2)[site["train"]["labels"]]
        for name, gradient in {"weight": error.T @ x / n, "bias": error.mean(axis=0)}.items():
            moved[name] -= RATE * n / sum(images) * np.sign(gradient)
    return {name: head[name] + moved[name] for name in head}


def test_in_memory_and_flower_do_the_same_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path)
    wanted = closed_form(job)
    monkeypatch.setattr(sys, "argv", ["in_memory", str(tmp_path / "job.json")])
    in_memory.main()
    assert of_peer(tmp_path)["a"]["up"] > 0
    noted = of_peer(tmp_path)
    for name, array in load_file(tmp_path / "head.safetensors").items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-6)
    for file in [tmp_path / "head.safetensors", *tmp_path.glob("traffic-*")]:
        file.unlink()
    monkeypatch.setattr(sys, "argv", ["flower_app", str(tmp_path / "job.json")])
    flower_app.main()
    for name, array in load_file(tmp_path / "head.safetensors").items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-6)
    flower = of_peer(tmp_path)
    # Flower adds the round to what goes out, loss and images to what comes back.
    assert flower["a"]["down"] == noted["a"]["down"] + 2 * 8
    assert flower["a"]["up"] == noted["a"]["up"] + 3 * 8
    assert flower["a"]["rounds"] == noted["a"]["rounds"] + 3 * 8


def test_flower_peers_test_once(tmp_path: Path) -> None:
    job = make_job(tmp_path, rounds=3)
    asked: list[str] = []

    def name_of(_context: Context, _job: task.Job) -> str:
        return "a"

    client = flower_app.make_client_app(lambda: job, name_of)
    original = task.Hospital.auroc
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            task.Hospital, "auroc", lambda s, h: (asked.append(s.name), original(s, h))[1]
        )
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
        flower_app.make_server_app(lambda: job)(InProcessGrid({"a": client, "b": client}), context)
    assert asked == ["a", "a"]


def test_a_tree_is_billed_whole_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    burn = (
        "import time; x = bytearray(80_000_000)\n"
        "end = time.process_time() + 0.4\n"
        "while time.process_time() < end: pass\n"
        "time.sleep(0.6)"
    )
    script = (
        "import subprocess, sys, time\n"
        f"children = [subprocess.Popen([sys.executable, '-c', {burn!r}]) for _ in range(2)]\n"
        "subprocess.Popen(['setsid', 'sleep', '60'])\n"
        "[child.wait() for child in children]"
    )
    before = below(1)
    bill = measure([sys.executable, "-c", script], tmp_path / "log")
    assert bill.cpu_seconds >= 0.8
    assert bill.seconds >= 1.0
    assert bill.peak_mib >= 150
    assert bill.processes >= 3
    sleeping = [pid for pid in set(below(1)) - set(before) if "sleep 60" in command_of(pid)]
    assert not sleeping


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_a_failure_is_told_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"ended with 3: SomeError: the disk is full"):
        measure(["sh", "-c", "echo SomeError: the disk is full; exit 3"], tmp_path / "log")
    with pytest.raises(Failed, match=r"not done after 1 s"):
        measure(["sh", "-c", "sleep 30 & sleep 30"], tmp_path / "log", longest=1)


def test_every_row_comes_after_the_one_that_it_needs() -> None:
    seen: dict[str, Contestant] = {}
    for one in CONTESTANTS:
        assert one.key not in seen
        if one.after:
            assert seen[one.after].cache == one.cache
            assert seen[one.after].quick or not one.quick
        seen[one.key] = one
    assert set(OURS) <= set(seen)
    filled = [one.cache for one in CONTESTANTS if one.cache and not one.after]
    assert len(set(filled)) == len(filled)


def test_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    workload = drawn_workload(tmp_path, "demo", per_site=24)
    backbone = tmp_path / "backbone"
    backbone.write_bytes(b"none")
    contest = Contest(tmp_path, workload, backbone, nvflare="")
    broken = Contestant("broken", "broken", "vit", ("no_such_module",))
    row = contest.run(broken)
    assert "No module named" in row.failed
    dependent = replace(broken, key="dependent", after="broken")
    assert contest.run(dependent).failed == "left out: it needs what 'broken' leaves"
    assert contest.run(broken, why_not="left out: so").failed == "left out: so"
    assert "no_such_python" in why_not_nvflare("no_such_python")
    assert "--nvflare" in why_not_nvflare("")


def score(value: float | None, half: float = 0.05) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": value - half, "high": value + half}


def rows(*, peer_seconds: float = 130.0, peer_behind: float = -0.01) -> list[Row]:
    def row(key: str, family: str, seconds: float, up: int, mean: float, **minus: float) -> Row:
        return Row(
            key,
            f"the {key}",
            family,
            seconds=seconds,
            job_seconds=seconds,
            cpu_seconds=2 * seconds,
            peak_mib=900,
            traffic={"a": {"down": 10, "up": up}, "b": {"down": 10, "up": up - 1}},
            auroc={"a": score(mean), "mean": score(mean)},
            minus={key.replace("_", "-"): score(v) for key, v in minus.items()},
        )

    against = {"dermino_fedavg": peer_behind, "dermino_ridge": -0.2, "dermino_longer": -0.06}
    return [
        row(PAPER, "dermino", 10, 5000, 0.60),
        row(RIDGE, "dermino", 11, 1_800_000, 0.77, dermino_fedavg=0.17),
        row("memory", "vit", peer_seconds, 3000, 0.59, **against),
        Row("nvflare-poc", "NVFlare POC mode", "vit", failed="left out: no python"),
        row("memory-cold", "cached", 40, 3000, 0.59, **against),
    ]


def test_the_table_says_who_failed_and_goals_say_where_peers_win() -> None:
    text = markdown(rows())
    lines = text.splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "- NVFlare POC mode: left out: no python" in lines
    assert any(line.startswith("| NVFlare POC mode | left out | –") for line in lines)
    memory = next(line for line in lines if line.startswith("| the memory |"))
    assert "| 13.00 |" in memory
    assert "| 0.590 (0.540 to 0.640) |" in memory
    assert "| -0.010 (-0.060 to +0.040) |" in memory
    speed, cached, fewer, ridge = goals(rows())
    assert "reached (13.0 times" in speed
    assert "4.0 times" in cached
    # The peer is not worse beyond chance and sends less: it wins, and the table says so.
    assert "NOT reached" in fewer
    assert "3.0 kB (the memory)" in fewer
    assert "not lower in value none" in fewer
    assert ": reached" in ridge
    assert "NOT reached (9.9 times" in goals(rows(peer_seconds=99.4))[0]
    assert ": reached" in goals(rows(peer_behind=-0.06))[2]


def test_rows_survive_json_and_notes_warn_of_a_busy_machine() -> None:
    kept = [Row.from_json(json.loads(json.dumps(row.as_json()))) for row in rows()]
    assert kept == rows()
    assert "WARNING" not in notes(kept, 1000)
    kept[0].others_seconds, kept[0].loopback_bytes = 30.0, 2_000_000
    assert "the rest of the machine used CPU meanwhile: the dermino-fedavg (30 s)" in notes(kept, 9)
    assert "2.00 MB" in notes(kept, 9)


def test_the_picture_names_every_row(tmp_path: Path) -> None:
    shown = rows()
    shown[4].auroc = {"mean": score(None)}
    shown[4].traffic = {}
    file = tmp_path / "peers.svg"
    draw(shown, file)
    content = file.read_text()
    assert content.startswith("<?xml")
    for name in ("the dermino-ridge", "the memory-cold", "NVFlare POC mode (left out)"):
        assert f"<!-- {name} -->" in content
    draw([row for row in shown if row.failed], file)
