"""How the broker is: for probes, and for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from litestar import Response, get
from litestar.status_codes import HTTP_200_OK

from enclave_broker.api import Health

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from enclave_broker.dispatcher import Dispatcher


def status_routes(dispatcher: Dispatcher) -> list[HTTPRouteHandler]:
    """Return the routes that say how the broker is."""

    @get("/healthz", sync_to_thread=False)
    def healthz() -> Health:
        """Say that the broker runs."""
        return _health(dispatcher)

    @get("/readyz", sync_to_thread=False)
    def readyz() -> Response[Health]:
        """Say whether a session could run: whether a worker is connected that takes new ones."""
        health = _health(dispatcher)
        return Response(health, status_code=HTTP_200_OK if health.status == "ok" else 503)

    @get("/metrics", media_type="text/plain; version=0.0.4", sync_to_thread=False)
    def show_metrics() -> bytes:
        """Show the metrics in Prometheus' text format."""
        fleet = dispatcher.placer.statistics()
        return dispatcher.metrics.render(fleet, configured=len(dispatcher.links), active=dispatcher.directory.live)

    return [healthz, readyz, show_metrics]


def _health(dispatcher: Dispatcher) -> Health:
    fleet = dispatcher.placer.statistics()
    status = "no workers" if not fleet.workers else "ok" if fleet.workers > fleet.draining else "draining"
    return msgspec.convert(
        {"status": status, "workers": fleet.workers, "freeSlots": fleet.free, "waiting": fleet.waiting}, Health
    )
