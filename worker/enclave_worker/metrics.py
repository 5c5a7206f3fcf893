"""A worker's Prometheus metrics. No session id is ever a label, and no name is also the broker's.

Two names are on both programs because they mean the same of each: `enclave_build_info`, which tells them apart by its
`role`, and those of the process.
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from enclave_protocol import Code, __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_OUTCOMES: dict[str, str] = {"OK": "ok"} | {str(code): str(code) for code in Code}
_PAGE_BYTES = resource.getpagesize()


class WorkerMetrics:
    """Counters and histograms of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.executions = Counter(
            "enclave_executions", "Executions that ended, by outcome.", ["outcome"], registry=registry
        )
        self._by_outcome: dict[str, Counter] = {}  # looked up once each: a label is checked whenever it is
        self.duration_seconds = Histogram(
            "enclave_execution_duration_seconds", "From acceptance to final.", buckets=_SECONDS, registry=registry
        )
        self.cpu_seconds = Counter(
            "enclave_execution_cpu_seconds", "Processor time of sandboxes that ended.", registry=registry
        )
        self.truncated = Counter(
            "enclave_output_truncated", "Executions of which some output was cut.", registry=registry
        )
        acquire = Histogram(
            "enclave_pool_acquire_seconds",
            "From acceptance to a sandbox: a warm one, or a cold one that had to be made.",
            ["result"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.warm_start_seconds, self.cold_start_seconds = acquire.labels("warm"), acquire.labels("cold")
        self.refused_messages = Counter(
            "enclave_messages_refused", "Messages refused, by field.", ["field"], registry=registry
        )
        self.refused = Counter(
            "enclave_executions_refused", "Executions refused for lack of a slot.", registry=registry
        )
        self.connections_refused = Counter(
            "enclave_connections_refused", "Connections without our token or certificate.", registry=registry
        )
        self.leases_expired = Counter(
            "enclave_leases_expired", "Sessions that were ended because no broker attached in time.", registry=registry
        )
        self.connections = Gauge("enclave_connections", "Open WebSocket connections.", registry=registry)
        self._level = Gauge("enclave_level_info", "1; the security level is the label.", ["level"], registry=registry)
        self._missing = Gauge(
            "enclave_layer_missing", "1 for each layer that the worker does without.", ["layer"], registry=registry
        )
        build = Gauge(
            "enclave_build_info", "1; version and role are the labels.", ["version", "role"], registry=registry
        )
        build.labels(__version__, "worker").set(1)
        ProcessCollector(registry=registry)

    def describe(self, level: str, lacking: Iterable[str]) -> None:
        """Say which level holds, and which layers the worker does without."""
        self._level.clear()
        self._level.labels(level).set(1)
        self._missing.clear()
        for layer in lacking:
            self._missing.labels(layer).set(1)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when somebody asks."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def watch_states(self, name: str, text: str, read: Mapping[str, Callable[[], float]]) -> None:
        """Add a gauge of several states, each of which is read when somebody asks."""
        gauge = Gauge(name, text, ["state"], registry=self.registry)
        for state, function in read.items():
            gauge.labels(state).set_function(function)

    def ended(self, code: str, duration_s: float, *, cpu_s: float, truncated: bool) -> None:
        """Count one execution. A tool's own code counts as `TOOL_ERROR`: labels are a closed list."""
        outcome = _OUTCOMES.get(code, "TOOL_ERROR")
        counter = self._by_outcome.get(outcome)
        if counter is None:
            counter = self._by_outcome[outcome] = self.executions.labels(outcome)
        counter.inc()
        self.duration_seconds.observe(duration_s)
        self.cpu_seconds.inc(cpu_s)
        if truncated:
            self.truncated.inc()

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self.registry)


def resident_bytes() -> int:
    """Return this process's resident size."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - called often
        return int(file.read().split()[1]) * _PAGE_BYTES


def open_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no paths are needed
