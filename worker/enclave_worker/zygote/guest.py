"""The driver: runs a session's code inside the sandbox.

Theory of operation. By the time `main` runs, the sandbox is closed: every namespace, limit and filter is in force, and
descriptors 0 to 3 are all there is (nothing, stdout, stderr, the worker). It prepares an event loop, says `ready` and
waits for one `execute`. The code becomes the body of an async function by way of its syntax tree, never its text, so
that a quote or an indentation cannot end the wrapper and every line keeps its number.

From then on this process is the guest's: it can patch anything here. So nothing here is trusted. The worker checks
every frame, counts and times for itself, and all that a patched driver can do is lie about its own session.
"""

import _ast
import asyncio
import builtins
import json
import linecache
import os
import resource
import socket
import sys
import traceback
import types

from . import frames

FILENAME = "main.py"
CONTROL_FD = 3
MAX_MESSAGE_CHARS = 8192
MAX_STACK_CHARS = 32768

_ONLY_AST = 0x400
_ASYNC_GENERATOR = 0x200
_OWN_FILES = (__file__, frames.__file__)


class ToolError(Exception):
    """A tool failed. `code` says how, for instance `UNKNOWN_TOOL`; `message` says why."""

    def __init__(self, message, code):
        super().__init__(message)
        self.message = message
        self.code = code


class Worker:
    """The worker's end of the control socket, as the guest sees it."""

    def __init__(self, fd):
        self._socket = socket.socket(fileno=fd)
        self._buffer = bytearray()
        self._pending = {}
        self._last_call = 0
        self._loop = None

    def send(self, message):
        """Send one frame; blocks while the worker is busy, which holds up nobody else."""
        self._socket.sendall(frames.pack(message))

    def receive(self):
        """Block until the next frame; None at the end of the connection."""
        while (message := frames.unpack(self._buffer)) is None:
            data = self._socket.recv(65536)
            if not data:
                return None
            self._buffer += data
        return message

    def attach(self, loop):
        """From here on, take tool results in the background of `loop`."""
        self._loop = loop
        loop.add_reader(self._socket.fileno(), self._on_readable)

    def _on_readable(self):
        try:
            data = self._socket.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            os._exit(1)  # the worker let go of us
        self._buffer += data
        while (message := frames.unpack(self._buffer)) is not None:
            future = self._pending.pop(message["id"], None)
            if future is None or future.done():
                continue
            if message["ok"]:
                future.set_result(message["value"])
            else:
                future.set_exception(ToolError(message["message"], message["code"]))

    async def call_tool(self, name, args=None, /, **named):
        """Call the application's tool `name` and return its result.

        Arguments are one JSON value (usually a dict), or are given by name. Several calls may wait at once:
        `await asyncio.gather(call_tool("a", {...}), call_tool("b", {...}))`. Raises ToolError if the tool fails.
        """
        if not isinstance(name, str) or not name:
            raise TypeError("call_tool: the tool's name must be a string")
        if args is not None and named:
            raise TypeError("call_tool: give the arguments as one value or by name, not both")
        self._last_call += 1
        call, future = self._last_call, self._loop.create_future()
        self.send({"type": "tool_call", "id": call, "name": name, "args": named if args is None else args})
        self._pending[call] = future
        return await future


def main():
    """Run one session's code, then leave. Never returns."""
    worker = Worker(CONTROL_FD)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    sys.stdout = _text_stream(1)
    sys.stderr = _text_stream(2)
    worker.send({"type": "ready"})
    request = worker.receive()
    if request is None:
        os._exit(0)
    worker.attach(loop)
    outcome = loop.run_until_complete(_run(worker, request))
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: S110, BLE001 - the guest may have put anything there
        pass
    worker.send(outcome)
    os._exit(0)


def _text_stream(fd):
    # Write-through: every print is seen at once, with or without a newline. Nothing unprintable raises.
    raw = open(fd, "wb", buffering=0, closefd=False)  # noqa: SIM115, PTH123 - lives as long as the process
    import io

    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


async def _run(worker, request):
    """Compile and run; return the frame that tells how it ended."""
    try:
        if request["memoryLimitBytes"]:
            resource.setrlimit(resource.RLIMIT_AS, (request["memoryLimitBytes"], request["memoryLimitBytes"]))
        source = request["code"]
        linecache.cache[FILENAME] = (len(source), None, source.splitlines(keepends=True), FILENAME)
        function = _compile(source, _main_module(worker))
    except (SyntaxError, ValueError, RecursionError, OverflowError, MemoryError) as error:
        return _syntax_error(error)
    try:
        value = await function()
    except SystemExit as error:
        if not error.code:
            return {"type": "result", "value": None}
        return _failure(error)
    except BaseException as error:  # noqa: BLE001 - whatever the guest raises is how it ended
        return _failure(error)
    return _result(value, request["maxResultBytes"])


def _main_module(worker):
    module = types.ModuleType("__main__")
    module.__dict__.update(
        __builtins__=builtins,
        __file__=FILENAME,
        call_tool=worker.call_tool,
        callTool=worker.call_tool,
        ToolError=ToolError,
    )
    sys.modules["__main__"] = module
    return module.__dict__


