"""What the broker counts. No session or user id is ever a label; tenants are, and only so many of them.

No name is also a worker's, but for `enclave_build_info`, which tells the two apart by its `role`, and those of the
process: a sum over both would be of two different things.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from enclave_protocol import Code, __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from .access import Ledger
    from .placement import Statistics
    from .tools.threads import ThreadStatistics

DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_CODES = frozenset(Code)
MAX_TENANTS = 100
"""Tenants that are labels of their own; the others are counted together as `OTHER`."""
OTHER = "(other)"
"""What stands for a label's values that are not of a closed list."""
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class Metrics:
    """The broker's metrics, in a registry of their own so that several brokers fit one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._tenants: set[str] = set()
        self.sessions = Counter("enclave_sessions", "Sessions that ended", ["outcome"], registry=registry)
        self.duration = Histogram(
            "enclave_session_duration_seconds",
            "From acceptance to the final",
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.queue_wait = Histogram(
            "enclave_queue_wait_seconds", "Wait for a slot", buckets=DURATION_BUCKETS, registry=registry
        )
        self.queue_depth = Gauge("enclave_queue_depth", "Sessions that wait for a slot", registry=registry)
        self.start = Histogram(
            "enclave_session_start_seconds",
            "From acceptance by its worker to a sandbox with the code, of sessions that ended",
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.active = Gauge("enclave_sessions_active", "Sessions that have not ended", registry=registry)
        self.slots = Gauge(
            "enclave_slots",
            "Slots of connected workers; other: they have other clients in them, or are not offered now",
            ["state"],
            registry=registry,
        )
        self.workers = Gauge(
            "enclave_workers",
            "Workers; failing: avoided; away: cut off, their sessions wait for them; disconnected: known, not there",
            ["state"],
            registry=registry,
        )
        self.worker_source_stale = Gauge(
            "enclave_worker_source_stale",
            "1 while a source of workers cannot be read and its last list holds",
            ["source"],
            registry=registry,
        )
        self.workers_lost = Counter("enclave_workers_lost", "Connections to workers that broke", registry=registry)
        self.workers_unfit = Counter(
            "enclave_workers_unfit", "Connections to workers that speak no common revision", registry=registry
        )
        self.attaches = Counter(
            "enclave_session_attaches",
            "Sessions a worker was asked to go on with after its connection broke",
            registry=registry,
        )
        self.placed_again = Counter(
            "enclave_sessions_placed_again",
            "Sessions that went to a worker once more: the first never got them, or was lost before they began",
            ["reason"],
            registry=registry,
        )
        self.requeues = Counter("enclave_requeues", "Sessions a worker had no slot for", registry=registry)
        self.rejections = Counter("enclave_rejections", "Requests that were refused", ["code"], registry=registry)
        self.stray_events = Counter("enclave_stray_events", "Events for no live session", registry=registry)
        self.tool_calls = Counter("enclave_tool_calls", "Tool calls", ["outcome"], registry=registry)
        self.tool_duration = Histogram(
            "enclave_tool_call_duration_seconds", "Tool calls run here", buckets=DURATION_BUCKETS, registry=registry
        )
        self.tool_retries = Counter("enclave_tool_retries", "Further attempts at tool calls", registry=registry)
        self._tool_threads = Gauge(
            "enclave_tool_threads",
            "Threads for tools; abandoned: in a call that was given up",
            ["state"],
            registry=registry,
        )
        self._tool_waiting = Gauge("enclave_tool_calls_waiting", "Tool calls without a thread", registry=registry)
        self._tool_given_up = Gauge(
            "enclave_tool_calls_given_up", "Tool calls that are over and whose tool still runs", registry=registry
        )
        self._tool_refs = Gauge("enclave_tool_reference_bytes", "Results kept as references", registry=registry)
        self.resumes = Counter("enclave_stream_resumes", "Streams opened on an existing session", registry=registry)
        self.sockets = Gauge("enclave_client_sockets", "Open WebSockets of clients", registry=registry)
        self.readers_cut = Counter("enclave_readers_cut", "Readers that were too slow", registry=registry)
        self._store_failing = Gauge(
            "enclave_store_failing",
            "1 while sessions go on in memory alone because their file cannot be written",
            registry=registry,
        )
        self.keys_stale = Gauge(
            "enclave_keys_stale", "1 while the keys file cannot be read and the old keys hold", registry=registry
        )
        self.tenant_active = Gauge(
            "enclave_tenant_sessions_active", "Sessions that have not ended", ["tenant"], registry=registry
        )
        self.tenant_sessions = Counter("enclave_tenant_sessions", "Sessions that ended", ["tenant"], registry=registry)
        self.tenant_cpu = Counter(
            "enclave_tenant_cpu_seconds", "Processor time of sessions that ended", ["tenant"], registry=registry
        )
        self.tenant_calls = Counter("enclave_tenant_tool_calls", "Tool calls", ["tenant"], registry=registry)
        self.quota_refusals = Counter(
            "enclave_quota_refusals",
            "Sessions and tool calls refused by a quota",
            ["tenant", "quota"],
            registry=registry,
        )
        self.tool_sources = Gauge("enclave_tool_sources", "Sources of tools", ["state"], registry=registry)
        self._http = Counter(
            "enclave_http_requests",
            "Requests that were answered, by the answer's status",
            ["method", "route", "status"],
            registry=registry,
        )
        # To look a metric up among its labels takes longer than to count.
        self._http_children: dict[tuple[str, str, int], Counter] = {}
        self._outcome_children: dict[str, Counter] = {}
        self._tenant_children: dict[str, tuple[Counter, Counter]] = {}
        build = Gauge(
            "enclave_build_info", "1; version and role are the labels", ["version", "role"], registry=registry
        )
        build.labels(__version__, "broker").set(1)
        ProcessCollector(registry=registry)

    def ended(self, outcome: str, duration_s: float, start_s: float) -> None:
        """Count the end of a session. A tool's own code is not from a closed list, so it is no label.

        Args:
            outcome: `ok`, or the code of its error.
            duration_s: from acceptance to the end.
            start_s: how long its worker took to give it a sandbox; 0 if it never had one.
        """
        known = outcome if outcome == "ok" or outcome in _CODES else "TOOL_ERROR"
        child = self._outcome_children.get(known)
        if child is None:
            child = self._outcome_children[known] = self.sessions.labels(known)
        child.inc()
        self.duration.observe(duration_s)
        if start_s:
            self.start.observe(start_s)

    def answered(self, method: str, route: str, status: int) -> None:
        """Count a request.

        Args:
            method: as it came.
            route: the path of the route, with its parameters' names; empty if none was found.
            status: of the answer.
        """
        key = (method if method in _METHODS else OTHER, route or OTHER, status)
        child = self._http_children.get(key)
        if child is None:
            child = self._http_children[key] = self._http.labels(*map(str, key))
        child.inc()

    def watch_tools(
        self, threads: Callable[[], ThreadStatistics], given_up: Callable[[], int], stored_bytes: Callable[[], int]
    ) -> None:
        """Ask these for what the gauges of tools show."""
        for state in ("busy", "idle", "abandoned"):
            self._tool_threads.labels(state).set_function(lambda state=state: getattr(threads(), state))  # type: ignore[misc]
        self._tool_waiting.set_function(lambda: threads().queued)
        self._tool_given_up.set_function(given_up)
        self._tool_refs.set_function(stored_bytes)

    def watch_store(self, failure: Callable[[], str]) -> None:
        """Ask this for why sessions are not stored; empty if they are."""
        self._store_failing.set_function(lambda: bool(failure()))

    def tenant_ended(self, tenant: str, cpu_s: float) -> None:
        """Count the end of a tenant's session."""
        label = self._label(tenant)
        children = self._tenant_children.get(label)
        if children is None:
            children = self._tenant_children[label] = self.tenant_sessions.labels(label), self.tenant_cpu.labels(label)
        sessions, cpu = children
        sessions.inc()
        cpu.inc(cpu_s)

    def tenant_called(self, tenant: str) -> None:
        """Count a tool call of a tenant's session."""
        self.tenant_calls.labels(self._label(tenant)).inc()

    def quota_refused(self, tenant: str, quota: str) -> None:
        """Count what a quota refused."""
        self.quota_refusals.labels(self._label(tenant), quota).inc()

    def forget_tenant(self, tenant: str) -> None:
        """Drop a tenant's labels; another may have its place."""
        if tenant not in self._tenants:
            return
        self._tenants.discard(tenant)
        self._tenant_children.pop(tenant, None)
        for metric in (self.tenant_active, self.tenant_sessions, self.tenant_cpu, self.tenant_calls):
            metric.remove_by_labels({"tenant": tenant})
        self.quota_refusals.remove_by_labels({"tenant": tenant})

    def render(self, fleet: Statistics, ledger: Ledger, *, configured: int, active: int) -> bytes:
        """Return the exposition text, with the gauges as of now."""
        by_label = dict.fromkeys(self._tenants, 0)
        for account in ledger:
            label = self._label(account.tenant)
            by_label[label] = by_label.get(label, 0) + account.active
        for label, count in by_label.items():
            self.tenant_active.labels(label).set(count)
        self.active.set(active)
        self.queue_depth.set(fleet.waiting)
        self.slots.labels("reserved").set(fleet.reserved)
        self.slots.labels("free").set(fleet.free)
        self.slots.labels("other").set(max(0, fleet.slots - fleet.reserved - fleet.free))
        self.workers.labels("connected").set(max(0, fleet.workers - fleet.draining - fleet.failing))
        self.workers.labels("failing").set(fleet.failing)
        self.workers.labels("draining").set(fleet.draining)
        self.workers.labels("away").set(fleet.away)
        self.workers.labels("disconnected").set(max(0, configured - fleet.workers - fleet.away))
        return generate_latest(self.registry)

    def _label(self, tenant: str) -> str:
        if tenant not in self._tenants:
            if len(self._tenants) >= MAX_TENANTS:
                return OTHER
            self._tenants.add(tenant)
        return tenant
