"""`GET /fleet`: what an operator wants to see at a glance, in one answer. `enclave top` shows it."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Literal

import msgspec
from litestar import get
from msgspec import UNSET

from enclave_broker.access import Scope
from enclave_protocol import __version__

from .access import needs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litestar.handlers import HTTPRouteHandler

    from enclave_broker.dispatcher import Dispatcher
    from enclave_broker.links import Link
    from enclave_broker.placement import WorkerView

MAX_TENANTS = 100

WorkerState = Literal["up", "failing", "draining", "away", "disconnected"]


class FleetWorker(msgspec.Struct, rename="camel", omit_defaults=True):
    """One worker."""

    name: str
    """What the broker calls it: where it is."""
    worker_id: str
    """What it calls itself; its name, as long as it has said nothing."""
    state: WorkerState
    """`up`; `failing`: sessions go elsewhere where they can, until it does better; `draining`: it takes no new ones;
    `away`: cut off, and its sessions wait for it; `disconnected`: not there."""
    slots: int
    """Sessions that it runs at once; 0 while it is disconnected."""
    used: int
    """Slots that sessions of this broker have,"""
    foreign: int
    """and those that others have."""
    version: str = ""
    """Of its program. Absent, like what follows, before its first word."""
    level: str = ""
    """The security level that its sandboxes hold."""
    missing_layers: list[str] = []
    """Layers that its level lets it do without."""
    profiles: list[str] = []


class FleetQueue(msgspec.Struct, rename="camel"):
    """The queue."""

    waiting: int
    """Sessions that wait for a slot."""
    size: int
    """How many may."""


class FleetTenant(msgspec.Struct, rename="camel"):
    """A tenant with sessions that have not ended."""

    tenant: str
    active: int
    """All of them,"""
    waiting: int
    """and of those, the ones that no worker has."""


class FleetInfo(msgspec.Struct, rename="camel"):
    """The whole fleet, as this broker sees it."""

    version: str
    """The broker's."""
    started_at: int
    """When the broker was started, in milliseconds since the epoch."""
    now: int
    """Its clock, likewise."""
    draining: bool
    """Whether the broker takes no more sessions."""
    active: int
    """Sessions that have not ended."""
    queue: FleetQueue
    workers: list[FleetWorker]
    """Every one that is known, by name."""
    tenants: list[FleetTenant]
    """The hundred that have the most."""


def fleet_routes(dispatcher: Dispatcher) -> list[HTTPRouteHandler]:
    """Return the routes about the fleet."""
    started_at = round(time.time() * 1000)

    @get("/fleet", sync_to_thread=False, opt=needs(Scope.METRICS))
    def show_fleet() -> FleetInfo:
        """Show the workers, the queue and the tenants: for who runs the fleet, since it is about every tenant."""
        placer = dispatcher.placer
        return FleetInfo(
            version=__version__,
            started_at=started_at,
            now=round(time.time() * 1000),
            draining=dispatcher.draining,
            active=dispatcher.directory.live,
            queue=FleetQueue(waiting=placer.statistics().waiting, size=dispatcher.config.queue_size),
            workers=_workers(dispatcher.fleet.links, {view.name: view for view in placer.workers()}),
            tenants=_tenants(dispatcher),
        )

    return [show_fleet]


def _workers(links: Mapping[str, Link], views: Mapping[str, WorkerView]) -> list[FleetWorker]:
    return [_worker(name, links.get(name), views.get(name)) for name in sorted(links.keys() | views.keys())]


def _worker(name: str, link: Link | None, view: WorkerView | None) -> FleetWorker:
    hello = None if link is None else link.hello
    worker = FleetWorker(
        name=name,
        worker_id=name if hello is None else hello.worker_id,
        state=_state(view),
        slots=0 if view is None else view.max_sessions,
        used=0 if view is None else view.sessions,
        foreign=0 if view is None else view.foreign,
    )
    if hello is not None:
        worker.version, worker.level, worker.profiles = hello.version, hello.level, hello.profiles
        worker.missing_layers = [] if hello.missing_layers is UNSET else hello.missing_layers
    return worker


def _state(view: WorkerView | None) -> WorkerState:
    if view is None:
        return "disconnected"
    if view.away:
        return "away"
    if view.draining:
        return "draining"
    return "failing" if view.failing else "up"


def _tenants(dispatcher: Dispatcher) -> list[FleetTenant]:
    routes = dispatcher.fleet.routes.values()
    waiting = Counter(session.tenant for session in routes if session.live and session.worker is None)
    busy = [account for account in dispatcher.gate.ledger if account.active]
    busy.sort(key=lambda account: (-account.active, account.tenant))
    return [FleetTenant(each.tenant, each.active, waiting[each.tenant]) for each in busy[:MAX_TENANTS]]
