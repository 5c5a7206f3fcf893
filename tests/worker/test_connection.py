"""A connection whose peer is written, not real: what a socket rarely does."""

from __future__ import annotations

import asyncio

from enclave_protocol import SessionId
from enclave_worker.connection import Connection, WorkerIdentity
from tests.worker.guest_socket import GuestHost, Lines

IDENTITY = WorkerIdentity(worker_id="w", instance="i", level="SECURE")


class PeerWithoutMemory:
    """Sends what it is given, until there is no memory for it."""

    name = "test:1"

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.spent = False

    def send_now(self, line: bytes) -> bool:
        if self.spent:
            raise MemoryError
        self.sent.append(line)
        return True

    async def send(self, line: bytes) -> None:
        raise AssertionError(f"{line!r} has waited")

    async def recv(self) -> str | bytes:
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never


async def test_an_event_that_cannot_be_sent_ends_the_connection_and_is_kept_for_the_next() -> None:
    async with GuestHost() as host:
        peer, back, holdings = PeerWithoutMemory(), Lines(), host.sessions.holdings
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
