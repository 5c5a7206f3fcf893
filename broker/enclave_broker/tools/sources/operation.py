"""One thing that a server can be asked to do, and what has to be said to have it done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Where = Literal["path", "query", "header", "cookie"]
BodyKind = Literal["json", "form", "multipart", "text", "binary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One argument that is not the body."""

    argument: str
    """What the guest calls it."""
    name: str
    """What the server calls it."""
    where: Where
    required: bool = False
    style: str = ""
    explode: bool = False
    as_json: bool = False
    """Whether its value travels as JSON text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What follows the headers."""

    argument: str
    media_type: str
    kind: BodyKind
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing that a server can be asked to do."""

    name: str
    """The tool's name."""
    description: str
    method: str
    """In capitals."""
    base_url: str
    """What `path` goes behind; without a slash at its end."""
    path: str
    """With `{name}` where path parameters go."""
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    rest_as: Literal["", "query", "json"] = ""
    """Where arguments go that are no parameter, for endpoints that describe no more: nowhere, or here."""
    input_schema: dict[str, Any] = field(default_factory=dict)
    deprecated: bool = False

    @property
    def idempotent(self) -> bool:
        """Whether doing it twice is doing it once, as HTTP has it."""
        return self.method in {"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "QUERY"}
