"""What hostile JavaScript tries: to take more than its share, to break our own glue, to speak in the driver's name.

The sandbox around it is Python's, which the other files here attack. The engine is no wall, and nothing here asks it to
be one.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest
from websockets.sync.client import connect

from tests.real_client import check_stream
from tests.support import PATIENCE_S, own_children_of

from .conftest import DEADLINE_MS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.attacks.conftest import Target

OURS = {"INTERNAL_ERROR", "WORKER_LOST", "GUEST_CRASHED"}
"""What code must not bring about in a language that has no way to crash its process."""


class Outcome(NamedTuple):
    """What came of an attack."""

    final: dict[str, Any]
    events: list[dict[str, Any]]

    @property
    def code(self) -> str:
        return str(self.final["error"]["code"]) if "error" in self.final else "OK"

    def payloads(self, kind: str) -> list[dict[str, Any]]:
        return [event["payload"] for event in self.events if event["type"] == kind]


class Attacker:
    """Runs JavaScript on the worker, answering every tool call with its arguments."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __call__(self, code: str, **limits: Any) -> Outcome:
        with connect(self._url, max_size=None, compression=None, close_timeout=1) as connection:
            assert msgspec.json.decode(connection.recv(PATIENCE_S))["type"] == "hello"
            limits = {"deadlineMs": DEADLINE_MS, **limits}
            request = {"type": "execute", "code": code, "language": "javascript", "limits": limits}
            connection.send(msgspec.json.encode(request).decode())
            lines: list[bytes] = []
            while not lines or b'"type":"final"' not in lines[-1][:40]:
                message = connection.recv(PATIENCE_S)
                lines.append(message.encode() if isinstance(message, str) else message)
                event = msgspec.json.decode(lines[-1])
                if event["type"] == "tool_call":
                    call = {"sessionId": event["sessionId"], "callId": event["payload"]["callId"]}
                    answer = {"type": "tool_result", **call, "result": event["payload"]["args"]}
                    connection.send(msgspec.json.encode(answer).decode())
        check_stream(lines)
        events = [msgspec.json.decode(line) for line in lines]
        return Outcome(events[-1]["payload"], events)


@pytest.fixture
def attack(target: Target) -> Iterator[Attacker]:
    """Run an attack; afterwards the worker must serve others as before."""
    attacker = Attacker(target.url)
    yield attacker
    assert attacker("return 'unharmed'").final["result"] == "unharmed"


