"""An operation and a guest's arguments become one HTTP request. Pure: no credentials, nothing is sent.

The arguments have been checked against the operation's schema before; what is checked here is what a schema can't
say: that a value stays in the place of the request that it was meant for.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .operation import Body, Operation, Parameter

_DELIMITERS = {"form": ",", "spaceDelimited": " ", "pipeDelimited": "|", "simple": ","}
_NEEDS_A_PLACE = ("", ".", "..")


class BadArgument(ValueError):  # noqa: N818 - the guest's mistake, told to it
    """An argument that can't be sent; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a multipart body."""

    name: str
    data: bytes
    filename: str = ""
    content_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """What to send, but for the credentials."""

    method: str
    url: str
    """Without the query."""
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    cookies: tuple[tuple[str, str], ...] = ()
    content: bytes | None = None
    parts: tuple[Part, ...] = ()
    """A multipart body, in place of `content`."""


def build_request(operation: Operation, arguments: dict[str, Any]) -> HttpRequest:
    """Return the request that the arguments ask for; raises BadArgument."""
    path = operation.path
    query: list[tuple[str, str]] = []
    headers = [("Accept", "application/json, */*;q=0.5")]
    cookies: list[tuple[str, str]] = []
    for parameter, value in _given(operation, arguments):
        if parameter.where == "path":
            path = path.replace("{" + parameter.name + "}", _path_text(parameter, value))
        elif parameter.where == "query":
            query += _pairs(parameter, value)
        elif parameter.where == "cookie":
            cookies += [(quote(name, safe=""), quote(text, safe="")) for name, text in _pairs(parameter, value)]
        else:
            headers.append((parameter.name, _header_text(parameter, value)))
    if operation.rest_as == "query":
        query += [(name, _text(value)) for name, value in _rest(operation, arguments).items() if _is_given(value)]
    content, parts, media_type = _content(operation, arguments)
    if media_type:
        headers.append(("Content-Type", media_type))
    return HttpRequest(
        method=operation.method,
        url=operation.base_url + path,
        query=tuple(query),
        headers=tuple(headers),
        cookies=tuple(cookies),
        content=content,
        parts=parts,
    )


def _given(operation: Operation, arguments: dict[str, Any]) -> Iterator[tuple[Parameter, Any]]:
    for parameter in operation.parameters:
        value = arguments.get(parameter.argument)
        if _is_given(value):
            yield parameter, value
        elif parameter.required:
            raise BadArgument(f"{parameter.argument}: missing")


def _content(operation: Operation, arguments: dict[str, Any]) -> tuple[bytes | None, tuple[Part, ...], str]:
    """Return the body in one of its two forms, and its type if it is no multipart."""
    if operation.rest_as == "json":
        return msgspec.json.encode(_rest(operation, arguments)), (), "application/json"
    body = operation.body
    if body is None or body.argument not in arguments:
        if body is not None and body.required:
            raise BadArgument(f"{body.argument}: missing")
        return None, (), ""
    content, parts = _body(body, arguments[body.argument])
    return content, parts, "" if parts else body.media_type


def _is_given(value: object) -> bool:
    # HTTP has no null outside of bodies: a parameter that is null is one that is left out.
    return value is not None


def _rest(operation: Operation, arguments: dict[str, Any]) -> dict[str, Any]:
    known = {parameter.argument for parameter in operation.parameters}
    return {name: value for name, value in arguments.items() if name not in known}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    # As JSON has it: `true` and not `True`, and whatever has structure.
    return msgspec.json.encode(value).decode()


def _path_text(parameter: Parameter, value: Any) -> str:
    if parameter.as_json or not isinstance(value, list | dict):
        texts = [_text(value)]
    elif isinstance(value, list):
        texts = [_text(item) for item in value]
    else:
        texts = [text for name, item in value.items() for text in (name, _text(item))]
    # A server may undo the encoding before it looks at the path, and `..` would then be another operation's.
    whole = ",".join(texts)
    if any(part in _NEEDS_A_PLACE for part in whole.replace("\\", "/").split("/")):
        raise BadArgument(f"{parameter.argument}: {whole[:100]!r} can't be a part of a path")
    quoted = [quote(text, safe="") for text in texts]
    if isinstance(value, dict) and parameter.explode and not parameter.as_json:
        quoted = [f"{name}={text}" for name, text in zip(quoted[::2], quoted[1::2], strict=True)]
    return ",".join(quoted)


def _header_text(parameter: Parameter, value: Any) -> str:
    text = _text(value) if not isinstance(value, list) else ",".join(_text(item) for item in value)
    if not (text.isascii() and text.isprintable()):
        raise BadArgument(f"{parameter.argument}: a header takes printable ASCII only")
    return text


def _pairs(parameter: Parameter, value: Any) -> Iterator[tuple[str, str]]:
    name = parameter.name
    if parameter.as_json or not isinstance(value, list | dict):
        yield name, _text(value)
    elif isinstance(value, list):
        if parameter.explode:
            yield from ((name, _text(item)) for item in value)
        elif value:
            yield name, _DELIMITERS.get(parameter.style, ",").join(_text(item) for item in value)
    elif parameter.style == "deepObject":
        yield from ((f"{name}[{key}]", _text(item)) for key, item in value.items())
    elif parameter.explode:
        yield from ((key, _text(item)) for key, item in value.items())
    else:
        yield name, ",".join(f"{key},{_text(item)}" for key, item in value.items())


def _body(body: Body, value: Any) -> tuple[bytes | None, tuple[Part, ...]]:
    if body.kind == "json":
        return msgspec.json.encode(value), ()
    if body.kind in {"text", "binary"}:
        return _bytes(body.argument, value), ()
    if not isinstance(value, dict):
        raise BadArgument(f"{body.argument}: an object of fields is needed")
    if body.kind == "multipart":
        parts = tuple(_part(body, name, item) for name, item in value.items() if _is_given(item))
        if not parts:
            raise BadArgument(f"{body.argument}: at least one field is needed")
        return None, parts
    pairs = []
    for name, item in value.items():
        items = item if isinstance(item, list) else [item]
        pairs += [f"{quote(name, safe='')}={quote(_text(each), safe='')}" for each in items if _is_given(each)]
    return "&".join(pairs).encode(), ()


def _part(body: Body, name: str, value: Any) -> Part:
    where = f"{body.argument}.{name}"
    if isinstance(value, dict) and "base64" in value:
        filename = value.get("filename", name)
        content_type = value.get("contentType", "application/octet-stream")
        if not (isinstance(filename, str) and isinstance(content_type, str)):
            raise BadArgument(f"{where}: filename and contentType are text")
        _require_one_line(where, name, filename, content_type)
        return Part(name=name, data=_bytes(where, value), filename=filename, content_type=content_type)
    _require_one_line(where, name)
    if isinstance(value, list | dict):
        return Part(name=name, data=msgspec.json.encode(value), content_type="application/json")
    return Part(name=name, data=_text(value).encode())


def _require_one_line(where: str, *texts: str) -> None:
    if any(not text.isprintable() for text in texts):
        raise BadArgument(f"{where}: a name has a control character")


def _bytes(where: str, value: Any) -> bytes:
    if isinstance(value, dict) and isinstance(value.get("base64"), str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadArgument(f"{where}: not base64: {error}") from error
    return _text(value).encode()
