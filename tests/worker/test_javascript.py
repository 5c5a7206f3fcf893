"""Guests in JavaScript on the real sandbox: what the code finds, what it returns, and how it fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from enclave_protocol import RemoteProtocolError
from enclave_protocol import events as ev
from enclave_worker.api import RuntimeConfig, create_runtime_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from enclave_worker.executions import ExecutionResult


async def add(a: float, b: float) -> float:
    return a + b


class Refused(Exception):  # noqa: N818 - the name is what is looked for
    code = "TEAPOT"


def refuse() -> None:
    raise Refused("no coffee")


TOOLS: dict[str, Any] = {"add": add, "refuse": refuse, "echo": lambda value: value}


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., ExecutionResult]]:
    """Run code on a worker of this process."""
    with create_runtime_worker(RuntimeConfig(pool_size=1, level="BEST")) as worker:

        def run(code: str, tools: dict[str, Any] | None = None, **options: Any) -> ExecutionResult:
            limits = {"deadlineMs": 50_000, **options.pop("limits", {})}
            options.setdefault("language", "javascript")
            return worker.execute_sync(None, code, limits, tools or TOOLS, **options)

        yield run


def result(done: ExecutionResult) -> Any:
    assert done.error is None, done.error
    return done.result


def failure(done: ExecutionResult) -> tuple[Any, ...]:
    assert done.error is not None, done.result
    return done.error.code, done.error.message, done.error.line


def logs(done: ExecutionResult) -> list[tuple[str, str]]:
    return [(event.payload.level, event.payload.message) for event in done.events if isinstance(event, ev.Log)]


# What the code returns.


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("return 1 + 1", 2),
        ("return null", None),
        (
            "return {a: [1, 'b', undefined], b: undefined, c: new Date(0)}",
            {"a": [1, "b", None], "c": "1970-01-01T00:00:00.000Z"},
        ),
        ("const f = async (x) => x * 2; return await f(21)", 42),
        ("return await Promise.all([1, Promise.resolve(2)])", [1, 2]),
        ("return typeof fetch + typeof require + typeof process", "undefined" * 3),
        ("#!/usr/bin/env node\nreturn 1 // no newline at the end", 1),
        ("return '\\ud83d' + 'ä\\0\\\\ud83d'", "\ufffdä\0\\ud83d"),
        ("return JSON.rawJSON('\"\\\\uD83D\"')", "\ufffd"),
    ],
)
def test_code_is_the_body_of_an_async_function_and_returns_json(
    run: Callable[..., ExecutionResult], code: str, expected: Any
) -> None:
    assert result(run(code)) == expected


def test_nothing_returned_is_no_result_and_null_is_one(run: Callable[..., ExecutionResult]) -> None:
    nothing, null = (run(code).events[-1] for code in ("1 + 1", "return null"))

    assert isinstance(nothing, ev.Final)
    assert isinstance(null, ev.Final)
    assert (nothing.payload.ok, null.payload.ok) == (True, True)
    assert not isinstance(null.payload.result, type(nothing.payload.result))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("return () => 1", "a function is not JSON"),
        ("return 10n", "BigInt"),
        ("const a = []; a[0] = a; return a", "circular"),
        ("const o = {toJSON: () => JSON.stringify(o)}; return o", "nested too deeply"),
        ("let a = []; for (let i = 0; i < 3000; i++) a = [a]; return a", "nested too deeply"),
        ("return {toJSON() { throw new Error('not me') }}", "not me"),
    ],
)
def test_a_result_that_is_not_json_says_why(run: Callable[..., ExecutionResult], code: str, said: str) -> None:
    code_, message, _ = failure(run(code))

    assert code_ == "RESULT_NOT_SERIALIZABLE"
    assert said in message


def test_a_result_that_is_too_large_is_refused(run: Callable[..., ExecutionResult]) -> None:
    code, message, _ = failure(run("return 'x'.repeat(2000)", limits={"maxResultBytes": 1000}))

    assert code == "RESULT_TOO_LARGE"
    assert "2002" in message


# What it prints.


def test_log_goes_to_stdout_and_the_other_levels_to_log_events(run: Callable[..., ExecutionResult]) -> None:
    done = run(
        "console.log('a', 1); console.debug('d'); console.info('i'); console.warn('w'); console.error('e', {x: 1})"
    )

    assert (done.stdout, done.stderr) == ("a 1\n", "")
    assert logs(done) == [("debug", "d"), ("info", "i"), ("warn", "w"), ("error", "e {x: 1}")]


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("'a', 'ä\\0', '\\ud83d'", "a ä\0 \ufffd"),
        ("[1, 'b', {c: [{d: {e: {f: {g: 1}}}}]}]", '[1, "b", {c: [{d: {e: {f: [Object]}}}]}]'),
        ("undefined, null, NaN, 10n, Symbol('s')", "undefined null NaN 10n Symbol(s)"),
        ("new Map([[1, 'a']]), new Set([1, 2])", 'Map(1) {1 => "a"} Set(2) {1, 2}'),
        ("new (class Point { x = 1 }), () => 1, function f() {}", "Point {x: 1} [Function: (anonymous)] [Function: f]"),
        ("new Uint8Array([1, 2]), new Date(0), /a/g", "Uint8Array(2) [1, 2] 1970-01-01T00:00:00.000Z /a/g"),
        ("(() => { const a = [1]; a.push(a); return a })()", "[1, [Circular]]"),
        ("Array.from({length: 102}, () => 0)", f"[{', '.join('0' * 100)}, … 2 more]"),
        ("new TypeError('bad')", "TypeError: bad\n    at main (main.js:1:17)"),
    ],
)
def test_values_are_shown_as_people_write_them(
    run: Callable[..., ExecutionResult], expression: str, shown: str
) -> None:
    assert run(f"console.log({expression})").stdout.rstrip("\n") == shown


def test_output_is_cut_at_its_cap_and_so_are_log_messages(run: Callable[..., ExecutionResult]) -> None:
    code = "for (let i = 0; i < 1000; i++) { console.log('x'.repeat(99)); console.warn('y'.repeat(99)) }"
    done = run(code, limits={"maxStdoutBytes": 5000})

    assert len(done.stdout) == 5000
    told = logs(done)
    assert 10 < len(told) < 60
    assert sum("are cut" in message for _, message in told) == 1
    assert done.stats.truncated


# Tools.


def test_tools_are_called_with_arguments_and_results_of_any_json(run: Callable[..., ExecutionResult]) -> None:
    value = {"deep": [None, True, 1.5, "ä\0\ud7ff", {"__proto__": 1}]}
    done = run("return await callTool('echo', {value: JSON.parse(env.VALUE)})", env={"VALUE": '{"a": [1, "ä"]}'})

    assert result(done) == {"a": [1, "ä"]}
    assert result(run("return await callTool('give')", {"give": lambda: value})) == value
    assert result(run("return await callTool('add', {a: 1, b: 2})")) == 3


def test_many_calls_wait_at_once_and_each_gets_its_own_answer(run: Callable[..., ExecutionResult]) -> None:
    code = "return await Promise.all(Array.from({length: 40}, (_, i) => callTool('add', {a: i, b: 0.5})))"

    assert result(run(code)) == [i + 0.5 for i in range(40)]


@pytest.mark.parametrize(
    "call",
    [
        "parallel([1, 2, 3], async (item, index) => (await callTool('add', {a: item, b: index})))",
        "parallel([() => callTool('add', {a: 1, b: 0}), async () => 3, () => 5])",
        "parallel([1, 2, 3], (item, index) => item + index, {maxConcurrency: 1})",
    ],
)
def test_parallel_maps_items_and_runs_functions(run: Callable[..., ExecutionResult], call: str) -> None:
    assert result(run(f"return await {call}")) == [1, 3, 5]


def test_parallel_has_no_more_at_once_than_it_is_told(run: Callable[..., ExecutionResult]) -> None:
    code = """
