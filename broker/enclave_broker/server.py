"""uvicorn, without the parts of a program of its own: it is told when to stop, and leaves signals alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from typing import TYPE_CHECKING

import uvicorn

from enclave_protocol import MAX_MESSAGE_BYTES

from .http.connection import client_connection
from .ws import socket_protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Generator

    from litestar.types import ASGIApp

    from .config import BrokerConfig
    from .metrics import Metrics

KEEP_ALIVE_S = 60
UNREAD = 2
"""How many times `write_timeout_s` a connection waits to be read: a stream notices before, and says whose it was."""
_CUT_OFF = "ASGI callable returned without completing response."


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != _CUT_OFF  # streams that can be resumed are cut off on purpose, and their reader is told


logging.getLogger("uvicorn.error").addFilter(_is_news)


class Server(uvicorn.Server):
    """Serves one app inside somebody else's loop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start accepting."""
        await super().startup(sockets)
        self._ready.set()

    async def wait_started(self) -> None:
        """Wait until connections are accepted."""
        await self._ready.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to the program."""
        yield


def raise_descriptor_limit() -> None:
    """Let this process have as many sockets as it may: the usual 1,024 are fewer than its clients."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def server_config(app: ASGIApp, config: BrokerConfig, metrics: Metrics) -> uvicorn.Config:
    """Return the server's settings: no logs per request, no compression, the protocol's largest frame."""
    return uvicorn.Config(
        app,
        http=client_connection(metrics, request_s=config.request_timeout_s, unread_s=UNREAD * config.write_timeout_s),
        ws=socket_protocol(ping_s=config.socket_ping_s, silent_s=config.write_timeout_s),
        ws_ping_interval=None,  # it pings by itself
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        log_level="warning",  # at `debug` it logs the headers of WebSockets, and with them keys and tokens
        ssl_certfile=config.tls_cert or None,
        ssl_keyfile=config.tls_key or None,
        access_log=False,
        proxy_headers=False,  # nothing here depends on who a proxy says the client is
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(config.stop_grace_s)),
    )
