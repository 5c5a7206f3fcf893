"""One operation of an OpenAPI document, read: its arguments, its body, where it is. Pure.

Its arguments are its parameters by name, and `body`; where two would have one name, the later is `<name>_<where>`
(`id_query`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .addresses import base_url
from .document import DocumentError
from .operation import Body, Operation, Parameter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .document import References
    from .operation import BodyKind
    from .schemas import SchemaCopier, Used
    from .selection import Selection

MAX_DESCRIPTION_CHARS = 4000
_STYLES = {
    "path": {"simple"},
    "query": {"form", "spaceDelimited", "pipeDelimited", "deepObject"},
    "header": {"simple"},
    "cookie": {"form", "cookie"},
}
"""Of parameters, where they stand: those that are understood."""
BINARY_SCHEMA: dict[str, Any] = {
    "description": 'Text, or {"base64": "..."} for bytes',
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"base64": {"type": "string"}},
            "required": ["base64"],
            "additionalProperties": False,
        },
    ],
}
_CONCRETE: dict[BodyKind, str] = {
    "json": "application/json",
    "text": "text/plain",
    "binary": "application/octet-stream",
}
"""What is sent where a document leaves the type open."""


class OperationReader:
    """Reads one operation; each needs a reader of its own."""

    def __init__(
        self, document: dict[str, Any], references: References, copier: SchemaCopier, chosen: Selection
    ) -> None:
        self._document = document
        self._references = references
        self._chosen = chosen
        self._copier = copier
        self._used: Used = {}
        self._properties: dict[str, Any] = {}
        self._required: list[str] = []

    def read(self, name: str, method: str, path: str, item: dict[str, Any], raw: dict[str, Any]) -> Operation:
        """Return an operation; raises DocumentError, or what data that is no OpenAPI makes Python raise."""
        if not path.startswith("/"):
            raise DocumentError("its path does not start with /")
        parameters = tuple(self._parameters(item, raw))
        missing = set(re.findall(r"{([^{}]*)}", path)) - {p.name for p in parameters if p.where == "path"}
        if missing:
            raise DocumentError(f"nothing describes the path's {', '.join(sorted(missing))}")
        body = self._body(raw)
        return Operation(
            name=name,
            description=_description(raw, item),
            method=method.upper(),
            base_url=base_url(self._document, item, raw, self._chosen),
            path=path,
            parameters=parameters,
            body=body,
            input_schema=self._input_schema(),
            deprecated=raw.get("deprecated") is True,
        )

    def _parameters(self, item: dict[str, Any], raw: dict[str, Any]) -> Iterator[Parameter]:
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for each in [*(item.get("parameters") or ()), *(raw.get("parameters") or ())]:
            described = self._references.follow(each)
            found[described["name"], described["in"]] = described  # the operation's own replaces the path's
        for (name, where), described in found.items():
            if not (isinstance(name, str) and where in {"path", "query", "header", "cookie"}):
                raise DocumentError(f"a parameter {name!r} in {where!r}")
            if where == "header" and name.lower() in self._chosen.reserved_headers:
                continue
            if where == "query" and name in self._chosen.reserved_query:
                continue
            yield self._parameter(name, where, described)

    def _parameter(self, name: str, where: Any, described: dict[str, Any]) -> Parameter:
        content = described.get("content")
        if isinstance(content, dict) and content:
            schema = next(iter(content.values())).get("schema", {})
        else:
            schema = described.get("schema", {})
        style = described.get("style") or ("form" if where in {"query", "cookie"} else "simple")
        if style not in _STYLES[where]:
            raise DocumentError(f"parameter {name!r}: the style {style!r} is not understood")
        required = described.get("required") is True or where == "path"
        return Parameter(
            argument=self._argument(name, where, schema, described.get("description"), required=required),
            name=name,
            where=where,
            required=required,
            style=style,
            explode=described.get("explode", style == "form") is True,
            as_json=bool(content),
        )

    def _body(self, raw: dict[str, Any]) -> Body | None:
        described = self._references.follow(raw.get("requestBody"))
        if not described or not described.get("content"):
            return None
        media_type, kind = _best_media_type(described["content"])
        schema = (described["content"][media_type] or {}).get("schema", {})
        if kind in {"text", "binary"}:
            schema = BINARY_SCHEMA if kind == "binary" else schema
        required = described.get("required") is True
        argument = self._argument("body", "body", schema, described.get("description"), required=required)
        sent_as = _CONCRETE.get(kind, media_type) if "*" in media_type else media_type
        return Body(argument=argument, media_type=sent_as, kind=kind, required=required)

    def _argument(self, name: str, where: str, schema: Any, description: object, *, required: bool) -> str:
        argument = name if name not in self._properties else f"{name}_{where}"
        if argument in self._properties:
            raise DocumentError(f"two arguments would be called {argument!r}")
        copied = self._copier.copy(schema, self._used)
        if isinstance(description, str) and description and isinstance(copied, dict) and "description" not in copied:
            copied["description"] = description[:MAX_DESCRIPTION_CHARS]
        self._properties[argument] = copied
        if required:
            self._required.append(argument)
        return argument

    def _input_schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "object", "properties": self._properties, "additionalProperties": False}
        if self._required:
            schema["required"] = self._required
        if self._used:
            schema["$defs"] = self._copier.definitions(self._used)
        return schema


def _description(raw: dict[str, Any], item: dict[str, Any]) -> str:
    texts = [raw.get("summary") or item.get("summary"), raw.get("description") or item.get("description")]
    found = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    if len(found) == 2 and found[0] in found[1]:
        del found[0]
    return "\n\n".join(found)[:MAX_DESCRIPTION_CHARS]


def _best_media_type(content: dict[str, Any]) -> tuple[str, BodyKind]:
    kinds = [(media_type, _kind(media_type)) for media_type in content]
    order: tuple[BodyKind, ...] = ("json", "form", "multipart", "text", "binary")
    return min(kinds, key=lambda pair: order.index(pair[1]))


def _kind(media_type: str) -> BodyKind:
    bare = media_type.partition(";")[0].strip().lower()
    if bare == "application/json" or bare.endswith("+json") or bare == "*/*":
        return "json"
    if bare == "application/x-www-form-urlencoded":
        return "form"
    if bare.startswith("multipart/"):
        return "multipart"
    return "text" if bare.startswith("text/") or bare.endswith(("/xml", "+xml")) else "binary"
