"""A worker's Prometheus metrics. No session id is ever a label."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from enclave_protocol import Code, __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_OUTCOMES = frozenset({"OK", *Code})
_PAGE_BYTES = resource.getpagesize()


class WorkerMetrics:
    """Counters and histograms of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.executions = Counter(
            "enclave_executions", "Executions that ended, by outcome code.", ["outcome"], registry=self.registry
        )
        self.duration_seconds = Histogram(
            "enclave_execution_duration_seconds",
            "From acceptance to final.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.start_seconds = Histogram(
            "enclave_pool_acquire_seconds",
            "From acceptance to a sandbox.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.rejections = Counter(
            "enclave_rejections", "Messages refused, by field.", ["field"], registry=self.registry
        )
        self.refused = Counter(
            "enclave_sessions_refused", "Sessions refused for lack of a slot.", registry=self.registry
        )
        self.connections_refused = Counter(
            "enclave_connections_refused", "Connections without our token or certificate.", registry=self.registry
        )
        self.connections = Gauge("enclave_connections", "Open WebSocket connections.", registry=self.registry)
        self._level = Gauge("enclave_level_info", "Always 1.", ["level"], registry=self.registry)
        self._missing = Gauge(
            "enclave_layer_missing", "1 for each layer that the worker does without.", ["layer"], registry=self.registry
        )
        build = Gauge("enclave_build_info", "Always 1.", ["version", "role"], registry=self.registry)
        build.labels(__version__, "worker").set(1)

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

    def ended(self, code: str, duration_s: float) -> None:
        """Count one execution. A tool's own code counts as `TOOL_ERROR`: labels are a closed list."""
        self.executions.labels(code if code in _OUTCOMES else "TOOL_ERROR").inc()
        self.duration_seconds.observe(duration_s)

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
