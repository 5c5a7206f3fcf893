"""What a session does, on a real worker: output, results, failures, tools, limits, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from enclave_worker.cgroups import ControlGroup
from enclave_worker.sandbox.levels import Layer
from tests.support import (
    NAME_PROCESS,
    PATIENCE_S,
    Client,
    client_of,
    new_name,
    nothing_left,
    processes_named,
    running,
    wait_none_named,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from enclave_worker.runtime import RuntimeWorker

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[RuntimeWorker]:
    """One worker for all: what a session does is nothing to the next one. Nothing of any is left in the end."""
    with nothing_left(), pytest.MonkeyPatch.context() as patched:
        # What is killed is gone when its final says so, however busy the machine.
        patched.setattr("enclave_worker.run._DEATH_GRACE_S", PATIENCE_S)
        async with running() as runtime:
            yield runtime
        await asyncio.get_running_loop().shutdown_default_executor()


@pytest_asyncio.fixture(loop_scope="module")
async def client(worker: RuntimeWorker) -> AsyncIterator[Client]:
    """A connection to `worker`."""
    async with client_of(worker.url) as client:
        yield client


# Output.


async def test_a_print_without_newline_arrives_while_the_guest_still_runs(client: Client) -> None:
    session = await client.start("print('half', end='')\nawait call_tool('wait')")

    assert (await client.until(session, "stdout"))["chunk"] == "half"
    call = await client.until(session, "tool_call")
    await client.answer(session, call["callId"], None)

    assert (await client.finish(session)).final["ok"]


async def test_limits_as_large_as_can_be_said_are_accepted(client: Client) -> None:
    most = 2**53 - 1
    run = await client.run("return 1", sessionTtlMs=most, deadlineMs=most, heartbeatIntervalMs=most, toolTimeoutMs=most)

    assert run.final["result"] == 1


async def test_a_memory_limit_that_the_kernel_refuses_to_set_ends_that_session_only(
    client: Client, worker: RuntimeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    if Layer.CONTROL_GROUPS in worker.missing_layers:
        pytest.skip("no control groups here")
    lower = 100 << 20
    set_memory = ControlGroup.limit_memory

    def refuse_lower(group: ControlGroup, memory_bytes: int) -> None:
        if memory_bytes == lower:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        set_memory(group, memory_bytes)

    monkeypatch.setattr(ControlGroup, "limit_memory", refuse_lower)

    refused = await client.run("return 1", memoryLimitBytes=lower)
    assert refused.final["error"]["code"] == "INTERNAL_ERROR"
    assert str(lower) in refused.final["error"]["message"]
    assert (await client.run("return 2")).final["result"] == 2


async def test_stderr_is_a_stream_of_its_own(client: Client) -> None:
    run = await client.run("import sys\nprint('out')\nprint('err', file=sys.stderr)")

    assert (run.text("stdout"), run.text("stderr")) == ("out\n", "err\n")
    assert (run.final["stats"]["stdoutBytes"], run.final["stats"]["stderrBytes"]) == (4, 4)


async def test_what_c_code_writes_past_python_streams_too(client: Client) -> None:
    run = await client.run("import ctypes\nlibc = ctypes.CDLL(None)\nlibc.puts(b'from C')\nlibc.fflush(None)")

    assert run.text("stdout") == "from C\n"


async def test_what_a_subprocess_writes_streams_too(client: Client) -> None:
    run = await client.run(
        "import subprocess\nreturn subprocess.run(['/bin/sh', '-c', 'echo out; echo err >&2']).returncode"
    )

    assert (run.text("stdout"), run.text("stderr"), run.final["result"]) == ("out\n", "err\n", 0)


async def test_a_character_written_in_two_halves_arrives_whole(client: Client) -> None:
    code = """
