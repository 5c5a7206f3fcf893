"""Frames on the socket between a worker and a guest: four bytes of length, big-endian, then that much JSON."""

import json
import os
import struct

HEADER = struct.Struct(">I")

_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


def pack(message):
    """Return `message` (a dict) as a frame."""
    body = _encode(message).encode()
    return HEADER.pack(len(body)) + body


def unpack(buffer):
    """Take the first whole frame off `buffer` (a bytearray) and return its message, or None if there is none yet."""
    if len(buffer) < HEADER.size:
        return None
    end = HEADER.size + HEADER.unpack_from(buffer)[0]
    if len(buffer) < end:
        return None
    body = buffer[HEADER.size : end].decode()
    del buffer[:end]
    return _decode(body)


def write(fd, message):
    """Send `message` as a frame on a bare descriptor."""
    os.write(fd, pack(message))
