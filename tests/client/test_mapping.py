"""One session for each of many inputs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from enclave_client import AsyncClient, RequestRefused
from tests.client.clients import client_of
from tests.client.fake_socket import Told, says_hello, waits_for_cancel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


async def test_every_input_has_its_result_as_it_ends_and_not_too_many_run_at_once() -> None:
    order = [2, 0, 1, 3]
    gates = [asyncio.Event() for _ in order]
    live: set[str] = set()
    peak: list[int] = []

    async def script(told: Told) -> None:
        live.add(told.session_id)
        peak.append(len(live))
        item = int(told.execute["code"].removeprefix("item = ").partition(";")[0])
        await gates[item].wait()
        live.discard(told.session_id)
        await told.final(item * 10)

    async with client_of(script) as (client, broker):
        ended = []
        items = client.map("return item", range(4), concurrency=3)
        await_first = asyncio.ensure_future(anext(items))
        await broker.wait_received("execute", 3)
        gates[order[0]].set()
        ended.append(await await_first)
        for n in order[1:]:
            gates[n].set()
            ended.append(await anext(items))
        assert [item async for item in items] == []

    assert [(item.index, item.input, item.result.value) for item in ended] == [(n, n, n * 10) for n in order]
    assert max(peak) == 3


async def test_an_input_that_has_yet_to_come_holds_up_no_result() -> None:
    more = asyncio.Event()

    async def inputs() -> AsyncIterator[str]:
        yield "first"
        await more.wait()
        yield "second"

    async with client_of(says_hello) as (client, _):
        items = client.map("return item", inputs())
        assert (await anext(items)).input == "first"
        more.set()
        assert [item.input async for item in items] == ["second"]


async def test_leaving_a_map_ends_the_sessions_that_still_run() -> None:
    async with client_of(waits_for_cancel) as (client, broker):
        items = client.map("", range(9), concurrency=3)
        first = asyncio.ensure_future(anext(items))
        await broker.wait_received("execute", 3)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert len(await broker.wait_received("cancel", 3)) == 3


@pytest.mark.parametrize("error", ["refused", "inputs"])
async def test_what_goes_wrong_in_a_map_is_raised_and_ends_the_others(error: str) -> None:
    def inputs() -> Any:
        yield "runs"
        if error == "inputs":
            raise KeyError("the source broke")
        yield object()

    async with client_of(waits_for_cancel) as (client, broker):
        with pytest.raises((KeyError, RequestRefused)):
            async for _ in client.map("", inputs()):
                pass
        for told in broker.sessions.values():
            assert told.cancelled.is_set()


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda client: client.map("", [1], concurrency=0), "concurrency"),
        (lambda client: client.map("", [1], session_id="s_1"), "session_id"),
    ],
)
async def test_a_map_that_makes_no_sense_is_refused(make: Callable[[AsyncClient], object], field: str) -> None:
    async with AsyncClient("http://127.0.0.1:1") as client:
        with pytest.raises(RequestRefused) as refused:
            make(client)
        assert refused.value.field == field
