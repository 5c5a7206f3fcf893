"""Clients on the simulated network: the real library over its WebSocket, and a reader of HTTP streams that resumes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from websockets.exceptions import ConnectionClosedError

from enclave_client import AsyncClient
from enclave_client.errors import BrokerUnavailable, RequestRefused, SessionTimeout
from enclave_protocol import peek

from .hosts import CLIENT_PATIENCE_S, HTTP, WS
from .plan import BROKER_TOOLS
from .virtual_time import Process, current

if TYPE_CHECKING:
    from .network import End
    from .plan import SessionPlan
    from .world import World

CONNECT_TIMEOUT_S = 3.0
RECONNECT_S = 60.0
HTTP_PATIENCE_S = (5.0, 8.0)
PAUSE_S = 0.2


class _Transport:
    def __init__(self, end: End) -> None:
        self.abort = end.abort


class _Socket:
    """A WebSocket as the client library sees it."""

    def __init__(self, end: End) -> None:
        self.transport = _Transport(end)
        self._end = end

    async def recv(self, *, decode: bool) -> Any:
        del decode
        try:
            return await self._end.recv()
        except ConnectionError as error:
            raise ConnectionClosedError(None, None) from error

    async def send(self, data: bytes, *, text: bool) -> None:
        del text
        try:
            await self._end.send(data)
        except ConnectionError as error:
            raise ConnectionClosedError(None, None) from error

    async def close(self) -> None:
        await self._end.close()


async def dial(world: World) -> _Socket:
    """Connect whoever asks to the broker's WebSocket."""
    process = current.get()
    assert process is not None, "clients run as processes"
    end = await world.network.connect(
        process, process.name, WS, timeout_s=CONNECT_TIMEOUT_S, patience_s=CLIENT_PATIENCE_S
    )
    return _Socket(end)


class Lost(Exception):  # noqa: N818 - what a client was told
    """The broker knows the session no more, or would not have it."""


