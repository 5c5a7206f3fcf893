"""What guests may call: tools, where they come from, and how a call is run."""

from .approval import ApprovalHook, ApprovalRequest, Refusal, load_hook
from .calls import ToolCalls
from .functions import FunctionTool, tool
from .registry import CatalogChange, SourceInfo, ToolRegistry
from .runner import Call, ToolRunner
from .secrets import ScrubbedFormatter, Secrets, read_secrets, take_from_environment
from .tool import ArgumentsRefused, Tool, ToolContext, ToolFailure, ToolPolicy, ToolSource

__all__ = [
    "ApprovalHook",
    "ApprovalRequest",
    "ArgumentsRefused",
    "Call",
    "CatalogChange",
    "FunctionTool",
    "Refusal",
    "ScrubbedFormatter",
    "Secrets",
    "SourceInfo",
    "Tool",
    "ToolCalls",
    "ToolContext",
    "ToolFailure",
    "ToolPolicy",
    "ToolRegistry",
    "ToolRunner",
    "ToolSource",
    "load_hook",
    "read_secrets",
    "take_from_environment",
    "tool",
]
