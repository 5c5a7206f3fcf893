"""A worker that dials in to its brokers, where they can't reach it.

The connection is served as one that was accepted; only who has called whom differs. A broker that is gone is called
again, with a delay that doubles up to a limit and is spread at random, so that a fleet does not come back in step. One
that hangs up at once, because it reaches this worker in another way already, is called less often, too.
"""

from __future__ import annotations

import asyncio
import http
import logging
import random
import ssl
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus, WebSocketException

from enclave_protocol import MAX_MESSAGE_BYTES

from .door import AccessError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from websockets.asyncio.client import ClientConnection

    from .config import RuntimeConfig

log = logging.getLogger("enclave.worker")
_wire_log = logging.getLogger("enclave.worker.websockets")
_wire_log.setLevel(logging.WARNING)  # below it the library logs the headers, and with them the token

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 1.0
PING_S = 5.0
"""Time between pings to a broker; one that answers none of them for as long again is gone."""
FIRST_DELAY_S = 0.1
"""Before a broker is called again; it doubles,"""
LONGEST_DELAY_S = 5.0
"""up to this. Whoever stays connected for so long was no refusal."""


class Dialing:
    """The calls of one worker. Owns a task for each broker, from `start` until `stop` has returned.

    Args:
        urls: brokers, `ws://broker:3000/workers`.
        token: the secret that the brokers want; empty shows none.
        tls: how `wss://` is spoken; None leaves it to the system's authorities.
        serve: serves a connection until it has ended.
    """

    def __init__(
        self,
        urls: Iterable[str],
        *,
        token: str,
        tls: ssl.SSLContext | None,
        serve: Callable[[ClientConnection], Awaitable[None]],
    ) -> None:
        self._urls = tuple(dict.fromkeys(urls))
        self._headers = {"Authorization": f"Bearer {token}"} if token else None
        self._tls: dict[str, Any] = {} if tls is None else {"ssl": tls}
        self._serve = serve
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Call every broker, and go on calling."""
        self._tasks = [asyncio.create_task(self._keep(url), name=f"enclave-dial-{url}") for url in self._urls]

    async def stop(self) -> None:
        """Hang up. What was said is on its way already."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _keep(self, url: str) -> None:
        loop = asyncio.get_running_loop()
        failures, told = 0, ""
        while True:
            called_s = loop.time()
            trouble = await self._call(url)
            failures = 1 if loop.time() - called_s > LONGEST_DELAY_S else failures + 1
            if trouble != told:
                told = trouble
                log.warning("broker %s: %s; calling again until it answers", url, trouble)
            await asyncio.sleep(delay_s(failures))

    async def _call(self, url: str) -> str:
        """Live through one connection; returns why there is none any more."""
        try:
            connection = await _Connect(
                url,
                additional_headers=self._headers,
                logger=_wire_log,
                compression=None,
                max_size=MAX_MESSAGE_BYTES,
                open_timeout=CONNECT_TIMEOUT_S,
                close_timeout=CLOSE_TIMEOUT_S,
                ping_interval=PING_S,
                ping_timeout=PING_S,
                proxy=None,
                **self._tls,
            )
        except InvalidStatus as error:
            return _refused(error)
        except InvalidMessage as error:
            return f"{error}: is it ws:// or wss://?"
        except (OSError, WebSocketException, TimeoutError) as error:
            return str(error) or type(error).__name__
        async with connection:
            try:
                await self._serve(connection)
            except Exception:
                log.exception("broker %s: a fault of ours", url)
        return f"hung up ({connection.close_code} {connection.close_reason or ''}".rstrip() + ")"


class _Connect(connect):
    def process_redirect(self, exc: Exception) -> Exception | str:
        """A broker sends nobody elsewhere, and the token is for nobody else."""
        return exc


def delay_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row (1 or more)."""
    longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(failures - 1, 20))
    return float(longest * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing


def client_context(config: RuntimeConfig) -> ssl.SSLContext | None:
    """Return how `wss://` is spoken to brokers: None leaves it to the system's authorities. Raises AccessError.

    The files are those of accepted connections: `tls_ca` is whose brokers we believe, `tls_cert` is what we show.
    """
    if not (config.tls_ca or config.tls_cert):
        return None
    what = f"tls_ca {config.tls_ca}, tls_cert {config.tls_cert}, tls_key {config.tls_key}"
    try:
        context = ssl.create_default_context(cafile=config.tls_ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are ours
        if config.tls_cert:
            # A password given, if a wrong one, since OpenSSL would ask for it on the terminal.
            context.load_cert_chain(config.tls_cert, config.tls_key or None, password=lambda: "")
    except ssl.SSLError as error:
        raise AccessError(f"{what}: {error.reason or 'unreadable, or encrypted with a password'}") from error
    except OSError as error:
        raise AccessError(f"{what}: {error.strerror}") from error
    return context


def _refused(error: InvalidStatus) -> str:
    status = error.response.status_code
    if status == http.HTTPStatus.UNAUTHORIZED:
        return "it refused us (HTTP 401): --worker-token-file must be what it wants"
    if status == http.HTTPStatus.FORBIDDEN:
        return "it refused us (HTTP 403): does it run with --accept-workers?"
    return str(error)
