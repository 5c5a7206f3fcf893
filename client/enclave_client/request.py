"""What a caller asks for, checked here and made into the wire's `execute`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, get_args

from msgspec import UNSET, UnsetType

from enclave_protocol import (
    MAX_CODE_BYTES,
    MAX_MESSAGE_BYTES,
    AnyEvent,
    Execute,
    ProtocolError,
    RemoteProtocolError,
    encode,
    new_session_id,
    parse_env,
    parse_files,
    parse_limits,
    parse_session_id,
)
from enclave_protocol import Limits as WireLimits
from enclave_protocol.inputs import MAX_FILES_BYTES, encode_file
from enclave_protocol.messages import Retry

from .errors import RequestRefused
from .limits import Limits
from .local_tools import LocalTool, Tools, make_tools

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

T = TypeVar("T")

MAX_WAIT_S = 30 * 24 * 3600.0
UNKNOWN_QUEUE_S = 30.0
"""What `wait_s` allows, beside the session's own life, for a slot to become free and for events to arrive."""


class SessionOptions(TypedDict, total=False):
    """What every way to run code takes, by name."""

    language: str | None
    """`python`, `javascript` or `shell`; the profile's, or else the broker's, if left out."""
    profile: str | None
    """A named environment that the fleet offers."""
    limits: Limits | Mapping[str, Any] | None
    """What it may use, as `Limits(...)`, or by the wire's names, such as `{"maxToolCalls": 5}`. What is left out is
    left to the profile and the broker."""
    timeout_s: float | None
    """Short for `limits=Limits(timeout_s=...)`."""
    memory_mb: float | None
    """Short for `limits=Limits(memory_mb=...)`."""
    env: Mapping[str, str] | None
    """Environment variables of the code."""
    files: Mapping[str, str | bytes | Path] | None
    """Files in the code's working directory by relative path: text, bytes, or the path of a file here."""
    tools: Tools | None
    """Functions that the code may call: a list, or a mapping of names to functions."""
    retry: Retry | None
    """`"safe"`: it may run again on another worker if its own is lost before its first event. Otherwise that ends it,
    with `WORKER_LOST`."""
    session_id: str | None
    """`s_...`, which no live session has; a new one if left out."""
    wait_s: float | None
    """Longest wait for the session's end by this program's clock, queue and lost connections included; then
    `SessionTimeout`. Left out: twice the session's own time and half a minute, if `limits` say that time, else the
    client's `wait_s`."""


class RunOptions(SessionOptions, total=False):
    """What `run` takes beside."""

    on_stdout: Callable[[str], Awaitable[None] | None] | None
    """Called with text, as it is written. `run` only, as all that follow."""
    on_stderr: Callable[[str], Awaitable[None] | None] | None
    """The same, of stderr."""
    on_event: Callable[[AnyEvent], Awaitable[None] | None] | None
    """Called with every event, before the other two."""
    check: bool
    """Whether a session that fails raises `SessionFailed`."""


def require_known(options: Mapping[str, Any], kind: type[SessionOptions]) -> None:
    """Refuse names that nobody reads: an option that is not applied must not look as if it were; raises TypeError."""
    known = sorted(kind.__annotations__.keys() | SessionOptions.__annotations__.keys())
    for name in options:
        if name not in known:
            raise TypeError(f"no such option: {name} (there are {', '.join(known)})")


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request."""

    session_id: str
    execute: bytes
    tools: Mapping[str, LocalTool]
    wait_s: float
    max_tool_result_bytes: int
    """What a tool's result may be, as far as is known here."""


def make_request(code: str, options: SessionOptions, *, default_wait_s: float) -> Request:
    """Return a request.

    Raises:
        RequestRefused: names the field, and what is allowed.
        OSError: a file cannot be read.
    """
    try:
        return _make_request(code, options, default_wait_s)
    except ProtocolError as error:
        raise RequestRefused.of(error) from error


