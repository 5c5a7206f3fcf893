"""Channels: both kinds keep the conformance suite's promises, and the WebSocket's comes back when it breaks."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from enclave_protocol import MAX_MESSAGE_BYTES
from enclave_worker.channels import (
    MAX_BUFFERED,
    MAX_BUFFERED_BYTES,
    Channel,
    ChannelClosed,
    ChannelState,
    ChannelTrigger,
    WebSocketChannel,
    create_memory_channel_pair,
    create_websocket_channel,
)
from enclave_worker.channels.base import TRANSITIONS, size_bytes
from enclave_worker.channels.websocket import backoff_s
from tests.conformance.channels import ChannelConformance, Pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

quick_channel = functools.partial(create_websocket_channel, reconnect_delay_s=0.001, max_reconnect_delay_s=0.001)
"""A channel that does not wait long before it tries again."""


class ServerEnd(Channel):
    """A server's end of a WebSocket as a channel, so that the suite can hold both ends."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._closed = False

    @property
    def state(self) -> ChannelState:
        return ChannelState.CONNECTED if self._connection.state == 1 else ChannelState.DISCONNECTED

    async def send(self, text: str) -> None:
        size_bytes(text)
        try:
            await self._connection.send(text)
        except ConnectionClosed as error:
            raise ChannelClosed(str(error)) from error

    async def recv(self) -> str:
        try:
            if self._closed:
                raise ChannelClosed("closed here")
            return await self._connection.recv(decode=True)
        except ConnectionClosed as error:
            raise ChannelClosed(str(error)) from error

    async def close(self) -> None:
        self._closed = True
        await self._connection.close()


class Listener:
    """A real WebSocket server, which can be stopped and started again on the same port."""

    def __init__(self) -> None:
        self.port = 0
        self.connections: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self._server: Server | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    async def start(self) -> None:
        self._server = await serve(self._handle, "127.0.0.1", self.port, max_size=MAX_MESSAGE_BYTES, compression=None)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _handle(self, connection: ServerConnection) -> None:
        await self.connections.put(connection)
        await connection.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with Listener() as listener:
        yield listener


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
async def no_leaks() -> AsyncIterator[None]:
    """Every test leaves as many open files and tasks as it found."""
    before = (_open_files(), len(asyncio.all_tasks()))
    yield
    for _ in range(100):  # a transport closes its socket some turns of the loop after it was told to
        if (_open_files(), len(asyncio.all_tasks())) == before:
            return
        await asyncio.sleep(0)
    assert (_open_files(), len(asyncio.all_tasks())) == before


class TestMemoryChannel(ChannelConformance):
    @pytest.fixture
    async def pair(self) -> AsyncIterator[Pair]:
        client, server = create_memory_channel_pair()
        async with client, server:
            yield client, server


class TestWebSocketChannel(ChannelConformance):
    @pytest.fixture
    async def pair(self, listener: Listener) -> AsyncIterator[Pair]:
        async with (
            create_websocket_channel(listener.url, reconnect=False) as channel,
            ServerEnd(await listener.connections.get()) as end,
        ):
            yield channel, end


class TestWebSocketChannelFromTheServersSide(ChannelConformance):
    @pytest.fixture
    async def pair(self, listener: Listener) -> AsyncIterator[Pair]:
        async with (
            create_websocket_channel(listener.url, reconnect=False) as channel,
            ServerEnd(await listener.connections.get()) as end,
        ):
            yield end, channel


async def test_a_buffer_holds_so_many_messages_and_then_the_sender_waits() -> None:
    client, server = create_memory_channel_pair()
    for i in range(MAX_BUFFERED):
        await client.send(str(i))
    waiting = asyncio.create_task(client.send("one more"))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await server.recv() == "0"
    await waiting