import os
os.write(1, b'caf\\xc3')
await call_tool('wait')
os.write(1, b'\\xa9')
"""
    session = await client.start(code)
    call = await client.until(session, "tool_call")
    await client.answer(session, call["callId"], None)

    assert (await client.finish(session)).text("stdout") == "café"


async def test_characters_across_a_read_boundary_are_never_cut(client: Client) -> None:
    run = await client.run("print('x' + '€' * 70_000)")

    assert run.text("stdout") == "x" + "€" * 70_000 + "\n"


async def test_bytes_that_are_no_text_become_replacement_characters(client: Client) -> None:
    run = await client.run("import os\nos.write(1, b'a\\xffb\\xe2\\x82')")

    assert run.text("stdout") == "a\ufffdb\ufffd"


async def test_output_comes_before_the_tool_call_that_followed_it(client: Client) -> None:
    session = await client.start("import os\nos.write(2, b'first')\nprint('second')\nawait call_tool('t')")
    call = await client.until(session, "tool_call")
    await client.answer(session, call["callId"], None)
    run = await client.finish(session)

    kinds = [event["type"] for event in run.events]
    assert kinds.index("tool_call") > max(kinds.index("stdout"), kinds.index("stderr"))


async def test_output_beyond_its_cap_is_cut_and_marked_and_the_guest_goes_on(client: Client) -> None:
    run = await client.run("print('x' * 100_000)\nreturn 'done'", maxStdoutBytes=1000)

    assert run.final["result"] == "done"
    assert run.text("stdout") == "x" * 1000
    assert run.final["stats"]["stdoutBytes"] == 100_001
    assert run.final["stats"]["truncated"] is True
    (mark,) = run.of_type("log")
    assert mark["data"] == {"limit": "maxStdoutBytes", "stream": "stdout", "maxStdoutBytes": 1000}


async def test_the_cap_holds_for_each_stream_by_itself(client: Client) -> None:
    run = await client.run("import sys\nprint('x' * 2000)\nprint('short', file=sys.stderr)", maxStdoutBytes=1000)

    assert run.text("stderr") == "short\n"
    assert [mark["data"]["stream"] for mark in run.of_type("log")] == ["stdout"]


# Results.


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1.5, "", "ünï☃", [], {}, [1, [2, [None]]], {"a": {"b": [1.25, "x"]}}, 2**70, 1e308],
    ids=repr,
)
async def test_any_json_value_is_a_result(client: Client, value: Any) -> None:
    run = await client.run(f"return {value!r}")

    assert run.final["ok"] is True
    assert run.final["result"] == value


async def test_code_that_returns_nothing_has_the_result_null(client: Client) -> None:
    run = await client.run("x = 1")

    assert (run.final["ok"], run.final["result"]) == (True, None)


async def test_every_session_runs_in_a_sandbox_of_its_own(client: Client) -> None:
    await client.run("open('/workspace/mark', 'w').write('x')\nimport sys\nsys.mark = 1")

    run = await client.run("import os, sys\nreturn [os.listdir('/workspace'), hasattr(sys, 'mark')]")

    assert run.final["result"] == [[], False]


async def test_two_sandboxes_share_no_randomness(client: Client) -> None:
    code = """
