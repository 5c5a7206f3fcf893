"""A broker, from a program with an event loop: `AsyncClient`."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import re
from typing import TYPE_CHECKING, Any, Self, Unpack

from enclave_protocol import events as ev

from .connection import Settings, socket_url
from .errors import SessionFailed
from .local_tools import ToolRunner
from .mapping import DEFAULT_CONCURRENCY, Fan, mapped
from .patience import Patience
from .request import RunOptions, SessionOptions, make_attachment, make_request, require_known
from .session import AsyncSession
from .wiring import Wiring

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import AsyncIterable, AsyncIterator, Iterable
    from types import TracebackType

    from .mapping import MapItem
    from .request import Request
    from .results import Result

DEFAULT_URL = "http://127.0.0.1:3000"
DEFAULT_WAIT_S = 600.0
DEFAULT_BUFFER_BYTES = 32 * 1024 * 1024
SESSIONS_PER_CONNECTION = 200
"""When so many run on every connection, another one is made: a broker takes 256 on each."""


class AsyncClient:
    """One broker. Up to 200 sessions share a connection; the first is made when a session needs it.

    Use it as `async with AsyncClient(...) as enclave:`, or call `close`. Any number of tasks of one event loop may use
    it at once.

    Args:
        url: the broker's address; `ENCLAVE_BROKER`, or else `http://127.0.0.1:3000`, if None.
        api_key: sent with every connection; `ENCLAVE_API_KEY` if None. An empty one is none. White space around it
            is no part of it.
        ssl: for `https`, in place of the system's certificates.
        connect_timeout_s: longest wait for one connection.
        reconnect_s: how long a lost connection is tried to be replaced before its sessions count as lost: longer than
            the broker takes to be started again.
        wait_s: longest wait for a session's end, where neither its options nor its limits say another.
        tool_threads: tools that are plain functions run in so many threads at once.
        buffer_bytes: events of one session that may wait for their reader before the session is given up.
        busy_wait_s: how long `run` and `map` ask again for a session that the broker refuses because the fleet is full
            or a quota used up, each time after as long as it says. With 0 that is the session's result at once.

    Raises:
        ValueError: the address or the key is none, or the address does not go with `ssl`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        ssl: tls.SSLContext | None = None,
        connect_timeout_s: float = 10.0,
        reconnect_s: float = 60.0,
        wait_s: float = DEFAULT_WAIT_S,
        tool_threads: int = 16,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        busy_wait_s: float = 0.0,
    ) -> None:
        self.url = url or os.environ.get("ENCLAVE_BROKER") or DEFAULT_URL
        key = (os.environ.get("ENCLAVE_API_KEY", "") if api_key is None else api_key).strip()
        if not re.fullmatch(r"[!-~]*", key):
            raise ValueError("api_key: has characters in it that no key has")  # without quoting it
        self._settings = Settings(
            url=socket_url(self.url),
            api_key=key or None,
            ssl=ssl,
            connect_timeout_s=connect_timeout_s,
            reconnect_s=reconnect_s,
        )
        if ssl is not None and not self._settings.url.startswith("wss:"):
            raise ValueError(f"ssl is for https addresses, not {self.url!r}")
        self._wait_s = wait_s
        self._tool_threads = tool_threads
        self._buffer_bytes = buffer_bytes
        self.busy_wait_s = busy_wait_s
        self._wirings: list[Wiring] = []
        self._runner: ToolRunner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<AsyncClient {self.url}>"

    async def run(self, code: str, **options: Unpack[RunOptions]) -> Result:
        """Run code in a fresh sandbox, to its end. Cancelled, it ends the session.

        Args:
            code: the body of an async function, or a script, depending on the language.
            **options: see `RunOptions` and `SessionOptions`.

        Returns:
            How it ended. What the code did wrong is in `error`; nothing is raised for it unless `check` is set.

        Raises:
            RequestRefused: it was not acceptable; nothing was run.
            BrokerUnavailable: nobody is there, or (`SessionLost`) nobody is left.
            SessionTimeout: it took longer than `wait_s`.
            SessionFailed: only with `check`.
            TypeError: there is no such option.
        """
        require_known(options, RunOptions)
        clock = asyncio.get_running_loop().time
        patience = Patience(self.busy_wait_s, clock())
        while True:
            result = await self._run_once(code, options)
            pause_s = patience.pause_s(result, clock(), random.random())  # noqa: S311 - spreads clients, hides nothing
            if pause_s is None:
                break
            await asyncio.sleep(pause_s)
        if options.get("check") and not result.ok:
            raise SessionFailed(result)
        return result

    async def _run_once(self, code: str, options: RunOptions) -> Result:
        session = self._session(make_request(code, options, default_wait_s=self._wait_s))
        async with session:
            async for event in session:
                for handler, what in handlers_of(event, options):
                    done = handler(what)
                    if inspect.isawaitable(done):
                        await done
        return session.result

    def stream(self, code: str, **options: Unpack[SessionOptions]) -> AsyncSession:
        """Return a session to read event by event; entering it starts it.

        Args:
            code: as `run` takes it.
            **options: see `SessionOptions`.

        Raises:
            RequestRefused: it was not acceptable; nothing was run.
        """
        require_known(options, SessionOptions)
        return self._session(make_request(code, options, default_wait_s=self._wait_s))

    def attach(self, session_id: str, *, from_seq: int = 1, wait_s: float | None = None) -> AsyncSession:
        """Return a session that was begun elsewhere, or before; entering it starts reading.

        Its tool calls stay with whoever began it. Leaving it before its end cancels it.

        Args:
            session_id: which one; it is live, or the broker still keeps its events.
            from_seq: number of the first event to read.
            wait_s: longest wait for its end; the client's if None.

        Raises:
            RequestRefused: no session has such an id; also when entering, if there is none, or the event is not kept.
        """
        request = make_attachment(session_id, from_seq, self._wait_s if wait_s is None else wait_s)
        return self._session(request, from_seq=from_seq)

    def map(
        self,
        code: str,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Unpack[SessionOptions],
    ) -> AsyncIterator[MapItem]:
        """Run code once for each input, each in a sandbox of its own, and yield what became of it as it ends.

        The code finds its input in the variable `item`. What it does wrong is in its item's `result.error`.

        Args:
            code: as `run` takes it. Python and JavaScript find the input as a value, a shell script as JSON text.
            inputs: JSON values; taken when there is room for one more.
            concurrency: sessions at once.
            **options: see `SessionOptions`, for every session.

        Raises:
            RequestRefused, BrokerUnavailable, SessionTimeout: while iterating, as `run` does; the others are ended.
        """
        return mapped(Fan(self.run, code, concurrency, options), inputs)

    async def close(self) -> None:
        """End the sessions that still run, and the connection. Safe to call again."""
        self._closed = True
        wirings, self._wirings = self._wirings, []
        await asyncio.gather(*(wiring.close() for wiring in wirings))

    async def __aenter__(self) -> Self:
        self._require_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _session(self, request: Request, *, from_seq: int | None = None) -> AsyncSession:
        self._require_open()
        return AsyncSession(self._wire, request, from_seq=from_seq)

    def _wire(self) -> Wiring:
        """Return a connection with room for one more session, made if need be."""
        self._require_open()
        if self._runner is None:
            self._runner = ToolRunner(self._tool_threads)
        for wiring in self._wirings:
            if wiring.engine.live < SESSIONS_PER_CONNECTION:
                return wiring
        self._wirings.append(Wiring(self._settings, self._runner, self._buffer_bytes))
        return self._wirings[-1]

    def _require_open(self) -> None:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise RuntimeError("this client was closed")
        if self._loop is None:
            self._loop = loop
        if loop is not self._loop:
            raise RuntimeError("this client belongs to another event loop: make one for each, or use Client")


def handlers_of(event: ev.AnyEvent, options: RunOptions) -> list[tuple[Any, Any]]:
    """Return the handlers that want to hear of an event, each with what it is called with."""
    found: list[tuple[Any, Any]] = [(options.get("on_event"), event)]
    if isinstance(event, ev.Stdout):
        found.append((options.get("on_stdout"), event.payload.chunk))
    elif isinstance(event, ev.Stderr):
        found.append((options.get("on_stderr"), event.payload.chunk))
    return [(handler, what) for handler, what in found if handler is not None]
