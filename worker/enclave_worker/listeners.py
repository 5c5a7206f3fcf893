"""Who wants to be told what happens in a worker: its sessions' starts and ends, its connections' comings and goings."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Generic, ParamSpec

log = logging.getLogger("enclave.worker")

P = ParamSpec("P")
Unsubscribe = Callable[[], None]
"""Ends a subscription. Safe to call again."""


class Handlers(Generic[P]):
    """The functions that are told of one kind of thing, in the order in which they came."""

    def __init__(self) -> None:
        self._handlers: list[Callable[P, object]] = []

    def add(self, handler: Callable[P, object]) -> Unsubscribe:
        """Tell `handler` from now on. Raises TypeError for an `async def`, which nobody would await."""
        if inspect.iscoroutinefunction(handler):
            raise TypeError(f"{handler!r} is async; a handler is a plain function that returns soon")
        entry = [handler]  # the same function may be added twice: each subscription is its own
        self._handlers = [*self._handlers, handler]

        def unsubscribe() -> None:
            if entry:
                remaining = self._handlers.copy()
                remaining.remove(entry.pop())
                self._handlers = remaining

        return unsubscribe

    def notify(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Tell everybody. What a handler raises is logged, and breaks nothing."""
        for handler in self._handlers:  # the list is replaced, never changed: a handler may unsubscribe here
            try:
                handler(*args, **kwargs)
            except Exception:
                log.exception("a handler failed: %r", handler)


class Listeners:
    """Every kind of handler that a worker has."""

    def __init__(self) -> None:
        self.execute = Handlers[[str]]()
        self.complete = Handlers[[str]]()
        self.error = Handlers[[str, str]]()
        self.cancel = Handlers[[str, str]]()
        self.connect = Handlers[[str]]()
        self.disconnect = Handlers[[str]]()
        self.connection_error = Handlers[[str, Exception]]()


class Observable:
    """The subscribing half of a worker.

    Each method takes a plain function, also as a decorator, and returns a function that ends the subscription. Handlers
    run in the worker's event loop, between its events, so they must return soon. Subscriptions outlast a restart.
    A session that was refused was never started, and nobody is told of it.
    """

    def __init__(self) -> None:
        self.listeners = Listeners()

    def on_execute(self, handler: Callable[[str], object]) -> Unsubscribe:
        """Call `handler(session_id)` when a session was accepted."""
        return self.listeners.execute.add(handler)

    def on_complete(self, handler: Callable[[str], object]) -> Unsubscribe:
        """Call `handler(session_id)` when a session ended with a result."""
        return self.listeners.complete.add(handler)

    def on_error(self, handler: Callable[[str, str], object]) -> Unsubscribe:
        """Call `handler(session_id, code)` when a session failed; `code` is that of its `final`."""
        return self.listeners.error.add(handler)

    def on_cancel(self, handler: Callable[[str, str], object]) -> Unsubscribe:
        """Call `handler(session_id, code)` when a session was cancelled."""
        return self.listeners.cancel.add(handler)

    def on_connect(self, handler: Callable[[str], object]) -> Unsubscribe:
        """Call `handler(peer)` when somebody connected; `peer` is `address:port`, or `memory:number`."""
        return self.listeners.connect.add(handler)

    def on_disconnect(self, handler: Callable[[str], object]) -> Unsubscribe:
        """Call `handler(peer)` when a connection is over, however it ended."""
        return self.listeners.disconnect.add(handler)

    def on_connection_error(self, handler: Callable[[str, Exception], object]) -> Unsubscribe:
        """Call `handler(peer, error)` when a connection broke without a goodbye; `on_disconnect` follows."""
        return self.listeners.connection_error.add(handler)
