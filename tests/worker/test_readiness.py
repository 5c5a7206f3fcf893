"""One epoll for many descriptors, on a loop: who is called, and who is not any more."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from enclave_worker import readiness
from enclave_worker.readiness import Readiness
from tests.worker.guest_socket import same_descriptors, turns

if TYPE_CHECKING:
    from collections.abc import Iterator


class Pipes:
    """Pipes with something to read in each, watched; `seen` lists whose turn came, in order."""

    def __init__(self, count: int) -> None:
        self.readiness = Readiness(asyncio.get_running_loop())
        self.seen: list[int] = []
        self.readers: list[int] = []
        for number in range(count):
            reader, writer = os.pipe2(os.O_NONBLOCK)
            os.write(writer, b"x")
            os.close(writer)
            self.readers.append(reader)
            self.readiness.watch(reader, lambda number=number: self.take(number))  # type: ignore[misc]

    def take(self, number: int) -> None:
        self.seen.append(number)
        if not os.read(self.readers[number], 1):
            self.readiness.forget(self.readers[number])

    def close(self) -> None:
        for reader in self.readers:
            self.readiness.forget(reader)
            os.close(reader)
        self.readiness.close()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with same_descriptors():
        yield


def run(scenario: Any) -> None:
    asyncio.run(scenario())


def test_what_is_watched_already_may_be_watched_again() -> None:
    async def scenario() -> None:
        pipes = Pipes(1)
        pipes.readiness.watch(pipes.readers[0], lambda: pipes.take(0))
        await turns(6)
        assert pipes.seen == [0, 0]
        pipes.close()

    run(scenario)


def test_all_that_are_ready_are_served_until_they_are_forgotten() -> None:
    async def scenario() -> None:
        pipes = Pipes(3)
        await turns(6)
        assert sorted(pipes.seen) == [0, 0, 1, 1, 2, 2]  # a byte, and the end
        pipes.close()

    run(scenario)


def test_more_than_are_served_in_a_turn_are_served_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_MOST_READY", 2)

    async def scenario() -> None:
        pipes = Pipes(5)
        await turns(12)
        assert sorted(pipes.seen) == sorted([*range(5)] * 2)
        assert set(pipes.seen[:5]) == set(range(5)), "none comes twice before each came once"
        pipes.close()

    run(scenario)


def test_what_a_callback_lets_go_of_is_not_served_in_the_same_turn() -> None:
    async def scenario() -> None:
        pipes = Pipes(2)

        def take(number: int) -> None:
            pipes.seen.append(number)
            for reader in pipes.readers:
                pipes.readiness.forget(reader)

        pipes.take = take  # type: ignore[method-assign]
        await turns()
        assert len(pipes.seen) == 1
        pipes.close()

    run(scenario)


def test_a_callback_that_fails_is_reported_and_keeps_no_other_from_its_turn() -> None:
    async def scenario() -> None:
        raised: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(str(context["exception"])))
        pipes = Pipes(2)

        def fail() -> None:
            pipes.readiness.forget(pipes.readers[0])
            raise ValueError("a bug")

        pipes.readiness.forget(pipes.readers[0])
        pipes.readiness.watch(pipes.readers[0], fail)
        await turns()
        assert raised == ["a bug"]
        assert pipes.seen[:1] == [1]
        pipes.close()

    run(scenario)
