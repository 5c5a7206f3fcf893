"""What a session is given besides its code: environment variables and small files.

Both go into the sandbox after it was forked, so that they cost no warm one. They are checked here, on every hop, and
refused with the field's name. The guest's driver writes what it is told to: it runs inside, where a path can lead
nowhere that the code itself could not go.
"""

from __future__ import annotations

import binascii
import re
from typing import Any

from .errors import RemoteProtocolError

MAX_VARIABLES = 64
MAX_ENV_BYTES = 64 * 1024
"""Names and values together, in UTF-8."""
MAX_FILES = 100
MAX_FILES_BYTES = 1024 * 1024
"""Names and contents together, as they will lie in the sandbox."""
MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
"""Longest file or directory name: the kernel's."""

ENV_FORM = f"at most {MAX_VARIABLES} names, each with text as its value, {MAX_ENV_BYTES} bytes in all"
FILES_FORM = f"at most {MAX_FILES} paths, each with text or {{base64: text}}, {MAX_FILES_BYTES} bytes in all"
_NAME_FORM = "letters, digits and _, no digit first, at most 128"
_PATH_FORM = "a relative path without `.`, `..`, empty parts and NUL, such as data/input.csv"
_CONTENT_FORM = "text, or {base64: text}"

_BAD_PART = re.compile(rb"(?:^|/)\.{0,2}(?:/|\Z)")
_LONG_PART = re.compile(rb"[^/]{%d}" % (MAX_NAME_BYTES + 1))

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")

Content = str | dict[str, str]
"""A file's content on the wire: text, or `{"base64": …}`."""


def parse_env(raw: object) -> dict[str, str]:
    """Read the `env` of a request.

    Raises:
        RemoteProtocolError: names the field (`env.NAME`) and what is allowed.
    """
    if not isinstance(raw, dict):
        raise RemoteProtocolError("not an object", field="env", allowed=ENV_FORM)
    if len(raw) > MAX_VARIABLES:
        raise RemoteProtocolError(f"{len(raw)} variables", field="env", allowed=ENV_FORM)
    env: dict[str, str] = {}
    for name, value in raw.items():
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            raise RemoteProtocolError("not a variable's name", field=f"env.{name}", allowed=_NAME_FORM)
        if not isinstance(value, str):
            raise RemoteProtocolError("not text", field=f"env.{name}", allowed="text")
        if "\0" in value:
            raise RemoteProtocolError("has a NUL in it", field=f"env.{name}", allowed="text without NUL")
        env[name] = value
    total = sum(len(name) + len(_utf8(value, f"env.{name}")) for name, value in env.items())
    if total > MAX_ENV_BYTES:
        raise RemoteProtocolError(f"{total} bytes", field="env", allowed=ENV_FORM)
    return env


def parse_files(raw: object) -> dict[str, Content]:
    """Read the `files` of a request: relative path to content.

    Raises:
        RemoteProtocolError: names the field (`files.PATH`) and what is allowed.
    """
    if not isinstance(raw, dict):
        raise RemoteProtocolError("not an object", field="files", allowed=FILES_FORM)
    if len(raw) > MAX_FILES:
        raise RemoteProtocolError(f"{len(raw)} files", field="files", allowed=FILES_FORM)
    total = 0
    for path, content in raw.items():
        total += len(_checked_path(path)) + _size_bytes(content, f"files.{path}")
        if total > MAX_FILES_BYTES:
            raise RemoteProtocolError(f"more than {MAX_FILES_BYTES} bytes", field="files", allowed=FILES_FORM)
    lengths = {len(path) for path in raw}
    for path in raw:
        clash = next((path[:n] for n in lengths if path[n : n + 1] == "/" and path[:n] in raw), None)
        if clash is not None:
            reason = f"lies below {clash!r}, which is a file"
            raise RemoteProtocolError(reason, field=f"files.{path}", allowed="a directory or a file, not both")
    return dict(raw)


def encode_file(data: bytes) -> Content:
    """Return bytes as a file's content on the wire."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": binascii.b2a_base64(data, newline=False).decode()}


def size_bytes(env: dict[str, str], files: dict[str, Any]) -> int:
    """Return about how much memory checked inputs take while they wait."""
    texts = (content["base64"] if isinstance(content, dict) else content for content in files.values())
    return sum(map(len, env)) + sum(map(len, env.values())) + sum(map(len, files)) + sum(map(len, texts))


def _checked_path(path: object) -> bytes:
    field = f"files.{path}"
    if not isinstance(path, str) or "\0" in path:
        raise RemoteProtocolError("not a path", field="files", allowed=_PATH_FORM)
    encoded = _utf8(path, "files")
    if _BAD_PART.search(encoded):
        raise RemoteProtocolError("not a relative path below the working directory", field=field, allowed=_PATH_FORM)
    if len(encoded) > MAX_PATH_BYTES or _LONG_PART.search(encoded):
        allowed = f"at most {MAX_PATH_BYTES} bytes, {MAX_NAME_BYTES} between two slashes"
        raise RemoteProtocolError("too long", field=field, allowed=allowed)
    return encoded


def _size_bytes(content: object, field: str) -> int:
    if isinstance(content, str):
        return len(_utf8(content, field))
    encoded = content.get("base64") if isinstance(content, dict) else None
    if not isinstance(content, dict) or len(content) != 1 or not isinstance(encoded, str):
        raise RemoteProtocolError("not a file's content", field=field, allowed=_CONTENT_FORM)
    try:
        return len(binascii.a2b_base64(encoded, strict_mode=True))
    except ValueError as error:
        raise RemoteProtocolError(f"not base64: {error}", field=f"{field}.base64", allowed="base64, padded") from error


def _utf8(text: str, field: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise RemoteProtocolError("has a lone surrogate in it", field=field, allowed="text") from error
