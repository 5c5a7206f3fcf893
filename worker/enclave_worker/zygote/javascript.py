"""Guests in JavaScript, run by QuickJS inside this process.

Theory of operation. The zygote makes one context with `javascript.js` in it, and every sandbox has a copy of both: what
it costs to compile is paid once. The engine is no wall. The sandbox is the one that guests in Python have, who may run
machine code: whoever breaks out of QuickJS is where they begin.

The code becomes the body of an async arrow function, on the line where it begins, so that every line keeps its number.
It is text between text; behind it stands a name that only the text before it declares, and that nobody can guess, so
code that closes the function early and opens another is told so and never taken for a body.

One thread does everything. JavaScript calls `_host`, which is told strings and numbers and never calls back; between
two looks at the socket all jobs are run. There is no interrupt handler: an endless loop is the worker's to end.

The engine says nothing when it lacks memory for a job, which may be the one that tells how the code ended. So where
memory was short, the code's promise is asked again, with room for its answer, before anything is waited for.

The library makes a Python string of a JavaScript one up to its first NUL, and of a half character none. So text comes
as JSON, and in JSON half characters are written out, to be replaced here: other programs take no such text.
"""

from __future__ import annotations

import os
import resource
import time

from . import driver, frames, preload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from .frames import Message

LANGUAGE = "javascript"
FILENAME = "main.js"
MODULE = "_quickjs"
"""What a zygote has to preload: the library without its helpers, which would start a thread."""
MAX_LOG_CHARS = 65536

_STACK_BYTES = 24 << 20
"""Of JavaScript's frames: some 14,000 calls of a small function, as with others."""
_SPARE_STACK_BYTES = 8 << 20
_SPARE_BYTES = 24 << 20
"""Of the sandbox's memory what is not for JavaScript's values: the interpreter's own, and copies on their way out."""
_ROOM_BYTES = 8 << 20
"""Of that, what telling of a failure may use."""
_FIRST_LINE = 1 << 20
"""Where `javascript.js` begins: no code has so many lines, so a frame's line tells whose it is."""
_HEAD = "(({key}) => ({{main: async () => {{"
_TAIL = "\n}}, key: {key}}}))(0).main"
_KEY_CHARS = 17
_HEAD_CHARS = len(_HEAD.format(key="_" * _KEY_CHARS))
_SOURCE = "<input>:"
_OUT_OF_MEMORY = ("InternalError", "out of memory")
_UNTOLD = ("InternalError", "")
"""The same, without memory for the message."""
_ASK_S = 1.0
"""Where memory was short: between two times that the code's promise is asked, which each cost a little of it."""

with open(os.path.join(os.path.dirname(__file__), "javascript.js")) as _file:  # while the host's files are there
    _PRELUDE = _file.read()


