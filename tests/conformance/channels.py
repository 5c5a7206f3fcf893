"""What every channel promises. A test class for a kind of channel inherits these and provides the fixture `pair`."""

from __future__ import annotations

import asyncio

import pytest

from enclave_protocol import MAX_MESSAGE_BYTES
from enclave_worker.channels import Channel, ChannelClosed, ChannelState

Pair = tuple[Channel, Channel]


class ChannelConformance:
    """`pair` is two connected ends; the fixture closes both afterwards."""

    async def test_messages_arrive_in_order_both_ways(self, pair: Pair) -> None:
        one, other = pair
        for i in range(50):
            await one.send(f"there {i}")
            await other.send(f"back {i}")
        assert [await other.recv() for _ in range(50)] == [f"there {i}" for i in range(50)]
        assert [await one.recv() for _ in range(50)] == [f"back {i}" for i in range(50)]

    @pytest.mark.parametrize("text", ["", "{}", "a\nb\r\n\x00\u2028", "é😀", "x" * 1_000_000])
    async def test_any_text_arrives_as_it_was(self, pair: Pair, text: str) -> None:
        one, other = pair
        await one.send(text)
        assert await other.recv() == text

    async def test_what_was_sent_before_the_close_arrives_and_then_the_end(self, pair: Pair) -> None:
        one, other = pair
        for i in range(100):
            await one.send(str(i))
        async with asyncio.TaskGroup() as group:
            group.create_task(one.close())
            assert [text async for text in other] == [str(i) for i in range(100)]
        with pytest.raises(ChannelClosed):
            await other.recv()

    async def test_after_a_close_neither_end_sends_or_receives(self, pair: Pair) -> None:
        one, other = pair
        await one.close()
        for end in pair:
            with pytest.raises(ChannelClosed):
                await end.recv()
            with pytest.raises(ConnectionError):
                await end.send("late")
            assert end.state is ChannelState.DISCONNECTED
        await one.close()
        await other.close()

    async def test_a_close_drops_what_was_not_received(self, pair: Pair) -> None:
        one, other = pair
        for i in range(10):
            await other.send(str(i))
        assert await one.recv() == "0"
        await one.close()
        with pytest.raises(ChannelClosed):
            await one.recv()

    @pytest.mark.parametrize("closing", [0, 1])
    async def test_whoever_waits_for_a_message_is_told_of_the_end(self, pair: Pair, closing: int) -> None:
        waiting = asyncio.create_task(pair[0].recv())
        await asyncio.sleep(0)
        await pair[closing].close()
        with pytest.raises(ChannelClosed):
            await waiting

    async def test_a_sender_waits_for_a_slow_receiver_and_nothing_is_lost(self, pair: Pair) -> None:
        one, other = pair
        count, padding, sent = 2000, "x" * 65_536, 0

        async def produce() -> None:
            nonlocal sent
            for i in range(count):
                await one.send(f"{i} {padding}")
                sent += 1

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            for i in range(count):
                assert await other.recv() == f"{i} {padding}"
                # 131 MB fit into no buffer on the way, so the sender cannot have finished before the receiver began.
                assert i > 0 or sent < count

    async def test_a_receiver_that_gave_up_waiting_took_nothing(self, pair: Pair) -> None:
        one, other = pair
        waiting = asyncio.create_task(other.recv())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        await one.send("kept")
        assert await other.recv() == "kept"

    @pytest.mark.parametrize("text", ["x" * (MAX_MESSAGE_BYTES + 1), "é" * (MAX_MESSAGE_BYTES // 2 + 1), "\ud800"])
    async def test_a_message_that_cannot_travel_is_refused_and_the_channel_goes_on(self, pair: Pair, text: str) -> None:
        one, other = pair
        with pytest.raises(ValueError, match=r"largest|surrogates"):
            await one.send(text)
        await one.send("next")
        assert await other.recv() == "next"

    async def test_an_end_shows_its_state(self, pair: Pair) -> None:
        assert [end.state for end in pair] == [ChannelState.CONNECTED, ChannelState.CONNECTED]
        assert "connected" in repr(pair[0])
