"""A session as its caller sees it: an async iterator of typed events that ends with a result.

Theory of operation. Events arrive whenever they do and wait here, as the bytes they came in, until the reader takes
them: decoding, collecting output and calling handlers is done at the reader's pace. What waits is bounded; a reader
that falls further behind loses the session, with an error that says so (the broker would cut him off next, for it does
not keep more either). Tools run beside the reader, in tasks that the session owns and waits for.

The session belongs to its `async with` block. Left early, it is told to end and its `final` waited for, so that nothing
of it runs on behind the block's back; when the broker is out of reach, or takes longer than `LEAVE_GRACE_S`, the
broker's own rules end it. Left by an exception, it waits less.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import typing
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from enclave_protocol import AnyEvent, EnclaveError, RemoteProtocolError, decode_event, peek

from .actions import Arrived, Called, CallOver, Lost
from .errors import SessionLost, SessionTimeout
from .results import ResultBuilder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from types import TracebackType

    from enclave_protocol.events import ToolCallPayload

    from .actions import Action
    from .local_tools import LocalTool
    from .request import Request
    from .results import Result
    from .wiring import Wiring

log = logging.getLogger("enclave.client")

LEAVE_GRACE_S = 10.0
"""How long a session that is left waits for its `final`: more than a broker gives its worker."""
HURRY_GRACE_S = 2.0
"""The same, when it is left by an exception, such as a cancellation."""
TOOLS_GRACE_S = 1.0
"""How long an ended session waits for tools that it cancelled."""
_TYPES = frozenset(str(kind.__struct_config__.tag) for kind in typing.get_args(AnyEvent))


class AsyncSession:
    """One session. Use it as `async with client.stream(...) as session: async for event in session: ...`.

    Attributes:
        session_id: its id.
    """

    def __init__(self, wire: Callable[[], Wiring], request: Request, *, from_seq: int | None = None) -> None:
        self.session_id = request.session_id
        self._wire = wire
        self._wired: Wiring | None = None
        self._request: Request | None = request
        self._tools: Mapping[str, LocalTool] = request.tools
        self._wait_s = request.wait_s
        self._max_tool_result_bytes = request.max_tool_result_bytes
        self._from_seq = from_seq
        self._builder = ResultBuilder(request.session_id)
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._news = asyncio.Event()
        self._last_seq = (from_seq or 1) - 1
        self._done = asyncio.Event()
        self._ended = False
        self._lost: EnclaveError | None = None
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._context = contextvars.copy_context()

    def __repr__(self) -> str:
        state = "ended" if self._ended else "lost" if self._lost else "new" if self._request else "live"
        return f"<{type(self).__name__} {self.session_id} {state}>"

    @property
    def result(self) -> Result:
        """How it ended. Raises RuntimeError while its events have not been read to the `final`."""
        if self._builder.result is None:
            raise RuntimeError("the session has no result yet: read its events to their end, or await wait()")
        return self._builder.result

    def cancel(self, reason: str = "") -> None:
        """Ask for the end: the events then end with a `final` of the code `SESSION_CANCELLED`. Never blocks.

        Asking again, or after the end, changes nothing.
        """
        if self._under_way:
            self._wiring.engine.cancel(self.session_id, reason)
            self._wiring.connection.flush()

    async def wait(self) -> Result:
        """Read what is left of the events, and return the result. Cancelled, it may be called again.

        Raises:
            SessionLost, SessionTimeout: the end cannot be learned, or took too long.
        """
        async for _ in self:
            pass
        return self.result

    async def wait_over(self) -> None:
        """Wait until nothing more arrives, whether or not anybody has read it."""
        await self._done.wait()

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the events as they came, without newlines: to be passed on, byte for byte."""
        while (line := await self._next_line()) is not None:
            self._decode(line)
            yield line

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnyEvent:
        """Return the next event; types that this version does not know are skipped. Cancelled, it has taken none.

        Raises:
            SessionLost, SessionTimeout: the end cannot be learned, or took too long.
        """
        while (line := await self._next_line()) is not None:
            event = self._decode(line)
            if event is not None:
                return event
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        """Start it, and wait until the broker has taken it.

        Raises:
            RequestRefused: it did not.
            BrokerUnavailable: nobody is there.
        """
        request, self._request = self._request, None
        if request is None:
            raise RuntimeError("a session is entered once: call stream() again for another one")
        self._wired = self._wire()
        try:
            await self._start(request)
            await self._first()
        except BaseException:
            await self._leave(HURRY_GRACE_S)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave(LEAVE_GRACE_S if kind is None else HURRY_GRACE_S)

    async def take(self) -> list[AnyEvent]:
        """Wait for events, and return all that have come; none at the end. For readers in another thread."""
        events = [] if (first := await anext(self, None)) is None else [first]
        while self._lines and (event := self._decode(self._pop())) is not None:
            events.append(event)
        return events

    def act(self, action: Action) -> None:
        """Take in what the engine says of this session. Never blocks."""
        if isinstance(action, Arrived):
            self._arrived(action)
        elif isinstance(action, Called):
            self._called(action.call)
        elif isinstance(action, CallOver) and (task := self._calls.get(action.call_id)) is not None:
            task.cancel()
        elif isinstance(action, Lost):
            self._lose(action.error)

    @property
    def _under_way(self) -> bool:
        """Whether the engine has it: this one, and not another that had the id first."""
        return self._wired is not None and self._wired.sessions.get(self.session_id) is self

    @property
    def _wiring(self) -> Wiring:
        if self._wired is None:
            raise AssertionError("asked of a session that was not entered")
        return self._wired

    async def _start(self, request: Request) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._overdue)
        try:
            async with asyncio.timeout_at(self._timer.when()):
                await self._wiring.connection.wait_room()
        except TimeoutError:
            self._overdue()
        if self._lost is not None:
            raise self._lost
        if self._from_seq is None:
            self._wiring.engine.start(self.session_id, request.execute, request.tools)
        else:
            self._wiring.engine.attach(self.session_id, self._from_seq)
        self._wiring.sessions[self.session_id] = self
        self._wiring.connection.flush()

    async def _first(self) -> None:
        while not self._lines:
            if self._lost is not None:
                raise self._lost
            await self._wait_news()

    async def _leave(self, grace_s: float) -> None:
        """End it if it has not ended. When this returns, nothing of it is left here."""
        if self._under_way:
            self.cancel("its reader left")
            self._arm(grace_s if self._wiring.engine.online else 0, self._give_up)
            try:
                while not (self._ended or self._lost):
                    self._drain()
                    await self._wait_news()
            finally:
                self._give_up()
        self._disarm()
        self._drain()  # so that there is a result, if it came
        await self._end_calls()

    def _drain(self) -> None:
        while self._lines:
            self._decode(self._pop())

    def _give_up(self) -> None:
        self._abandon("its reader left")
        self._lose(self._loss("its reader left"))

    def _loss(self, reason: str) -> SessionLost:
        return SessionLost(reason, session_id=self.session_id, last_seq=self._last_seq)

    def _abandon(self, reason: str) -> None:
        if self._under_way:
            self._wiring.engine.abandon(self.session_id, reason)
            self._wiring.connection.flush()

    async def _wait_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    async def _next_line(self) -> bytes | None:
        while not self._lines:
            if self._builder.result is not None:
                return None
            if self._lost is not None:
                raise self._lost
            await self._wait_news()
        return self._pop()

    def _pop(self) -> bytes:
        line = self._lines.popleft()
        self._waiting_bytes -= len(line)
        return line

    def _decode(self, line: bytes) -> AnyEvent | None:
        try:
            event = decode_event(line)
        except RemoteProtocolError as error:
            kind = peek(line).type
            if kind == "final":
                self._lost = self._loss(f"its end cannot be read: {error}")
            elif kind in _TYPES:
                log.warning("session %s: an event cannot be read: %s", self.session_id, error)
            return None
        self._builder.add(event)
        return event

    def _arrived(self, arrived: Arrived) -> None:
        self._last_seq += 1
        self._lines.append(arrived.line)
        self._waiting_bytes += len(arrived.line)
        self._news.set()
        if arrived.kind == "final":
            self._over()
            self._ended = True
        elif self._waiting_bytes > self._wiring.buffer_bytes:
            self._abandon("its reader is too slow")
            self._lose(self._loss(f"its reader fell more than {self._wiring.buffer_bytes} bytes behind"))

    def _overdue(self) -> None:
        self._abandon("its client waited long enough")
        self._lose(SessionTimeout(self._wait_s, session_id=self.session_id))

    def _lose(self, error: EnclaveError) -> None:
        if self._ended or self._lost:
            return
        self._lost = error
        self._over()
        self._news.set()

    def _over(self) -> None:
        self._done.set()
        self._wiring.sessions.pop(self.session_id, None)
        self._disarm()
        for task in self._calls.values():
            task.cancel()

    def _arm(self, delay_s: float, then: Any) -> None:
        self._disarm()
        self._timer = asyncio.get_running_loop().call_later(delay_s, then)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _called(self, call: ToolCallPayload) -> None:
        context = self._context.copy()
        task = asyncio.get_running_loop().create_task(self._answer(call, context), context=context.copy())
        self._calls[call.call_id] = task
        task.add_done_callback(lambda _: self._called_back(call.call_id, task))

    def _called_back(self, call_id: str, task: asyncio.Task[None]) -> None:
        self._calls.pop(call_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("session %s: call %s was not answered: %s", self.session_id, call_id, error)

    async def _answer(self, call: ToolCallPayload, context: contextvars.Context) -> None:
        result = await self._wiring.runner.run(
            self._tools[call.tool_name], self.session_id, call, context, max_bytes=self._max_tool_result_bytes
        )
        await self._wiring.connection.wait_room()
        self._wiring.engine.answer(result)
        self._wiring.connection.flush()

    async def _end_calls(self) -> None:
        calls = list(self._calls.values())
        for task in calls:
            task.cancel()
        if calls:
            _, stuck = await asyncio.wait(calls, timeout=TOOLS_GRACE_S)
            if stuck:
                log.warning("session %s: %d tools ignore that they were cancelled", self.session_id, len(stuck))
