"""What operators wrote becomes sources. Nothing is connected yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .endpoints import make_operation
from .templates import Template
from .tools_file import ToolsFileError, parse_tools_file

if TYPE_CHECKING:
    from enclave_broker.tools.secrets import Secrets

    from .tools_file import EndpointTable, McpTable, OpenApiTable, ToolsFile
    from .watched import WatchedSource


class Sources:
    """Everything that operators wrote, from all files and options."""

    def __init__(self) -> None:
        self._openapi: dict[str, OpenApiTable] = {}
        self._http: dict[str, EndpointTable] = {}
        self._mcp: dict[str, McpTable] = {}

    def add_file(self, file: ToolsFile) -> None:
        """Add a file's; raises ToolsFileError if a name is taken."""
        for name, document in file.openapi.items():
            self.add_openapi(name, document)
        for name, server in file.mcp_servers.items():
            self._require_free(name)
            self._mcp[name] = server
        for name, endpoint in file.http.items():
            if name in self._http:
                raise ToolsFileError(f"two endpoints are called {name!r}: [http.{name}] stands in two files")
            self._http[name] = endpoint

    def add_tables(self, tables: dict[str, Any]) -> None:
        """Add what a file would hold, from a program; raises ToolsFileError."""
        self.add_file(parse_tools_file(tables, "tables", Path()))

    def add_openapi(self, name: str, table: OpenApiTable) -> None:
        """Add a document; raises ToolsFileError if the name is taken."""
        self._require_free(name)
        self._openapi[name] = table

    def secrets(self) -> frozenset[str]:
        """Return the names of all secrets that anything of this needs."""
        tables = [*self._openapi.values(), *self._http.values()]
        servers = [server for server in self._mcp.values() if not server.disabled]
        templates = [Template(text) for server in servers for text in (*server.env.values(), *server.headers.values())]
        return frozenset().union(
            *(table.credentials().secrets for table in tables), *(template.secrets for template in templates)
        )

    def needing_approval(self) -> list[str]:
        """Return the sources some of whose tools somebody has to approve of."""
        extras = {name: server.enclave for name, server in self._mcp.items()}
        tables = [*self._openapi.items(), *self._http.items(), *extras.items()]
        return [name for name, table in tables if table.needs_approval]

    def _require_free(self, name: str) -> None:
        if name in self._openapi or name in self._mcp:
            raise ToolsFileError(f"two sources are called {name!r}: their tools would have the same names")

    def make(self, secrets: Secrets) -> list[WatchedSource]:
        """Return the sources.

        Args:
            secrets: the broker's.

        Raises:
            ToolsFileError: an endpoint makes no sense, or what a source needs is not installed.
        """
        made: list[WatchedSource] = [_openapi(name, table) for name, table in self._openapi.items()]
        if self._http:
            made.append(_endpoints(self._http))
        made += [_mcp(name, table, secrets) for name, table in self._mcp.items() if not table.disabled]
        return made


# What makes requests is imported where it is used: it takes longer to load than all else a broker without it needs.


def _openapi(name: str, table: OpenApiTable) -> WatchedSource:
    from .openapi import OpenApiSettings, OpenApiSource  # noqa: PLC0415

    settings = OpenApiSettings(
        name=name,
        document=table.document,
        credentials=table.credentials(),
        policies=table.policies(),
        base_url=table.base_url,
        include=table.include,
        exclude=table.exclude,
        poll_interval_s=table.poll_interval_s,
    )
    return OpenApiSource(settings)


def _endpoints(tables: dict[str, EndpointTable]) -> WatchedSource:
    from .endpoint_source import EndpointSource  # noqa: PLC0415

    endpoints = []
    for name, table in tables.items():
        try:
            operation = make_operation(
                name, method=table.method, url=table.url, description=table.description, input_schema=table.input
            )
        except ValueError as error:
            raise ToolsFileError(f"[http.{name}], {error}") from error
        endpoints.append((operation, table.credentials(), table.policies()))
    try:
        return EndpointSource(endpoints)
    except ValueError as error:
        raise ToolsFileError(f"[http]: {error}") from error


def _mcp(name: str, table: McpTable, secrets: Secrets) -> WatchedSource:
    try:
        from .mcp_source import McpSettings, McpSource  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ToolsFileError(f"[mcpServers.{name}] needs the MCP library: pip install 'enclave[mcp]'") from error
    settings = McpSettings(
        name=name,
        policies=table.enclave.policies(),
        command=table.command,
        url=table.url,
        args=table.args,
        env={key: Template(text) for key, text in table.env.items()},
        headers={key: Template(text) for key, text in table.headers.items()},
        cwd=table.cwd,
        include=table.enclave.include,
        exclude=table.enclave.exclude,
        connect_timeout_s=table.enclave.connect_timeout_s,
        poll_interval_s=table.enclave.poll_interval_s,
    )
    return McpSource(settings, secrets)
