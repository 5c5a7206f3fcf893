"""Tools that a client declares for a session: calls of them are the client's to answer.

A declaration is a name, or an object `{name, description?, inputSchema?, timeoutMs?}`. It is read strictly: a field
that nobody applies must not look as if it were applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .errors import RemoteProtocolError
from .limits import Positive, split_path

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

MAX_DECLARED_TOOLS = 128
MAX_TOOL_NAME_CHARS = 128
MAX_DESCRIPTION_CHARS = 4096
MAX_TOOLS_BYTES = 256 * 1024
"""Most that the declarations of one session may be, as JSON text: they are kept as long as it lives."""

TOOLS_FORM = (
    f"at most {MAX_DECLARED_TOOLS} tools of different names, each a name or "
    "{name, description?, inputSchema?, timeoutMs?}"
)
NAME_FORM = f"text of 1 to {MAX_TOOL_NAME_CHARS} characters"

_ALLOWED = {
    "": f"a name ({NAME_FORM}), or an object {{name, description?, inputSchema?, timeoutMs?}}",
    "name": NAME_FORM,
    "description": f"text of at most {MAX_DESCRIPTION_CHARS} characters",
    "inputSchema": "a JSON Schema: an object",
    "timeoutMs": "a whole number above 0",
}


class DeclaredTool(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """One tool of a client's."""

    name: Annotated[str, Meta(min_length=1, max_length=MAX_TOOL_NAME_CHARS)]
    """What guests call it."""
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION_CHARS)] = ""
    input_schema: dict[str, Any] | UnsetType = UNSET
    """JSON Schema of its arguments."""
    timeout_ms: Positive | UnsetType = UNSET
    """Longest wait for an answer; the session's own limit holds where it is smaller."""


ClientTools = Mapping[str, DeclaredTool]
"""A session's declared tools by name, in the order they were declared."""

NO_TOOLS: ClientTools = MappingProxyType({})


def parse_declared_tools(raw: object) -> ClientTools:
    """Read the `tools` of a request.

    Raises:
        RemoteProtocolError: names the field (`tools[2].name`) and what is allowed.
    """
    if not isinstance(raw, list) or len(raw) > MAX_DECLARED_TOOLS:
        reason = f"{len(raw)} tools" if isinstance(raw, list) else "not a list"
        raise RemoteProtocolError(reason, field="tools", allowed=TOOLS_FORM)
    tools: dict[str, DeclaredTool] = {}
    for i, declaration in enumerate(raw):
        tool = _parse(declaration, f"tools[{i}]")
        if tool.name in tools:
            reason = f"{tool.name!r} is declared twice"
            raise RemoteProtocolError(reason, field=f"tools[{i}].name", allowed="a name of its own")
        tools[tool.name] = tool
    size_bytes = len(msgspec.json.encode(raw))
    if size_bytes > MAX_TOOLS_BYTES:
        raise RemoteProtocolError(
            f"{size_bytes} bytes", field="tools", allowed=f"at most {MAX_TOOLS_BYTES} bytes in all"
        )
    return tools


def refuse_taken(tools: Iterable[str], taken: Container[str]) -> None:
    """Refuse declarations of names that belong to the broker's own tools.

    Raises:
        RemoteProtocolError: names the field of the first of them (`tools[2].name`).
    """
    for i, name in enumerate(tools):
        if name in taken:
            reason = f"the broker has a tool {name!r} already"
            raise RemoteProtocolError(reason, field=f"tools[{i}].name", allowed="a name that no tool of the broker has")


def _parse(declaration: object, field: str) -> DeclaredTool:
    given = {"name": declaration} if isinstance(declaration, str) else declaration
    if not isinstance(given, dict):
        raise RemoteProtocolError("neither a name nor an object", field=field, allowed=_ALLOWED[""])
    try:
        return msgspec.convert(given, DeclaredTool)
    except msgspec.ValidationError as error:
        reason, inner = split_path(str(error))
        if "unknown field" in reason:
            raise RemoteProtocolError(reason, field=field, allowed=_ALLOWED[""]) from error
        where = f"{field}.{inner}" if inner else field
        raise RemoteProtocolError(reason, field=where, allowed=_ALLOWED.get(inner, _ALLOWED[""])) from error
