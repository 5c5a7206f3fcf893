"""Files of profiles, and workers that offer what is in them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from enclave_worker.config import RuntimeConfig
from enclave_worker.runtime import create_runtime_worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from enclave_worker.executions import ExecutionResult
    from enclave_worker.runtime import RuntimeWorker


def write(directory: Path, text: str) -> str:
    """Write a file of profiles; return its path."""
    path = directory / "profiles.toml"
    path.write_text(text)
    return str(path)


class Offered:
    """A worker with a thread of its own, of whose profiles one is under test."""

    def __init__(self, worker: RuntimeWorker, profile: str) -> None:
        self.worker = worker
        self.profile = profile

    def run(self, code: str, limits: dict[str, Any] | None = None, **given: Any) -> ExecutionResult:
        """Run code; how it ended is in the answer."""
        return self.worker.execute_sync(
            None, code, {"deadlineMs": 50_000} | (limits or {}), profile=self.profile, **given
        )

    def result(self, code: str, **given: Any) -> Any:
        """Run code that ends well; return its result."""
        done = self.run(code, **given)
        assert done.ok, f"{done.error}\n{done.stderr}"
        return done.result


@contextlib.contextmanager
def offering(profile: str, **settings: Any) -> Iterator[Offered]:
    """Run a worker that offers `profile` and no other."""
    config = RuntimeConfig(pool_size=1, profiles=(profile,), **settings)
    with create_runtime_worker(config) as worker:
        yield Offered(worker, profile)