async def test_a_buffer_holds_so_many_bytes_and_then_the_sender_waits() -> None:
    client, server = create_memory_channel_pair()
    largest = "x" * MAX_MESSAGE_BYTES
    for _ in range(MAX_BUFFERED_BYTES // MAX_MESSAGE_BYTES):
        await client.send(largest)
    waiting = asyncio.create_task(client.send("x"))
    await asyncio.sleep(0)
    assert not waiting.done()
    await server.recv()
    await waiting


async def test_a_sender_that_gave_up_waiting_sent_nothing_and_the_next_gets_its_turn() -> None:
    client, server = create_memory_channel_pair()
    for i in range(MAX_BUFFERED):
        await client.send(str(i))
    given_up, patient = asyncio.create_task(client.send("given up")), asyncio.create_task(client.send("patient"))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait({given_up})
    await client_drained(server)
    await patient
    assert await server.recv() == "patient"


def state_of(channel: Channel) -> ChannelState:
    """The state, read anew: mypy believes that a property it has seen once stays as it was."""
    return channel.state


async def client_drained(server: Channel) -> None:
    assert [await server.recv() for _ in range(MAX_BUFFERED)] == [str(i) for i in range(MAX_BUFFERED)]


async def test_a_newcomer_does_not_overtake_a_sender_that_waits() -> None:
    client, server = create_memory_channel_pair()
    for i in range(MAX_BUFFERED):
        await client.send(str(i))

    async def make_room_and_send() -> None:
        await server.recv()
        await client.send("newcomer")

    async with asyncio.TaskGroup() as group:
        group.create_task(client.send("first"))
        group.create_task(make_room_and_send())
        await asyncio.sleep(0)
        assert [await server.recv() for _ in range(MAX_BUFFERED + 1)][-2:] == ["first", "newcomer"]


async def test_senders_that_wait_are_told_of_the_end() -> None:
    client, server = create_memory_channel_pair()
    for i in range(MAX_BUFFERED):
        await client.send(str(i))
    waiting = [asyncio.create_task(client.send("late")) for _ in range(3)]
    await asyncio.sleep(0)
    await server.close()
    assert [type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)] == [ChannelClosed] * 3


def test_a_pair_can_be_made_before_there_is_an_event_loop() -> None:
    client, server = create_memory_channel_pair()

    async def pass_one() -> str:
        await client.send("hello")
        return await server.recv()

    assert asyncio.run(pass_one()) == "hello"


async def test_what_is_sent_while_reconnecting_goes_out_in_order_afterwards(listener: Listener) -> None:
    closed: asyncio.Queue[ChannelState] = asyncio.Queue()
    opened: list[ChannelState] = []
    channel: WebSocketChannel = quick_channel(
        listener.url,
        max_attempts=100_000,
        on_open=lambda: opened.append(channel.state),
        on_close=lambda _code, _reason: closed.put_nowait(channel.state),
    )
    assert state_of(channel) is ChannelState.CONNECTING
    async with channel:
        await listener.connections.get()
        await listener.stop()
        assert await closed.get() is ChannelState.RECONNECTING
        for i in range(MAX_BUFFERED):
            await channel.send(str(i))
        waiting = asyncio.create_task(channel.send("one more"))
        await asyncio.sleep(0)
        assert not waiting.done()
        await listener.start()
        connection = await listener.connections.get()
        assert [await connection.recv() for _ in range(MAX_BUFFERED)] == [str(i) for i in range(MAX_BUFFERED)]
        assert await connection.recv() == "one more"
        await waiting
        await connection.send("welcome back")
        assert await channel.recv() == "welcome back"
    assert opened == [ChannelState.CONNECTED, ChannelState.CONNECTED]
    assert state_of(channel) is ChannelState.DISCONNECTED


async def test_a_channel_comes_back_as_often_as_it_breaks(listener: Listener) -> None:
    async with quick_channel(listener.url, max_attempts=1) as channel:
        for i in range(5):
            connection = await listener.connections.get()
            await channel.send(f"round {i}")
            assert await connection.recv() == f"round {i}"
            connection.transport.abort()


