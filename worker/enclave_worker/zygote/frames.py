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

_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


def pack(message: Message) -> bytes:
    """Return `message` (a dict) as a frame."""
    body = _encode(message).encode()
    return HEADER.pack(len(body)) + body


def unpack(buffer: bytearray) -> Message | None:
    """Take the first whole frame off `buffer` (a bytearray) and return its message, or None if there is none yet."""
    if len(buffer) < HEADER.size:
        return None
    end = HEADER.size + HEADER.unpack_from(buffer)[0]
    if len(buffer) < end:
        return None
    body = buffer[HEADER.size : end].decode()
    del buffer[:end]
    message: Message = _decode(body)
    return message


def write(fd: int, message: Message) -> None:
    """Send `message` as a frame on a bare descriptor."""
    frame = pack(message)
    while frame:
        frame = frame[os.write(fd, frame) :]