import os, random, secrets, uuid
return [random.random(), secrets.token_hex(), uuid.uuid4().hex, os.urandom(8).hex()]
"""
    first, second = [(await client.run(code)).final["result"] for _ in range(2)]

    assert not set(first) & set(second)


@pytest.mark.parametrize("size", [60_000, 150_000, 215_000, 1_000_000])
async def test_a_large_result_is_never_lost_to_its_senders_exit(client: Client, size: int) -> None:
    for _ in range(5):
        run = await client.run(f"return 'x' * {size}")
        assert run.final.get("result") == "x" * size, run.final


async def test_a_result_above_its_limit_is_refused_with_both_sizes(client: Client) -> None:
    run = await client.run("return 'x' * 2000", maxResultBytes=1000)

    assert run.code == "RESULT_TOO_LARGE"
    assert "2002" in run.final["error"]["message"]
    assert "maxResultBytes=1000" in run.final["error"]["message"]
    assert "result" not in run.final


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("{1, 2}", "result is a set"),
        ("{'a': [b'x']}", "result['a'][0] is a bytes"),
        ("float('nan')", "result is nan"),
        ("[float('inf')]", "result[0] is inf"),
        ("'\\ud800'", "lone surrogate"),
        ("{(1,): 2}", "a key of type tuple"),
        ("object()", "result is a object"),
    ],
)
async def test_a_result_that_is_not_json_says_which_part(client: Client, expression: str, said: str) -> None:
    run = await client.run(f"return {expression}")

    assert run.code == "RESULT_NOT_SERIALIZABLE"
    assert said in run.final["error"]["message"]


# Failures.


async def test_an_exception_comes_with_type_message_and_the_guests_own_lines(client: Client) -> None:
    run = await client.run("def f():\n    return 1 / 0\n\nprint('before')\nf()")

    error = run.final["error"]
    assert (error["code"], error["name"], error["line"]) == ("EXECUTION_ERROR", "ZeroDivisionError", 2)
    assert error["message"] == "ZeroDivisionError: division by zero"
    assert 'File "main.py", line 5' in error["stack"]
    assert "return 1 / 0" in error["stack"]
    assert "zygote" not in error["stack"]
    assert run.text("stdout") == "before\n"


async def test_a_chained_exception_shows_both(client: Client) -> None:
    run = await client.run("try:\n    {}['k']\nexcept KeyError as e:\n    raise ValueError('second') from e")

    assert "KeyError: 'k'" in run.final["error"]["stack"]
    assert "ValueError: second" in run.final["error"]["stack"]


@pytest.mark.parametrize(
    ("code", "line"),
    [("x = 1\ny = = 2", 2), ("if True:\nx", 2), ("return 1\nyield 2", 2), ("'''", 1), ("x = '\\x00", 1)],
)
async def test_a_syntax_error_names_its_line(client: Client, code: str, line: int) -> None:
    run = await client.run(code)

    assert (run.code, run.final["error"]["line"]) == ("SYNTAX_ERROR", line)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os\nos._exit(3)", "status 3"),
        ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
        ("import os\nos.abort()", "SIG"),
    ],
)
async def test_a_guest_that_dies_by_itself_crashed_and_it_says_how(client: Client, code: str, expected: str) -> None:
    run = await client.run(f"print('before', flush=True)\n{code}")

    assert run.code == "GUEST_CRASHED"
    assert expected in run.final["error"]["message"]
    assert run.text("stdout") == "before\n"


@pytest.mark.parametrize("kind", ["KeyboardInterrupt()", "GeneratorExit()", "SystemExit(3)", "BaseException('x')"])
async def test_exceptions_that_escape_except_exception_end_only_the_session(client: Client, kind: str) -> None:
    run = await client.run(f"raise {kind}")

    assert (run.code, run.final["error"]["name"]) == ("EXECUTION_ERROR", kind.partition("(")[0])


async def test_a_clean_exit_is_a_success_without_result(client: Client) -> None:
    run = await client.run("import sys\nprint('x')\nsys.exit()")

    assert (run.final["ok"], run.final["result"], run.text("stdout")) == (True, None, "x\n")


# Endings.


SPINS = {
    "a Python loop": "while True: pass",
    "a C loop": "sum(range(10**12))",
    "a sleep": "__import__('time').sleep(1000)",
    "an await": "await __import__('asyncio').sleep(1000)",
    "every signal blocked": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nsum(range(10**12))",
    "every signal ignored": """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass""",
    "exceptions caught": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "a thread and children": """
import os, threading
threading.Thread(target=lambda: sum(range(10**12))).start()
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        while True: pass
sum(range(10**12))""",
}


@pytest.mark.parametrize("spin", SPINS.values(), ids=SPINS)
async def test_the_deadline_ends_whatever_the_guest_does_and_leaves_nothing(client: Client, spin: str) -> None:
    name = new_name()
    run = await client.run(NAME_PROCESS.format(name=name) + spin, deadlineMs=300)

    assert run.code == "DEADLINE_EXCEEDED"
    assert run.of_type("deadline_exceeded")[0]["budgetMs"] == 300
    assert processes_named(name) == []


@pytest.mark.parametrize("spin", [SPINS["every signal blocked"], SPINS["a thread and children"]])
async def test_cancel_ends_whatever_the_guest_does_and_leaves_nothing(client: Client, spin: str) -> None:
    name = new_name()
    session = await client.start(NAME_PROCESS.format(name=name) + "print('up', flush=True)\n" + spin)
    await client.until_written(session, "up")
    assert processes_named(name)

    await client.send({"type": "cancel", "sessionId": session, "reason": "enough"})
    run = await client.finish(session)

    assert run.code == "SESSION_CANCELLED"
    assert "enough" in run.final["error"]["message"]
    assert processes_named(name) == []


async def test_a_child_that_outlives_the_result_dies_with_the_session(client: Client) -> None:
    name = new_name()
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
os.wait()
return 'done'
"""
    run = await client.run(NAME_PROCESS.format(name=name) + code)

    assert run.final["result"] == "done"
    wait_none_named(name)


async def test_a_thread_that_runs_on_after_the_result_does_not_hold_it_back(client: Client) -> None:
    run = await client.run(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\nreturn 1"
    )

    assert run.final["result"] == 1


