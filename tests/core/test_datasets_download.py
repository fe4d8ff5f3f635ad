"""Downloading Fitzpatrick17k from a server on this machine that misbehaves."""

from __future__ import annotations

import csv
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dermino_core.datasets import fitzpatrick17k
from dermino_core.datasets.download import Politeness, Wanted, fetch_all
from dermino_core.errors import DerminoError

BODY = b"\xff\xd8 an image \xff\xd9" * 50
FAST = Politeness(workers=2, retries=2, wait=0.001, timeout=5.0, max_bytes=10_000)


class Server(ThreadingHTTPServer):
    """Counts requests by path and remembers the last user agent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        self.server.agents.add(self.headers["User-Agent"])
        times = self.server.asked[self.path]
        if self.path == "/flaky" and times < 3:
            self.reply(503, b"busy")
        elif self.path == "/cut" and times < 2:
            self.reply(200, BODY[:100], announced=len(BODY))
        elif self.path == "/down":
            self.reply(500, b"")
        elif self.path == "/gone":
            self.reply(404, b"not here")
        elif self.path == "/other":
            self.reply(200, b"another picture")
        elif self.path == "/large":
            self.reply(200, b"x" * 20_000)
        elif self.path == "/endless":
            self.reply(200, b"x" * 20_000, announced=None)
        elif self.path == "/moved":
            self.reply(302, b"", location="/good")
        elif self.path == "/to-file":
            self.reply(302, b"", location="file:///etc/passwd")
        else:
            self.reply(200, BODY)

    def reply(
        self, status: int, body: bytes, announced: int | None = -1, location: str | None = None
    ) -> None:
        self.send_response(status)
        if announced is not None:
            self.send_header("Content-Length", str(len(body) if announced < 0 else announced))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def wanted(url: str, file: Path, body: bytes = BODY) -> Wanted:
    return Wanted(url, file, hashlib.md5(body).hexdigest())


def fetch(url: str, file: Path):
    return fetch_all([wanted(url, file)], title="t", politeness=FAST)


@pytest.mark.parametrize(
    ("path", "requests"), [("/flaky", 3), ("/cut", 2), ("/good", 1), ("/a b/ü", 1), ("/moved", 1)]
)
def test_comes_whole_in_the_end(server, tmp_path, path, requests):
    report = fetch(server.address + path, tmp_path / "new" / "a.jpg")
    assert report.not_had == []
    assert (tmp_path / "new" / "a.jpg").read_bytes() == BODY
    asked = {key: n for key, n in server.asked.items() if path != "/moved" or key == "/moved"}
    assert list(asked.values()) == [requests]
    (agent,) = server.agents
    assert agent.startswith("dermino/")


@pytest.mark.parametrize(
    ("path", "reason", "requests"),
    [
        ("/gone", "HTTP 404", 1),
        ("/other", "wrong checksum", 1),
        ("/large", "larger than 10000 bytes", 1),
        ("/endless", "larger than 10000 bytes", 1),
        ("/down", "HTTP 500 Internal Server Error (3 attempts)", 3),
        ("/to-file", "HTTP 302", 1),
    ],
)
def test_what_cannot_be_had_is_listed_and_leaves_no_file(server, tmp_path, path, reason, requests):
    report = fetch(server.address + path, tmp_path / "a.jpg")
    assert report.fetched == 0
    assert reason in report.not_had[0].reason
    assert list(tmp_path.iterdir()) == []
    assert server.asked[path] == requests


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/hostname",
        "ftp://127.0.0.1/x",
        "",
        "no address",
        "http://",
        "http://[1",
        "//x/y",
    ],
)
def test_only_http_addresses_are_opened(tmp_path, url):
    report = fetch(url, tmp_path / "a.jpg")
    assert "address" in report.not_had[0].reason
    assert list(tmp_path.iterdir()) == []


def test_a_port_where_nobody_listens(tmp_path):
    with Server() as closed:
        address = closed.address
    report = fetch(address + "/x", tmp_path / "a.jpg")
    assert "no connection" in report.not_had[0].reason
    assert "3 attempts" in report.not_had[0].reason


def test_waits_longer_with_every_attempt(server, tmp_path):
    waits: list[float] = []
    one = wanted(server.address + "/down", tmp_path / "a.jpg")
    patience = Politeness(workers=1, retries=3, wait=1.0)
    fetch_all([one], title="t", politeness=patience, sleep=waits.append)
    assert waits == [1.0, 2.0, 4.0]


def table(raw: Path, address: str, cases: list[tuple[str, bytes]]) -> list[str]:
    raw.mkdir()
    header = (
        "md5hash,fitzpatrick_scale,fitzpatrick_centaur,label,nine_partition_label,"
        "three_partition_label,qc,url,url_alphanum"
    )
    hashes = [hashlib.md5(body).hexdigest() for _, body in cases]
    lines = [
        f"{md5},2,2,melanoma,malignant melanoma,malignant,,{address + path if path else ''},y"
        for md5, (path, _) in zip(hashes, cases, strict=True)
    ]
    (raw / "fitzpatrick17k.csv").write_text("\n".join([header, *lines]) + "\n")
    return hashes


def test_fitzpatrick_download_and_a_second_run(server, tmp_path):
    raw = tmp_path / "raw"
    cases = [("/flaky", BODY), ("/gone", b"1"), ("/other", b"2"), ("", b"3")]
    hashes = table(raw, server.address, cases)
    report = fitzpatrick17k.download(raw, politeness=FAST)
    assert (report.fetched, report.already_here, len(report.not_had)) == (1, 0, 3)
    with (raw / "images" / "not_downloaded.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["md5hash"] for row in rows] == hashes[1:]
    assert ["404" in rows[0]["reason"], "checksum" in rows[1]["reason"]] == [True, True]
    assert "no address" in rows[2]["reason"]

    good = raw / "images" / f"{hashes[0]}.jpg"
    before = server.asked["/flaky"]
    assert fitzpatrick17k.download(raw, politeness=FAST).already_here == 1
    assert server.asked["/flaky"] == before
    good.write_bytes(BODY[:30])
    assert fitzpatrick17k.download(raw, politeness=FAST).fetched == 1
    assert good.read_bytes() == BODY

    manifest = fitzpatrick17k.prepare(raw, tmp_path / "out")
    assert manifest.read_text().splitlines()[1].startswith(f"images/{hashes[0]}.jpg,malignant,2,")


def test_fitzpatrick_download_of_nothing_is_an_error(server, tmp_path):
    table(tmp_path / "raw", server.address, [("/gone", b"1")])
    with pytest.raises(DerminoError, match="HTTP 404") as caught:
        fitzpatrick17k.download(tmp_path / "raw", politeness=FAST)
    assert caught.value.code == "DOWNLOAD_FAILED"
    assert (tmp_path / "raw" / "images" / "not_downloaded.csv").is_file()