class ClientHost:
    """A client's program, with some sessions."""

    def __init__(self, world: World, number: int) -> None:
        self.name = f"client{number}"
        self.process = Process(world.loop, self.name)
        self.tasks: list[asyncio.Task[None]] = []
        self._world = world
        self._library = AsyncClient("http://broker:3000", connect_timeout_s=CONNECT_TIMEOUT_S, reconnect_s=RECONNECT_S)

    def begin(self, plan: SessionPlan) -> None:
        """Have a session run."""
        run = self._over_socket if plan.over == "socket" else self._over_http
        self.tasks.append(self.process.spawn(run(plan)))
        if plan.second_reader_after_s is not None:
            self.tasks.append(self.process.spawn(self._read_again(plan, plan.second_reader_after_s)))

    def kill(self) -> None:
        """End the program."""
        self.process.kill()
        self._world.network.died(self.process, vanished=False)

    async def close(self) -> None:
        """Leave."""
        await self._library.close()

    # Over the socket

    async def _over_socket(self, plan: SessionPlan) -> None:
        world = self._world
        reading = world.truth.reading(plan.session_id, self.name)

        async def local(number: int) -> int:
            world.truth.called_at_client(plan.session_id, number)
            await asyncio.sleep(world.rng.choice((0.0, 0.01, 0.5)))
            return number * 10

        await asyncio.sleep(plan.at_s)
        options: dict[str, Any] = {"retry": "safe"} if plan.safe else {}
        session = self._library.stream(
            msgspec.json.encode(plan.script).decode(),
            session_id=plan.session_id,
            limits={"sessionTtlMs": plan.wall_ms, "heartbeatIntervalMs": 4000},
            tools=[local],
            **options,
        )
        if plan.cancel_after_s is not None:
            handle = world.loop.call_later(plan.cancel_after_s, self._cancel, plan, session)
        try:
            async with session:
                async for line in session.lines():
                    reading.take(line)
        except (RequestRefused, BrokerUnavailable, SessionTimeout) as error:
            reading.lose(f"{type(error).__name__}: {error}")
        finally:
            reading.over = True
            if plan.cancel_after_s is not None:
                handle.cancel()

    def _cancel(self, plan: SessionPlan, session: Any) -> None:
        self._world.truth.cancelled(plan.session_id)
        session.cancel("by plan")

    # Over HTTP

    async def _over_http(self, plan: SessionPlan) -> None:
        world = self._world
        reading = world.truth.reading(plan.session_id, self.name)
        await asyncio.sleep(plan.at_s)
        post = {
            "do": "post",
            "session_id": plan.session_id,
            "code": msgspec.json.encode(plan.script).decode(),
            "limits": {"sessionTtlMs": plan.wall_ms, "heartbeatIntervalMs": 4000},
            "retry": "safe" if plan.safe else "never",
        }
        if plan.cancel_after_s is not None:
            self.process.spawn(self._cancel_over_http(plan, plan.cancel_after_s))
        try:
            await self._resumed(reading, post)
        except Lost as error:
            reading.lose(str(error))
        reading.over = True

    async def _read_again(self, plan: SessionPlan, after_s: float) -> None:
        reading = self._world.truth.reading(plan.session_id, f"{self.name}, again")
        await asyncio.sleep(plan.at_s + after_s)
        try:
            await self._resumed(reading, None)
        except Lost as error:
            reading.lose(str(error))
        reading.over = True

    async def _resumed(self, reading: Any, post: dict[str, Any] | None) -> None:
        """Read to the final, over as many connections as it takes; raises Lost."""
        tried, give_up_s = False, self._world.loop.time() + RECONNECT_S
        while not reading.finished:
            if post is not None and not tried:
                request = post
            else:
                request = {"do": "get", "session_id": reading.session_id, "from_seq": reading.next_seq}
            status = await self._attempt(reading, request, answers=post is not None)
            if reading.next_seq > 1 and status == 200:
                give_up_s = self._world.loop.time() + RECONNECT_S
            tried = True
            if status in {503, 400} or (status == 404 and (reading.next_seq > 1 or post is None)):
                raise Lost(f"HTTP {status}")
            if status == 410:
                raise Lost("HTTP 410: trimmed")
            if status == 404:
                tried = False
            if self._world.loop.time() > give_up_s:
                raise Lost("no broker")
            if not reading.finished:
                await asyncio.sleep(PAUSE_S)

    async def _attempt(self, reading: Any, request: dict[str, Any], *, answers: bool) -> int:
        """Make one request, and read its answer as far as it comes; returns its status, 0 for none."""
        status = 0
        try:
            end = await self._connect()
            await end.send(request)
            status = (await end.recv())["status"]
            while status == 200:
                message = await end.recv()
                for line in filter(None, message["body"].split(b"\n")):
                    reading.take(line)
                    if answers and peek(line).type == "tool_call":
                        self._answer(reading.session_id, line)
                if not message["more_body"]:
                    break
            await end.close()
        except ConnectionError:
            pass
        return int(status)

    async def _connect(self) -> End:
        return await self._world.network.connect(
            self.process, self.name, HTTP, timeout_s=CONNECT_TIMEOUT_S, patience_s=HTTP_PATIENCE_S
        )

    def _answer(self, session_id: str, line: bytes) -> None:
        payload = msgspec.json.decode(line)["payload"]
        if payload["toolName"] not in BROKER_TOOLS:
            self.process.spawn(self._answer_call(session_id, payload))

    async def _answer_call(self, session_id: str, payload: dict[str, Any]) -> None:
        await asyncio.sleep(self._world.rng.choice((0.0, 0.01, 0.5)))
        value = {"type": "tool_result", "callId": payload["callId"], "success": True}
        body = msgspec.json.encode({**value, "value": payload["args"]["number"] * 10})
        await self._insist({"do": "give", "session_id": session_id, "body": body})

    async def _cancel_over_http(self, plan: SessionPlan, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self._world.truth.cancelled(plan.session_id)
        await self._insist({"do": "cancel", "session_id": plan.session_id})

    async def _insist(self, request: dict[str, Any]) -> None:
        """Make a request until it is answered."""
        for _ in range(20):
            try:
                end = await self._connect()
                await end.send(request)
                await end.recv()
                await end.close()
            except ConnectionError:
                await asyncio.sleep(PAUSE_S)
            else:
                return
