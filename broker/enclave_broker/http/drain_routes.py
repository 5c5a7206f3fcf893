"""`POST /drain` and `POST /workers/{workerId}/drain`: what an operator does before something is stopped or replaced."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Request, post
from litestar.params import FromPath  # noqa: TC002 - Litestar reads the annotations at run time
from litestar.status_codes import HTTP_202_ACCEPTED

from enclave_broker.access import Scope
from enclave_broker.api import ApiError, error_body
from enclave_protocol.logs import about

from .access import caller_of, needs
from .common import error_answers

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from enclave_broker.broker import Broker

log = logging.getLogger("enclave.broker")


class Draining(msgspec.Struct, rename="camel"):
    """The broker takes no more sessions, and stops when it has none."""

    live: int
    """Sessions that have not ended."""
    grace_s: float
    """How long they are given."""


class DrainingWorkers(msgspec.Struct, rename="camel"):
    """A worker gets no more sessions, and ends when it has none."""

    links: list[str]
    """The links to it, by name."""
    busy: bool
    """Whether it has sessions of this broker."""


def drain_routes(broker: Broker) -> list[HTTPRouteHandler]:
    """Return the routes that drain."""

    @post("/drain", status_code=HTTP_202_ACCEPTED, sync_to_thread=False, opt=needs(Scope.OPERATE))
    def drain(request: Request[Any, Any, Any]) -> Draining:
        """Drain the broker: it is not ready any more, refuses new sessions, lets those that it has end, and stops."""
        log.info("drain: asked by key %s", caller_of(request).key_id or "(none needed)")
        broker.drain()
        return Draining(live=broker.dispatcher.directory.live, grace_s=broker.config.grace_s)

    @post(
        "/workers/{worker_id:str}/drain",
        status_code=HTTP_202_ACCEPTED,
        sync_to_thread=False,
        opt=needs(Scope.OPERATE),
        responses=error_answers(s404="No such worker is connected."),
    )
    def drain_worker(worker_id: FromPath[str], request: Request[Any, Any, Any]) -> DrainingWorkers:
        """Drain a worker, by what it calls itself: it gets no new sessions, and ends when those that it has have ended.

        Whoever runs it may start it again: the new one is used as any other.
        """
        links = broker.links.drain(worker_id)
        if not links:
            message = f"no worker that is connected calls itself {worker_id[:140]!r}"
            raise ApiError(404, error_body("NOT_FOUND", message, field="workerId", allowed="as GET /fleet names them"))
        asker = caller_of(request).key_id or "(none needed)"
        log.info("drain of worker %s: asked by key %s", worker_id, asker, extra=about(worker_id=worker_id))
        return DrainingWorkers(links=links, busy=any(broker.dispatcher.fleet.link_busy(name) for name in links))

    return [drain, drain_worker]
