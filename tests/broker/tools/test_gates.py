"""Caps on calls of one tool: how many run, who is next, and that no place is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from enclave_broker import ToolFailure, ToolPolicy
from enclave_broker.tools import FunctionTool
from enclave_broker.tools import gates as gates_module
from enclave_broker.tools.gates import Gates

if TYPE_CHECKING:
    from enclave_broker import Tool


def capped(cap: int | None) -> Tool:
    return FunctionTool(lambda: None, name="t", policy=ToolPolicy(max_concurrency=cap))


class Visitor:
    """Somebody who enters, and stays until told to go."""

    def __init__(self, gates: Gates, tool: Tool, log: list[int], number: int) -> None:
        self.go = asyncio.Event()
        self.task = asyncio.create_task(self._visit(gates, tool, log, number))

    async def _visit(self, gates: Gates, tool: Tool, log: list[int], number: int) -> None:
        async with gates.entered(tool):
            log.append(number)
            await self.go.wait()

    async def leave(self) -> None:
        self.go.set()
        await self.task
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_run_than_the_cap_and_the_first_comes_first() -> None:
    gates, log = Gates(), list[int]()
    visitors = [Visitor(gates, capped(2), log, number) for number in range(5)]
    await settle()
    assert log == [0, 1]
    await visitors[1].leave()
    assert log == [0, 1, 2]
    for visitor in visitors:
        await visitor.leave()
    assert log == [0, 1, 2, 3, 4]
    assert not gates._gates


async def test_whoever_is_cancelled_passes_the_turn_on() -> None:
    gates, log = Gates(), list[int]()
    first, second, third = (Visitor(gates, capped(1), log, number) for number in range(3))
    await settle()
    first.go.set()
    await asyncio.sleep(0)  # the first leaves, the second's turn has come and it does not know yet
    second.task.cancel()
    await settle()
    assert second.task.cancelled()
    assert log == [0, 2]
    third.task.cancel()
    await asyncio.gather(first.task, third.task, return_exceptions=True)
    assert not gates._gates


async def test_whoever_is_cancelled_while_waiting_takes_no_place() -> None:
    gates, log = Gates(), list[int]()
    first, second, third = (Visitor(gates, capped(1), log, number) for number in range(3))
    await settle()
    second.task.cancel()
    await settle()
    await first.leave()
    assert log == [0, 2]
    await third.leave()
    assert not gates._gates


async def test_a_queue_that_is_full_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates_module, "MAX_WAITING", 1)
    gates, log = Gates(), list[int]()
    visitors = [Visitor(gates, capped(1), log, number) for number in range(2)]
    await settle()
    with pytest.raises(ToolFailure) as refused:
        async with gates.entered(capped(1)):
            pass
    assert refused.value.code == "NO_CAPACITY"
    for visitor in visitors:
        await visitor.leave()


async def test_a_tool_without_a_cap_has_no_gate() -> None:
    gates, log = Gates(), list[int]()
    visitors = [Visitor(gates, capped(None), log, number) for number in range(50)]
    await settle()
    assert len(log) == 50
    assert not gates._gates
    for visitor in visitors:
        await visitor.leave()