async def test_what_is_sent_before_the_channel_noticed_the_end_goes_out_afterwards(listener: Listener) -> None:
    release = asyncio.Event()
    async with quick_channel(listener.url, on_message=lambda _: release.wait()) as channel:
        connection = await listener.connections.get()
        await connection.send("keeps the reader busy")
        await connection.close()  # returns when the channel's socket has answered
        assert state_of(channel) is ChannelState.CONNECTED
        await channel.send("kept")
        await asyncio.sleep(0)
        release.set()
        assert await (await listener.connections.get()).recv() == "kept"


async def test_when_the_attempts_are_used_up_the_channel_is_disconnected_and_says_why(listener: Listener) -> None:
    errors: list[Exception] = []
    channel = quick_channel(listener.url, max_attempts=3, on_error=errors.append)
    async with channel:
        connection = await listener.connections.get()
        await connection.send("last words")
        await listener.stop()
        assert await channel.recv() == "last words"
        with pytest.raises(ChannelClosed, match="could not connect"):
            await channel.recv()
        assert state_of(channel) is ChannelState.DISCONNECTED
        with pytest.raises(ChannelClosed):
            await channel.send("late")
    assert len([error for error in errors if isinstance(error, OSError)]) == 3


async def test_an_opening_that_never_succeeds_raises_after_its_attempts(listener: Listener) -> None:
    await listener.stop()
    errors: list[Exception] = []
    channel = quick_channel(listener.url, max_attempts=2, on_error=errors.append)
    with pytest.raises(ChannelClosed, match="could not connect"):
        await channel.connect()
    assert len(errors) == 3
    await channel.close()


async def test_without_reconnecting_the_first_failure_is_the_end(listener: Listener) -> None:
    closed: list[int] = []
    async with create_websocket_channel(
        listener.url, reconnect=False, on_close=lambda code, _: closed.append(code)
    ) as channel:
        connection = await listener.connections.get()
        await connection.close(code=1001, reason="restart")
        with pytest.raises(ChannelClosed, match="restart"):
            await channel.recv()
    assert closed == [1001]


async def test_closing_while_reconnecting_ends_it_at_once(listener: Listener) -> None:
    closed = asyncio.Event()
    channel = create_websocket_channel(
        listener.url, reconnect_delay_s=3600, max_reconnect_delay_s=3600, on_close=lambda *_: closed.set()
    )
    await channel.connect()
    await listener.stop()
    await closed.wait()
    assert state_of(channel) is ChannelState.RECONNECTING
    await channel.send("never goes out")
    await channel.close()
    assert state_of(channel) is ChannelState.DISCONNECTED


