"""The socket that a broker listens on."""

from __future__ import annotations

import errno
import socket


class PortInUse(OSError):  # noqa: N818 - the kernel's word
    """Another program listens where the broker should."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises PortInUse, or another OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} on {host} is in use: stop what listens there, or choose another with --port"
            raise PortInUse(reason) from error
        raise
    # Inherited by what it accepts. asyncio's own loop forgets it for a listener made this way, and every answer on a
    # connection that is used again would wait 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
