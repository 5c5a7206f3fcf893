"""How it is written down where workers are. Pure.

A place is a worker's URL, `ws://host:port/ws`, or a name in DNS that stands for any number of workers:
`dns+ws://name:port/ws` for every address of the name, `srv+ws://_service._tcp.name/ws` for every server of its SRV
records, which say the ports. `wss` in place of `ws` speaks TLS.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple
from urllib.parse import urlsplit

EXAMPLE = "ws://127.0.0.1:3001/ws"
PLACES = "ws://host:port/ws, dns+ws://name:port/ws or srv+ws://_service._tcp.name/ws, or the same with wss"
FINDERS = ("dns", "srv")
_PORTS = {"ws": 80, "wss": 443}
_DNS_PORT = 53


class Named(NamedTuple):
    """A place that DNS has to be asked about."""

    finder: str
    """`dns`: addresses; `srv`: servers with their ports."""
    scheme: str
    host: str
    port: int | None
    """None for `srv`, whose records say it."""
    path: str


def check_worker_url(url: str) -> str:
    """Return the URL of a worker if it is one; raises ValueError saying what is wrong."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        # Not shown: command lines and logs are no place for it.
        raise ValueError("a worker URL holds a user or a password: use worker_token_file instead")
    if parts.scheme not in _PORTS:
        raise ValueError(f"worker URL {url!r}: starts with ws:// or wss://, as in {EXAMPLE}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if not parts.hostname or port == 0 or not _is_host(parts.hostname):
        raise ValueError(f"worker URL {url!r}: needs a host, and a port from 1 to 65535 if any")
    if not (url.isprintable() and parts.path.isascii() and parts.query.isascii()) or " " in url or parts.fragment:
        raise ValueError(f"worker URL {url!r}: a path is ASCII without spaces, as in {EXAMPLE}")
    return url


def check_place(place: str) -> str:
    """Return a place if it is one; raises ValueError saying what is wrong."""
    finder, plus, url = place.partition("+")
    if not plus or "://" in finder:
        return check_worker_url(place)
    parts = urlsplit(url)
    if finder not in FINDERS or parts.scheme not in _PORTS:
        raise ValueError(f"worker {place!r}: is none of {PLACES}")
    check_worker_url(url)
    if finder == "srv" and parts.port is not None:
        raise ValueError(f"worker {place!r}: the records of srv+{parts.scheme} say the port, so it has none")
    if is_address(parts.hostname or ""):
        raise ValueError(f"worker {place!r}: holds an address, which needs no DNS: write {url}")
    return place


def named(place: str) -> Named | None:
    """Return what DNS is asked about for a checked place; None if it is a URL."""
    finder, plus, url = place.partition("+")
    if not plus or "://" in finder:
        return None
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    port = None if finder == "srv" else parts.port or _PORTS[parts.scheme]
    return Named(finder, parts.scheme, parts.hostname or "", port, path)


def canonical(url: str) -> str:
    """Return the name of a worker, the same for all spellings of a checked URL: it is not for dialling.

    `localhost` is 127.0.0.1 here. A worker that listens on another address of loopback alone has another name, too.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if host == "localhost":
        host = "127.0.0.1"
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{authority(host, parts.port or _PORTS[parts.scheme])}{parts.path or '/'}{query}"


def authority(host: str, port: int) -> str:
    """Return host and port as a URL has them."""
    address = ipaddress.ip_address(host) if is_address(host) else host
    return f"[{address}]:{port}" if isinstance(address, ipaddress.IPv6Address) else f"{address}:{port}"


def is_address(host: str) -> bool:
    """Whether a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_host(host: str) -> bool:
    try:
        host.encode("idna")
    except UnicodeError:  # what would dial it knows no other names
        return False
    return True


def is_encrypted(place: str) -> bool:
    """Whether a checked place is reached by TLS."""
    return place.partition("://")[0].endswith("wss")


def parse_server(text: str) -> tuple[str, int]:
    """Return address and port of a nameserver; raises ValueError saying what is allowed."""
    if is_address(text):
        return text, _DNS_PORT
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", 0
    if not is_address(host) or port == 0 or text.endswith(":") or parts.netloc != text:
        raise ValueError(f"nameserver {text!r}: is not ADDRESS or ADDRESS:PORT, as in 10.0.0.10 or [::1]:53")
    return host, port or _DNS_PORT