let now = 0, most = 0;
await parallel(Array.from({length: 20}), async () => {
  most = Math.max(most, ++now);
  await callTool('echo', {value: 1});
  now--;
}, {maxConcurrency: 3});
return most;
"""
    assert result(run(code)) == 3


def test_a_tools_error_has_its_code_and_the_line_of_the_call(run: Callable[..., ExecutionResult]) -> None:
    code = """
try {
  await callTool('refuse');
} catch (e) {
  console.log(e instanceof ToolError, e instanceof Error, e.name, e.code, e.message);
}
const inner = () => callTool('refuse');
await inner();
"""
    done = run(code)

    assert done.stdout == "true true ToolError TEAPOT Refused: no coffee\n"
    assert failure(done) == ("TEAPOT", "ToolError: Refused: no coffee", 7)
    assert done.error is not None
    assert "at inner (main.js:7:" in str(done.error.stack)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("callTool()", "must be a string"),
        ("callTool('x'.repeat(300))", "at most 256"),
        ("callTool('\\ud83d')", "each of them whole"),
        ("callTool('echo', () => 1)", "not JSON"),
        ("callTool('echo', {value: 10n})", "BigInt"),
        ("parallel(7, x => x)", "must be an array"),
        ("parallel([1], x => x, {maxConcurrency: 0})", "maxConcurrency"),
    ],
)
def test_a_call_that_cannot_be_made_is_the_codes_own_error(
    run: Callable[..., ExecutionResult], call: str, said: str
) -> None:
    code, message, line = failure(run(f"\nawait {call}"))

    assert (code, line) == ("EXECUTION_ERROR", 2)
    assert said in message


# Waiting.


def test_timers_strike_in_their_order_and_not_before_their_time(run: Callable[..., ExecutionResult]) -> None:
    code = """
