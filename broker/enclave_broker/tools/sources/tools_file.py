"""The file of `--tools-file`: sources of tools as tables of TOML, or as the JSON that MCP clients use.

    [openapi.NAME]      an OpenAPI document
    [http.NAME]         one HTTP endpoint
    [mcpServers.NAME]   an MCP server, as in every `mcpServers` JSON file, which so can be given as it is

What can't be right is refused at the start, with the file, the table, the field and what is allowed. A server that does
not answer is not: the broker starts without its tools, and they come when it does.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from enclave_protocol.limits import split_path

from .credentials import Credentials
from .policies import Policies
from .templates import Template

if TYPE_CHECKING:
    from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
NAME_FORM = "letters, digits, `_` and `-`, at most 64, beginning with a letter or digit"
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
RESERVED_NAMES = frozenset({"python", "http"})
"""Services that tools already belong to."""

Count = Annotated[int, Meta(ge=1, le=2**31)]
Seconds = Annotated[float, Meta(ge=0.01, le=86_400)]


class ToolsFileError(ValueError):
    """A file of sources that can't be used."""


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every source can be told."""

    timeout_ms: Count | None = None
    """Longest one call may take, retries included. Default: the session's limits."""
    retryable: bool | None = None
    """Whether failed calls that say they can be retried are. Default: only of HTTP methods that change nothing."""
    max_retries: Annotated[int, Meta(ge=0, le=100)] = 3
    """How often."""
    max_concurrency: Count | None = None
    """Calls of each tool that run at once. Default: any number."""
    max_result_bytes: Count | None = None
    """Largest result. Default: the session's limits."""
    store_result: bool = False
    """Whether guests are given a reference in place of the result."""
    needs_approval: bool | tuple[str, ...] = False
    """Whether the broker's approval hook has to agree to every call; or patterns of the tools of which it has to."""

    def policies(self) -> Policies:
        """Return how calls are run."""
        return Policies(
            timeout_ms=self.timeout_ms,
            retryable=self.retryable,
            max_retries=self.max_retries,
            max_concurrency=self.max_concurrency,
            max_result_bytes=self.max_result_bytes,
            store_result=self.store_result,
            needs_approval=self.needs_approval,
        )


class AuthTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests say who asks."""

    type: Literal["bearer", "api-key", "basic"]
    """`bearer` and `basic` are the header `Authorization`, `api-key` is what the fields below say."""
    secret: str
    """Name of the secret: the token, the key or the password."""
    username: str = ""
    """Of `basic`."""
    name: str = "X-API-Key"
    """Of `api-key`: the header's, parameter's or cookie's."""
    place: Literal["header", "query", "cookie"] = msgspec.field(name="in", default="header")
    """Of `api-key`: where it stands."""


