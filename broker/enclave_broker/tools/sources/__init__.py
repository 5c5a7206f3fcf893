"""Where tools come from, other than Python functions: OpenAPI documents, MCP servers, plain HTTP endpoints."""

from .build import Sources
from .keeper import SourceKeeper
from .options import load_sources
from .tools_file import ToolsFile, ToolsFileError, read_tools_file

__all__ = [
    "SourceKeeper",
    "Sources",
    "ToolsFile",
    "ToolsFileError",
    "load_sources",
    "read_tools_file",
]
