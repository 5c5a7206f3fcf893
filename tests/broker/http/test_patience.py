"""How long the broker waits for what a client sends, and takes, on one connection. On a clock of the test's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from uvicorn.server import ServerState

from enclave_broker import BrokerConfig
from enclave_broker.http.connection import BODY_BYTES_PER_S, MAX_HEAD_BYTES, ClientConnection
from enclave_broker.metrics import Metrics
from enclave_broker.server import KEEP_ALIVE_S, UNREAD, server_config
from tests.fleet.simulation.virtual_time import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

CONFIG = BrokerConfig()
LIMIT_S, UNREAD_S = CONFIG.request_timeout_s, UNREAD * CONFIG.write_timeout_s
GET = b"GET / HTTP/1.1\r\n\r\n"
MIB = 1024 * 1024


def post(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size


class Client(asyncio.Transport):
    """The other end of one connection, as the broker's end sees it: what it took, and when it was let go of.

    Args:
        app: answers the requests.
        takes: how much of what is written it takes.
    """

    def __init__(self, app: Any, *, takes: float = float("inf")) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.taken = self.waiting = b""
        self.closed_s = self.aborted_s = 0.0
        self._takes = takes
        config = server_config(app, CONFIG, Metrics())
        config.load()
        protocol: Any = config.http_protocol_class
        self.end: ClientConnection = protocol(config, ServerState(), {}, self.loop)
        self.end.connection_made(self)

    def send(self, data: bytes) -> None:
        self.end.data_received(data)

    def take(self, size: float) -> None:
        """Take more of what waits."""
        self._takes += size
        self.write(b"")
        if len(self.waiting) < MIB:
            self.end.resume_writing()

    @property
    def status(self) -> str:
        return self.taken.partition(b" ")[2][:3].decode()

    # What the broker's end calls

    def write(self, data: Any) -> None:
        self.waiting += data
        size = int(min(len(self.waiting), self._takes))
        self._takes -= size
        self.taken, self.waiting = self.taken + self.waiting[:size], self.waiting[size:]
        if len(self.waiting) >= MIB:
            self.end.pause_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.waiting)

    def is_closing(self) -> bool:
        return bool(self.closed_s or self.aborted_s)

    def close(self) -> None:
        self.closed_s = self.closed_s or round(self.loop.time(), 1)
        if not self.waiting:
            self.abort()

    def abort(self) -> None:
        if not self.aborted_s:
            self.aborted_s = round(self.loop.time(), 1)
            self.loop.call_soon(self.end.connection_lost, None)

    def pause_reading(self) -> None:
        """Nothing: who sends here looks for it."""

    resume_reading = pause_reading

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


async def answers(_scope: Any, receive: Any, send: Any) -> None:
    """Answer when the body is there."""
    message = await receive()
    while message["type"] == "http.request" and message["more_body"]:
        message = await receive()
    if message["type"] == "http.request":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def answers_in_a_minute(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(60)
    await answers(scope, receive, send)


async def refuses(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer before the body is there."""
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


