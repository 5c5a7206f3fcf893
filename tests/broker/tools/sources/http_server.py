"""A real HTTP server on loopback, which says what a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import uvicorn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@dataclass
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    """As it was sent, encoded."""
    query: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return a header's value."""
        return dict(self.headers).get(name)


@dataclass
class Answer:
    """What to answer."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


class HttpServer:
    """Answers by `routes`, which has functions from a request to an answer, by path."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.routes: dict[str, Callable[[Asked], Answer]] = {}
        self.url = ""
        self._more = asyncio.Event()

    async def wait_asked(self, count: int, path: str = "") -> list[Asked]:
        """Wait until so many requests (for a path) have arrived."""
        async with asyncio.timeout(60):
            while True:
                found = [asked for asked in self.asked if path in {"", asked.path}]
                if len(found) >= count:
                    return found
                self._more.clear()
                await self._more.wait()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked = Asked(
            method=scope["method"],
            path=scope["raw_path"].decode(),
            query=scope["query_string"].decode(),
            headers=[(name.decode(), value.decode()) for name, value in scope["headers"]],
            body=body,
        )
        self.asked.append(asked)
        self._more.set()
        answer = self.routes[asked.path](asked) if asked.path in self.routes else Answer({"error": "no such path"}, 404)
        data = answer.body if isinstance(answer.body, bytes) else msgspec.json.encode(answer.body)
        headers = [(b"content-type", answer.content_type.encode())] if answer.content_type else []
        headers += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": data})


@contextlib.asynccontextmanager
async def serving(app: Any, *, port: int = 0) -> AsyncIterator[str]:
    """Serve an ASGI application on a free port; yields its address."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="auto", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]  # they are pytest's
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(60):
            while not (server.started or task.done()):  # noqa: ASYNC110 - its start has no event
                await asyncio.sleep(0.001)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


@contextlib.asynccontextmanager
async def http_server() -> AsyncIterator[HttpServer]:
    """Run an `HttpServer`."""
    server = HttpServer()
    async with serving(server) as server.url:
        yield server
