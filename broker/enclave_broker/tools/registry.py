"""The tools of one broker: what there is, which source it came from, and who wants to hear of changes."""

from __future__ import annotations

import hashlib
import importlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from .functions import FunctionTool, is_tool
from .tool import Tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .tool import ToolPolicy

PYTHON = "python"
"""The source that functions belong to."""
EMPTY_VERSION = "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogChange:
    """What is different since the last version. Names are sorted."""

    version: str
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    """Tools whose description, schema or source are others than before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """One source, as of its last change."""

    name: str
    spec_url: str
    updated_at: float
    """Seconds since the epoch."""
    tools: tuple[str, ...]


class ToolRegistry:
    """The tools of one broker. Used on one event loop; a change takes effect for the next call.

    Args:
        tools: functions or tools to begin with.

    Attributes:
        version: of the catalogue: the same for the same tools, `empty` for none.
    """

    def __init__(self, tools: Iterable[Callable[..., Any] | Tool] = ()) -> None:
        self.version = EMPTY_VERSION
        self._tools: dict[str, Tool] = {}
        self._prints: dict[str, bytes] = {}  # by tool: what of it the version depends on
        self._sources: dict[str, SourceInfo] = {}
        self._listeners: list[Callable[[CatalogChange], None]] = []
        for each in tools:
            self.add(each)

    def register(
        self, name: str, function: Callable[..., Any], *, description: str = "", policy: ToolPolicy | None = None
    ) -> None:
        """Make `function` callable as `name`.

        Raises:
            ValueError: the name is empty, too long or taken, or a parameter's annotation is no JSON value's.
        """
        self.add(FunctionTool(function, name=name, description=description, policy=policy))

    def add(self, tool: Callable[..., Any] | Tool) -> None:
        """Add a tool, or a function as `@tool` marked it; without the mark, under its own name.

        Raises:
            ValueError: as `register`.
        """
        added = tool if isinstance(tool, Tool) else FunctionTool.of(tool)
        self._require_free([added], source=None)
        self._change({added.name: added}, removed=(), source=PYTHON, spec_url="", keep=True)

    def load(self, module: str) -> int:
        """Add every `@tool` function and every `Tool` that a module defines or imports; returns how many.

        Raises:
            ValueError: the module can't be imported, or has no tools.
        """
        try:
            found = importlib.import_module(module)
        except Exception as error:
            raise ValueError(f"tools module {module!r}: {type(error).__name__}: {error}") from error
        tools = {id(value): value for value in vars(found).values() if isinstance(value, Tool) or is_tool(value)}
        if not tools:
            raise ValueError(f"tools module {module!r}: has no function marked with @enclave_broker.tool")
        for each in tools.values():
            self.add(each)
        return len(tools)

    def replace_source(self, source: str, tools: Iterable[Tool], *, spec_url: str = "") -> CatalogChange:
        """Make `tools` all that a source has, at once; those it had before and are not among them are gone.

        Returns what changed; if anything did, the version is another, and whoever subscribed has been told.

        Raises:
            ValueError: two have one name, or another source has a tool of that name. Nothing was changed then.
        """
        new = list(tools)
        self._require_free(new, source=source)
        before = self._sources[source].tools if source in self._sources else ()
        by_name = {tool.name: tool for tool in new}
        gone = tuple(name for name in before if name not in by_name)
        return self._change(by_name, removed=gone, source=source, spec_url=spec_url, keep=False)

    def subscribe(self, listener: Callable[[CatalogChange], None]) -> Callable[[], None]:
        """Have every change told to `listener`, which must not raise; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def get(self, name: str) -> Tool | None:
        """Return a tool."""
        return self._tools.get(name)

    def names(self) -> list[str]:
        """Return what is registered."""
        return sorted(self._tools)

    def tools(self) -> list[Tool]:
        """Return every tool, by name."""
        return [self._tools[name] for name in self.names()]

    def sources(self) -> list[SourceInfo]:
        """Return every source, by name."""
        return [self._sources[name] for name in sorted(self._sources)]

    def __len__(self) -> int:
        return len(self._tools)

    def _require_free(self, tools: list[Tool], *, source: str | None) -> None:
        own = set(self._sources[source].tools) if source in self._sources else set()
        seen: set[str] = set()
        for tool in tools:
            if tool.name in seen or (tool.name in self._tools and tool.name not in own):
                raise ValueError(f"tool name {tool.name!r}: is taken by another tool")
            seen.add(tool.name)

    def _change(
        self, new: dict[str, Tool], *, removed: tuple[str, ...], source: str, spec_url: str, keep: bool
    ) -> CatalogChange:
        prints = {name: _print_of(tool) for name, tool in new.items()}
        added = sorted(new.keys() - self._tools.keys())
        updated = sorted(name for name, text in prints.items() if self._prints.get(name, text) != text)
        for name in removed:
            del self._tools[name], self._prints[name]
        self._tools |= new
        self._prints |= prints
        kept = self._sources[source].tools if keep and source in self._sources else ()
        names = tuple(sorted({*kept, *new}))
        self._sources[source] = SourceInfo(name=source, spec_url=spec_url, updated_at=time.time(), tools=names)
        self.version = self._version()
        change = CatalogChange(
            version=self.version, added=tuple(added), removed=tuple(sorted(removed)), updated=tuple(updated)
        )
        if added or removed or updated:
            for listener in list(self._listeners):
                listener(change)
        return change

    def _version(self) -> str:
        if not self._tools:
            return EMPTY_VERSION
        return hashlib.sha256(b"\n".join(self._prints[name] for name in self.names())).hexdigest()[:16]


def _print_of(tool: Tool) -> bytes:
    return msgspec.json.encode([tool.name, tool.description, tool.service, tool.input_schema], order="deterministic")