class Guest:
    """A context, and what its code waits for."""

    def __init__(self) -> None:
        import _quickjs  # type: ignore[import-not-found]  # noqa: PLC0415 - preloaded; it has no stubs

        self._error = _quickjs.JSException
        self._context = _quickjs.Context()
        self._context.add_callable("host", self._host)
        self._ask = self._context.eval("\n" * _FIRST_LINE + _PRELUDE)
        self._worker: driver.Worker | None = None
        self._outcome: bytes | None = None
        self._lines = 0
        self._max_result_bytes = 0
        self._memory_bytes = 0
        self._calls = 0
        self._timers: dict[int, float] = {}
        self._asked_s = 0.0
        self._deeds: dict[str, Callable[..., object]] = {
            "out": self._out,
            "log": self._log,
            "stack": lambda text: _mended(_text(text))[0],
            "call": self._call,
            "timer": self._set_timer,
            "clear": lambda number: self._timers.pop(number, None),
            "room": self._make_room,
            "returned": self._returned,
            "failed": self._failed,
            "lost": self._lost,
        }

    def settle_in(self) -> None:
        """Take what is this sandbox's own: random numbers, and as much stack as its limits have."""
        words = [int.from_bytes(os.urandom(4), "little", signed=True) for _ in range(4)]
        self._ask("seed", str(words))
        _, hard_bytes = resource.getrlimit(resource.RLIMIT_STACK)
        wanted_bytes = _STACK_BYTES + _SPARE_STACK_BYTES
        soft_bytes = wanted_bytes if hard_bytes == resource.RLIM_INFINITY else min(wanted_bytes, hard_bytes)
        resource.setrlimit(resource.RLIMIT_STACK, (soft_bytes, hard_bytes))
        self._context.set_max_stack_size(soft_bytes - min(_SPARE_STACK_BYTES, soft_bytes // 2))

    def run(self, worker: driver.Worker, request: Message) -> bytes:
        """Run code to its end; return the frame that tells how it ended."""
        self._worker, self._outcome, self._max_result_bytes = worker, None, request["maxResultBytes"]
        self._memory_bytes = max(request["memoryBytes"] - _SPARE_BYTES, _SPARE_BYTES)
        self._context.set_memory_limit(self._memory_bytes)
        try:
            driver.limit_address_space(request)
            self._give(request)
            self._ask("run", self._compile(request["code"]))
            self._ask_for_end()
            return self._run()
        except _NotCompiled as failure:
            return failure.frame
        except MemoryError:
            return driver.error("MEMORY_LIMIT_EXCEEDED", "out of memory")
        except self._error as error:
            return _thrown(str(error), self._lines)

    def _give(self, request: Message) -> None:
        env = request.get("env") or {}
        driver.set_environment(env)
        self._ask("give", frames.encode({"env": os.environ | env, "files": request.get("files") or {}}).decode())

    def _compile(self, code: str) -> Any:
        self._lines = code.count("\n") + 1
        if code.startswith("#!"):  # how scripts begin: no line of JavaScript's
            code = f"//{code[2:]}"
        key = f"_{os.urandom(_KEY_CHARS // 2).hex()}"
        try:
            return self._context.eval(_HEAD.format(key=key) + code + _TAIL.format(key=key))
        except ValueError:
            raise _NotCompiled(driver.error("SYNTAX_ERROR", "there is a NUL character in the code")) from None
        except self._error as error:
            raise _NotCompiled(_not_compiled(str(error), self._lines)) from None

    def _run(self) -> bytes:
        asked = False
        while True:
            while self._outcome is None and self._context.execute_pending_job():
                asked = False
            if self._outcome is not None:
                return self._outcome
            idle = not self._calls and not self._timers
            doubtful = not asked and self._was_full()
            rest_s = self._asked_s + _ASK_S - time.monotonic()
            if doubtful and (idle or rest_s <= 0):
                self._ask_for_end()
                asked = True
            elif idle:
                message = "the code awaits a promise that nothing is left to settle"
                return driver.error("EXECUTION_ERROR", message, name="Error")
            else:
                self._wait(rest_s if doubtful else None)
                asked = False

    def _ask_for_end(self) -> None:
        """Have the code's end told, now or when it comes."""
        self._context.set_memory_limit(self._memory_bytes + _ROOM_BYTES)
        self._ask("end")
        self._context.set_memory_limit(self._memory_bytes)
        self._asked_s = time.monotonic()

    def _wait(self, longest_s: float | None) -> None:
        """Wait for a tool's answer or a timer, and tell the code; or for so long."""
        assert self._worker is not None, "set by `run`"
        first, at_s = min(self._timers.items(), key=lambda timer: timer[1], default=(0, 0.0))
        timeout_s = max(0.0, at_s - time.monotonic()) if self._timers else None
        too_long = longest_s is not None and (timeout_s is None or timeout_s > longest_s)
        answer = self._worker.receive(longest_s if too_long else timeout_s)
        if answer is not None:
            self._calls -= 1
            self._ask("answer", answer.decode())
        elif not too_long:
            del self._timers[first]
            self._ask("strike", first)

    # What JavaScript asks for. Raises nothing: the library has no way for it.

    def _host(self, deed: str, *arguments: object) -> object:
        try:
            return self._deeds[deed](*arguments)
        except MemoryError:
            self._lost()
            return None
        except BaseException:  # noqa: BLE001 - a bug of ours must not become a guest's riddle
            os._exit(70)

    def _out(self, text: str) -> None:
        data = _text(text).encode() + b"\n"
        while data:
            data = data[os.write(1, data) :]

    def _log(self, level: str, text: str) -> None:
        assert self._worker is not None, "set by `run`"
        message = driver.cut(_text(text), MAX_LOG_CHARS)
        self._worker.send(frames.encode({"type": "log", "level": level, "message": message}))

    def _call(self, number: int, name: str, args: str) -> None:
        assert self._worker is not None, "set by `run`"
        self._calls += 1
        frame = f'{{"type":"tool_call","id":{number},"name":{name},"args":{_whole(args)}}}'
        self._worker.send(frame.encode())

    def _set_timer(self, number: int, delay_ms: float) -> None:
        self._timers[number] = time.monotonic() + delay_ms / 1000

    def _make_room(self) -> bool:
        """Let the engine have a little more memory; say whether it has had most of what it may."""
        self._context.set_memory_limit(self._memory_bytes + _ROOM_BYTES)
        return self._was_full()

    def _was_full(self) -> bool:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > self._memory_bytes // 2

    def _returned(self, text: str | None = None) -> None:
        if text is None:
            self._outcome = b'{"type":"result"}'
        else:
            self._outcome = driver.result(_whole(text).encode(), self._max_result_bytes)

    def _failed(self, what: str, *told: str) -> None:
        name, message, stack, code = map(_text, told)
        if what == "result" and (name, message) not in {_OUT_OF_MEMORY, _UNTOLD}:
            self._outcome = _no_result(name, message)
        else:
            self._outcome = _failure(name, message, stack, code, lines=self._lines)

    def _lost(self) -> None:
        self._outcome = driver.error("MEMORY_LIMIT_EXCEEDED", "out of memory", name="InternalError")


class _NotCompiled(Exception):  # noqa: N818 - what it is
    def __init__(self, frame: bytes) -> None:
        super().__init__()
        self.frame = frame


_guest: Guest | None = None


def prepare() -> None:
    """Do, once and before any fork, what every guest would do for itself."""
    global _guest  # noqa: PLW0603 - a zygote has one, as it has one interpreter
    _guest = Guest()
    rehearse()


def settle() -> None:
    """Take, in a fork, what is its own."""
    preload.reseed()
    _prepared().settle_in()


def rehearse() -> None:
    """Run something trivial, in which everything is used once that every run uses."""
    code = {"code": "return 1 + 1", "addressSpaceBytes": 0, "maxResultBytes": 99, "memoryBytes": 1 << 30}
    _prepared().run(driver.Worker(-1), code)


def serve() -> NoReturn:
    """Run one session's code."""
    guest, worker = _prepared(), driver.Worker(driver.CONTROL_FD)
    driver.serve(worker, lambda request: guest.run(worker, request))


def _prepared() -> Guest:
    assert _guest is not None, "prepared before the fork"
    return _guest


# Endings: what JavaScript says of an error, and what the worker is told. Text all of it, and the guest's.


def _no_result(name: str, message: str) -> bytes:
    why = "it is nested too deeply" if name == "RangeError" else message
    return driver.error("RESULT_NOT_SERIALIZABLE", f"result: {why}. Return what JSON.stringify takes")


def _failure(name: str, message: str, stack: str, code: str, *, lines: int) -> bytes:
    if (name, message) in {_OUT_OF_MEMORY, _UNTOLD}:
        message, code = _OUT_OF_MEMORY[1], "MEMORY_LIMIT_EXCEEDED"
    trace, line = _mended(_without_constructors(stack, name))
    told = f"{name}: {message}" if name else message
    return driver.error(
        code or "EXECUTION_ERROR",
        message,
        name=name or None,
        line=None if line is None else min(line, lines),
        stack=f"{told}\n{trace}",
    )


def _thrown(text: str, lines: int) -> bytes:
    """Return the frame for an exception that came out of the library itself, as text of several lines."""
    told, _, stack = text.partition("\n")
    name, colon, message = told.partition(": ")
    if told == "null" or not colon:  # not even an error could be made
        name, message = _OUT_OF_MEMORY
    return _failure(name, message, stack, "", lines=lines)


def _not_compiled(text: str, lines: int) -> bytes:
    told, _, stack = text.partition("\n")
    name, _, message = told.partition(": ")
    line = None
    if name == "SyntaxError":
        _, line = _mended(stack)
        if line is not None and line > lines:
            line, message = lines, "unexpected end of the code: a bracket is missing, or there is one too many"
    elif "stack" in told:
        message = "the code is nested too deeply"
    elif told == "null" or (name, message) in {_OUT_OF_MEMORY, _UNTOLD}:
        return _thrown(text, lines)
    else:
        message = "the code closes the function whose body it is"
    where = "" if line is None else f"    at {FILENAME}:{line}\n"
    return driver.error(
        "SYNTAX_ERROR", message, name="SyntaxError", line=line, stack=f"SyntaxError: {message}\n{where}"
    )


def _without_constructors(stack: str, name: str) -> str:
    """Return the stack of an error from where it was made, not from inside of its class's constructors."""
    _, made, below = stack.partition(f"    at {name} (")
    return below.partition("\n")[2] if made and name else stack


def _mended(stack: str) -> tuple[str, int | None]:
    """Return a stack without our own frames and with the places in the guest's code, and the line of the first."""
    kept: list[str] = []
    first = None
    for frame in stack.splitlines():
        before, source, place = frame.rpartition(_SOURCE)
        row, column = (_number(part) for part in place.rstrip(")").partition(":")[::2])
        if not source or not row:
            kept.append(frame)
            continue
        if row > _FIRST_LINE:
            while kept and kept[-1].endswith("(native)"):  # what it called of the language
                kept.pop()
            continue
        first = first or row
        column = max(1, column - _HEAD_CHARS) if row == 1 else column
        kept.append(f"{before}{FILENAME}:{row}:{column}" + (")" if place.endswith(")") else ""))
    return "".join(f"{frame}\n" for frame in kept), first


def _text(json: str) -> str:
    """Return the string that is JSON text."""
    text: str = frames.decode(_whole(json).encode())
    return text


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _whole(text: str) -> str:
    """Return JSON text with U+FFFD in the place of each half of a character."""
    if "\\ud" not in text and "\\uD" not in text:  # the latter is never stringify's, but may be rawJSON's
        return text
    # Between pairs of backslashes none is escaped.
    return "\\\\".join(map(_without_halves, text.split("\\\\")))


def _without_halves(text: str) -> str:
    first, *others = text.replace("\\uD", "\\ud").split("\\ud")
    return first + "".join("\ufffd" + other[3:] for other in others)