def make_attachment(session_id: str, from_seq: int, wait_s: float) -> Request:
    """Return what to know of a session that was begun elsewhere; raises RequestRefused."""
    try:
        parse_session_id(session_id)
    except ProtocolError as error:
        raise RequestRefused.of(error) from error
    if from_seq < 1:
        raise RequestRefused(f"from_seq: {from_seq}", field="from_seq", allowed="1 or more")
    return Request(session_id, b"", {}, _checked_wait(wait_s), 0)


def _make_request(code: str, options: SessionOptions, default_wait_s: float) -> Request:
    given = options.get("session_id")
    session_id = new_session_id() if given is None else parse_session_id(given)
    limits = _limits(options)
    parsed = parse_limits(limits)
    tools = make_tools(options.get("tools"))
    message = Execute(
        session_id=session_id,
        code=_checked_code(code),
        limits=limits or UNSET,
        language=options.get("language") or UNSET,
        profile=options.get("profile") or UNSET,
        env=_present(parse_env, options.get("env")),
        files=_present(_files, options.get("files")),
        tools=[tool.declaration for tool in tools.values()],
        retry=_retry(options.get("retry")),
    )
    execute = encode(message)
    if len(execute) > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError(f"{len(execute)} bytes in all", allowed=f"at most {MAX_MESSAGE_BYTES} bytes")
    return Request(
        session_id, execute, tools, _wait_s(options, limits, parsed, default_wait_s), parsed.max_tool_result_bytes
    )


def _retry(given: Retry | None) -> Retry | UnsetType:
    if given not in (None, *get_args(Retry)):
        raise RemoteProtocolError(f"{given!r}", field="retry", allowed="safe or never")
    return given or UNSET


def _limits(options: SessionOptions) -> dict[str, Any]:
    limits = options.get("limits") or {}
    wire = limits.on_the_wire() if isinstance(limits, Limits) else dict(limits)
    short = Limits(timeout_s=options.get("timeout_s"), memory_mb=options.get("memory_mb")).on_the_wire()
    twice = next((name for name in short if name in wire), None)
    if twice is not None:
        raise RemoteProtocolError("given twice", field=f"limits.{twice}", allowed="limits, or the argument for it")
    return wire | short


def _wait_s(options: SessionOptions, limits: Mapping[str, Any], parsed: WireLimits, default_wait_s: float) -> float:
    wait_s = options.get("wait_s")
    if wait_s is None:
        # It may wait for a slot as long as it may run.
        known = limits.keys() & {"sessionTtlMs", "deadlineMs", "timeout"}
        return 2 * parsed.wall_ms / 1000 + UNKNOWN_QUEUE_S if known else default_wait_s
    return _checked_wait(wait_s)


def _checked_wait(wait_s: float) -> float:
    if not 0 < wait_s < MAX_WAIT_S:
        raise RequestRefused(f"wait_s: {wait_s}", field="wait_s", allowed=f"seconds, above 0 and below {MAX_WAIT_S:g}")
    return wait_s


def _checked_code(code: object) -> str:
    if not isinstance(code, str):
        raise RemoteProtocolError(f"a {type(code).__name__}", field="code", allowed="text")
    try:
        size_bytes = len(code.encode())
    except UnicodeEncodeError as error:
        raise RemoteProtocolError(f"has a lone surrogate in it: {error}", field="code", allowed="text") from error
    if size_bytes > MAX_CODE_BYTES:
        raise RemoteProtocolError(f"{size_bytes} bytes", field="code", allowed=f"at most {MAX_CODE_BYTES} bytes")
    return code


def _present(parse: Callable[[dict[str, Any]], T], given: Mapping[str, Any] | None) -> Any:
    return parse(dict(given)) if given else UNSET


def _files(files: dict[str, Any]) -> dict[str, Any]:
    return parse_files({name: _content(content) for name, content in files.items()})


def _content(content: object) -> object:
    if isinstance(content, Path):
        with content.open("rb") as source:
            return encode_file(source.read(MAX_FILES_BYTES + 1))
    return encode_file(content) if isinstance(content, bytes) else content
