from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from tests.fleet.simulation.plan import make_plan
from tests.fleet.simulation.virtual_time import EPOCH_S, Process, Stuck, VirtualLoop, clocks
from tests.fleet.simulation.world import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]], seed: int = 1) -> T:
    loop = VirtualLoop()
    with clocks(loop, seed):
        return loop.run(main(loop))


def test_a_day_passes_at_once_on_every_clock() -> None:
    async def main(loop: VirtualLoop) -> None:
        await asyncio.sleep(86_400)
        assert (loop.time(), time.monotonic(), time.time()) == (86_400, 86_400, EPOCH_S + 86_400)

    before = time.monotonic()
    run(main)
    assert time.monotonic() - before < 3600


def test_chance_is_the_seeds() -> None:
    async def main(_: VirtualLoop) -> tuple[uuid.UUID, float, bytes]:
        return uuid.uuid4(), random.random(), os.urandom(4)

    assert run(main) == run(main)
    assert run(main) != run(main, seed=2)


def test_a_seed_is_run_the_same_way_again() -> None:
    for seed in (3, 7, 11):
        assert simulate(make_plan(seed)).digest == simulate(make_plan(seed)).digest


def test_a_killed_process_does_nothing_more_not_even_finally() -> None:
    done: list[str] = []

    async def program() -> None:
        try:
            asyncio.get_running_loop().call_later(2, done.append, "timer")
            await asyncio.sleep(1)
            done.append("ran")
        finally:
            done.append("finally")

    async def main(loop: VirtualLoop) -> None:
        process = Process(loop, "program")
        process.spawn(program())
        await asyncio.sleep(0.5)
        process.kill()
        await asyncio.sleep(5)
        assert done == []

    run(main)


def test_a_frozen_process_catches_up_in_order() -> None:
    done: list[int] = []

    async def main(loop: VirtualLoop) -> None:
        process = Process(loop, "program")
        for i in range(3):
            process.run(loop.call_later, i + 1, done.append, i)
        process.freeze()
        await asyncio.sleep(5)
        assert done == []
        process.thaw()
        await asyncio.sleep(0)

    run(main)
    assert done == [0, 1, 2]


def test_waiting_for_ever_is_an_error() -> None:
    async def main(_: VirtualLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck):
        run(main)


def test_what_a_forgotten_task_raises_is_told() -> None:
    async def fails() -> None:
        raise ValueError("lost")

    async def main(loop: VirtualLoop) -> None:
        kept.append(loop)
        kept.append(asyncio.ensure_future(fails()))
        await asyncio.sleep(1)

    kept: list[Any] = []
    run(main)
    assert kept[0].faults == ["a task failed: ValueError('lost')"]
