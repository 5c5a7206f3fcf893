"""How the calls of one source's tools are run, as its operator says. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from enclave_broker.tools.tool import ToolPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .operation import Operation

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """What holds for every tool of a source; see `ToolPolicy`."""

    timeout_ms: int | None = None
    retryable: bool | None = None
    """None: only those that, by HTTP's own rules, change nothing."""
    max_retries: int = 3
    max_concurrency: int | None = None
    max_result_bytes: int | None = None
    store_result: bool = False
    needs_approval: bool | Sequence[str] = False
    """Whether somebody has to agree to each call; or of which tools, as patterns of their names."""

    def of(self, operation: Operation, secrets: tuple[str, ...]) -> ToolPolicy:
        """Return what holds for one HTTP operation."""
        retryable = operation.method in _SAFE if self.retryable is None else self.retryable
        return self.named(operation.name, secrets, retryable=retryable)

    def named(self, tool: str, secrets: tuple[str, ...] = (), *, retryable: bool | None = None) -> ToolPolicy:
        """Return what holds for the tool of a name."""
        asked = self.needs_approval
        return ToolPolicy(
            timeout_ms=self.timeout_ms,
            retryable=bool(self.retryable) if retryable is None else retryable,
            max_retries=self.max_retries,
            max_concurrency=self.max_concurrency,
            max_result_bytes=self.max_result_bytes,
            store_result=self.store_result,
            secrets=secrets,
            needs_approval=asked if isinstance(asked, bool) else any(fnmatchcase(tool, each) for each in asked),
        )
