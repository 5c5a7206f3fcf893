"""What `enclave run` shows of a session's events.

Everything is written as bytes and flushed at once: output is live, and a terminal's encoding has no say in it.
"""

from __future__ import annotations

import os
import sys
from typing import BinaryIO, Protocol

import msgspec
from msgspec import UNSET

from enclave_protocol import AnyEvent, FinalError, FinalPayload, RemoteProtocolError, decode_event, encode, is_retryable
from enclave_protocol.events import Final, Log, Stderr, Stdout


class OutputError(Exception):
    """What is to be shown cannot be written, for another reason than that its reader is gone."""


class Printer(Protocol):
    """Takes event lines, and says at the end how `enclave run` exits."""

    def line(self, raw: bytes) -> None:
        """Show one event line."""

    def refused(self, session_id: str, code: str, message: str) -> None:
        """The broker took no session: there is no stream, and so no line."""

    def finish(self) -> int:
        """Return the exit code. The last line was the `final`."""


class RawPrinter:
    """Passes event lines on, byte for byte; the reason of a failure goes to `err` all the same."""

    def __init__(self, out: BinaryIO, err: BinaryIO) -> None:
        self._out = out
        self._err = err
        self._final: FinalPayload | None = None

    def line(self, raw: bytes) -> None:
        """Write the line."""
        put(self._out, raw + b"\n")
        if isinstance(event := decoded(raw), Final):
            self._final = event.payload

    def refused(self, session_id: str, code: str, message: str) -> None:
        """Write a `final` in the broker's stead: whoever reads lines can rely on one, whatever happened."""
        payload = FinalPayload(ok=False, error=FinalError(message=message, code=code, retryable=is_retryable(code)))
        put(self._out, encode(Final(session_id=session_id, seq=1, payload=payload)) + b"\n")

    def finish(self) -> int:
        """Return 0 if the session ended well, else say why not and return 1."""
        return _finish(self._final, self._err)


class EventPrinter:
    """Shows output as it comes and the result as the last line of `out`; everything else goes to `err`."""

    def __init__(self, out: BinaryIO, err: BinaryIO) -> None:
        self._out = out
        self._err = err
        self._final: FinalPayload | None = None
        self._out_mid_line = False
        self._err_mid_line = False

    def line(self, raw: bytes) -> None:
        """Show the event; types that say nothing to a person are skipped, unknown ones too."""
        event = decoded(raw)
        if isinstance(event, Final):
            self._final = event.payload
        elif isinstance(event, Stdout):
            self._out_mid_line = self._write(self._out, event.payload.chunk, mid_line=self._out_mid_line)
        elif isinstance(event, Stderr):
            self._err_mid_line = self._write(self._err, event.payload.chunk, mid_line=self._err_mid_line)
        elif isinstance(event, Log):
            self._end_lines()
            self._write(self._err, f"[{event.payload.level}] {event.payload.message}\n", mid_line=False)

    def refused(self, session_id: str, code: str, message: str) -> None:
        """Nothing to show: the reason is told with the exit code."""

    def finish(self) -> int:
        """Print the result and return 0, or say why there is none and return 1."""
        self._end_lines()
        if self._final is not None and self._final.ok:
            result = None if self._final.result is UNSET else self._final.result
            put(self._out, msgspec.json.encode(result) + b"\n")
        return _finish(self._final, self._err)

    def _write(self, stream: BinaryIO, chunk: str, *, mid_line: bool) -> bool:
        put(stream, chunk.encode("utf-8", "replace"))
        return not chunk.endswith("\n") if chunk else mid_line

    def _end_lines(self) -> None:
        # Ours must not be glued to what the code left without a newline.
        for stream, mid_line in ((self._out, self._out_mid_line), (self._err, self._err_mid_line)):
            if mid_line:
                put(stream, b"\n")
        self._out_mid_line = self._err_mid_line = False


def decoded(raw: bytes) -> AnyEvent | None:
    """Read an event line; None if it is of a type that this version does not know."""
    try:
        return decode_event(raw)
    except RemoteProtocolError:
        return None


def put(stream: BinaryIO, data: bytes) -> None:
    """Write all at once; raises BrokenPipeError if nobody reads any more, OutputError for any other reason."""
    try:
        stream.write(data)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write the output: {error.strerror}") from error


def discard_output() -> None:
    """Let go of standard output: what is left in its buffer must not become a traceback at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _finish(final: FinalPayload | None, err: BinaryIO) -> int:
    if final is None:
        raise AssertionError("finish before the final: the session's lines end with it, or raise")
    if not final.ok:
        put(err, explain(final).encode("utf-8", "replace"))
    return 0 if final.ok else 1


def explain(final: FinalPayload) -> str:
    """Say why a session failed: the traceback of its own lines if it has one, then the code and the message."""
    error = final.error
    if error is UNSET:
        return "enclave: the session failed without a reason\n"
    stack = "" if error.stack is UNSET else error.stack.rstrip("\n") + "\n"
    code = "ERROR" if error.code is UNSET else error.code
    retry = " (trying again can help)" if error.retryable is True else ""
    return f"{stack}enclave: {code}: {error.message}{retry}\n"