async def test_closing_while_connecting_ends_it_and_whoever_waits_for_the_opening_is_told() -> None:
    async with await asyncio.start_server(_never_answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        channel = create_websocket_channel(f"ws://127.0.0.1:{port}/")
        opening = asyncio.create_task(channel.connect())
        await asyncio.sleep(0)
        await channel.close()
        with pytest.raises(ChannelClosed):
            await opening
        with pytest.raises(ChannelClosed):
            await channel.connect()


async def test_an_opening_that_was_cancelled_leaves_a_closed_channel() -> None:
    async with await asyncio.start_server(_never_answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        channel = create_websocket_channel(f"ws://127.0.0.1:{port}/")
        opening = asyncio.create_task(channel.connect())
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait({opening})
        assert opening.cancelled()
        assert state_of(channel) is ChannelState.DISCONNECTED


async def test_a_server_that_never_answers_the_handshake_is_given_up() -> None:
    async with await asyncio.start_server(_never_answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        channel = create_websocket_channel(f"ws://127.0.0.1:{port}/", reconnect=False, connect_timeout_s=0.01)
        with pytest.raises(ChannelClosed, match="timed out"):
            await channel.connect()
        await channel.close()


async def _never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(4096):
        """Go on listening, politely."""
    writer.close()


async def test_callbacks_may_be_plain_or_async_and_are_called_in_order(listener: Listener) -> None:
    seen: asyncio.Queue[object] = asyncio.Queue()

    async def on_message(text: str) -> None:
        await asyncio.sleep(0)
        await seen.put(text)

    async with create_websocket_channel(
        listener.url,
        reconnect=False,
        on_open=lambda: seen.put_nowait("open"),
        on_close=lambda code, reason: seen.put((code, reason)),
        on_message=on_message,
    ) as channel:
        connection = await listener.connections.get()
        for i in range(3):
            await connection.send(str(i))
        await connection.close(code=1000, reason="bye")
        with pytest.raises(ChannelClosed):
            await channel.recv()
        assert [await seen.get() for _ in range(5)] == ["open", "0", "1", "2", (1000, "bye")]


async def test_a_callback_that_raises_is_logged_and_the_channel_goes_on(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise LookupError("a bug in a callback")

    async with create_websocket_channel(listener.url, reconnect=False, on_open=fail, on_message=fail) as channel:
        connection = await listener.connections.get()
        await connection.send("1")
        await channel.send("still here")
        assert await connection.recv() == "still here"
        await connection.close()
        with pytest.raises(ChannelClosed):
            await channel.recv()
    failed = [record.getMessage() for record in caplog.records if record.exc_info]
    assert failed == [
        "the callback on_open of a channel failed",
        "the callback on_message of a channel failed",
    ]
    assert "a bug in a callback" in caplog.text


async def test_a_callback_may_close_the_channel_and_then_runs_on(listener: Listener) -> None:
    closed = asyncio.Event()

    async def close_it(_: str) -> None:
        await channel.close()
        closed.set()

    channel = create_websocket_channel(listener.url, on_message=close_it)
    async with channel:
        connection = await listener.connections.get()
        await connection.send("stop")
        with pytest.raises(ChannelClosed):
            await channel.recv()
        await connection.wait_closed()
        await closed.wait()
    assert state_of(channel) is ChannelState.DISCONNECTED


async def test_a_binary_frame_is_skipped_and_said_so(listener: Listener) -> None:
    errors: list[Exception] = []
    async with create_websocket_channel(listener.url, on_error=errors.append) as channel:
        connection = await listener.connections.get()
        await connection.send(b"{}")
        await connection.send("text")
        assert await channel.recv() == "text"
    assert [str(error) for error in errors] == ["a binary frame, which is not a message, was skipped"]


async def test_a_close_does_not_wait_for_a_full_inbox_to_be_read(listener: Listener) -> None:
    async with create_websocket_channel(listener.url) as channel:
        connection = await listener.connections.get()
        for i in range(MAX_BUFFERED + 8):
            await connection.send(str(i))
        assert await channel.recv() == "0"
    assert connection.close_code == 1000


@pytest.mark.parametrize("url", ["", "http://127.0.0.1/", "127.0.0.1:3001"])
def test_a_url_that_is_no_websockets_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="ws://"):
        create_websocket_channel(url)


def test_a_number_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        create_websocket_channel("ws://127.0.0.1/", max_attempts=-1)
    with pytest.raises(ValueError, match="connect_timeout_s"):
        create_websocket_channel("ws://127.0.0.1/", connect_timeout_s=0)


def test_the_wait_before_an_attempt_doubles_up_to_its_longest_and_is_cut_by_at_most_a_half() -> None:
    uncut = [backoff_s(n, first_s=1, longest_s=30, jitter=1) for n in (1, 2, 3, 4, 5, 6, 7, 10_000)]
    assert uncut == [1, 2, 4, 8, 16, 30, 30, 30]
    assert backoff_s(3, first_s=1, longest_s=30, jitter=0) == 2


def test_a_channel_can_always_end_and_never_begins_again() -> None:
    assert set(TRANSITIONS) == set(ChannelState)
    assert TRANSITIONS[ChannelState.DISCONNECTED] == {}
    for state in set(ChannelState) - {ChannelState.DISCONNECTED}:
        assert TRANSITIONS[state][ChannelTrigger.END] is ChannelState.DISCONNECTED
    assert not any(ChannelState.CONNECTING in row.values() for row in TRANSITIONS.values())