const seen = [], started = performance.now();
setTimeout((...all) => seen.push(...all), 20, 'second', 'with arguments');
setTimeout(() => seen.push('first'));
clearTimeout(setTimeout(() => seen.push('never'), 1));
const every = setInterval(() => seen.push('again') >= 7 && clearInterval(every), 5);
await new Promise(resolve => setTimeout(resolve, 60));
return [seen, performance.now() - started >= 59];
"""
    seen, waited = result(run(code))
    assert waited
    assert seen[0] == "first"
    assert {"second", "with arguments", "again"} < set(seen)
    assert "never" not in seen


def test_a_timer_runs_while_a_tool_is_waited_for(run: Callable[..., ExecutionResult]) -> None:
    async def slow() -> str:
        await asyncio.wait_for(struck.wait(), 60)
        return "slow"

    async def strike() -> None:
        struck.set()

    struck = asyncio.Event()
    code = "setTimeout(() => callTool('strike'), 5); return await callTool('slow')"
    assert result(run(code, {"slow": slow, "strike": strike})) == "slow"


def test_code_that_waits_for_what_can_never_come_ends_at_once_and_says_so(run: Callable[..., ExecutionResult]) -> None:
    code, message, _ = failure(run("await new Promise(() => {})"))

    assert code == "EXECUTION_ERROR"
    assert "nothing is left to settle" in message


# Failures.


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("null.x", ("EXECUTION_ERROR", "TypeError: cannot read property 'x' of null", 1)),
        ("\n\nfunction f() {\n  missing()\n}\nf()", ("EXECUTION_ERROR", "ReferenceError: missing is not defined", 4)),
        ("class Mine extends Error {}\nthrow new Mine('own')", ("EXECUTION_ERROR", "Mine: own", 2)),
        ("await null\n\nthrow new RangeError('late')", ("EXECUTION_ERROR", "RangeError: late", 3)),
        (
            "setTimeout(() => {\n  throw new Error('timer') }); await new Promise(() => {})",
            ("EXECUTION_ERROR", "Error: timer", 2),
        ),
        (
            "queueMicrotask(() => {\n  throw new Error('job') }); await new Promise(() => {})",
            ("EXECUTION_ERROR", "Error: job", 2),
        ),
    ],
)
def test_an_exception_comes_with_type_message_and_line(
    run: Callable[..., ExecutionResult], code: str, expected: tuple[Any, ...]
) -> None:
    assert failure(run(code)) == expected


def test_a_stack_shows_the_codes_own_frames_and_no_others(run: Callable[..., ExecutionResult]) -> None:
    done = run("const f = (x) => { throw new Error('deep') };\nreturn await parallel([1], (x) => [x].map(f))")

    assert done.error is not None
    assert done.error.stack == (
        "Error: deep\n"
        "    at f (main.js:1:30)\n"
        "    at map (native)\n"
        "    at <anonymous> (main.js:2:43)\n"
        "    at main (main.js:2:14)\n"
    )


@pytest.mark.parametrize(
    ("thrown", "message"),
    [
        ("'text'", '"text"'),
        ("{a: 1}", "{a: 1}"),
        ("null", "null"),
        ("new Proxy({}, {getPrototypeOf() { throw 1 }})", "cannot be looked at"),
    ],
)
def test_whatever_is_thrown_is_told(run: Callable[..., ExecutionResult], thrown: str, message: str) -> None:
    code, told, _ = failure(run(f"throw {thrown}"))

    assert code == "EXECUTION_ERROR"
    assert message in told


@pytest.mark.parametrize(
    ("code", "line", "said"),
    [
        ("let x = ;", 1, "unexpected token"),
        ("x = 1\n\nlet y = = 2", 3, "unexpected token"),
        ("if (true) {", 1, "a bracket is missing"),
        ("f()\n}", 2, "one too many"),
        ("`", 1, "end of string"),
        ("import fs from 'fs'", 1, "fs"),
        ("return 1\nexport default 2", 2, "export"),
        ("}}))(0).main; globalThis.evil = 1; ((x) => ({main: async () => {", None, "closes the function"),
        ("(" * 200_000, None, "nested too deeply"),
        ("return '\0'", None, "NUL"),
    ],
)
def test_a_syntax_error_names_its_line(
    run: Callable[..., ExecutionResult], code: str, line: int | None, said: str
) -> None:
    done = run(code)

    assert done.error is not None, done.result
    assert (done.error.code, done.error.line or None) == ("SYNTAX_ERROR", line)
    assert said in done.error.message


def test_a_module_cannot_be_imported(run: Callable[..., ExecutionResult]) -> None:
    code, message, _ = failure(run("await import('/etc/passwd')"))

    assert code == "EXECUTION_ERROR"
    assert "could not load module" in message


# What a session brings along.


def test_variables_and_files_are_objects_and_the_time_zone_holds(run: Callable[..., ExecutionResult]) -> None:
    code = "return [env.A, files['a.txt'], Array.from(files['b/c.bin']), new Date(0).getHours()]"
    done = run(code, env={"A": "ä=1", "TZ": "Asia/Tokyo"}, files={"a.txt": "ä\n", "b/c.bin": b"\xff\0"})

    assert result(done) == ["ä=1", "ä\n", [255, 0], 9]


def test_every_sandbox_has_random_numbers_of_its_own(run: Callable[..., ExecutionResult]) -> None:
    drawn = [result(run("return Array.from({length: 4}, Math.random)")) for _ in range(4)]

    assert len({number for numbers in drawn for number in numbers}) == 16
    assert all(0 <= number < 1 for numbers in drawn for number in numbers)


def test_random_numbers_are_spread_evenly(run: Callable[..., ExecutionResult]) -> None:
    code = "const c = Array(10).fill(0); for (let i = 0; i < 20000; i++) c[Math.floor(Math.random() * 10)]++; return c"

    assert all(1700 < count < 2300 for count in result(run(code)))


def test_a_language_that_is_not_offered_is_refused_by_name(run: Callable[..., ExecutionResult]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        run("return 1", language="cobol")

    assert (caught.value.field, caught.value.allowed) == ("language", "python, javascript, shell")


# Limits: the sandbox is what Python's is, so here only what the engine adds.


def test_memory_that_is_used_up_is_told_with_the_line_and_can_be_caught(run: Callable[..., ExecutionResult]) -> None:
    hoard = "const a = []\nfor (;;) a.push(new Array(10000).fill(1))"
    limits = {"memoryLimitBytes": 100 << 20}

    assert failure(run(hoard, limits=limits)) == ("MEMORY_LIMIT_EXCEEDED", "InternalError: out of memory", 2)
    assert result(run(f"try {{ {hoard} }} catch (e) {{ return e.message }}", limits=limits)) == "out of memory"


def test_recursion_goes_deep_and_too_deep_is_an_exception(run: Callable[..., ExecutionResult]) -> None:
    deep = "let n = 0; const f = () => { n++; f() }; try { f() } catch (e) { return [e.name, n > 10000] }"

    assert result(run(deep)) == ["RangeError", True]
    assert failure(run("const f = () => f()\nf()"))[:2] == (
        "EXECUTION_ERROR",
        "RangeError: Maximum call stack size exceeded",
    )
