"""A client comes back when it was told to, as long as its caller likes to wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from enclave_client import AsyncClient, Client, Result
from enclave_client.patience import Patience
from enclave_client.results import Failure
from enclave_protocol import Stats
from tests.client.fake_socket import FakeSocketBroker, Told

if TYPE_CHECKING:
    from tests.client.fake_socket import Script


def refused(retry_after_s: float | None) -> Result:
    failure = Failure(code="NO_CAPACITY", message="full", retryable=True, retry_after_s=retry_after_s)
    return Result(session_id="s_1", ok=False, error=failure, stats=Stats())


def refuses(times: int) -> Script:
    async def script(told: Told) -> None:
        nonlocal times
        times -= 1
        if times >= 0:
            await told.fail("NO_CAPACITY", "full", retryAfterMs=20)
        else:
            await told.event("final", ok=True, result=1)

    return script


def test_a_client_never_comes_back_before_it_was_told_to_nor_with_all_others() -> None:
    patience = Patience(100, now=1000)
    assert patience.pause_s(refused(8), 1000, 0) == 8
    assert patience.pause_s(refused(8), 1000, 1) == 10


def test_it_gives_up_when_it_would_come_back_too_late() -> None:
    patience = Patience(100, now=1000)
    assert patience.pause_s(refused(8), 1092, 0) == 8
    assert patience.pause_s(refused(8), 1092.1, 0) is None
    assert Patience(0, now=1000).pause_s(refused(1), 1000, 0) is None


def test_what_has_run_is_not_asked_for_again() -> None:
    patience = Patience(100, now=1000)
    assert patience.pause_s(refused(None), 1000, 0) is None
    assert patience.pause_s(Result(session_id="s_1", ok=True, stats=Stats()), 1000, 0) is None


async def test_run_and_map_ask_again_until_there_is_room() -> None:
    async with FakeSocketBroker(refuses(2)) as broker, AsyncClient(broker.url, busy_wait_s=60) as client:
        assert (await client.run("1")).unwrap() == 1
        assert len(await broker.wait_received("execute", 3)) == 3
    async with FakeSocketBroker(refuses(3)) as broker, AsyncClient(broker.url, busy_wait_s=60) as client:
        assert [item.result.value async for item in client.map("item", [1, 2])] == [1, 1]


@pytest.mark.parametrize("handled", [False, True])
async def test_so_does_a_client_that_blocks(handled: bool) -> None:  # noqa: FBT001 - a parameter
    heard: list[object] = []

    def work(url: str) -> Result:
        with Client(url, busy_wait_s=60) as client:
            return client.run("1", on_event=heard.append) if handled else client.run("1")

    async with FakeSocketBroker(refuses(1)) as broker:
        assert (await asyncio.to_thread(work, broker.url)).unwrap() == 1
    assert bool(heard) == handled


async def test_a_client_that_is_not_told_to_wait_has_the_refusal_at_once_and_how_long_it_would_be() -> None:
    async with FakeSocketBroker(refuses(1)) as broker, AsyncClient(broker.url) as client:
        error = (await client.run("1")).error
    assert error is not None
    assert (error.code, error.retry_after_s) == ("NO_CAPACITY", 0.02)
