"""Log lines of both programs: one record, one line, in one of two forms. Pure: a record's time comes with it.

    log.info("session ended: %s", outcome, extra=about(session_id=session.session_id, worker_id=link.worker_id))

    2026-11-21T09:22:18.123Z INFO enclave.broker [sessionId=s_1 workerId=w-1] session ended: ok
    {"time":"2026-11-21T09:22:18.123Z","level":"info","logger":"enclave.broker","message":"session ended: ok",
     "sessionId":"s_1","workerId":"w-1"}

Theory of operation. What a line says may come from a guest, a client or a worker. So every piece of it, whoever logged
it (the libraries too), is first cleaned of secrets, then cut to a length, then written without control characters: no
text can end a line, begin another, or move a terminal's cursor. In the pretty form the fields stand before the message,
where no message can forge one; an exception's lines follow, each behind a bar, and so is none of them a record.

By hand, because it is these hundred lines: both programs log through the standard library, as all their libraries do,
and a logging framework would add a second way to log and leave the escaping to be written all the same.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from .events import iso_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LogFormat = Literal["pretty", "json"]
LOG_FORMATS: tuple[LogFormat, ...] = get_args(LogFormat)

MAX_MESSAGE_CHARS = 8192
"""Of a message; the rest is counted."""
MAX_TRACE_CHARS = 65_536
"""Of an exception with its traceback."""
MAX_FIELD_CHARS = 256
"""Of a field: an id or a name."""

_ABOUT = "about"
_NAMES = {"session_id": "sessionId", "worker_id": "workerId", "tenant": "tenant", "trace_id": "traceId"}
_NAMES |= {"call_id": "callId", "tool": "tool"}
_SEPARATORS = frozenset(' "[]=')
"""What a field that is written for people has to be quoted for."""


def about(
    *,
    session_id: str = "",
    worker_id: str = "",
    tenant: str = "",
    trace_id: str = "",
    call_id: str = "",
    tool: str = "",
) -> dict[str, Any]:
    """Return the `extra` of a record that is about these. What is empty is left out."""
    given = (session_id, worker_id, tenant, trace_id, call_id, tool)
    return {_ABOUT: {name: value for name, value in zip(_NAMES.values(), given, strict=True) if value}}


def printable(text: str) -> str:
    r"""Return text in which nothing ends a line or moves a cursor: what can't be printed is written as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char)
    if short is not None:
        return short
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class LineFormatter(ABC, logging.Formatter):
    """What both forms share. Make one with `make_formatter`.

    Args:
        always: fields of every line, such as the worker's own id.

    Attributes:
        clean: takes secrets out of text; changes nothing unless it is set.
    """

    def __init__(self, always: Mapping[str, str]) -> None:
        super().__init__()
        self.clean: Callable[[str], str] = str
        self._always = dict(always)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, without a line break at its end."""
        given = getattr(record, _ABOUT, None)
        fields = self._always | given if isinstance(given, dict) else self._always
        told = {name: self._piece(str(value), MAX_FIELD_CHARS) for name, value in fields.items()}
        return self.write(record, told, self._piece(_message(record), MAX_MESSAGE_CHARS), self._trace(record))

    @abstractmethod
    def write(self, record: logging.LogRecord, fields: dict[str, str], message: str, trace: list[str]) -> str:
        """Return the line of a record whose text is fit to be written."""

    def _piece(self, text: str, most: int) -> str:
        text = self.clean(text)
        more = len(text) - most
        return printable(text) if more <= 0 else f"{printable(text[:most])}… and {more} characters more"

    def _trace(self, record: logging.LogRecord) -> list[str]:
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        parts = [record.exc_text or "", self.formatStack(record.stack_info) if record.stack_info else ""]
        text = self.clean("\n".join(filter(None, parts)))
        return [printable(line) for line in text[-MAX_TRACE_CHARS:].split("\n")] if text else []


class PrettyFormatter(LineFormatter):
    """For people: `TIME LEVEL LOGGER [FIELDS] MESSAGE`."""

    def write(self, record: logging.LogRecord, fields: dict[str, str], message: str, trace: list[str]) -> str:
        """Return the line, and below it an exception's, each behind a bar."""
        words = [iso_time(record.created), record.levelname, record.name]
        if fields:
            words.append(f"[{' '.join(f'{name}={_word(value)}' for name, value in fields.items())}]")
        return "\n".join([" ".join([*words, message]), *(f"    | {line}" for line in trace)])


class JsonFormatter(LineFormatter):
    """For programs: one JSON object, on one line."""

    def write(self, record: logging.LogRecord, fields: dict[str, str], message: str, trace: list[str]) -> str:
        """Return the object."""
        line = {
            "time": iso_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **fields,
        }
        if trace:
            line["exception"] = "\n".join(trace)
        return msgspec.json.encode(line).decode()


def make_formatter(form: LogFormat, **always: str) -> LineFormatter:
    """Return a formatter; `always` are fields of every line, as `about` takes them."""
    fields: dict[str, str] = about(**always)[_ABOUT]
    return JsonFormatter(fields) if form == "json" else PrettyFormatter(fields)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - a library's mistake in a log call must not lose the line
        return f"{record.msg!r} can't be formatted: {type(error).__name__}"


def _word(value: str) -> str:
    plain = value and _SEPARATORS.isdisjoint(value)
    return value if plain else msgspec.json.encode(value).decode()
