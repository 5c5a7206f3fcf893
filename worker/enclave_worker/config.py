"""A worker's settings."""

from __future__ import annotations

import msgspec

from enclave_protocol import MAX_CODE_BYTES, Limits


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set about a worker; every field has a default that works.

    Raises:
        ValueError: there is not at least one slot, or not at least one warm sandbox.
    """

    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback, anybody who can connect can run code in a sandbox here."""
    port: int = 3001
    """Port to listen on; 0 takes any free one (`RuntimeWorker.port` tells which)."""
    listen: bool = True
    """False opens no port: sessions then come by `RuntimeWorker.handle`, `execute` or `execute_sync` only."""
    max_sessions: int = 20
    """Slots: sessions that may be live at once. One more is refused with `NO_CAPACITY`."""
    pool_size: int = 4
    """Sandboxes kept warm of each kind (for code that imports or awaits, and for code that does not). Bursts beyond it
    wait a few milliseconds longer each."""
    default_limits: Limits = Limits()
    """What a session's limits are when it does not set them."""
    max_code_bytes: int = MAX_CODE_BYTES
    """Largest `code`, in UTF-8 bytes."""
    memory_limit_bytes: int = 512 * 1024 * 1024
    """Address space of each of a guest's processes; a session's `memoryLimitBytes` can only lower it."""
    send_buffer_bytes: int = 8 * 1024 * 1024
    """Events that may wait for one connection. Beyond it, its guests are no longer read and block on their output."""
    first_uid: int = 200_000
    """When started as root: sandboxes run as host user ids from here on, one each."""
    worker_id: str = ""
    """Name in `hello`, logs and metrics; empty makes one from host name and process id."""
    debug: bool = False
    """Log every session's start and end."""

    def __post_init__(self) -> None:
        """Refuse what cannot work: with an empty pool a session would wait for ever."""
        for name in ("max_sessions", "pool_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: {value!r} is not a whole number above 0")
