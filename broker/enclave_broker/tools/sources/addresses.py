"""Where the requests of a document's operations go. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from .document import DocumentError

if TYPE_CHECKING:
    from .selection import Selection


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
