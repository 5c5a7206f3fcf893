"""Where brokers are, as a worker that dials in is told. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit


def check_broker_url(url: str) -> None:
    """Raise ValueError unless workers can dial in at this URL."""
    if "@" in url.partition("://")[2].partition("/")[0]:
        # Not shown: command lines and logs are no place for it.
        raise ValueError("a broker URL holds a user or a password: use worker_token_file instead")
    if not _is_usable(url):
        raise ValueError(f"broker URL {url!r}: is not ws:// or wss:// with a host, as in ws://127.0.0.1:3000/workers")


def _is_usable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        usable = parts.scheme in {"ws", "wss"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return usable and url.isascii() and url.isprintable() and " " not in url
