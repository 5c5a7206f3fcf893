"""The driver's trunk: what it does for a guest in any language.

Theory of operation. By the time `serve` runs, the sandbox is closed: every namespace, limit and filter is in force, and
descriptors 0 to 3 are all there is (nothing, stdout, stderr, the worker). The driver says `ready`, waits for one
`execute`, has the code run, and sends the one frame that tells how that ended.

From then on this process is the guest's: it can patch anything here. So nothing here is trusted. The worker checks
every frame, counts and times for itself, and all that a patched driver can do is lie about its own session.
"""

from __future__ import annotations

import os
import resource
import select
import time

from . import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, Protocol

    from .frames import Message

CONTROL_FD = 3
MAX_MESSAGE_CHARS = 8192
MAX_STACK_CHARS = 32768
_FULL = (27, 28, 122)
"""EFBIG, ENOSPC, EDQUOT: a file, or the directory it is in, has no room left."""


if TYPE_CHECKING:

    class Language(Protocol):
        """The module of a language, once its `prepare` was called."""

        def settle(self) -> None:
            """Take, in a fork, what is its own."""

        def rehearse(self) -> None:
            """Run something trivial, in which everything is used once that every run uses."""

        def serve(self) -> NoReturn:
            """Run one session's code."""


class Worker:
    """The worker's end of the control socket, as the guest sees it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.buffer = bytearray()

    def send(self, body: bytes) -> None:
        """Send one frame; blocks while the worker is busy, which holds up nobody else."""
        frames.write(self.fd, body)

    def receive(self, timeout_s: float | None = None) -> bytes | None:
        """Return the next frame's JSON text; None if there is none in time. Ends with the connection."""
        while (body := frames.take(self.buffer)) is None:
            if timeout_s is not None and not select.select([self.fd], [], [], timeout_s)[0]:
                return None
            data = os.read(self.fd, 65536)
            if not data:
                os._exit(1)  # the worker let go of us
            self.buffer += data
        return body


def serve(worker: Worker, run: Callable[[Message], bytes]) -> NoReturn:
    """Run one session's code, then wait for the end.

    Args:
        worker: what to talk to.
        run: runs what an `execute` asks for, and returns the frame that tells how it ended.
    """
    worker.send(b'{"type":"ready"}')
    request = worker.receive()
    assert request is not None, "without a timeout there is a frame"
    worker.send(run(frames.decode(request)))
    # Stay until killed: the worker asks the kernel what we used, which a process that has left can't show.
    while True:
        os.read(CONTROL_FD, 65536) or os._exit(0)


def limit_address_space(request: Message) -> None:
    """Lower this process's address space if the session is to have less memory than the sandbox has."""
    if request["addressSpaceBytes"]:
        resource.setrlimit(resource.RLIMIT_AS, (request["addressSpaceBytes"], request["addressSpaceBytes"]))


def give(request: Message) -> None:
    """Set environment variables, and write files into the working directory, before the code sees either."""
    set_environment(request.get("env") or {})
    files: dict[str, Any] = request.get("files") or {}
    for path, content in files.items():
        data = content.encode() if isinstance(content, str) else _from_base64(content["base64"])
        directory = os.path.dirname(path)
        if directory:
            os.makedirs(directory, exist_ok=True)
        with open(path, "xb") as file:
            file.write(data)


def _from_base64(text: str) -> bytes:
    import binascii  # noqa: PLC0415 - what a zygote has loaded, every fork pays for, and few sessions bring such files

    return binascii.a2b_base64(text)


def set_environment(env: dict[str, str]) -> None:
    """Set environment variables of the session, of which a time zone holds for this process too."""
    os.environ.update(env)
    if "TZ" in env:
        time.tzset()


def result(text: bytes, max_bytes: int) -> bytes:
    """Return the frame for a result, given as JSON text."""
    if len(text) > max_bytes:
        message = f"the result is {len(text)} bytes as JSON, more than maxResultBytes={max_bytes}"
        return error("RESULT_TOO_LARGE", message)
    return b'{"type":"result","value":%b}' % text


def error(
    code: str, message: str, *, name: str | None = None, line: int | None = None, stack: str | None = None
) -> bytes:
    """Return the frame for a failure."""
    return frames.encode(
        {
            "type": "error",
            "code": code,
            "message": cut(message, MAX_MESSAGE_CHARS),
            "name": cut(name, 200) if name is not None else None,
            "line": line,
            "stack": cut(stack, MAX_STACK_CHARS) if stack is not None else None,
        }
    )


def code_of(error: BaseException) -> str:
    """Return the code that an exception ends a session with, if it is not a tool's."""
    if isinstance(error, MemoryError):
        return "MEMORY_LIMIT_EXCEEDED"
    return "DISK_LIMIT_EXCEEDED" if isinstance(error, OSError) and _errno(error) in _FULL else "EXECUTION_ERROR"


def _errno(error: OSError) -> object:
    try:
        return error.errno
    except BaseException:  # noqa: BLE001 - a guest's own class may do anything
        return None


def cut(text: str, limit: int) -> str:
    """Return text of no more than `limit` characters and a remark, which can be encoded."""
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text) - limit} more characters cut)"
    return text.encode(errors="backslashreplace").decode()
