"""What a broker can be told. Durations and sizes carry their unit in the name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

from enclave_protocol import Limits
from enclave_protocol.languages import DEFAULT_LANGUAGE, LANGUAGES, Language

from .finding.urls import check_place, is_encrypted, parse_server
from .store.options import MEMORY, RETENTION, Retention, check_store

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1024 * 1024

ANY_ORIGIN = "*"
LOOPBACK_ORIGINS = "loopback"
ORIGIN_FORM = "an origin such as https://app.example.com, `loopback`, or `*`"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s*]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """Settings of one broker.

    Raises:
        ValueError: a worker's URL is malformed, a number is not finite, or the mode and the workers do not fit.
    """

    mode: Literal["embedded", "extracted"] = "extracted"
    """`extracted`: workers are processes of their own, reached by `workers`. `embedded`: they run in this one."""
    workers: Sequence[str] = ()
    """URLs of workers, `ws://host:port/ws`, and names in DNS that stand for any number of them: every address of
    `dns+ws://name:port/ws`, every server of the SRV records of `srv+ws://_service._tcp.name/ws`; `wss` for TLS."""
    dns_servers: Sequence[str] = ()
    """Nameservers to ask about them, `address` or `address:port`; those of the system if empty."""
    dns_every_s: float = 5.0
    """How often they are asked,"""
    dns_timeout_s: float = 5.0
    """and the longest wait for an answer."""
    workers_file: str = ""
    """A file with more of them, one per line; read again when it changes."""
    workers_file_look_s: float = 1.0
    """How often it is looked at."""
    accept_workers: bool = False
    """Whether workers may dial in, on `/workers`. They must show the workers' secret; without one it is only for
    loopback, and only where clients need no keys."""
    host: str = "127.0.0.1"
    port: int = 3000
    """0 takes a free one; `Broker.port` says which."""
    default_limits: Limits = field(default_factory=Limits)
    """What a request's limits start from."""
    cors_origins: Sequence[str] = ()
    """Whose web pages may use the broker: origins, `loopback` for those that this machine serves, or `*`. Empty:
    `loopback` if the broker listens there itself, else nobody's."""

    keys_file: str = ""
    """API keys, tenants and quotas: see docs/access.md. Without it `ENCLAVE_KEYS` of the environment has its text.
    Without either, everybody may call."""
    token_secrets_file: str = ""
    """Secrets that sign session tokens, one per line: the first signs, all are believed. Without it they are in
    `ENCLAVE_TOKEN_SECRETS`; without either, tokens end with this broker."""
    public_metrics: bool = False
    """Whether `/metrics` is for everybody, where other things are not."""
    worker_token_file: str = ""
    """The secret that workers want; without it `ENCLAVE_WORKER_TOKEN` has it, if there is one."""
    worker_tls_ca: str = ""
    """Authorities of `wss://` workers' certificates; empty for the system's."""
    worker_tls_cert: str = ""
    """Certificate shown to workers that want one,"""
    worker_tls_key: str = ""
    """and its key."""
    tls_cert: str = ""
    """The certificate for clients; empty speaks plain HTTP."""
    tls_key: str = ""
    """Its key."""
    insecure: bool = False
    """Whether to listen beyond loopback even if everybody may call."""
    default_language: Language = DEFAULT_LANGUAGE
    """What code is if a request names neither a language nor a profile."""

    queue_size: int = 1000
    """Sessions that may wait for a slot; the next one is refused with `NO_CAPACITY`."""
    queue_bytes: int = 64 * MIB
    """Requests (code, files and the rest) that may wait for a slot, in all."""
    queue_timeout_ms: int = 30_000
    """Longest wait for a slot; then the session ends with `NO_CAPACITY`."""
    queue_wait_ms: int = 30_000
    """A session that is expected to wait longer for a slot is refused at once. What it is for is to keep the latency of
    those that are accepted, whatever comes: as long as users would rather be refused than wait."""

    log_bytes: int = 8 * MIB
    """Events kept per session for replay and for slow readers; the oldest are trimmed, and asking for them is 410."""
    store: str = MEMORY
    """Where sessions are kept: `memory`, where they end with the broker, or `sqlite:` and the path of a file."""
    retained_sessions: int | None = None
    """Finished sessions kept for replay, at most. None: 1,000 in memory, 20,000 in a file."""
    retained_bytes: int | None = None
    """Their events, at most. None: 16 MiB in memory, 1 GiB in a file."""
    retain_s: float | None = None
    """How long they are kept, at most. None: 60 s in memory, a day in a file."""

    ping_interval_s: float = 1.0
    dead_after_s: float = 5.0
    """A worker that was silent for so long is dead."""
    resume_s: float = 10.0
    """How long the sessions of a worker whose connection broke wait for it to come back; 0 ends them at once."""
    refused_is_dead: bool = True
    """Whether a worker whose connection broke and whose address then refuses another is dead, and its sessions need not
    wait. Wrong where an address is not one worker's own, such as that of a load balancer or a Kubernetes Service."""
    hello_timeout_s: float = 5.0
    """Longest wait for a worker's connection, and for its `hello` on it."""
    reconnect_min_s: float = 0.1
    """First delay before a lost worker is tried again; it doubles,"""
    reconnect_max_s: float = 5.0
    """up to this."""
    link_buffer_bytes: int = 32 * MIB
    """Messages a worker has not read yet; above it, the worker counts as dead."""

    max_sockets: int = 10_000
    """WebSockets of clients that may be open; the next one's handshake is refused."""
    socket_sessions: int = 256
    """Sessions that one of them may follow at once; another `execute` ends with `NO_CAPACITY`."""
    socket_ping_s: float = 5.0
    """Time between pings to a client. One whose machine acknowledges nothing for two of them is gone."""

    request_timeout_s: float = 30.0
    """Longest time for a client's request to be complete, once it is begun; longer if much of its body has come."""
    grace_s: float = 10.0
    """How long sessions are given to end when the broker drains."""
    disconnect_grace_s: float = 10.0
    """How long a session without a reader lives on, so that its client can come back. The JavaScript client tries three
    times, the last of them up to 9.1 s after the break."""
    final_grace_s: float = 5.0
    """How long after its deadline a session that its worker does not end is ended here."""
    cancel_grace_s: float = 4.0
    """The same, after a cancel."""
    write_timeout_s: float = 30.0
    """A reader that takes nothing for so long is cut off, and a WebSocket that answers no ping for so long."""
    tool_threads: int = 16
    """Threads for tools that are plain functions."""
    tool_ref_bytes: int = 32 * MIB
    """Results of tools kept for one session as references,"""
    tool_ref_total_bytes: int = 256 * MIB
    """and for all sessions."""
    stop_grace_s: float = 2.0
    """How long `stop` waits for tools and streams to end."""

    @property
    def retention(self) -> Retention:
        """How much of finished sessions is kept."""
        usual = RETENTION[check_store(self.store)]
        return Retention(
            usual.sessions if self.retained_sessions is None else self.retained_sessions,
            usual.size_bytes if self.retained_bytes is None else self.retained_bytes,
            usual.age_s if self.retain_s is None else self.retain_s,
        )

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_store(self.store)
        for url in self.workers:
            check_place(url)
            if (self.worker_tls_ca or self.worker_tls_cert) and not is_encrypted(url):
                raise ValueError(f"worker URL {url!r}: is not encrypted, but worker_tls_… is given: write wss://")
        for server in self.dns_servers:
            parse_server(server)
        for origin in self.cors_origins:
            check_origin(origin)
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{setting.name}: {value} is not a finite number")
        if self.default_language not in LANGUAGES:
            raise ValueError(f"default_language: {self.default_language!r} is not one of {', '.join(LANGUAGES)}")
        if self.mode == "embedded" and (self.workers or self.workers_file or self.accept_workers):
            raise ValueError("mode 'embedded' runs its workers here and takes no worker URLs")


def check_origin(origin: str) -> str:
    """Return an origin in the form that browsers send; raises ValueError."""
    if origin in {ANY_ORIGIN, LOOPBACK_ORIGINS}:
        return origin
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(f"origin {origin!r}: is not {ORIGIN_FORM} (no path, no slash at its end)")
    return origin.lower()
