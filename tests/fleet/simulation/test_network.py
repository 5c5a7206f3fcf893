from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.fleet.simulation.network import Goodbye, Network
from tests.fleet.simulation.virtual_time import Process, VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.fleet.simulation.network import End

    Check = Callable[[Network, End, End], Awaitable[None]]


def connected(check: Check) -> None:
    """Run `check(network, ours, theirs)` with the ends of one connection."""
    loop = VirtualLoop()
    network = Network(loop, random.Random(1), (0.01, 0.5))
    accepted: list[End] = []

    async def main() -> None:
        client, server = Process(loop, "client"), Process(loop, "server")
        network.listen("there:ws", server, accepted.append, patience_s=(20.0, 40.0))
        ours = await network.connect(client, "here", "there:ws", timeout_s=3.0)
        await asyncio.sleep(1)
        await check(network, ours, accepted[0])

    loop.run(main())


async def drained(end: End) -> tuple[list[Any], ConnectionError]:
    got = []
    while True:
        try:
            got.append(await end.recv())
        except ConnectionError as error:
            return got, error


async def fill(end: End) -> None:
    while True:
        await end.send(bytes(1000))


def test_what_was_sent_comes_in_order_and_then_the_goodbye() -> None:
    async def check(_: Network, ours: End, theirs: End) -> None:
        for i in range(50):
            await ours.send(b"%d" % i)
        await ours.close()
        got, ended = await drained(theirs)
        assert got == [b"%d" % i for i in range(50)]
        assert isinstance(ended, Goodbye)

    connected(check)


def test_of_a_cut_connection_a_prefix_arrives() -> None:
    async def check(network: Network, ours: End, theirs: End) -> None:
        for i in range(50):
            await ours.send(b"%d" % i)
        await asyncio.sleep(0.3)
        network.cut(ours)
        got, ended = await drained(theirs)
        assert got == [b"%d" % i for i in range(len(got))]
        assert not isinstance(ended, Goodbye)
        await drained(ours)
        with pytest.raises(ConnectionError):
            await ours.send(b"more")

    connected(check)


def test_a_half_open_connection_is_silent_one_way_until_an_end_gives_up() -> None:
    async def check(network: Network, ours: End, theirs: End) -> None:
        network.silence(theirs)
        await ours.send(b"lost")
        await theirs.send(b"kept")
        assert await ours.recv() == b"kept"
        began = asyncio.get_running_loop().time()
        got, _ = await drained(theirs)
        assert got == []
        assert 15 < asyncio.get_running_loop().time() - began < 45

    connected(check)


def test_hosts_that_are_apart_do_not_reach_each_other_until_they_are_joined() -> None:
    async def check(network: Network, ours: End, _: End) -> None:
        process = ours.process
        network.part("here", "there")
        with pytest.raises(ConnectionAbortedError):
            await network.connect(process, "here", "there:ws", timeout_s=3.0)
        network.join("here", "there")
        await network.connect(process, "here", "there:ws", timeout_s=3.0)

    connected(check)


def test_a_killed_process_resets_its_connections_and_one_that_vanished_says_nothing() -> None:
    async def check(network: Network, ours: End, theirs: End) -> None:
        theirs.process.kill()
        network.died(theirs.process, vanished=False)
        assert (await drained(ours))[0] == []

    connected(check)

    async def check_vanished(network: Network, ours: End, theirs: End) -> None:
        theirs.process.kill()
        network.died(theirs.process, vanished=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ours.recv(), 3600)

    connected(check_vanished)


def test_sending_waits_for_a_reader_that_does_not_read() -> None:
    async def check(_: Network, ours: End, theirs: End) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(fill(ours), 3600)
        await theirs.recv()
        await ours.send(b"")

    connected(check)
