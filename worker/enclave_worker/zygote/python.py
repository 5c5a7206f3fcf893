"""Guests in Python.

Theory of operation. The code becomes the body of a function by way of its syntax tree, never its text, so that a quote
or an indentation cannot end the wrapper and every line keeps its number. See `driver` for what happens around it.
"""

from __future__ import annotations

import _ast
import builtins
import io
import linecache
import sys
import traceback
import types

from . import awaits, driver, frames, preload, shell, tool_calls
from .tool_calls import Answer, ToolError, Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from typing import Any, NoReturn

    from .frames import Message

FILENAME = "main.py"
_REHEARSAL = {"code": "return 1 + 1", "addressSpaceBytes": 0, "maxResultBytes": 99}
_WARM_UPS = 16
"""The interpreter rewrites a function's code when it was called eight times or so; every fork would for itself."""
_MAX_FLOAT = sys.float_info.max
_MAX_DEPTH = 50
_MAX_PARTS = 10_000

_ONLY_AST = 0x400
_COROUTINE = 0x80
_GENERATOR = 0x20 | 0x200
_PLACE: dict[str, Any] = {"lineno": 1, "col_offset": 0, "end_lineno": 1, "end_col_offset": 0}
_OWN_FILES = (__file__, driver.__file__, frames.__file__, tool_calls.__file__)


class Stream(io.TextIOWrapper):
    """Text to a descriptor, seen at once with or without a newline. Nothing unprintable raises."""

    def __init__(self, fd: int) -> None:
        super().__init__(io.BufferedWriter(io.FileIO(fd, "wb", closefd=False)), "utf-8", "backslashreplace")
        self.held = False

    def write(self, text: str) -> int:
        """Write, and flush unless a `print` has more to come."""
        written = super().write(text)
        if not self.held:
            self.flush()
        return written


_builtin_print = builtins.print


def print_at_once(*values: object, file: Any = None, **options: Any) -> None:
    """Print as `print` does, but in one write: nobody gets to see a line without its end."""
    stream = sys.stdout if file is None else file
    if not isinstance(stream, Stream):
        _builtin_print(*values, file=file, **options)
        return
    stream.held = True
    try:
        _builtin_print(*values, file=stream, **options)
    finally:
        stream.held = False
        stream.flush()


def prepare() -> None:
    """Do, once and before any fork, what every guest would do for itself."""
    sys.stdout, sys.stderr = Stream(1), Stream(2)
    builtins.print = print_at_once
    print_at_once.__name__ = print_at_once.__qualname__ = "print"
    _compile("return await f(1)", {})  # the compiler's own caches
    for _ in range(_WARM_UPS):
        rehearse()


def settle() -> None:
    """Take, in a fork, what is its own."""
    preload.reseed()


def rehearse() -> None:
    """Run something trivial, in which everything is used once that every run uses."""
    text = frames.encode(_REHEARSAL)
    _run(Worker(-1), frames.unpack(bytearray(frames.HEADER.pack(len(text)) + text)) or _REHEARSAL)
    del sys.modules["__main__"], linecache.cache[FILENAME]


def serve() -> NoReturn:
    """Run one session's code, be it in Python or a script for the shell."""
    worker = Worker(driver.CONTROL_FD)
    driver.serve(worker, lambda request: _run_any(worker, request))


def _run_any(worker: Worker, request: Message) -> bytes:
    if request["language"] == shell.LANGUAGE:
        return shell.run(request)
    outcome = _run(worker, request)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: S110, BLE001 - the guest may have put anything there
        pass
    return outcome


def _run(worker: Worker, request: Message) -> bytes:
    """Compile and run; return the frame that tells how it ended."""
    driver.limit_address_space(request)
    try:
        driver.give(request)
    except (OSError, MemoryError) as error:  # its limits have no room for them
        return _failure(error)
    try:
        source = request["code"]
        linecache.cache[FILENAME] = (len(source), None, source.splitlines(keepends=True), FILENAME)
        function = _compile(source, _main_module(worker))
    except MemoryError as error:
        return _failure(error)
    except (SyntaxError, ValueError, RecursionError, OverflowError) as error:
        return _syntax_error(error)
    if function.__code__.co_flags & _COROUTINE:
        run = _run_without_loop if awaits.only_tools(source) else _run_in_loop
        return run(worker, function, request["maxResultBytes"])
    try:
        value = function()
    except BaseException as error:  # noqa: BLE001 - whatever the guest raises is how it ended
        return _failure(error)
    return _result(value, request["maxResultBytes"])


