"""Which operations become tools, where their requests go, and what guests have no say in. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

RESERVED_HEADERS = frozenset(
    {
        *("accept", "content-type", "authorization"),  # OpenAPI: described elsewhere
        *("host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"),
        *("cookie", "proxy-authorization", "proxy-connection", "keep-alive", "accept-encoding"),
        *("traceparent", "tracestate"),
    }
)
"""Headers that no guest may set: they frame the request, or carry the broker's credentials or its trace."""


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
