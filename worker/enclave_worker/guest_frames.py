"""What a guest may send, and how its values are read and written again. All of it is a claim."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from enclave_protocol.events import Level  # noqa: TC001 - msgspec reads it at run time

if TYPE_CHECKING:
    from collections.abc import Iterator

_SPARE_FRAMES = 100
"""How much deeper in its stack than we are a reader of a guest's value may be: how deep a value may be nested depends
on it, and one that we can read but not pass on, or the broker not read, must be its sender's failure alone."""

_FLAT_BYTES = 2 * _SPARE_FRAMES
"""So little text can't be nested deeper than that, nor grow large."""


class GuestToolCall(msgspec.Struct, tag_field="type", tag="tool_call", frozen=True):
    """The guest calls a tool; `id` is the guest's own number for the call."""

    id: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    args: msgspec.Raw
    """Not looked at before it is known that the call is not refused: a guest may make any number of those."""


class GuestResult(msgspec.Struct, tag_field="type", tag="result", frozen=True):
    """The code returned; without a value if that was nothing at all, which JavaScript tells from `null`."""

    value: msgspec.Raw | UnsetType = UNSET


class GuestError(msgspec.Struct, tag_field="type", tag="error", frozen=True):
    """The code raised, did not compile, or returned something that is not JSON."""

    code: Annotated[str, Meta(max_length=128)]
    message: Annotated[str, Meta(max_length=20_000)]
    name: Annotated[str, Meta(max_length=300)] | None = None
    line: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    stack: Annotated[str, Meta(max_length=60_000)] | None = None


class GuestLog(msgspec.Struct, tag_field="type", tag="log", frozen=True):
    """The code has something to say, and how much that matters."""

    level: Level
    message: Annotated[str, Meta(max_length=70_000)]


GuestFrame = GuestToolCall | GuestResult | GuestError | GuestLog
guest_frames = msgspec.json.Decoder(GuestFrame)


@contextlib.contextmanager
def _collector_held() -> Iterator[None]:
    """Keep the garbage collector from looking, again and again, at a growing value that holds no garbage.

    A result of 15 MiB of `[]` takes 1.4 s to decode with it and 0.2 s without, for which every session waits.
    """
    held = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if held:
            gc.enable()


def read_value(text: msgspec.Raw | bytes) -> bytes:
    """Return a value from outside as JSON of ours. Raises MsgspecError, UnicodeError or RecursionError."""
    if memoryview(text).nbytes <= _FLAT_BYTES:
        return msgspec.json.encode(msgspec.json.decode(text))
    with _collector_held():
        decoded = msgspec.json.decode(text)
    return _encode_again(decoded)


def _encode_again(value: object, spare_frames: int = _SPARE_FRAMES) -> bytes:
    """Return a decoded value as JSON of ours: what was sent may be odd. Raises RecursionError for deep nesting."""
    return _encode_again(value, spare_frames - 1) if spare_frames else msgspec.json.encode(value)
