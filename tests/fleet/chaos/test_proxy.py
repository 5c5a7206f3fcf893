"""The proxy of the chaos run does what its names say."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from .fleet import free_ports
from .proxy import BOTH, Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    Pair = tuple[Proxy, asyncio.StreamReader, asyncio.StreamWriter, asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def joined() -> AsyncIterator[Pair]:
    """A proxy with one connection: ours, and the target's end of it."""
    arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda *ends: arrived.put_nowait(ends), "127.0.0.1", 0)
    proxy = Proxy(next(free_ports()), server.sockets[0].getsockname()[1])
    await proxy.up()
    try:
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            far_reader, far_writer = await arrived.get()
            await proxy.wait_joined(1)  # it hears of its connection a moment after the target does
            yield proxy, reader, writer, far_reader, far_writer
    finally:
        await proxy.close()
        server.close()
        for end in (writer, far_writer):
            end.close()


async def test_bytes_go_through_and_so_does_an_end() -> None:
    async with joined() as (_, reader, writer, far_reader, far_writer):
        writer.write(b"up")
        writer.write_eof()
        assert await far_reader.read() == b"up"
        far_writer.write(b"down")
        far_writer.write_eof()
        assert await reader.read() == b"down"


async def test_a_reset_is_one_on_both_sides() -> None:
    async with joined() as (proxy, reader, _, far_reader, _):
        proxy.joined[0].reset()
        for end in (reader, far_reader):
            with pytest.raises(ConnectionResetError):
                await end.read()


async def test_a_finish_is_an_end_on_both_sides() -> None:
    async with joined() as (proxy, reader, _, far_reader, _):
        proxy.joined[0].finish()
        assert await reader.read() == b""
        assert await far_reader.read() == b""


async def test_a_stalled_direction_carries_nothing_and_the_other_one_does_until_it_flows_again() -> None:
    async with joined() as (proxy, reader, writer, far_reader, far_writer):
        proxy.joined[0].stall("up")
        writer.write(b"held back")
        far_writer.write(b"down")
        assert await reader.read(100) == b"down"
        assert not far_reader._buffer  # type: ignore[attr-defined]
        proxy.joined[0].flow()
        assert await far_reader.read(100) == b"held back"


async def test_a_partition_holds_new_connections_too_and_heals() -> None:
    async with joined() as (proxy, _, writer, far_reader, _):
        proxy.partition(*BOTH)
        writer.write(b"one")
        _, other = await asyncio.open_connection("127.0.0.1", proxy.port)
        other.write(b"two")
        await proxy.wait_joined(2)
        proxy.heal()
        assert await far_reader.read(100) == b"one"
        other.close()


async def test_who_connects_while_it_is_down_is_refused() -> None:
    async with joined() as (proxy, reader, _, _, far_writer):
        await proxy.down()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        far_writer.write(b"still here")
        assert await reader.read(100) == b"still here"