async def test_heartbeats_say_that_a_silent_session_lives(client: Client) -> None:
    session = await client.start("await call_tool('wait')", heartbeatIntervalMs=20)
    call = await client.until(session, "tool_call")
    for _ in range(3):
        await client.until(session, "heartbeat")
    await client.answer(session, call["callId"], None)

    assert (await client.finish(session)).final["ok"]


async def test_the_statistics_are_the_kernels_and_the_workers(client: Client) -> None:
    run = await client.run(
        "x = bytearray(40 << 20)\nfor _ in range(10**6): pass\nprint('four')\nawait call_tool('t')", toolTimeoutMs=1
    )

    stats = run.final["stats"]
    assert stats["peakMemoryBytes"] > 40 << 20
    assert stats["cpuMs"] > 0
    assert (stats["toolCallCount"], stats["stdoutBytes"], stats["truncated"]) == (1, 5, False)


# Tools.


async def test_a_tools_result_reaches_the_guest(client: Client) -> None:
    session = await client.start("return await call_tool('add', {'a': 1, 'b': [2]})")
    call = await client.until(session, "tool_call")
    assert (call["toolName"], call["args"]) == ("add", {"a": 1, "b": [2]})
    await client.answer(session, call["callId"], {"sum": 3})
    run = await client.finish(session)

    assert run.final["result"] == {"sum": 3}
    assert run.of_type("tool_result_applied") == [{"callId": call["callId"]}]
    assert run.final["stats"]["toolCallCount"] == 1


async def test_both_spellings_and_both_ways_to_give_arguments_work(client: Client) -> None:
    session = await client.start("return [await callTool('a', x=1), await call_tool('b'), await call_tool('c', [1])]")
    seen = []
    for _ in range(3):
        call = await client.until(session, "tool_call")
        seen.append((call["toolName"], call["args"]))
        await client.answer(session, call["callId"], call["toolName"])
    run = await client.finish(session)

    assert seen == [("a", {"x": 1}), ("b", {}), ("c", [1])]
    assert run.final["result"] == ["a", "b", "c"]


async def test_gathered_calls_wait_together_and_may_be_answered_in_any_order(client: Client) -> None:
    session = await client.start("import asyncio\nreturn await asyncio.gather(*(call_tool('t', n) for n in range(5)))")
    calls = [await client.until(session, "tool_call") for _ in range(5)]
    for call in reversed(calls):
        await client.answer(session, call["callId"], call["args"] * 10)

    assert (await client.finish(session)).final["result"] == [0, 10, 20, 30, 40]


async def test_a_failed_tool_raises_and_its_code_ends_an_uncaught_session(client: Client) -> None:
    session = await client.start("await call_tool('t')")
    call = await client.until(session, "tool_call")
    error = {"message": "no such city", "code": "NOT_FOUND"}
    await client.send(
        {"type": "tool_result", "sessionId": session, "callId": call["callId"], "success": False, "error": error}
    )
    run = await client.finish(session)

    assert run.code == "NOT_FOUND"
    assert "no such city" in run.final["error"]["message"]


async def test_a_guest_may_catch_a_tools_failure(client: Client) -> None:
    session = await client.start(
        "try:\n    await call_tool('t')\nexcept ToolError as e:\n    return [e.code, e.message]"
    )
    call = await client.until(session, "tool_call")
    error = {"message": "no", "code": "NOPE"}
    await client.send(
        {"type": "tool_result", "sessionId": session, "callId": call["callId"], "success": False, "error": error}
    )

    assert (await client.finish(session)).final["result"] == ["NOPE", "no"]


async def test_a_tool_that_never_answers_times_out(client: Client) -> None:
    run = await client.run("await call_tool('slow')", toolTimeoutMs=30)

    assert run.code == "TOOL_TIMEOUT"
    assert "30 ms" in run.final["error"]["message"]
    assert run.final["error"]["retryable"] is True


async def test_one_call_too_many_fails_in_the_guest(client: Client) -> None:
    session = await client.start("return [await call_tool('t') for _ in range(3)]", maxToolCalls=2)
    for _ in range(2):
        call = await client.until(session, "tool_call")
        await client.answer(session, call["callId"], 1)
    run = await client.finish(session)

    assert run.code == "MAX_TOOL_CALLS_EXCEEDED"
    assert len(run.of_type("tool_call")) == 2


