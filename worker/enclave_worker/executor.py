"""Sessions as async iterators of events, for a program that has an event loop and wants to see everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import msgspec

from enclave_protocol import Cancel, RemoteProtocolError, ToolError, ToolResult

from .config import RuntimeConfig
from .executions import DEFAULT_BUFFER_BYTES, make_execute, stream
from .runtime import RuntimeWorker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType

    from enclave_protocol import AnyEvent, Limits, SessionId


class SessionExecutor:
    """Runs sessions on a worker in this process. Made by `create_session_executor`.

    As an async context manager it starts and stops a worker of its own; one that it was given is its owner's to run.
    """

    def __init__(self, worker: RuntimeWorker, *, owns_worker: bool, buffer_bytes: int) -> None:
        self.worker = worker
        self._owns_worker = owns_worker
        self._buffer_bytes = buffer_bytes
        self._unread: set[SessionId] = set()

    def __repr__(self) -> str:
        return f"<SessionExecutor {self.worker!r}>"

    def execute(
        self,
        session_id: str | None,
        code: str,
        limits: Limits | Mapping[str, Any] | None = None,
        *,
        language: str | None = None,
        profile: str | None = None,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, str | bytes] | None = None,
    ) -> AsyncGenerator[AnyEvent, None]:
        """Run code in a fresh sandbox and yield its events, `session_init` first, the one `final` last.

        The session starts with the first step of the iteration.
        Tool calls are the caller's to answer, by `tool_result`. A reader that takes its time pauses the code once
        `buffer_bytes` wait for it. Leaving early cancels the session; to have it gone by a certain line, leave
        through `contextlib.aclosing`. Without a free slot the only event is a `final` with the code `NO_CAPACITY`.

        Args:
            session_id: `s_…`, which no live session may have; a new one if None.
            code: the body of an async function; or a script for the shell.
            limits: all of them, or by their names on the wire those that differ from the configuration's.
            language: `python`, `javascript` or `shell`; the first of the profile's if None.
            profile: one that the worker offers; `python` if None.
            env: environment variables of the code.
            files: files in its working directory, by relative path.

        Raises:
            RemoteProtocolError: the id, the code, a limit or one of these is not acceptable; nothing was started.
            LocalProtocolError: the worker does not run, or in another loop.
        """
        self.worker.require_running()
        message = make_execute(session_id, code, limits, language=language, profile=profile, env=env, files=files)
        return stream(self.worker.sessions, message, buffer_bytes=self._buffer_bytes, unread=self._unread)

    def tool_result(self, session_id: str, call_id: str, value: Any = None, *, error: ToolError | None = None) -> None:
        """Answer a tool call.

        Args:
            session_id: whose call it is.
            call_id: from the `tool_call` event.
            value: the result, any JSON value; left aside if there is an error.
            error: why the tool failed.

        Raises:
            RemoteProtocolError: no such call waits.
            TypeError: the value is not JSON.
        """
        if error is not None:
            result = ToolResult(session_id=session_id, call_id=call_id, success=False, error=error)
        else:
            raw = msgspec.Raw(msgspec.json.encode(value))
            result = ToolResult(session_id=session_id, call_id=call_id, success=True, value=raw)
        self.worker.sessions.tool_result(result)

    def cancel(self, session_id: str, reason: str = "") -> None:
        """End a session now; its iterator ends with a `SESSION_CANCELLED` final.

        A session that has just ended keeps the final it has, which may still wait behind events not yet read: a
        reader that cancels at what it sees need not know how far behind it is.

        Raises:
            RemoteProtocolError: there is no such session, or its final was read.
        """
        message = Cancel(session_id=session_id, reason=reason) if reason else Cancel(session_id=session_id)
        try:
            self.worker.sessions.cancel(message)
        except RemoteProtocolError:
            if session_id not in self._unread:
                raise

    async def __aenter__(self) -> Self:
        if self._owns_worker:
            await self.worker.start(listen=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owns_worker:
            await self.worker.stop()


def create_session_executor(
    worker: RuntimeWorker | RuntimeConfig | None = None, *, buffer_bytes: int = DEFAULT_BUFFER_BYTES
) -> SessionExecutor:
    """Make an executor.

    Args:
        worker: a worker that its owner starts and stops; or the configuration of one that the executor runs itself,
            without a port, while it is used as an async context manager.
        buffer_bytes: events that may wait for the reader of one session before its code is paused.

    Raises:
        ValueError: the buffer has no room.
    """
    if buffer_bytes < 1:
        raise ValueError(f"buffer_bytes={buffer_bytes}: at least 1")
    if isinstance(worker, RuntimeWorker):
        return SessionExecutor(worker, owns_worker=False, buffer_bytes=buffer_bytes)
    own = RuntimeWorker(worker or RuntimeConfig())
    return SessionExecutor(own, owns_worker=True, buffer_bytes=buffer_bytes)
