"""Traces: which one a session belongs to, told to its worker and to tools; and spans of it, for who collects them.

`base` is what the broker uses, and all there is of it unless spans are collected: a client's trace is passed on. `otel`
makes spans with OpenTelemetry, an extra, and is imported only where the environment says where spans go (`options`).
"""

from .base import PassOn, SessionTrace, Tracing, carried

__all__ = ["PassOn", "SessionTrace", "Tracing", "carried"]