async def test_the_first_tool_error_ends_the_other_calls_when_asked_to(client: Client) -> None:
    code = """
import asyncio
failed = await asyncio.gather(call_tool('a'), call_tool('b'), return_exceptions=True)
return [error.code for error in failed]
"""
    session = await client.start(code, cancelOnFirstError=True)
    calls = [await client.until(session, "tool_call") for _ in range(2)]
    error = {"message": "no", "code": "NOPE"}
    await client.send(
        {"type": "tool_result", "sessionId": session, "callId": calls[0]["callId"], "success": False, "error": error}
    )

    assert (await client.finish(session)).final["result"] == ["NOPE", "NOPE"]


async def test_a_tool_result_above_its_limit_reaches_the_guest_as_an_error(client: Client) -> None:
    session = await client.start("await call_tool('t')", maxToolResultBytes=100)
    call = await client.until(session, "tool_call")
    await client.answer(session, call["callId"], "x" * 200)
    run = await client.finish(session)

    assert run.code == "RESULT_TOO_LARGE"
    assert "maxToolResultBytes" in run.final["error"]["message"]


async def test_a_tool_result_of_megabytes_arrives_whole(client: Client) -> None:
    session = await client.start("return len(await call_tool('t'))")
    call = await client.until(session, "tool_call")
    await client.answer(session, call["callId"], "x" * 4_000_000)

    assert (await client.finish(session)).final["result"] == 4_000_000


async def test_a_second_result_for_a_call_is_refused_and_the_session_goes_on(client: Client) -> None:
    session = await client.start("await call_tool('t')\nreturn await call_tool('u')")
    first = await client.until(session, "tool_call")
    await client.answer(session, first["callId"], 1)
    second = await client.until(session, "tool_call")
    again = {"type": "tool_result", "sessionId": session, "callId": first["callId"], "result": 2}

    refused = (await client.rejection(again))["payload"]
    await client.answer(session, second["callId"], "fine")

    assert (refused["field"], refused["allowed"]) == ("callId", "one result per call")
    assert (await client.finish(session)).final["result"] == "fine"


async def test_sessions_at_once_do_not_touch_each_other(client: Client, worker: RuntimeWorker) -> None:
    before = worker.get_stats().successful_executions
    sessions = [await client.start(f"print({n})\nreturn await call_tool('t', {n})") for n in range(16)]
    for session in sessions:
        while not (calls := [e for e in client.events(session) if e["type"] == "tool_call"]):
            await client.recv()
        await client.answer(session, calls[0]["payload"]["callId"], calls[0]["payload"]["args"])
    runs = [await client.finish(session) for session in sessions]

    assert [run.final["result"] for run in runs] == list(range(16))
    assert [run.text("stdout") for run in runs] == [f"{n}\n" for n in range(16)]
    assert worker.get_stats().successful_executions == before + 16


async def test_the_events_of_a_brokers_session_are_numbered_on_from_its_own(client: Client) -> None:
    execute = {"type": "execute", "sessionId": "s_x", "code": "print(1)", "firstSeq": 7, "queueMs": 12.5}
    await client.send(execute)
    run = await client.finish("s_x", first_seq=7)

    assert {event["type"] for event in run.events} == {"stdout", "final"}
    assert run.final["stats"]["queueMs"] == 12.5


async def test_a_session_without_an_id_is_given_one(client: Client) -> None:
    await client.send(json.dumps({"type": "execute", "code": "return 1"}))
    first = await client.recv()
    run = await client.finish(first["sessionId"])

    assert first["sessionId"].startswith("s_")
    assert first["payload"]["cancelUrl"] == f"/sessions/{first['sessionId']}/cancel"
    assert run.final["result"] == 1


async def test_concurrent_clients_each_see_only_their_own(worker: RuntimeWorker) -> None:
    async def one(number: int) -> None:
        async with client_of(worker.url) as client:
            runs = [await client.run(f"return [{number}, {turn}]") for turn in range(3)]
            assert [run.final["result"] for run in runs] == [[number, turn] for turn in range(3)]
            assert len(client.lines) == 3

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(one(number))


async def test_a_print_is_one_write_however_many_pieces_it_has(client: Client) -> None:
    run = await client.run("for i in range(200): print('a', i, 'b', sep='-')")

    chunks = [event["payload"]["chunk"] for event in run.events if event["type"] == "stdout"]
    assert all(chunk.endswith("\n") for chunk in chunks)
    assert "".join(chunks) == "".join(f"a-{i}-b\n" for i in range(200))
