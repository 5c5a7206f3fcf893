"""Calls of the application's tools, as a guest in Python makes them: in an event loop, or without one."""

from __future__ import annotations

import os

from . import driver, frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Generator

    from .frames import Message

_MSG_DONTWAIT = 0x40


class ToolError(Exception):
    """A tool failed. `code` says how, for instance `UNKNOWN_TOOL`; `message` says why."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


ToolError.__module__ = "__main__"  # where guests find it, and so how a traceback calls it


class Answer:
    """What a tool will have answered, for code that runs without an event loop: as much of a future as it takes."""

    def __init__(self) -> None:
        self._is_done = False
        self._value: object = None
        self._error: ToolError | None = None

    def __await__(self) -> Generator[Answer, None, object]:
        while not self._is_done:
            yield self
        if self._error is not None:
            raise self._error
        return self._value

    def done(self) -> bool:
        """Whether it is here."""
        return self._is_done

    def set_result(self, value: object) -> None:
        """Here it is."""
        self._value, self._is_done = value, True

    def set_exception(self, error: ToolError) -> None:
        """The tool failed."""
        self._error, self._is_done = error, True


class Worker(driver.Worker):
    """The worker's end of the control socket, with the tools behind it."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._pending: dict[int, asyncio.Future[object] | Answer] = {}
        self._last_call = 0
        self._socket: socket.socket | None = None
        self._expect: Callable[[], asyncio.Future[object] | Answer] | None = None

    def attach_to_nothing(self) -> None:
        """From here on, tools can be called, and what they answer is for `wait` to read."""
        self._expect = Answer

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From here on, take tool results in the background of `loop`."""
        import socket  # noqa: PLC0415 - loaded with asyncio, which only guests that await need

        self._expect = loop.create_future
        self._socket = socket.socket(fileno=self.fd)
        loop.add_reader(self.fd, self._on_readable)

    def _on_readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536, _MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            os._exit(1)  # the worker let go of us
        self.buffer += data
        while (message := frames.unpack(self.buffer)) is not None:
            self._answered(message)

    def wait(self, answer: Answer) -> None:
        """Read until a tool has answered."""
        while not answer.done():
            body = self.receive()
            assert body is not None, "without a timeout there is a frame"
            self._answered(frames.decode(body))

    def _answered(self, message: Message) -> None:
        future = self._pending.pop(message["id"], None)
        if future is None or future.done():
            return
        if message["ok"]:
            future.set_result(message["value"])
        else:
            future.set_exception(ToolError(message["message"], message["code"]))

    async def call_tool(self, name: str, args: object = None, /, **named: object) -> object:
        """Call the application's tool `name` and return its result.

        Arguments are one JSON value (usually a dict), or are given by name. Several calls may wait at once:
        `await asyncio.gather(call_tool("a", {...}), call_tool("b", {...}))`. Raises ToolError if the tool fails.
        """
        if not isinstance(name, str) or not name:
            raise TypeError("call_tool: the tool's name must be a string")
        if args is not None and named:
            raise TypeError("call_tool: give the arguments as one value or by name, not both")
        if self._expect is None:
            raise RuntimeError("call_tool: use `await call_tool(...)` at the top level of the code")
        self._last_call += 1
        call, future = self._last_call, self._expect()
        message = {"type": "tool_call", "id": call, "name": name, "args": named if args is None else args}
        self.send(frames.encode(message))
        self._pending[call] = future
        return await future
