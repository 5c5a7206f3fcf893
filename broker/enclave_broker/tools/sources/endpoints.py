"""Plain HTTP endpoints, described one by one, become operations. Pure.

`https://api.example.com/v1/weather/{city}?units={units}&v=2`: what stands in braces is an argument, in the path or as
the whole of a query parameter's value. Arguments that stand nowhere in the address go into the query of requests that
read, and into a JSON object that is the body of the others.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from .naming import safe_name
from .operation import Operation, Parameter

_PLACE = re.compile(r"{([^{}]*)}")
_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ANY_SCALAR = {"type": ["string", "number", "boolean"]}
_READS = frozenset({"GET", "HEAD", "DELETE"})
METHODS = frozenset({"GET", "HEAD", "DELETE", "POST", "PUT", "PATCH"})


def make_operation(
    name: str, *, method: str, url: str, description: str = "", input_schema: dict[str, Any] | None = None
) -> Operation:
    """Return the operation of one endpoint.

    Args:
        name: the tool's name.
        method: GET, POST and so on.
        url: where it is, with arguments in braces.
        description: what it does.
        input_schema: of its arguments; without one, those in the address are required scalars and others may be given.

    Raises:
        ValueError: the name, method or address is none, or the schema lacks an argument of the address.
    """
    if safe_name(name) != name:
        raise ValueError(f"its name: {name!r} is none (letters, digits, `_`, `.` and `-`, at most 128)")
    if method.upper() not in METHODS:
        raise ValueError(f"method: {method!r} is none of {', '.join(sorted(METHODS))}")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise ValueError(f"url: {url[:200]!r} is no http(s) address, or has a password in it (see `auth`)")
    if _PLACE.search(parts.netloc):
        raise ValueError("url: arguments stand in its path or its query, never in its host")
    parameters = [_parameter(argument, argument, "path") for argument in dict.fromkeys(_PLACE.findall(parts.path))]
    fixed = []
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        place = _PLACE.fullmatch(value)
        if place is not None:
            parameters.append(_parameter(place[1], key, "query"))
        elif _PLACE.search(value):
            raise ValueError(f"url: an argument in the query is a whole value, which {value!r} is not")
        else:
            fixed.append(f"{quote(key, safe='')}={quote(value, safe='')}")
    return Operation(
        name=name,
        description=description,
        method=method.upper(),
        base_url=f"{parts.scheme}://{parts.netloc}",
        path=parts.path + ("?" + "&".join(fixed) if fixed else ""),
        parameters=tuple(parameters),
        rest_as="query" if method.upper() in _READS else "json",
        input_schema=_schema(parameters, input_schema),
    )


def _parameter(argument: str, name: str, where: Any) -> Parameter:
    if not _ARGUMENT.fullmatch(argument):
        raise ValueError(f"url: {{{argument}}} is no name of an argument")
    style = "simple" if where == "path" else "form"
    return Parameter(argument=argument, name=name, where=where, required=where == "path", style=style, explode=True)


def _schema(parameters: list[Parameter], given: dict[str, Any] | None) -> dict[str, Any]:
    arguments = [parameter.argument for parameter in parameters]
    if given is None:
        required = [parameter.argument for parameter in parameters if parameter.required]
        schema: dict[str, Any] = {"type": "object", "properties": dict.fromkeys(arguments, _ANY_SCALAR)}
        return schema | ({"required": required} if required else {})
    properties = given.get("properties", {})
    missing = [name for name in arguments if name not in properties]
    if missing:
        raise ValueError(f"input: describes no {', '.join(missing)}, which the url needs")
    return given
