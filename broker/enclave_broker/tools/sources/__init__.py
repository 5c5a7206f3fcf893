"""Where tools come from, other than Python functions: OpenAPI documents, MCP servers, plain HTTP endpoints."""

from .build import Sources
from .keeper import SourceKeeper
from .tools_file import ToolsFile, ToolsFileError, openapi_option, read_tools_file

__all__ = [
    "SourceKeeper",
    "Sources",
    "ToolsFile",
    "ToolsFileError",
    "openapi_option",
    "read_tools_file",
]
