"""A worker's settings."""

from __future__ import annotations

import math
import os

import msgspec

from enclave_protocol import MAX_CODE_BYTES, Limits

from .broker_urls import check_broker_url
from .sandbox.levels import BEST, DEFAULT_LEVEL, LEVELS, Level, Resources


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set about a worker; every field has a default that works.

    Raises:
        ValueError: there is not at least one slot, or a number is out of its range, or the level is not known.
    """

    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback, a secret or certificates are needed, or `insecure`."""
    port: int = 3001
    """Port to listen on; 0 takes any free one (`RuntimeWorker.port` tells which)."""
    listen: bool = True
    """False opens no port: sessions then come by `RuntimeWorker.handle`, `execute` or `execute_sync` only."""
    dial: tuple[str, ...] = ()
    """Brokers to dial in to, `ws://broker:3000/workers`: for networks in which they can't reach this worker."""
    worker_token_file: str = ""
    """A file with the secret that brokers must show, and are shown where we dial in; or several, one per line, of which
    the first is shown. Without it `ENCLAVE_WORKER_TOKEN` of the environment holds it; without either, there is none."""
    tls_cert: str = ""
    """The worker's certificate; empty speaks in clear."""
    tls_key: str = ""
    """Its key."""
    tls_ca: str = ""
    """Authorities of brokers' certificates; given, brokers must show one."""
    insecure: bool = False
    """Whether to listen beyond loopback even if everybody may connect."""
    max_sessions: int = 20
    """Slots: sessions that may be live at once. One more is refused with `NO_CAPACITY`."""
    pool_size: int = 4
    """Sandboxes kept warm of each kind (for code that imports, or awaits more than tools, and for code that does not).
    Bursts beyond it wait a few milliseconds longer each; with 0, every session does. A profile may have its own."""
    profiles: tuple[str, ...] = ()
    """Names of the profiles to offer. Without any: `python`, and those of `profiles_file`."""
    profiles_file: str = ""
    """A file of profiles beside the shipped ones; see `docs/profiles.md`."""
    default_limits: Limits = Limits()
    """What a session's limits are when it does not set them."""
    max_code_bytes: int = MAX_CODE_BYTES
    """Largest `code`, in UTF-8 bytes."""
    level: str = msgspec.field(default_factory=lambda: os.environ.get("ENCLAVE_LEVEL", DEFAULT_LEVEL))
    """Which layers must hold, and what a sandbox may use of the machine: STRICT, SECURE, STANDARD, PERMISSIVE, or BEST
    for the best of SECURE and STANDARD that this host gives. See docs/levels.md. Default: `ENCLAVE_LEVEL` of the
    environment, else SECURE."""
    memory_limit_bytes: int | None = None
    """Memory of a sandbox, and address space of each of its processes. None: the level's. A session's
    `memoryLimitBytes` can only lower it."""
    cpu_time_ms: int | None = None
    """Processor time of a sandbox. None: the level's. A session's `cpuTimeMs` can only lower it."""
    cpus: float | None = None
    """Processors a sandbox may keep busy at a time; 0 for all. None: the level's."""
    processes: int | None = None
    """Processes and threads of a sandbox. None: the level's."""
    send_buffer_bytes: int = 8 * 1024 * 1024
    """Events that may wait for one connection. Beyond it, its guests are no longer read and block on their output."""
    lease_s: float = 30.0
    """How long a session of a broker that resumes lives without one. After it, it is ended."""
    broker_silence_s: float = 15.0
    """A connection of a broker that resumes, on which nothing came for so long, is closed: its link is dead. Brokers
    ping every second unless told otherwise."""
    kept_bytes: int = 64 * 1024 * 1024
    """Events of all sessions that may wait for their brokers' acknowledgement. Beyond it, the guests with the most of
    them are no longer read, and no session is started that would add to them."""
    kept_session_bytes: int = 1024 * 1024
    """The same of one session. Beyond it, its guest is no longer read and blocks on its output."""
    kept_sessions: int = 20_000
    """Sessions, ended ones included, of which something may wait to be acknowledged. At that number none is started."""
    zygote_forks: int = 5000
    """Sandboxes after which a zygote is replaced: those of one zygote share a memory layout and a hash seed."""
    first_uid: int = 200_000
    """When started as root: sandboxes run as host user ids from here on, one each."""
    worker_id: str = ""
    """Name in `hello`, logs and metrics; empty makes one from host name and process id."""
    debug: bool = False
    """Log every session's start and end."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("max_sessions", "kept_bytes", "kept_session_bytes", "kept_sessions"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: {value!r} is not a whole number above 0")
        if not isinstance(self.pool_size, int) or self.pool_size < 0:
            raise ValueError(f"pool_size: {self.pool_size!r} is not a whole number, 0 or more")
        for url in self.dial:
            check_broker_url(url)
        for name in ("lease_s", "broker_silence_s"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: {value!r} is not a number of seconds above 0")
        if self.level not in {*LEVELS, BEST}:
            raise ValueError(f"level: {self.level!r} is not one of {', '.join(LEVELS)} or {BEST}")

    def resources(self, level: Level) -> Resources:
        """Return what a sandbox may use: the level's, but for what is set here."""
        names = ("memory_limit_bytes", "cpu_time_ms", "cpus", "processes")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return msgspec.structs.replace(level.resources, **chosen)