def _compile(source, namespace):
    """Return the source as an async function without arguments."""
    tree = compile(source, FILENAME, "exec", _ONLY_AST, dont_inherit=True)
    futures = [node for node in tree.body if isinstance(node, _ast.ImportFrom) and node.module == "__future__"]
    place = {"lineno": 1, "col_offset": 0, "end_lineno": 1, "end_col_offset": 0}
    body = [node for node in tree.body if node not in futures] or [_ast.Pass(**place)]
    nothing = _ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    extra = {"type_params": []} if "type_params" in _ast.AsyncFunctionDef._fields else {}
    function = _ast.AsyncFunctionDef(name="main", args=nothing, body=body, decorator_list=[], **extra, **place)
    code = compile(_ast.Module(body=[*futures, function], type_ignores=[]), FILENAME, "exec", dont_inherit=True)
    exec(code, namespace)  # noqa: S102 - it only defines the function
    main_function = namespace.pop("main")
    if main_function.__code__.co_flags & _ASYNC_GENERATOR:
        raise SyntaxError("'yield' outside function", (FILENAME, _line_of_yield(body), None, None))
    return main_function


def _line_of_yield(nodes):
    for node in nodes:
        for child in _walk(node):
            if isinstance(child, (_ast.Yield, _ast.YieldFrom)):
                return child.lineno
    return 1


def _walk(node):
    if isinstance(node, (_ast.FunctionDef, _ast.AsyncFunctionDef, _ast.Lambda)):
        return
    yield node
    for field in node._fields:
        value = getattr(node, field, None)
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, _ast.AST):
                yield from _walk(child)


def _result(value, max_bytes):
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode())
    except MemoryError as error:
        return _failure(error)
    except Exception as error:  # noqa: BLE001 - a guest's object may raise anything when it is looked at
        where = _unserializable(value, "result") or f"result: {_safe_text(error)}"
        return _error("RESULT_NOT_SERIALIZABLE", f"{where}. Return JSON: dict, list, str, int, float, bool or None")
    if size > max_bytes:
        message = f"the result is {size} bytes as JSON, more than maxResultBytes={max_bytes}"
        return _error("RESULT_TOO_LARGE", message)
    return {"type": "result", "value": value}


def _unserializable(value, path, depth=0):
    """Say which part of `value` is not JSON, or None if that can't be told."""
    if depth > 50:
        return f"{path} is nested too deeply"
    if isinstance(value, dict):
        for key, item in list(value.items())[:10000]:
            if not isinstance(key, (str, int, float, bool, type(None))):
                return f"{path} has a key of type {type(key).__name__}"
            if found := _unserializable(item, f"{path}[{key!r}]"[:200], depth + 1):
                return found
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value[:10000]):
            if found := _unserializable(item, f"{path}[{index}]"[:200], depth + 1):
                return found
    elif isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f"{path} is {value!r}, which JSON has no word for"
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"{path} is a str with a lone surrogate"
    elif not isinstance(value, (int, float, type(None))):
        return f"{path} is a {type(value).__name__}"
    return None


def _syntax_error(error):
    line = getattr(error, "lineno", None)
    if isinstance(error, SyntaxError):
        message = error.msg
    else:
        message = _safe_text(error) or "the code is nested too deeply"
    stack = "".join(traceback.format_exception_only(error))
    return _error("SYNTAX_ERROR", message, name=type(error).__name__, line=line, stack=stack)


def _failure(error):
    """The frame for an exception that the guest let out."""
    code = "EXECUTION_ERROR"
    if isinstance(error, ToolError) and isinstance(error.code, str):
        code = error.code
    elif isinstance(error, MemoryError):
        code = "MEMORY_LIMIT_EXCEEDED"
    try:
        told = traceback.TracebackException.from_exception(error, limit=-50)
        line = _drop_own_frames(told)
        stack = "".join(told.format())
    except BaseException:  # noqa: BLE001 - out of memory, or the guest broke `traceback`
        line, stack = None, None
    return _error(code, _safe_text(error), name=type(error).__name__, line=line, stack=stack)


def _drop_own_frames(told, depth=0):
    """Remove the driver's frames everywhere; return the line of the innermost frame of the guest's code."""
    told.stack[:] = [frame for frame in told.stack if frame.filename not in _OWN_FILES]
    lines = [frame.lineno for frame in told.stack if frame.filename == FILENAME]
    if depth < 50:
        for other in (told.__cause__, told.__context__, *(getattr(told, "exceptions", None) or ())):
            if other is not None:
                _drop_own_frames(other, depth + 1)
    return lines[-1] if lines else None


def _safe_text(error):
    try:
        return str(error)
    except BaseException:  # noqa: BLE001 - a hostile __str__
        return "<unprintable>"


def _error(code, message, *, name=None, line=None, stack=None):
    return {
        "type": "error",
        "code": code,
        "message": _cut(message, MAX_MESSAGE_CHARS),
        "name": _cut(name, 200),
        "line": line,
        "stack": _cut(stack, MAX_STACK_CHARS),
    }


def _cut(text, limit):
    if text is None:
        return None
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text) - limit} more characters cut)"
    return text.encode(errors="backslashreplace").decode()
