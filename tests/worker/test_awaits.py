"""Code that awaits only tools runs without an event loop, and does not see the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from enclave_worker.api import RuntimeConfig, create_runtime_worker
from enclave_worker.zygote import awaits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enclave_worker.api import ExecutionResult
    from enclave_worker.runtime import RuntimeWorker

IN_LOOP = "\n# async"
"""Makes any code run in an event loop."""
MODULES = """
modules = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close']
modules = modules[0].__init__.__globals__['sys'].modules
"""
"""`sys.modules`, found without a word that asks for an event loop."""


CAUGHT = """
try:
    await call_tool('fail')
except ToolError as error:
    return error.code, error.message
"""
UNUSED = """
for call in [call_tool('add', a=n, b=1) for n in range(2)]:
    call.close()
return await call_tool('asked')
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[RuntimeWorker]:
    with create_runtime_worker(RuntimeConfig(pool_size=1)) as worker:
        yield worker


def run(worker: RuntimeWorker, code: str, files: dict[str, str | bytes] | None = None) -> ExecutionResult:
    asked: list[int] = []

    def add(a: int, b: int) -> int:
        asked.append(a)
        return a + b

    def fail() -> None:
        raise ValueError("not today")

    tools: dict[str, Any] = {"add": add, "fail": fail, "asked": lambda: asked}
    return worker.execute_sync(None, code, tools=tools, files=files)


@pytest.mark.parametrize(
    ("code", "alone"),
    [
        ("return await call_tool('a')", True),
        ("x = [await call_tool('a', n=n) for n in (1, 2)]\nreturn await callTool('b', x=x)", True),
        ("return 1", True),
        ("return await  call_tool('a')", False),
        ("call = call_tool('a')\nreturn await call", False),
        ("import json\nreturn await call_tool('a')", False),
        ("async def f():\n    return await call_tool('a')\nreturn await f()", False),
        ("exec(open('a').read())\nreturn await call_tool('a')", False),
        ("return eval(await call_tool('a'))", False),
        ("# to await\nreturn await call_tool('a')", False),
    ],
)
def test_the_text_tells_whether_code_awaits_only_tools(*, code: str, alone: bool) -> None:
    assert awaits.only_tools(code) is alone


def test_code_that_awaits_only_tools_has_no_event_loop_and_the_other_has(worker: RuntimeWorker) -> None:
    code = MODULES + "await call_tool('add', a=1, b=2)\nreturn 'asyn' 'cio' in modules"

    assert run(worker, code).result is False
    assert run(worker, code + IN_LOOP).result is True


@pytest.mark.parametrize("loop", ["", IN_LOOP], ids=["alone", "in a loop"])
@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("return await call_tool('add', {'a': 1, 'b': 2})", 3),
        (
            "return [await call_tool('add', a=n, b=1) for n in range(3)], await callTool('asked')",
            [[1, 2, 3], [0, 1, 2]],
        ),
        ("return await call_tool('add', a=await call_tool('add', a=1, b=1), b=1)", 3),
        (CAUGHT, ["EXECUTION_ERROR", "ValueError: not today"]),
        (UNUSED, []),
    ],
)
def test_tools_answer_the_same_with_and_without_a_loop(
    worker: RuntimeWorker, loop: str, code: str, result: object
) -> None:
    assert run(worker, code + loop).result == result


@pytest.mark.parametrize(
    "code",
    [
        "await call_tool('fail')",
        "\nawait call_tool('no such tool')",
        "await call_tool(3)",
        "x = await call_tool('add', a=1, b=1)\nx.y",
        "await call_tool('add', a=1, b=1)\nreturn {1, 2}",
        "call_tool = lambda: 3\nawait call_tool()",
        "call_tool = lambda: iter(())\nawait call_tool()",
        "raise StopIteration(await call_tool('asked'))",
        "raise SystemExit(await call_tool('add', a=1, b=1))",
    ],
)
def test_failures_are_told_the_same_with_and_without_a_loop(worker: RuntimeWorker, code: str) -> None:
    alone, in_loop = [run(worker, text).error for text in (code, code + IN_LOOP)]

    assert alone is not None
    assert alone == in_loop


def test_what_only_asks_for_another_turn_gets_it_either_way(worker: RuntimeWorker) -> None:
    code = "call_tool = type('A', (), {'__a' + 'wait__': lambda self: iter([None, None])})\nawait call_tool()\nreturn 1"

    for text in (code, code + IN_LOOP):
        assert run(worker, text).result == 1


def test_what_is_no_tools_answer_cannot_be_awaited_either_way(worker: RuntimeWorker) -> None:
    code = "call_tool = type('A', (), {'__a' + 'wait__': lambda self: iter([5])})\nawait call_tool()"

    for text in (code, code + IN_LOOP):
        error = run(worker, text).error
        assert error is not None
        assert error.message == "RuntimeError: Task got bad yield: 5"


def test_code_that_an_other_file_brings_still_finds_its_loop(worker: RuntimeWorker) -> None:
    helper = "import asyncio\nasync def two():\n    await asyncio.sleep(0)\n    return 2\n"
    code = "exec(open('helper.py').read(), globals())\nreturn await two()"

    assert run(worker, code, {"helper.py": helper}).result == 2