async def talks(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer with three megabytes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for i in range(3):
        await send({"type": "http.response.body", "body": b"x" * MIB, "more_body": i < 2})


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    loop = VirtualLoop()

    async def main() -> None:
        await asyncio.sleep(1)  # no time is 0
        await scenario()

    loop.run(main())
    assert not loop.faults


def test_a_connection_that_sends_nothing_is_closed_like_one_that_asks_nothing_more() -> None:
    async def scenario() -> None:
        silent, asked = Client(answers), Client(answers)
        asked.send(GET)
        await asyncio.sleep(KEEP_ALIVE_S * 2)
        assert (silent.closed_s, silent.taken) == (KEEP_ALIVE_S + 1, b"")
        assert (asked.closed_s, asked.status) == (KEEP_ALIVE_S + 1, "200")

    run(scenario)


@pytest.mark.parametrize("begun", [GET[:1], GET[:-1], b"\r\n", post(2), post(2) + b"x"])
@pytest.mark.parametrize("before", [b"", GET])
def test_a_request_has_its_time_from_its_first_byte_on(begun: bytes, before: bytes) -> None:
    async def scenario() -> None:
        late, early = Client(answers), Client(answers)
        if before:
            late.send(before)
        await asyncio.sleep(10)
        late.send(begun)
        early.send(begun)
        await asyncio.sleep(LIMIT_S - 1)
        whole = post(2) + b"xx" if begun.startswith(b"POST") else GET
        early.send(whole.removeprefix(begun))
        await asyncio.sleep(2)
        assert (late.closed_s, b"HTTP/1.1 408 " in late.taken) == (11 + LIMIT_S, True)
        assert (early.closed_s, early.status) == (0, "200")

    run(scenario)


def test_a_head_that_comes_bit_by_bit_has_no_more_time_than_another() -> None:
    async def scenario() -> None:
        client = Client(answers)
        client.send(GET[:-2] + b"X: ")
        for _ in range(100):
            if client.closed_s:
                break
            client.send(b"x")
            await asyncio.sleep(1)
        assert (client.closed_s, client.status) == (1 + LIMIT_S, "408")

    run(scenario)


@pytest.mark.parametrize(("per_s", "status"), [(BODY_BYTES_PER_S * 2, "200"), (BODY_BYTES_PER_S // 2, "408")])
def test_a_body_has_more_time_if_enough_of_it_comes(per_s: int, status: str) -> None:
    async def scenario() -> None:
        client = Client(answers)
        client.send(post(120 * per_s))
        for _ in range(120):
            await asyncio.sleep(1)
            if not client.closed_s:
                client.send(b"x" * per_s)
        await asyncio.sleep(0.5)
        assert client.status == status
        assert (client.closed_s == 0) is (status == "200")

    run(scenario)


def test_what_comes_behind_a_request_has_its_time_when_that_is_answered() -> None:
    async def scenario() -> None:
        client = Client(answers_in_a_minute)
        client.send(GET + GET[:5])
        client.send(GET[5:-1])
        await asyncio.sleep(59)
        assert not client.taken
        await asyncio.sleep(2)
        client.send(GET[-1:])
        await asyncio.sleep(61)
        assert (client.taken.count(b"HTTP/1.1 200 "), client.closed_s) == (2, 0)

    run(scenario)


def test_a_body_that_nobody_waits_for_is_not_waited_for_long() -> None:
    async def scenario() -> None:
        client = Client(refuses)
        client.send(post(MAX_HEAD_BYTES))
        while not client.closed_s:
            client.send(b"x")
            await asyncio.sleep(0.5)
        assert client.closed_s == 1 + LIMIT_S
        assert client.taken.count(b"HTTP/1.1 ") == 1

    run(scenario)


def test_a_broker_that_was_stopped_itself_blames_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        client, loop = Client(answers), asyncio.get_running_loop()
        client.send(GET[:5])
        now = loop.time
        await asyncio.sleep(LIMIT_S - 1)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "time", lambda: now() + 3600)
            await asyncio.sleep(2)
        client.send(GET[5:])
        await asyncio.sleep(1)
        assert (client.status, client.closed_s) == ("200", 0)

    run(scenario)


def test_an_answer_that_is_not_taken_is_given_up() -> None:
    async def scenario() -> None:
        client = Client(talks, takes=0)
        client.send(GET)
        await asyncio.sleep(UNREAD_S * 2)
        assert client.aborted_s == 1 + UNREAD_S

    run(scenario)


def test_an_answer_that_is_taken_slowly_is_not() -> None:
    async def scenario() -> None:
        client = Client(talks, takes=0)
        client.send(GET)
        for _ in range(6):
            await asyncio.sleep(UNREAD_S - 1)
            assert not client.aborted_s
            client.take(MIB / 2)
        await asyncio.sleep(1)
        client.take(MIB)
        await asyncio.sleep(1)
        assert client.taken.endswith(b"\r\n0\r\n\r\n")

    run(scenario)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", GET, b"NONSENSE\r\n\r\n"])
def test_a_connection_does_not_stay_to_be_closed(sent: bytes) -> None:
    async def scenario() -> None:
        client = Client(answers, takes=10)
        client.send(sent)
        await asyncio.sleep(KEEP_ALIVE_S + UNREAD_S + 1)
        assert client.closed_s
        assert client.aborted_s == client.closed_s + UNREAD_S

    run(scenario)
