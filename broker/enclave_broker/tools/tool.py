"""What a tool is, wherever it comes from: its name, its schema, its policy, and `invoke`.

A tool is written by whoever runs the broker and called by code that nobody has reviewed. So everything about it but the
arguments is trusted, and nothing about the arguments is: `accept` checks them before `invoke` sees them.

Sources of tools (OpenAPI documents, MCP servers, ...) make subclasses of `Tool`; Python functions are `FunctionTool`.
"""

from __future__ import annotations

import abc
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from enclave_broker.access import DEFAULT_TENANT
from enclave_protocol import Code
from enclave_protocol.trace_context import TRACEPARENT, TRACESTATE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .registry import ToolRegistry
    from .threads import Threads

MAX_NAME_CHARS = 128


_SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPolicy:
    """How calls of one tool are run.

    Raises:
        ValueError: a number is not above 0, or a secret's name is not one; names the field.
    """

    timeout_ms: int | None = None
    """Longest one call may take: its waits, its approval and every retry together. The session's own limits
    (`toolTimeoutMs`, `perToolDeadlineMs`) hold too; the smallest wins. None leaves it to them."""
    retryable: bool = False
    """Whether a failure that says it can be retried is retried here. Only for tools that may run twice."""
    max_retries: int = 3
    """How often, after the first attempt, and only while the call has time left."""
    max_concurrency: int | None = None
    """Calls of this tool that run at once, in all sessions; the others wait. None: no cap of its own."""
    max_result_bytes: int | None = None
    """Largest result, as JSON text. The session's `maxToolResultBytes` holds too, unless the result is stored."""
    store_result: bool = False
    """Whether the guest is given a reference, `{"$ref": {"id": "ref_..."}}`, in place of the result."""
    secrets: tuple[str, ...] = ()
    """Names of the secrets that `ToolContext.secrets` is to hold."""
    needs_approval: bool = False
    """Whether the broker's approval hook has to agree to every call."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("timeout_ms", "max_concurrency", "max_result_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is not above 0 (leave it out for no limit)")
        if self.max_retries < 0:
            raise ValueError(f"max_retries: {self.max_retries} is below 0")
        for secret in self.secrets:
            if not _SECRET_NAME.fullmatch(secret):
                raise ValueError(f"secrets: {secret!r} is no name (letters, digits and _, at most 128)")


class ToolFailure(Exception):  # noqa: N818 - what a call came to, not a fault of the program
    """What a tool raises to fail with words and a code of its own. The guest gets both.

    Args:
        code: for programs, such as `NOT_FOUND`; at most 128 characters.
        message: for people and models.
        retryable: whether the same call can succeed a moment later.
        retry_after_ms: not before this long, if the tool was told so.
    """

    def __init__(self, code: str, message: str, *, retryable: bool = False, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.code = str(code)
        self.message = message
        self.retryable = retryable
        self.retry_after_ms = retry_after_ms


class ArgumentsRefused(ToolFailure):
    """The guest's arguments do not fit; the message names the first that does not, and what is expected."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.VALIDATION_ERROR, message)


@dataclass(frozen=True, slots=True)
class ToolContext:
    """Who is calling, and what the tool may use to answer."""

    session_id: str
    call_id: str
    tenant: str = DEFAULT_TENANT
    """Who the session belongs to."""
    deadline: float = float("inf")
    """When the call is given up, on the clock of `time.monotonic`."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The secrets that the tool's policy names."""
    threads: Threads | None = field(default=None, repr=False, compare=False)
    """Where `run_blocking` runs; None outside of a broker."""
    traceparent: str = ""
    """Where in a distributed trace the call belongs, as W3C's header of that name; empty if in none,"""
    tracestate: str = ""
    """and what goes with it."""

    @property
    def trace_headers(self) -> dict[str, str]:
        """What a request on behalf of this call says of its trace: nothing, if it belongs to none."""
        headers = {TRACEPARENT: self.traceparent, TRACESTATE: self.tracestate}
        return {name: value for name, value in headers.items() if value}

    async def run_blocking(self, function: Callable[[], T]) -> T:
        """Run what blocks in one of the broker's threads for tools, and return its value.

        Raises:
            ToolFailure: `NO_CAPACITY`, too many calls wait for a thread.
            RuntimeError: outside of a broker.
        """
        if self.threads is None:
            raise RuntimeError("no threads: this context was not made by a broker")
        return await self.threads.run(function)


class Tool(abc.ABC):
    """Something that guests may call.

    Args:
        name: what guests call it, 1 to 128 characters.
        description: what it does, for people and models.
        input_schema: JSON Schema of its arguments, an object's; None takes any object. A dialect is chosen by its
            `$schema`, 2020-12 without one. References to other documents are refused: nothing is fetched.
        service: what kind of tool it is, or the name of the source that it comes from.
        policy: how its calls are run.

    Raises:
        ValueError: the name or the schema is not acceptable; says which tool and why.
    """

    def __init__(
        self,
        *,
        name: str,
        description: str = "",
        input_schema: dict[str, Any] | None = None,
        service: str = "python",
        policy: ToolPolicy | None = None,
    ) -> None:
        if not 1 <= len(name) <= MAX_NAME_CHARS:
            raise ValueError(f"tool name {name[:200]!r}: needs 1 to {MAX_NAME_CHARS} characters")
        self.name = name
        self.description = description
        self.service = service
        self.policy = policy or ToolPolicy()
        from .schema import ArgumentSchema  # noqa: PLC0415 - 4 MB, for those who have tools

        try:
            self._schema = ArgumentSchema(input_schema if input_schema is not None else {"type": "object"})
        except ValueError as error:
            raise ValueError(f"tool {name!r}: {error}") from error

    @property
    def input_schema(self) -> dict[str, Any]:
        """What its arguments have to be, as JSON Schema: always an object's. Not to be changed."""
        return self._schema.document

    def accept(self, args: object) -> dict[str, Any]:
        """Check a guest's arguments and return them as `invoke` takes them.

        A guest passes an object. Any other value stands for the tool's one argument, if it has just one, or just one
        that it requires; `null` for a tool without required arguments is none.

        Raises:
            ArgumentsRefused: they do not fit.
        """
        try:
            return self._schema.accept(args)
        except ValueError as error:
            raise ArgumentsRefused(f"{self.name}: {error}") from error

    @abc.abstractmethod
    async def invoke(self, args: dict[str, Any], context: ToolContext) -> object:
        """Answer one call; returns what msgspec can encode as JSON.

        It runs in a task of its own, which is cancelled when the session ends or the time is over. What it raises
        reaches the guest: a ToolFailure with its code, anything else as `EXECUTION_ERROR` with its type and message,
        or with its `code` attribute if that is text.
        """

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} of {self.service}>"


class ToolSource(abc.ABC):
    """Where tools come from, other than Python functions.

    Attributes:
        name: of the source, unique in a broker.
        spec_url: where its description lies, empty if nowhere.
    """

    name: str
    spec_url: str = ""

    @abc.abstractmethod
    async def load(self) -> list[Tool]:
        """Return its tools as of now; raises ValueError or OSError saying what is wrong with the source."""

    async def changed(self) -> bool:
        """Return whether `load` would return other tools than last time. This one never changes."""
        return False

    async def run(self, registry: ToolRegistry) -> None:  # noqa: B027 - most sources never change
        """Keep the registry up to date, by `registry.replace_source`, until cancelled. This one has nothing to do."""