def _run_without_loop(worker: Worker, function: types.FunctionType, max_result_bytes: int) -> bytes:
    """Run code that awaits tools and nothing else. An event loop would cost more than all else that it does."""
    worker.attach_to_nothing()
    coroutine: Coroutine[object, None, object] = function()
    try:
        waited = coroutine.send(None)
        while True:
            if isinstance(waited, Answer):
                worker.wait(waited)
                waited = coroutine.send(None)
            elif waited is None:  # asks for another turn
                waited = coroutine.send(None)
            else:
                # As a loop would say it.
                waited = coroutine.throw(RuntimeError(f"Task got bad yield: {waited!r}"))
    except StopIteration as end:
        value = end.value
    except BaseException as error:  # noqa: BLE001 - whatever the guest raises is how it ended
        return _failure(error)
    return _result(value, max_result_bytes)


def _run_in_loop(worker: Worker, function: types.FunctionType, max_result_bytes: int) -> bytes:
    import asyncio  # noqa: PLC0415 - only guests that await need it

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    worker.attach(loop)
    return loop.run_until_complete(_run_async(function, max_result_bytes))


async def _run_async(function: types.FunctionType, max_result_bytes: int) -> bytes:
    try:
        value = await function()
    except BaseException as error:  # noqa: BLE001 - whatever the guest raises is how it ended
        return _failure(error)
    return _result(value, max_result_bytes)


def _main_module(worker: Worker) -> dict[str, object]:
    module = types.ModuleType("__main__")
    # As of a program that was found by name: a process that `multiprocessing` spawns then looks for no file of it.
    module.__spec__ = type(types.__spec__)("__main__", None)
    module.__dict__.update(
        __builtins__=builtins,
        __file__=FILENAME,
        call_tool=worker.call_tool,
        callTool=worker.call_tool,
        ToolError=ToolError,
    )
    sys.modules["__main__"] = module
    return module.__dict__


def _compile(source: str, namespace: dict[str, object]) -> types.FunctionType:
    """Return the source as a function without arguments: async if it awaits at its top level, else a plain one.

    A body that never awaits needs no event loop, and making one is half of what a short run costs.
    """
    tree = compile(source, FILENAME, "exec", _ONLY_AST, dont_inherit=True)
    futures: list[_ast.stmt] = [
        node for node in tree.body if isinstance(node, _ast.ImportFrom) and node.module == "__future__"
    ]
    body = [node for node in tree.body if node not in futures] or [_ast.Pass(**_PLACE)]
    try:
        code = _function(_ast.FunctionDef, futures, body)
    except SyntaxError as error:
        if "async" not in str(error.msg):  # "'await' outside async function" and its like
            raise
        code = _function(_ast.AsyncFunctionDef, futures, body)
    exec(code, namespace)  # noqa: S102 - it only defines the function
    function = namespace.pop("main")
    assert isinstance(function, types.FunctionType), "a function definition defines a function"
    if function.__code__.co_flags & _GENERATOR:
        raise SyntaxError("'yield' outside function", (FILENAME, _line_of_yield(body), None, None))
    return function


def _function(
    kind: type[_ast.FunctionDef | _ast.AsyncFunctionDef], futures: list[_ast.stmt], body: list[_ast.stmt]
) -> types.CodeType:
    nothing = _ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    extra: dict[str, Any] = {"type_params": []} if "type_params" in kind._fields else {}
    function = kind(name="main", args=nothing, body=body, decorator_list=[], **extra, **_PLACE)
    module = _ast.Module(body=[*futures, function], type_ignores=[])
    return compile(module, FILENAME, "exec", dont_inherit=True)


