"""What guests may call: tools, where they come from, and how a call is run."""

from .functions import FunctionTool, tool
from .registry import CatalogChange, SourceInfo, ToolRegistry
from .runner import ToolRunner, failed
from .tool import ArgumentsRefused, Tool, ToolContext, ToolFailure, ToolPolicy, ToolSource

__all__ = [
    "ArgumentsRefused",
    "CatalogChange",
    "FunctionTool",
    "SourceInfo",
    "Tool",
    "ToolContext",
    "ToolFailure",
    "ToolPolicy",
    "ToolRegistry",
    "ToolRunner",
    "ToolSource",
    "failed",
    "tool",
]
