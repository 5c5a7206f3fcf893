"""Frames on the socket between a worker and a guest: four bytes of length, big-endian, then that much JSON."""

from __future__ import annotations

import json
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself is too large for a zygote
    from typing import Any

    Message = dict[str, Any]

HEADER = struct.Struct(">I")

# Bound here, before there is a guest: one that replaces `len` or `json.dumps` for itself does not break its own driver.
_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode
_header = HEADER.pack
_size = len
_write = os.write


def encode(value: object) -> bytes:
    """Return `value` as JSON. Raises whatever an object that is not JSON raises when it is looked at."""
    return _encode(value).encode()


def decode(text: bytes) -> Any:
    """Return the value of JSON text."""
    return _decode(text.decode())


def take(buffer: bytearray) -> bytes | None:
    """Take the first whole frame off `buffer` and return its JSON text, or None if there is none yet."""
    if _size(buffer) < HEADER.size:
        return None
    end = HEADER.size + HEADER.unpack_from(buffer)[0]
    if _size(buffer) < end:
        return None
    body = bytes(buffer[HEADER.size : end])
    del buffer[:end]
    return body


def unpack(buffer: bytearray) -> Message | None:
    """Take the first whole frame off `buffer` and return its message, or None if there is none yet."""
    body = take(buffer)
    return None if body is None else decode(body)


def write(fd: int, body: bytes) -> None:
    """Send JSON text as a frame on a bare descriptor."""
    frame = _header(_size(body)) + body
    while frame:
        frame = frame[_write(fd, frame) :]
