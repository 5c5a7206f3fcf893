"""The real programs, with every line that they log."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from typing import IO, TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import Metric

Message = dict[str, Any]


class Program:
    """One of them, listening."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url = ""
        self.lines: list[str] = []
        """What it has logged so far."""
        self._more = threading.Condition()

    @property
    def http(self) -> str:
        """Where it answers requests."""
        return self.url.replace("ws://", "http://").removesuffix("/ws")

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> str:
        request = urllib.request.Request(self.http + path, headers=dict(headers or {}))
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            text: str = response.read().decode()
            return text

    def post(self, path: str, body: Message, headers: Mapping[str, str] | None = None) -> list[Message]:
        """Send a request and read its lines to their end."""
        data = json.dumps(body).encode()
        given = {"Content-Type": "application/json", **(headers or {})}
        with urllib.request.urlopen(
            urllib.request.Request(self.http + path, data, given), timeout=PATIENCE_S
        ) as response:
            return [json.loads(line) for line in response.read().splitlines()]

    def answers(self, path: str) -> bool:
        """Say whether it answers with success."""
        try:
            self.get(path)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        return True

    def metrics(self, headers: Mapping[str, str] | None = None) -> dict[str, Metric]:
        """Its exposition, as prometheus_client's parser reads it."""
        return {family.name: family for family in text_string_to_metric_families(self.get("/metrics", headers))}

    def objects(self) -> list[Message]:
        """What it has logged so far, as JSON has it."""
        return [json.loads(line) for line in list(self.lines)]

    def wait_said(self, *words: str) -> str:
        """Wait for a line with all these words in it."""
        with self._more:
            found = self._more.wait_for(lambda: self._find(words), PATIENCE_S)
        assert found, f"it never said {words}"
        return found

    def _find(self, words: tuple[str, ...]) -> str:
        return next((line for line in self.lines if all(word in line for word in words)), "")

    def read(self, stream: IO[str]) -> None:
        """Take what it logs, to its end."""
        for line in stream:
            with self._more:
                self.lines.append(line.removesuffix("\n"))
                self._more.notify_all()

    def stop(self) -> int:
        """End it, and wait until all that it logged has come."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def program(module: str, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Program]:
    """Start a program and wait until it listens; ends it."""
    command = [sys.executable, "-m", module, *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, errors="surrogateescape"
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        running = Program(process)
        reader = threading.Thread(target=running.read, args=(process.stderr,), daemon=True)
        reader.start()
        try:
            said = process.stdout.readline()
            assert said, f"it did not start: {running.lines}"
            running.url = said.split()[3]
            yield running
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
            reader.join(PATIENCE_S)
