"""A broker, from a program without an event loop: `Client`. It is `AsyncClient` in a thread of its own."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import random
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, Unpack

from .async_client import AsyncClient, handlers_of
from .errors import RequestRefused, SessionFailed
from .loop_thread import LoopThread, keep_for_ever
from .mapping import DEFAULT_CONCURRENCY, Fan
from .patience import Patience
from .request import RunOptions, SessionOptions, require_known

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Callable, Coroutine, Iterable, Iterator
    from types import TracebackType

    from enclave_protocol import AnyEvent

    from .mapping import MapItem
    from .results import Result
    from .session import AsyncSession

P = ParamSpec("P")
T = TypeVar("T")

_NO_MORE = object()


class Client:
    """One broker. Takes what `AsyncClient` takes, and does what it does; its calls block.

    Any number of threads may use it at once. Handlers are called in the thread that called `run`; tools that are plain
    functions run in threads of their own, async ones in the client's. Ctrl-C ends the session that is waited for. A
    forked process may go on using it, with a connection of its own; the sessions stay its parent's.

    Args:
        url: the broker's address; `ENCLAVE_BROKER`, or else `http://127.0.0.1:3000`, if None.
        api_key: and the rest, see `AsyncClient`.
        ssl: see there.
        **settings: see there.

    Raises:
        ValueError: the address is none.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        ssl: tls.SSLContext | None = None,
        **settings: Any,
    ) -> None:
        self._make = functools.partial(AsyncClient, url, api_key=api_key, ssl=ssl, **settings)
        self._client = self._make()
        self._thread = LoopThread(on_forgotten=weakref.WeakMethod(self._renew))

    def __repr__(self) -> str:
        return f"<Client {self._client.url}>"

    def run(self, code: str, **options: Unpack[RunOptions]) -> Result:
        """Run code in a fresh sandbox, to its end: see `AsyncClient.run`."""
        handlers = [options.get(name) for name in ("on_stdout", "on_stderr", "on_event") if options.get(name)]
        if not handlers:
            return self._thread.call(self._client.run, code, **options)
        if any(inspect.iscoroutinefunction(handler) for handler in handlers):
            raise RequestRefused("a handler is async: nobody could await it", allowed="plain functions, or AsyncClient")
        require_known(options, RunOptions)
        others: Any = {name: value for name, value in options.items() if name in SessionOptions.__annotations__}
        patience = Patience(self._client.busy_wait_s, time.monotonic())
        while True:
            result = self._run_once(code, options, others)
            pause_s = patience.pause_s(result, time.monotonic(), random.random())  # noqa: S311 - spreads clients
            if pause_s is None:
                break
            time.sleep(pause_s)
        if options.get("check") and not result.ok:
            raise SessionFailed(result)
        return result

    def _run_once(self, code: str, options: RunOptions, others: Any) -> Result:
        with self.stream(code, **others) as session:
            for event in session:
                for handler, what in handlers_of(event, options):
                    handler(what)
        return session.result

    def stream(self, code: str, **options: Unpack[SessionOptions]) -> Session:
        """Return a session to read event by event; entering it starts it: see `AsyncClient.stream`."""
        return Session(self._thread, self._thread.call(self._made, "stream", code, **options))

    def attach(self, session_id: str, *, from_seq: int = 1, wait_s: float | None = None) -> Session:
        """Return a session that was begun elsewhere, or before: see `AsyncClient.attach`."""
        return Session(
            self._thread, self._thread.call(self._made, "attach", session_id, from_seq=from_seq, wait_s=wait_s)
        )

    def map(
        self,
        code: str,
        inputs: Iterable[Any],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Unpack[SessionOptions],
    ) -> Iterator[MapItem]:
        """Run code once for each input, and yield what became of it as it ends: see `AsyncClient.map`."""
        return self._mapped(Fan(self._client.run, code, concurrency, options), iter(inputs))

    def close(self) -> None:
        """End the sessions that still run, the connection and the thread. Safe to call again."""
        if not self._thread.closed and self._thread.running:
            self._thread.call(self._client.close)
        self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _mapped(self, fan: Fan, inputs: Iterator[Any]) -> Iterator[MapItem]:
        more = True
        try:
            while more or fan.tasks:
                while more and fan.has_room:
                    more = (item := next(inputs, _NO_MORE)) is not _NO_MORE
                    if more:
                        self._thread.call(_add, fan, item)
                if fan.tasks and (ended := self._thread.call(fan.wait_one)) is not None:
                    yield ended
        finally:
            with contextlib.suppress(RuntimeError):  # closed in the meantime: nothing of it is left
                self._thread.call(fan.close)

    async def _made(self, method: str, *args: Any, **options: Any) -> AsyncSession:
        session: AsyncSession = getattr(self._client, method)(*args, **options)
        return session

    def _renew(self) -> None:
        keep_for_ever(self._client)
        self._client = self._make()


class Session:
    """One session, read by one thread. Use it as `with client.stream(...) as session: for event in session: ...`.

    When its client is closed by another thread, it raises RuntimeError.
    """

    def __init__(self, thread: LoopThread, session: AsyncSession) -> None:
        self.session_id = session.session_id
        self._thread = thread
        self._session = session
        self._pid = os.getpid()
        self._events: deque[AnyEvent] = deque()

    def __repr__(self) -> str:
        return repr(self._session).replace("AsyncSession", "Session")

    @property
    def result(self) -> Result:
        """How it ended. Raises RuntimeError while its events have not been read to the `final`."""
        return self._session.result

    def cancel(self, reason: str = "") -> None:
        """Ask for the end: the events then end with a `final` of the code `SESSION_CANCELLED`. From any thread."""
        self._call(_cancel, self._session, reason)

    def wait(self) -> Result:
        """Read what is left of the events, and return the result: see `AsyncSession.wait`."""
        self._events.clear()
        return self._call(self._session.wait)

    def lines(self) -> Iterator[bytes]:
        """Yield the events as they came, without newlines: see `AsyncSession.lines`."""
        lines: Any = self._session.lines()
        while (line := self._call(_next, lines)) is not None:
            yield line

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> AnyEvent:
        """Return the next event. Raises what `AsyncSession` raises."""
        if not self._events:
            self._events.extend(self._call(self._session.take))
        if not self._events:
            raise StopIteration
        return self._events.popleft()

    def __enter__(self) -> Self:
        self._call(self._session.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.clear()
        if os.getpid() == self._pid and not self._thread.closed:
            self._call(self._session.__aexit__, kind, error, trace)

    def _call(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        if os.getpid() != self._pid:
            raise RuntimeError("this session belongs to the process that began it")
        return self._thread.call(function, *args, **kwargs)


async def _next(source: Any) -> Any:
    return await anext(source, None)


async def _add(fan: Fan, item: Any) -> None:
    fan.add(item)


async def _cancel(session: AsyncSession, reason: str) -> None:
    session.cancel(reason)
