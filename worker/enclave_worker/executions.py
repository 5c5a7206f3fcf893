"""One execution inside this process: its events as an async iterator, or all of it as one value.

Theory of operation. An `EventBuffer` is the sink of one session. Between the session, which delivers without waiting,
and the reader, who takes his time, it holds a bounded number of bytes: beyond them it says `congested`, the session
stops reading its sandbox, and the guest blocks on its own output until the reader has caught up to half.

The session belongs to the iterator. Left early (closed, cancelled, or dropped), the iterator cancels the session and
waits for its `final`, so that nothing of it is left when the iterator has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from enclave_protocol import (
    AnyEvent,
    Cancel,
    Execute,
    Final,
    FinalError,
    Limits,
    LocalProtocolError,
    RemoteProtocolError,
    SessionId,
    Stats,
    decode_event,
    new_session_id,
    parse_env,
    parse_files,
    parse_session_id,
)
from enclave_protocol import events as ev
from enclave_protocol.inputs import encode_file

from . import tools as tools_

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from .sessions import Sessions

DEFAULT_BUFFER_BYTES = 1024 * 1024


class ExecutionResult(msgspec.Struct, frozen=True, kw_only=True):
    """How an execution went. What the guest did wrong is in `error`; nothing is raised for it."""

    session_id: str
    ok: bool
    """Whether the code returned."""
    result: Any = None
    """What it returned, as decoded JSON; None if it failed."""
    error: FinalError | None = None
    """Why it failed; None if it did not."""
    stats: Stats
    stdout: str
    """What was written to descriptor 1, up to `maxStdoutBytes`."""
    stderr: str
    events: list[AnyEvent]
    """Every event, the `final` included."""


class EventBuffer:
    """A session's events on their way to one reader in this process. A sink."""

    def __init__(self, sessions: Sessions, limit_bytes: int) -> None:
        self.congested = False
        self._sessions = sessions
        self._limit_bytes = limit_bytes
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._news = asyncio.Event()

    def deliver(self, line: bytes) -> None:
        """Take one event. Never blocks."""
        self._lines.append(line)
        self._bytes += len(line)
        self._news.set()
        if self._bytes > self._limit_bytes:
            self.congested = True

    async def next(self) -> AnyEvent:
        """Wait for the next event. Cancelled, it has taken none."""
        while not self._lines:
            self._news.clear()
            await self._news.wait()
        line = self._lines.popleft()
        self._bytes -= len(line)
        if self.congested and self._bytes <= self._limit_bytes // 2:
            self.congested = False
            self._sessions.resume(self)
        return decode_event(line)


def make_execute(
    session_id: str | None,
    code: str,
    limits: Limits | Mapping[str, Any] | None,
    *,
    language: str | None = None,
    profile: str | None = None,
    env: Mapping[str, str] | None = None,
    files: Mapping[str, str | bytes] | None = None,
) -> Execute:
    """Return the message for a session.

    Args:
        session_id: `s_…`; a new one if None.
        code: the body of an async function.
        limits: all of them, or by their names on the wire those that differ from the worker's defaults.
        language: the first of the profile's if None.
        profile: `python` if None.
        env: environment variables of the code.
        files: files in its working directory, by relative path.

    Raises:
        RemoteProtocolError: the id has not the form of one, or something is not what its annotation says.
    """
    texts = (
        *(("sessionId", session_id, str | None), ("code", code, str)),
        *(("language", language, str | None), ("profile", profile, str | None)),
    )
    for field, value, kind in texts:
        if not isinstance(value, kind):
            raise RemoteProtocolError(f"a {type(value).__name__}", field=field, allowed="a string")
    checked = new_session_id() if session_id is None else parse_session_id(session_id)
    contents = None
    if isinstance(files, Mapping):
        contents = {path: encode_file(data) if isinstance(data, bytes) else data for path, data in files.items()}
    elif files is not None:
        raise RemoteProtocolError(f"a {type(files).__name__}", field="files", allowed="a mapping of paths to contents")
    return Execute(
        session_id=checked,
        code=code,
        limits=_named(limits),
        language=UNSET if language is None else language,
        profile=UNSET if profile is None else profile,
        env=UNSET if env is None else parse_env(dict(env) if isinstance(env, Mapping) else env),
        files=UNSET if contents is None else parse_files(contents),
    )


