"""The operations of an OpenAPI document: what each is called, takes and expects. Pure.

An operation becomes a tool `<source>_<operationId>`. Its arguments are its parameters by name, and `body`; where two
would have one name, the later is `<name>_<where>` (`id_query`). What can't be offered safely or at all is left out and
told (`Problem`), and costs nothing else of the document.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urljoin, urlsplit

from .document import DocumentError, References
from .schemas import SchemaCopier, Used

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "query")
"""Not `trace`: its answer is the request, with the credentials in it."""
MAX_OPERATIONS = 2000
"""Most operations of one document that become tools."""
MAX_NAME_CHARS = 128
MAX_DESCRIPTION_CHARS = 4000
RESERVED_HEADERS = frozenset(
    {
        *("accept", "content-type", "authorization"),  # OpenAPI: described elsewhere
        *("host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"),
        *("cookie", "proxy-authorization", "proxy-connection", "keep-alive", "accept-encoding"),
        *("traceparent", "tracestate"),
    }
)
"""Headers that no guest may set: they frame the request, or carry the broker's credentials or its trace."""

_STYLES = {
    "path": {"simple"},
    "query": {"form", "spaceDelimited", "pipeDelimited", "deepObject"},
    "header": {"simple"},
    "cookie": {"form", "cookie"},
}

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


@dataclass(frozen=True, slots=True)
class Problem:
    """An operation that is not offered."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which operations become tools, and where their requests go."""

    source: str
    include: Sequence[str] = ()
    """Patterns (`*`, `?`, `[…]`) of an operationId or of `METHOD /path`; empty: all."""
    exclude: Sequence[str] = ()
    """The same; wins over `include`."""
    base_url: str = ""
    """Where requests go; empty: where the document's `servers` say, else the document's own origin."""
    document_url: str = ""
    """Where the document came from; empty for a file of the operator's."""
    reserved_headers: frozenset[str] = RESERVED_HEADERS
    """Header parameters, in small letters, that are not offered: that of the credentials among them."""
    reserved_query: frozenset[str] = frozenset()
    """Query parameters that are not offered."""


def find_operations(document: dict[str, Any], chosen: Selection) -> tuple[list[Operation], list[Problem]]:
    """Return the operations that become tools, and what was left out."""
    operations: list[Operation] = []
    problems: list[Problem] = []
    names: set[str] = set()
    references = References(document)
    copier = SchemaCopier(references)
    for method, path, item, raw in _raw_operations(document, references, problems):
        what = f"{method.upper()} {path}"
        operation_id = raw.get("operationId")
        called = [what, operation_id] if isinstance(operation_id, str) else [what]
        if not is_chosen(called, chosen.include, chosen.exclude):
            continue
        if len(operations) == MAX_OPERATIONS:
            problems.append(Problem(what, f"there are more than {MAX_OPERATIONS} operations: choose with `include`"))
            break
        try:
            name = _tool_name(chosen.source, operation_id, method, path, names)
            operation = _Reader(document, references, copier, chosen).read(name, method, path, item, raw)
        except (DocumentError, TypeError, KeyError, AttributeError) as error:
            reason = str(error) if isinstance(error, DocumentError) else f"not OpenAPI: {error!r}"
            problems.append(Problem(what, reason[:500]))
            continue
        names.add(name)
        operations.append(operation)
    return operations, problems


def _raw_operations(
    document: dict[str, Any], references: References, problems: list[Problem]
) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    paths = document.get("paths")
    for path, raw_item in paths.items() if isinstance(paths, dict) else ():
        try:
            item = references.follow(raw_item)
        except DocumentError as error:
            problems.append(Problem(path, str(error)))
            continue
        if not isinstance(item, dict):
            continue
        for method in METHODS:
            if isinstance(item.get(method), dict):
                yield method, path, item, item[method]


def is_chosen(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Return whether something that goes by these names is wanted.

    Args:
        names: what it is called.
        include: patterns (`*`, `?`, `[...]`), of which one has to match a name; empty: all are wanted.
        exclude: patterns of which none may.
    """

    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return (not include or matches(include)) and not matches(exclude)


def _tool_name(source: str, operation_id: object, method: str, path: str, taken: set[str]) -> str:
    by_path = f"{method}_{path.strip('/')}"
    own = operation_id if isinstance(operation_id, str) and operation_id else by_path
    # By its method and path rather than by a number: that does not change when others come and go.
    for candidate in (own, by_path if own != by_path else f"{by_path}_{method}"):
        name = safe_name(f"{source}_{candidate}")
        if name not in taken:
            return name
    number = 2
    while (name := safe_name(f"{source}_{own}_{number}")) in taken:
        number += 1
    return name


def safe_name(text: str) -> str:
    """Return a tool's name made of `A-Z a-z 0-9 _ . -`; one that is too long ends in a hash of the whole."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_") or "tool"
    if len(name) <= MAX_NAME_CHARS:
        return name
    return f"{name[: MAX_NAME_CHARS - 9]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class _Reader:
    """Reads one operation."""

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


_CONCRETE: dict[BodyKind, str] = {
    "json": "application/json",
    "text": "text/plain",
    "binary": "application/octet-stream",
}
"""What is sent where a document leaves the type open."""


def _kind(media_type: str) -> BodyKind:
    bare = media_type.partition(";")[0].strip().lower()
    if bare == "application/json" or bare.endswith("+json") or bare == "*/*":
        return "json"
    if bare == "application/x-www-form-urlencoded":
        return "form"
    if bare.startswith("multipart/"):
        return "multipart"
    return "text" if bare.startswith("text/") or bare.endswith(("/xml", "+xml")) else "binary"


def base_url(document: dict[str, Any], item: dict[str, Any], raw: dict[str, Any], chosen: Selection) -> str:
    """Return where the requests of an operation go, without a slash at its end.

    The option wins, then come the `servers` of the operation, its path and the document, then the document's origin. A
    document from the network may name servers of its own origin only: who can change it must not be able to send the
    broker, with its credentials, elsewhere.

    Raises:
        DocumentError: there is no address, or it is one that the document may not name.
    """
    if chosen.base_url:
        return chosen.base_url.rstrip("/")
    servers = raw.get("servers") or item.get("servers") or document.get("servers")
    own = chosen.document_url
    if servers:
        address = urljoin(own, _filled(servers[0])) if own else _filled(servers[0])
    else:
        address = urljoin(own, "/") if own else ""
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise DocumentError(f"its server is {address[:200]!r}, which is no address: set base_url")
    if own and origin(address) != origin(own):
        raise DocumentError(f"its server {origin(address)} is not where the document is: set base_url to allow that")
    return address.rstrip("/")


def origin(url: str) -> str:
    """Return scheme, host and port of a URL: what has to be the same for two to be of one owner."""
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    return f"{parts.scheme.lower()}://{(parts.hostname or '').lower()}:{parts.port or default}"


def _filled(server: dict[str, Any]) -> str:
    url: str = server["url"]
    for name, variable in (server.get("variables") or {}).items():
        url = url.replace("{" + name + "}", str(variable.get("default", "")))
    return url
