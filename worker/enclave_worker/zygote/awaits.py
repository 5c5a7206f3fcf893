"""What code awaits, as far as its text tells: it decides whether an event loop is made for it."""

from __future__ import annotations

import re

_TOOL_CALLS = ("await call_tool(", "await callTool(")
_MORE = re.compile(r"import|async|\b(?:exec|eval)\b")
"""Without any of which code has no way to another thing to wait for. Tools are called `execute` and `retrieval`."""


def only_tools(code: str) -> bool:
    """Whether code awaits nothing but the answers of tools, one after the other.

    It counts words, be they in a string or a comment: looking closer would be parsing. Where it errs it says no, and
    the code gets an event loop that it has no use for.
    """
    calls = sum(code.count(call) for call in _TOOL_CALLS)
    return code.count("await") == calls and not _MORE.search(code)
