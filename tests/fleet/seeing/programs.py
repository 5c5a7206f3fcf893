"""The real programs, with every line that they log."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
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

    def __init__(self, process: subprocess.Popen[str], url: str, lines: list[str]) -> None:
        self.process = process
        self.url = url
        self.lines = lines
        """What it has logged so far."""

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

    def metrics(self) -> dict[str, Metric]:
        """Its exposition, as prometheus_client's parser reads it."""
        return {family.name: family for family in text_string_to_metric_families(self.get("/metrics"))}

    def values(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample by name and labels."""
        families = self.metrics().values()
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}

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
        lines: list[str] = []
        reader = threading.Thread(target=_read, args=(process.stderr, lines), daemon=True)
        reader.start()
        try:
            said = process.stdout.readline()
            assert said, f"it did not start: {lines}"
            yield Program(process, said.split()[3], lines)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
            reader.join(PATIENCE_S)


def _read(stream: IO[str], lines: list[str]) -> None:
    for line in stream:
        lines.append(line.removesuffix("\n"))  # noqa: PERF401 - as they come
