"""uvicorn, without the parts of a program of its own: it is told when to stop, and leaves signals alone.

It looks ten times a second whether it is to stop, and then whether its connections are gone. Here it is told of both,
so that a broker that nobody uses any more stops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from typing import TYPE_CHECKING, Any

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
DATE_EVERY_S = 1.0
"""How often the date in answers' headers is made anew."""
UNREAD = 2
"""How many times `write_timeout_s` a connection waits to be read: a stream notices before, and says whose it was."""
_log = logging.getLogger("enclave.broker")
_CUT_OFF = "ASGI callable returned without completing response."


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != _CUT_OFF  # streams that can be resumed are cut off on purpose, and their reader is told


logging.getLogger("uvicorn.error").addFilter(_is_news)


class _Connections(set[Any]):
    """Those that are open; their protocols add and remove themselves."""

    def __init__(self) -> None:
        super().__init__()
        self._fewer = asyncio.Event()

    def discard(self, connection: Any) -> None:
        """Note that one is closed, or has another protocol from now on."""
        super().discard(connection)
        self._fewer.set()

    remove = discard

    async def wait_empty(self) -> None:
        """Wait until none is open."""
        while self:
            self._fewer.clear()
            await self._fewer.wait()


class Server(uvicorn.Server):
    """Serves one app inside somebody else's loop, until `stop`."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._connections = self.server_state.connections = _Connections()

    def stop(self) -> None:
        """Have `serve` accept no more, finish what is being answered, and return."""
        self.should_exit = True
        self._stop.set()

    async def main_loop(self) -> None:
        """Wait until told to stop."""
        while not await self.on_tick(0):  # which makes the date anew
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATE_EVERY_S):
                    await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close everything once it is answered, or when the time for that is over."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        for connection in list(self._connections):
            connection.shutdown()
        tasks = self.server_state.tasks
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                await self._connections.wait_empty()
                if tasks:
                    await asyncio.wait(tasks)
        except TimeoutError:
            _log.error("%d requests are not answered in time, and are given up", len(tasks))
            for task in tasks:
                task.cancel()

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