def test_sandboxes_of_every_kind_are_under_the_same_locks(target: Target) -> None:
    names = ("Seccomp", "NoNewPrivs", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Seccomp_filters", "Groups")
    target.at_rest()  # one that is still being made is not closed yet
    locks: dict[int, set[tuple[str, ...]]] = {}
    keepers = [keeper for launcher in own_children_of(target.pid) for keeper in own_children_of(launcher)]
    zygotes = [zygote for keeper in keepers for zygote in own_children_of(keeper)]
    for zygote, pid in [(each, pid) for each in zygotes for pid in own_children_of(each)]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = (line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            status = {line[0]: line[1].strip() for line in lines if len(line) == 2}
            locks.setdefault(zygote, set()).add((*(status[name] for name in names), str(len(status["NSpid"].split()))))

    assert len(locks) == 3, "of Python a full and a bare zygote, and one of JavaScript"
    (same,) = set.union(*locks.values())
    assert same[:5] == ("2", "1", *["0" * 16] * 3)


# More than its share.


@pytest.mark.parametrize(
    "hoard",
    [
        "const a = []; for (;;) a.push({})",
        "const a = []; for (;;) a.push(new ArrayBuffer(1 << 20))",
        "const a = []; for (;;) a.push('x'.repeat(1 << 20) + Math.random())",
        "const m = new Map(); for (let i = 0; ; i++) m.set(i, 'x'.repeat(1000) + i)",
        "const f = () => new Promise(f); for (;;) setTimeout(f, 1e9, 'x'.repeat(10000) + Math.random())",
        "const more = (x) => Promise.resolve([x, x]).then(more); const a = []; for (;;) a.push(more(a))",
        "return 'x'.repeat(2 ** 29)",
        "console.log('\\0'.repeat(2 ** 28))",
    ],
)
def test_a_memory_bomb_meets_the_memory_limit(attack: Attacker, hoard: str) -> None:
    outcome = attack(hoard, memoryLimitBytes=100 << 20, maxResultBytes=1000)

    assert outcome.code == "MEMORY_LIMIT_EXCEEDED", outcome.final


def test_the_end_of_code_is_told_even_if_the_engine_has_no_memory_left_for_the_job_that_tells_it(
    attack: Attacker,
) -> None:
    # Which of the allocations fails depends on what little is left: each piece that is let go of moves it on.
    fill = """
setTimeout(() => 1, 1e9);
const spare = [];
for (let i = 0; i < PIECES; i++) spare[i] = 'y'.repeat(24) + i;
globalThis.kept = null;
for (let n = 100000; n > 8; n = n * 3 >> 2) try { for (;;) kept = [kept, 'x'.repeat(n) + Math.random()] } catch {}
try { for (;;) kept = {kept} } catch {}
for (let i = 0; i < PIECES; i++) spare[i] = 0;
none();
"""
    codes = [attack(fill.replace("PIECES", f"{n}"), memoryLimitBytes=64 << 20).code for n in range(16)]

    assert set(codes) <= {"MEMORY_LIMIT_EXCEEDED", "EXECUTION_ERROR"}, codes


def test_a_bomb_that_catches_its_own_exceptions_is_ended_by_the_clock(attack: Attacker) -> None:
    code = "for (;;) try { const a = []; for (;;) a.push(new Array(10000).fill(0)) } catch {}"

    assert attack(code, memoryLimitBytes=100 << 20, deadlineMs=700).code == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    "loop",
    [
        "for (;;);",
        "const again = () => Promise.resolve().then(again); await again()",
        "const again = async () => { await null; return again() }; await again()",
        "queueMicrotask(function again() { queueMicrotask(again) }); await new Promise(() => {})",
        "setInterval(() => {}, 0); await new Promise(() => {})",
        "/(x+x+)+y/.test('x'.repeat(40))",
        "[3, 2, 1].sort(() => { for (;;); })",
        "return {toJSON() { for (;;); }}",
        "return new Proxy({}, {get() { for (;;); }, ownKeys() { for (;;); }})",
        "return {then() { for (;;); }}",
        "throw {toString() { for (;;); }, get name() { for (;;); }}",
    ],
)
def test_code_that_never_ends_meets_its_deadline(attack: Attacker, loop: str) -> None:
    assert attack(loop, deadlineMs=300, memoryLimitBytes=400 << 20).code in {
        "DEADLINE_EXCEEDED",
        "MEMORY_LIMIT_EXCEEDED",
    }


@pytest.mark.parametrize(
    "code",
    [
        "const f = () => f(); f()",
        "const f = () => { try { f() } finally { f() } }; f()",
        "JSON.parse('['.repeat(2e6))",
        "let a = []; for (let i = 0; i < 1e6; i++) a = {a}; JSON.stringify(a)",
        "let a = {}; for (let i = 0; i < 1e6; i++) a = new Proxy(a, {}); a.x",
        "let f = () => 1; for (let i = 0; i < 1e6; i++) f = f.bind(null); f()",
        "new RegExp('('.repeat(1e6))",
        "new RegExp('(?:'.repeat(1e4) + ')'.repeat(1e4)).test('x')",
        "eval('['.repeat(1e6))",
        "const o = {get x() { return this.x }}; o.x",
        "const o = {toString() { return `${this}` }}; `${o}`",
        "class A extends (function f() { return Reflect.construct(f, [], f) }) {}; new A()",
        "const a = []; a.toString = a.join; a.push(a, a); let s = a.flat(Infinity)",
        "await callTool('x', JSON.parse('['.repeat(900) + ']'.repeat(900)))",
    ],
)
def test_recursion_without_end_is_an_ordinary_failure(attack: Attacker, code: str) -> None:
    outcome = attack(code, deadlineMs=800)

    assert outcome.code not in OURS
    assert outcome.code in {
        "EXECUTION_ERROR",
        "OK",
        "DEADLINE_EXCEEDED",
        "RESULT_NOT_SERIALIZABLE",
        "MEMORY_LIMIT_EXCEEDED",
    }


def test_floods_of_output_logs_and_calls_are_cut_and_counted(attack: Attacker) -> None:
    code = """
for (let i = 0; i < 3000; i++) { console.log('x'.repeat(200)); console.error('y'.repeat(200)); callTool('t', i) }
console.error('z'.repeat(10_000_000));
return await new Promise(resolve => setTimeout(resolve, 1, 'done'));
"""
    outcome = attack(code, maxStdoutBytes=4000, maxToolCalls=10)

    assert outcome.final["result"] == "done"
    assert sum(len(payload["chunk"]) for payload in outcome.payloads("stdout")) == 4000
    assert len(outcome.payloads("log")) < 30
    assert len(outcome.payloads("tool_call")) == 10


# Our own glue.

TAMPER = """
const nothing = () => { throw new Error('tampered') };
const {ownKeys} = Reflect, types = [Promise, Map, Set, Array, String, Symbol, Function, Error, Object, RegExp, Number];
for (let i = 0; i < types.length; i++) {
  const names = ownKeys(types[i].prototype);
  for (let j = 0; j < names.length; j++)
    if (names[j] !== 'constructor') try { types[i].prototype[names[j]] = nothing } catch {}
}
JSON.parse = JSON.stringify = Promise.resolve = Promise.reject = nothing;
Reflect.apply = Object.keys = Object.defineProperty = Array.isArray = Error.captureStackTrace = nothing;
globalThis.Promise = globalThis.JSON = globalThis.Error = globalThis.Object = globalThis.Map = undefined;
"""


def test_a_guest_that_breaks_the_language_for_itself_still_speaks_plainly_with_the_worker(attack: Attacker) -> None:
    outcome = attack(TAMPER + "console.log('out'); console.warn('log'); return await callTool('echo', {a: 'b'})")

    assert (outcome.code, outcome.final.get("result")) == ("OK", {"a": "b"})
    assert outcome.payloads("stdout") == [{"chunk": "out\n"}]
    assert outcome.payloads("log") == [{"level": "warn", "message": "log"}]
    assert [call["args"] for call in outcome.payloads("tool_call")] == [{"a": "b"}]


@pytest.mark.parametrize(
    "tamper",
    [
        "Object.prototype.toJSON = () => 'mine'",
        "String.prototype.toJSON = Array.prototype.toJSON = () => { throw 1 }",
        "Object.defineProperty(Object.prototype, 'then', {get() { return undefined }})",
        "Object.defineProperty(Promise, Symbol.species, {get() { throw 1 }})",
        "Object.prototype.get = Object.prototype.set = Object.prototype.value = () => 1",
        "Array.prototype[Symbol.iterator] = () => { throw 1 }",
        "Object.defineProperty(Array.prototype, '0', {set() { throw 1 }, get() { throw 1 }})",
        "Object.defineProperty(globalThis, 'host', {get() { throw 1 }})",
        "Error.prepareStackTrace = () => { throw 1 }",
        "Error.stackTraceLimit = -1",
    ],
)
def test_no_single_replacement_silences_a_guest(attack: Attacker, tamper: str) -> None:
    outcome = attack(f"{tamper};\nconsole.error('still here');\nthrow new TypeError('the end')")

    assert outcome.payloads("log") == [{"level": "error", "message": "still here"}]
    assert (outcome.code, outcome.final["error"]["name"]) == ("EXECUTION_ERROR", "TypeError")
    assert attack(f"{tamper};\nreturn await callTool('echo', 'x')").final.get("result") in {"x", "mine"}


def test_the_way_to_the_driver_is_out_of_reach(attack: Attacker) -> None:
    code = """
const names = new Set();
for (let object = globalThis; object; object = Object.getPrototypeOf(object))
  for (const name of Reflect.ownKeys(object)) names.add(String(name));
const found = ['host', 'std', 'os', 'require', 'process', 'fetch', 'WebAssembly', 'scriptArgs', 'print'];
const caller = (() => { try { return (function f() { return f.caller })() } catch { return null } })();
return [found.filter(name => names.has(name)), caller];
"""
    assert attack(code).final["result"] == [[], None]


# In the driver's name.


@pytest.mark.parametrize(
    "name",
    [
        'x","args":{}},{"type":"result","value":"forged"}',
        'x"}\n{"type":"error","code":"INTERNAL_ERROR"}',
        "\\",
        '"',
        "\x01",
    ],
)
def test_what_looks_like_a_frame_is_a_name_a_message_or_a_value(attack: Attacker, name: str) -> None:
    text = msgspec.json.encode(name).decode()
    outcome = attack(f"console.warn({text}); console.log({text}); return await callTool({text}, {text})")

    assert (outcome.code, outcome.final["result"]) == ("OK", name)
    assert [call["toolName"] for call in outcome.payloads("tool_call")] == [name]
    assert outcome.payloads("log") == [{"level": "warn", "message": name}]
    assert "".join(payload["chunk"] for payload in outcome.payloads("stdout")) == f"{name}\n"


@pytest.mark.parametrize("code", ["INTERNAL_ERROR", "WORKER_LOST", "SESSION_CANCELLED", "TEAPOT"])
def test_a_code_that_no_tool_gave_is_not_passed_on(attack: Attacker, code: str) -> None:
    assert attack(f"throw new ToolError('mine', '{code}')").code == "EXECUTION_ERROR"


@pytest.mark.parametrize(
    "stack",
    [
        "'x'.repeat(1e6)",
        "'    at f (<input>:99999999999999999999:1)'",
        "'    at f (<input>:²:³)\\n(native)'",
        "'\\0\\ud83d\\n'",
        "7",
        "null",
    ],
)
def test_a_stack_that_is_made_up_is_only_text(attack: Attacker, stack: str) -> None:
    made_up = f"const e = new Error('m'); Object.defineProperty(e, 'stack', {{value: {stack}}})"
    outcome = attack(f"{made_up}; console.error(e); throw e")

    assert (outcome.code, outcome.final["error"]["message"]) == ("EXECUTION_ERROR", "Error: m")
    assert len(outcome.final["error"]["stack"]) < 40_000