class _HttpTable(_Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What everything that speaks HTTP can be told."""

    auth: AuthTable | None = None
    headers: dict[str, str] = {}
    """Added to every request; `${NAME}` stands for a secret."""

    def credentials(self) -> Credentials:
        """Return what is added to requests; raises ValueError naming the field."""
        for name in self.headers:
            _require_header(f"headers.{name}", name)
        headers = {name: _template(f"headers.{name}", text) for name, text in self.headers.items()}
        auth = self.auth
        if auth is None:
            return Credentials(headers=headers, query={}, cookies={})
        secret = _template("auth.secret", f"${{{auth.secret}}}")
        if auth.type == "basic":
            user = Template(auth.username.replace("$", "$$"))
            return Credentials(headers=headers, query={}, cookies={}, basic=(user, secret))
        if auth.type == "bearer":
            bearer = {"Authorization": Template(f"Bearer {secret.text}")}
            return Credentials(headers=headers | bearer, query={}, cookies={})
        _require_header("auth.name", auth.name)
        places: dict[str, dict[str, Template]] = {"header": headers, "query": {}, "cookie": {}}
        places[auth.place][auth.name] = secret
        return Credentials(headers=places["header"], query=places["query"], cookies=places["cookie"])


class OpenApiTable(_HttpTable, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[openapi.NAME]`: the tools `NAME_<operationId>` of a document."""

    document: str
    """Its address, or a file (relative to this one)."""
    base_url: str = ""
    """Where its requests go. Default: what the document says, if that is where the document is from."""
    include: tuple[str, ...] = ()
    """Which operations: patterns of an operationId or of `METHOD /path`. Default: all."""
    exclude: tuple[str, ...] = ()
    """Which not."""
    poll_interval_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    """Time between looks at the document; 0 looks once."""


class EndpointTable(_HttpTable, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[http.NAME]`: the tool NAME, one endpoint."""

    url: str
    """Its address, with arguments in braces."""
    method: str = "GET"
    """Or `POST`, `PUT`, `PATCH`, `DELETE`, `HEAD`."""
    description: str = ""
    """What it does, for people and models."""
    input: dict[str, Any] | None = None
    """JSON Schema of its arguments. Default: those in the address."""


class McpTable(msgspec.Struct, frozen=True, kw_only=True):
    """`[mcpServers.NAME]`: the tools `NAME_<tool>` of a server. What others' programs add to it is ignored."""

    command: str = ""
    """What to start; or else,"""
    url: str = ""
    """where to dial (streamable HTTP)."""
    args: tuple[str, ...] = ()
    """Of the command, as they are: other users of the host can read them, so secrets belong in `env`."""
    env: dict[str, str] = {}
    """Its environment, beside PATH, HOME and the like; `${NAME}` stands for a secret."""
    headers: dict[str, str] = {}
    """Of every request to `url`; the same."""
    cwd: str | None = None
    """Where the command runs. Default: where the broker does."""
    disabled: bool = False
    """Whether to leave it out."""
    enclave: McpExtras = msgspec.field(default_factory=lambda: McpExtras())  # noqa: PLW0108 - defined below
    """What only Enclave reads."""


class McpExtras(_Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[mcpServers.NAME.enclave]`."""

    include: tuple[str, ...] = ()
    """Which tools: patterns of the server's own names. Default: all."""
    exclude: tuple[str, ...] = ()
    """Which not."""
    connect_timeout_s: Seconds = 30.0
    """Longest wait until the server has introduced itself, and for its list of tools later on."""
    poll_interval_s: Seconds = 60.0
    """Time between looks at its list of tools; it is also asked when the server says that the list changed."""


class ToolsFile(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Everything a file may hold, by name."""

    openapi: dict[str, OpenApiTable] = {}
    http: dict[str, EndpointTable] = {}
    mcp_servers: dict[str, McpTable] = {}


def read_tools_file(path: Path) -> ToolsFile:
    """Read a file; raises ToolsFileError naming the file, the table, the field and what is allowed."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ToolsFileError(f"tools file {path}: cannot be read: {getattr(error, 'strerror', error)}") from error
    try:
        document = msgspec.json.decode(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, msgspec.DecodeError) as error:
        raise ToolsFileError(f"tools file {path}: neither TOML nor JSON: {error}") from error
    return parse_tools_file(document, str(path), path.parent)


def parse_tools_file(document: Any, where: str, folder: Path) -> ToolsFile:
    """Check what a file holds; raises ToolsFileError.

    Args:
        document: the decoded file.
        where: what to call it.
        folder: what its relative paths start from.
    """
    kinds: dict[str, Any] = {"openapi": OpenApiTable, "http": EndpointTable, "mcpServers": McpTable}
    unknown = [key for key in document if key not in kinds]
    if unknown or not document:
        said = f"unknown table {unknown[0]!r}" if unknown else "it is empty"
        raise ToolsFileError(f"tools file {where}: {said} (allowed: [openapi.NAME], [http.NAME], [mcpServers.NAME])")
    found: dict[str, dict[str, Any]] = {}
    for kind, tables in document.items():
        if not isinstance(tables, dict):
            raise ToolsFileError(f"tools file {where}: {kind} is no table (allowed: [{kind}.NAME])")
        found[kind] = {
            name: _table(kinds[kind], table, f"tools file {where}, [{kind}.{name}]", name)
            for name, table in tables.items()
        }
    openapi = {name: _rooted(table, folder) for name, table in found.get("openapi", {}).items()}
    return ToolsFile(openapi=openapi, http=found.get("http", {}), mcp_servers=found.get("mcpServers", {}))


def openapi_option(text: str) -> tuple[str, OpenApiTable]:
    """Read `--openapi NAME=URL_OR_FILE`; raises ToolsFileError."""
    name, found, document = text.partition("=")
    if not found or not document:
        raise ToolsFileError(f"--openapi {text!r}: NAME=URL_OR_FILE, as in pets=https://example.com/openapi.json")
    table = _table(OpenApiTable, {"document": document}, f"--openapi {text!r}", name)
    return name, table


def _table(kind: Any, table: Any, where: str, name: str) -> Any:
    if not NAME.fullmatch(name):
        raise ToolsFileError(f"{where}: {name!r} is no name (allowed: {NAME_FORM})")
    if kind is not EndpointTable and name in RESERVED_NAMES:
        raise ToolsFileError(f"{where}: the name {name!r} is taken (allowed: any but {', '.join(RESERVED_NAMES)})")
    try:
        found = msgspec.convert(table, kind)
        _check(found)
    except msgspec.ValidationError as error:
        reason, field = split_path(str(error))
        if "unknown field" in reason:
            allowed = ", ".join(each.encode_name for each in msgspec.structs.fields(kind))
            raise ToolsFileError(f"{where}: {reason} (allowed: {allowed})") from error
        raise ToolsFileError(f"{where}, {field or 'table'}: {reason}") from error
    except ValueError as error:
        raise ToolsFileError(f"{where}, {error}") from error
    return found


def _check(table: _HttpTable | McpTable) -> None:
    """Refuse what the types let through; raises ValueError naming the field."""
    if isinstance(table, _HttpTable):
        table.credentials()
    if isinstance(table, OpenApiTable):
        if table.base_url:
            _require_url("base_url", table.base_url)
        if "://" in table.document:
            _require_url("document", table.document)
    if isinstance(table, McpTable):
        if bool(table.command) == bool(table.url):
            raise ValueError("command: a server has either `command` or `url`")
        if table.url:
            _require_url("url", table.url)
        for name, text in (table.env | table.headers).items():
            _template(name, text)


def _require_url(field: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise ValueError(f"{field}: {url[:200]!r} is no http(s) address, or has a password in it")


def _require_header(field: str, name: str) -> None:
    if not _HEADER.fullmatch(name):
        raise ValueError(f"{field}: {name!r} is no name of a header")


def _template(field: str, text: str) -> Template:
    try:
        return Template(text)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def _rooted(table: OpenApiTable, folder: Path) -> OpenApiTable:
    if urlsplit(table.document).scheme in {"http", "https"}:
        return table
    return msgspec.structs.replace(table, document=str(folder / table.document))
