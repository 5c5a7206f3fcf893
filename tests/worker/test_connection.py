"""A connection whose peer is written, not real: what a socket rarely does."""

from __future__ import annotations

import asyncio

from enclave_protocol import SessionId, Welcome, encode
from enclave_worker.connection import Connection, WorkerIdentity
from tests.worker.guest_socket import GuestHost, Lines

IDENTITY = WorkerIdentity(worker_id="w", instance="i", level="SECURE")


class ScriptedPeer:
    """Says its messages and is silent. Sends what it is given, while there is memory for it."""

    name = "test:1"

    def __init__(self, *messages: bytes) -> None:
        self.sent: list[bytes] = []
        self.spent = False
        self._messages = [*messages]

    def send_now(self, line: bytes) -> bool:
        if self.spent:
            raise MemoryError
        self.sent.append(line)
        return True

    async def send(self, line: bytes) -> None:
        raise AssertionError(f"{line!r} has waited")

    async def recv(self) -> str | bytes:
        if self._messages:
            return self._messages.pop(0).decode()
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never


async def test_an_event_that_cannot_be_sent_ends_the_connection_and_is_kept_for_the_next() -> None:
    async with GuestHost() as host:
        peer, back, holdings = ScriptedPeer(), Lines(), host.sessions.holdings
        connection = Connection(peer, host.sessions, IDENTITY)
        serving = asyncio.create_task(connection.serve())
        holding = holdings.hold(SessionId("s_1"), connection, 1)
        holding.deliver(b"sent")
        peer.spent = True
        holding.deliver(b"not sent")
        peer.spent = False
        holding.deliver(b"nothing may follow a hole")

        await serving

        assert [line for line in peer.sent if b"hello" not in line] == [b"sent"]
        holdings.attach("s_1", 2, back)
        assert back.lines == [b"not sent", b"nothing may follow a hole"]
        holdings.close()


async def test_a_silent_broker_loses_its_connection_and_its_sessions_wait_for_another() -> None:
    async with GuestHost(broker_silence_s=0.05) as host:
        peer, back, holdings = ScriptedPeer(encode(Welcome(revision=2, broker_id="b"))), Lines(), host.sessions.holdings
        connection = Connection(peer, host.sessions, IDENTITY)
        holding = holdings.hold(SessionId("s_1"), connection, 1)

        await connection.serve()

        assert holding.sink is None
        holding.deliver(b"meanwhile")
        holdings.attach("s_1", 1, back)
        assert back.lines == [b"meanwhile"]
        holdings.close()


async def test_a_broker_that_is_silent_but_said_no_welcome_keeps_its_connection() -> None:
    async with GuestHost(broker_silence_s=0.01) as host:
        welcome = encode(Welcome(revision=2, broker_id="b"))
        old = asyncio.create_task(Connection(ScriptedPeer(), host.sessions, IDENTITY).serve())

        await Connection(ScriptedPeer(welcome), host.sessions, IDENTITY).serve()

        assert not old.done()
        old.cancel()
        await asyncio.wait({old})