async def stream(
    sessions: Sessions, message: Execute, *, buffer_bytes: int, unread: set[SessionId] | None = None
) -> AsyncGenerator[AnyEvent, None]:
    """Run `message` and yield its events up to and including the `final`.

    Args:
        sessions: the worker's.
        message: what to run.
        buffer_bytes: how much may wait for the reader before the code is paused.
        unread: holds the session's id from its start until its `final` was read, which may be long after its end.

    Raises:
        RemoteProtocolError: a field is not acceptable; nothing was started.
        LocalProtocolError: this is not the worker's event loop.
    """
    if asyncio.get_running_loop() is not sessions.loop:
        allowed = "the loop that started the worker, or execute_sync"
        raise LocalProtocolError("another event loop runs this worker", field="loop", allowed=allowed)
    buffer = EventBuffer(sessions, buffer_bytes)
    session_id = sessions.execute(message, buffer)
    unread = set() if unread is None else unread
    unread.add(session_id)
    event: AnyEvent | None = None
    try:
        while not isinstance(event, Final):
            event = await buffer.next()
            yield event
    finally:
        unread.discard(session_id)
        if not isinstance(event, Final):
            await _give_up(sessions, session_id, buffer)


async def collect(sessions: Sessions, message: Execute, tools: tools_.Tools, *, buffer_bytes: int) -> ExecutionResult:
    """Run `message` to its end, answering its tool calls; raises what `stream` raises. Cancelled, it ends it."""
    incoming = stream(sessions, message, buffer_bytes=buffer_bytes)
    # The first outside the group, so that a refusal is raised as itself.
    events = [await anext(incoming)]
    calls: list[asyncio.Task[None]] = []
    # The stream inside the group: whatever happens, the session ends before its tools are waited for.
    async with asyncio.TaskGroup() as group, contextlib.aclosing(incoming):
        async for event in incoming:
            events.append(event)
            if isinstance(event, ev.ToolCall):
                calls.append(group.create_task(tools_.answer(sessions, event, tools)))
        for call in calls:
            call.cancel()
    return _summed_up(events)


async def _give_up(sessions: Sessions, session_id: SessionId, buffer: EventBuffer) -> None:
    with contextlib.suppress(RemoteProtocolError):  # its final waits in the buffer
        sessions.cancel(Cancel(session_id=session_id, reason="its reader left"))
    while not isinstance(await buffer.next(), Final):
        pass


def _summed_up(events: list[AnyEvent]) -> ExecutionResult:
    final = events[-1]
    assert isinstance(final, Final), "a stream ends with its final"
    payload = final.payload
    return ExecutionResult(
        session_id=final.session_id,
        ok=payload.ok,
        result=None if payload.result is UNSET else payload.result,
        error=None if payload.error is UNSET else payload.error,
        stats=Stats() if payload.stats is UNSET else payload.stats,
        stdout="".join(event.payload.chunk for event in events if isinstance(event, ev.Stdout)),
        stderr="".join(event.payload.chunk for event in events if isinstance(event, ev.Stderr)),
        events=events,
    )


def _named(limits: Limits | Mapping[str, Any] | None) -> dict[str, Any] | msgspec.UnsetType:
    if limits is None:
        return UNSET
    if isinstance(limits, Mapping):
        return dict(limits)
    if not isinstance(limits, Limits):
        allowed = "Limits, or a mapping of limits by name"
        raise RemoteProtocolError(f"a {type(limits).__name__}", field="limits", allowed=allowed)
    return limits.named()
