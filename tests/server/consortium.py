"""A real federation on loopback whose hospitals are enrolled by nothing but commands."""

from __future__ import annotations

import json
import re

from federation import BIN, CONNECTION, Federation  # beside this file


class Consortium(Federation):
    """A real federation on loopback, enrolled by nothing but commands."""

    def dermino(self, *words: str) -> str:
        return self._done(str(BIN / "dermino"), "provision", *words, "--out", str(self.keys))

    def _done(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr + self.log("superlink")[-2000:]
        return done.stdout

    def init(self) -> None:
        address = f"127.0.0.1:{self.port}"
        words = ("--host", "127.0.0.1", "--port", str(self.port), "--superlink", address)
        self.authority = told(self.dermino("init", *words, "--connection", CONNECTION))

    def ask(self, name: str, *extra: str) -> tuple[str, str]:
        """At the hospital: the request file, and the fingerprint to read by phone."""
        command = (str(BIN / "dermino-client"), "enrol", "--site", name)
        shown = self._done(*command, "--sites-dir", str(self.sites), *extra)
        return str(self.site_folder(name) / f"{name}.request.json"), told(shown)

    def enter(self, name: str, *extra: str) -> None:
        """All three commands, as three people would run them."""
        request, fingerprint = self.ask(name, *extra)
        self.write_site(name, 24, like="synthetic-mednode")
        answer = self.dermino("accept", request, "--fingerprint", fingerprint)
        assert told(answer) == self.authority
        bundle = str(self.keys / "sites" / name / f"{name}.bundle.json")
        self.start_client(name, "--bundle", bundle, "--fingerprint", self.authority)

    def stop(self, name: str) -> None:
        self.processes[name].terminate()
        self.processes[name].wait(timeout=60)

    def count(self, status: str) -> int:
        return self.statuses().count(status)

    def statuses(self) -> list[str]:
        shown = self._done(str(BIN / "flwr"), "supernode", "list", CONNECTION, "--format", "json")
        return sorted(node["status"] for node in json.loads(shown)["nodes"])


def told(output: str) -> str:
    """The fingerprint that a command shows last."""
    return re.findall(r"^ +((?:[0-9A-F]{4} ){7}[0-9A-F]{4})$", output, re.MULTILINE)[-1]