def _line_of_yield(nodes: list[_ast.stmt]) -> int:
    for node in nodes:
        for child in _walk(node):
            if isinstance(child, (_ast.Yield, _ast.YieldFrom)):
                return child.lineno
    return 1


def _walk(node: _ast.AST) -> Iterator[_ast.AST]:
    if isinstance(node, (_ast.FunctionDef, _ast.AsyncFunctionDef, _ast.Lambda)):
        return
    yield node
    for field in node._fields:
        value = getattr(node, field, None)
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, _ast.AST):
                yield from _walk(child)


def _result(value: object, max_bytes: int) -> bytes:
    try:
        text = frames.encode(value)
    except MemoryError as error:
        return _failure(error)
    except Exception as error:  # noqa: BLE001 - a guest's object may raise anything when it is looked at
        where = _where_unserializable(value) or f"result: {_safe_text(error)}"
        return driver.error(
            "RESULT_NOT_SERIALIZABLE", f"{where}. Return JSON: dict, list, str, int, float, bool or None"
        )
    return driver.result(text, max_bytes)


def _where_unserializable(value: object) -> str | None:
    try:
        return _unserializable(value, "result")
    except Exception:  # noqa: BLE001 - a subclass of dict or list may lie about what is in it
        return None


def _unserializable(value: object, path: str, depth: int = 0) -> str | None:
    """Say which part of `value` is not JSON, or None if that can't be told."""
    if depth > _MAX_DEPTH:
        return f"{path} is nested too deeply"
    parts: list[tuple[str, object]] = []
    if isinstance(value, dict):
        for key in list(value)[:_MAX_PARTS]:
            if not isinstance(key, (str, int, float, bool, type(None))):
                return f"{path} has a key of type {type(key).__name__}"
            parts.append((f"{path}[{key!r}]", value[key]))
    elif isinstance(value, (list, tuple)):
        parts = [(f"{path}[{index}]", item) for index, item in enumerate(value[:_MAX_PARTS])]
    else:
        return _unserializable_leaf(value, path)
    return next(filter(None, (_unserializable(part, where[:200], depth + 1) for where, part in parts)), None)


def _unserializable_leaf(value: object, path: str) -> str | None:
    if isinstance(value, float):
        return None if abs(value) <= _MAX_FLOAT else f"{path} is {value!r}, which JSON has no word for"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"{path} is a str with a lone surrogate"
        return None
    return None if isinstance(value, (int, type(None))) else f"{path} is a {type(value).__name__}"


def _syntax_error(error: Exception) -> bytes:
    line = getattr(error, "lineno", None)
    message = error.msg if isinstance(error, SyntaxError) else _safe_text(error) or "the code is nested too deeply"
    stack = "".join(traceback.format_exception_only(error))
    return driver.error("SYNTAX_ERROR", message, name=type(error).__name__, line=line, stack=stack)


def _failure(error: BaseException) -> bytes:
    """Return the frame for an exception that the guest let out."""
    if isinstance(error, SystemExit) and not error.code:
        return b'{"type":"result","value":null}'
    code = driver.code_of(error)
    if isinstance(error, ToolError) and isinstance(error.code, str):
        code = error.code
    try:
        told = traceback.TracebackException.from_exception(error, limit=-50)
        line = _drop_own_frames(told)
        stack = "".join(told.format())
    except BaseException:  # noqa: BLE001 - out of memory, or the guest broke `traceback`
        line, stack = None, None
    return driver.error(code, _safe_text(error), name=type(error).__name__, line=line, stack=stack)


def _drop_own_frames(told: traceback.TracebackException, depth: int = 0) -> int | None:
    """Remove the driver's frames everywhere; return the line of the innermost frame of the guest's code."""
    told.stack[:] = [frame for frame in told.stack if frame.filename not in _OWN_FILES]
    lines = [frame.lineno for frame in told.stack if frame.filename == FILENAME]
    if depth < 50:
        for other in (told.__cause__, told.__context__, *(getattr(told, "exceptions", None) or ())):
            if other is not None:
                _drop_own_frames(other, depth + 1)
    return lines[-1] if lines else None


def _safe_text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # noqa: BLE001 - a hostile __str__
        return "<unprintable>"
