"""What an MCP server says becomes what a guest is given. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enclave_broker.tools.tool import ToolFailure

if TYPE_CHECKING:
    from mcp import types


def read_result(result: types.CallToolResult) -> Any:
    """Return the value of a call's result.

    What the server gives as structured content is the value. Otherwise it is the text, if the result is one piece of
    text; None if it is nothing; else the list of its pieces as MCP writes them (`{"type": "image", ...}`).

    Raises:
        ToolFailure: `MCP_TOOL_ERROR`, the tool says that it failed.
    """
    pieces = [piece.model_dump(mode="json", by_alias=True, exclude_none=True) for piece in result.content]
    if result.is_error:
        said = "\n".join(piece["text"] for piece in pieces if piece.get("type") == "text")
        raise ToolFailure("MCP_TOOL_ERROR", said or "the tool failed without a message")
    if result.structured_content is not None:
        return result.structured_content
    if not pieces:
        return None
    if len(pieces) == 1 and pieces[0].get("type") == "text":
        return pieces[0]["text"]
    return pieces
