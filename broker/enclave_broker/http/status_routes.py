"""How the broker is: for probes, and for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from litestar import Response, get
from litestar.status_codes import HTTP_200_OK

from enclave_broker.access import Scope
from enclave_broker.api import Health

from .access import PUBLIC, needs

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from enclave_broker.dispatcher import Dispatcher


def status_routes(dispatcher: Dispatcher, *, public_metrics: bool) -> list[HTTPRouteHandler]:
    """Return the routes that say how the broker is; `public_metrics` lets everybody read the metrics."""

    @get("/healthz", sync_to_thread=False, opt=PUBLIC)
    def healthz() -> Health:
        """Say that the broker runs."""
        return _health(dispatcher)

    @get("/readyz", sync_to_thread=False, opt=PUBLIC)
    def readyz() -> Response[Health]:
        """Say whether a session could run: whether a worker is connected that takes new ones."""
        health = _health(dispatcher)
        return Response(health, status_code=HTTP_200_OK if health.status == "ok" else 503)

    @get(
        "/metrics",
        media_type="text/plain; version=0.0.4",
        sync_to_thread=False,
        opt=PUBLIC if public_metrics else needs(Scope.METRICS),
    )
    def show_metrics() -> bytes:
        """Show the metrics in Prometheus' text format."""
        fleet, ledger = dispatcher.placer.statistics(), dispatcher.gate.ledger
        configured, active = len(dispatcher.fleet.links), dispatcher.directory.live
        return dispatcher.metrics.render(fleet, ledger, configured=configured, active=active)

    return [healthz, readyz, show_metrics]


def _health(dispatcher: Dispatcher) -> Health:
    fleet = dispatcher.placer.statistics()
    takes = fleet.workers > fleet.draining and not dispatcher.draining
    status = "ok" if takes else "draining" if fleet.workers or dispatcher.draining else "no workers"
    store = "memory" if not dispatcher.store.durable else "failing" if dispatcher.store.failure else "durable"
    return msgspec.convert(
        {
            "status": status,
            "workers": fleet.workers,
            "freeSlots": fleet.free,
            "waiting": fleet.waiting,
            "store": store,
        },
        Health,
    )
