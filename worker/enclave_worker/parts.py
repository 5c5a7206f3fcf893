"""What a worker is made of from a start to the stop that follows: made together, stopped without a loss.

`runtime` is the worker; it has parts made anew each time it is started.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING

from .connection import WorkerIdentity
from .dialing import Dialing, client_context
from .door import Door, load_secrets, open_door
from .embedding import Embedding
from .footing import find_footing
from .provision import make_pools
from .server import WorkerServer
from .sessions import Sessions

if TYPE_CHECKING:
    from .config import RuntimeConfig
    from .listeners import Listeners
    from .metrics import WorkerMetrics


class Parts:
    """The parts of one worker. Raises what `RuntimeWorker.start` raises, and then holds nothing."""

    def __init__(
        self, worker_id: str, config: RuntimeConfig, metrics: WorkerMetrics, listeners: Listeners, *, listens: bool
    ) -> None:
        self._config = config
        self._listens = listens
        with contextlib.ExitStack() as held:
            door = open_door(config) if listens else Door()
            self.footing = find_footing(config)
            held.callback(self.footing.close)
            metrics.describe(self.footing.level.name, self.footing.lacking)
            self.slots, self.pools = make_pools(config, self.footing)
            for slots in self.slots:
                held.callback(slots.close)
            self.sessions = Sessions(config, self.pools, metrics, listeners)
            identity = WorkerIdentity(
                worker_id=worker_id,
                instance=uuid.uuid4().hex,
                level=self.footing.level.name,
                missing_layers=tuple(self.footing.lacking),
            )
            self.embedding = Embedding(self.sessions, identity)
            self.server = WorkerServer(self.sessions, self.pools, metrics, identity, door)
            secrets = load_secrets(config.worker_token_file) if config.dial else ()
            self.dialing = Dialing(
                config.dial,
                token=secrets[0] if secrets else "",
                tls=client_context(config) if config.dial else None,
                serve=self.server.serve_socket,
            )
            held.pop_all()  # from here on they are `stop`'s

    async def start(self) -> int:
        """Listen, bring up the pools, and dial; returns the port, 0 without one. If it fails, `stop` is due."""
        port = await self.server.start(self._config.host, self._config.port) if self._listens else 0
        await self.pools.start()
        self.dialing.start()
        return port

    async def stop(self) -> None:
        """Let what was said go out, and let go of everything."""
        await self.embedding.stop()
        await self.server.stop()
        await self.dialing.stop()
        self.sessions.holdings.close()
        await self.pools.stop()
        for slots in self.slots:
            slots.close()
        self.footing.close()
