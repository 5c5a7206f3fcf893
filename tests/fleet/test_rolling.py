"""A rolling restart of a whole fleet of real programs while clients use it: every session ends, once and right."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

from enclave_client import AsyncClient
from enclave_client.fleet import READY, ask_ready
from enclave_client.program import Program
from tests.fleet.chaos.fleet import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

PATIENCE_S = 90.0
CLIENTS = 3
CODE = "import asyncio\nprint('begun', flush=True)\nawait asyncio.sleep(0.2)\nprint('done')\nreturn {n}"
WORKER = ("--pool-size", "1", "--max-sessions", "6", "--level", "BEST", "--grace-s", "60", "--tls-ca", "")


@contextlib.asynccontextmanager
async def program(module: str, *arguments: str, listens: bool = True) -> AsyncIterator[Program]:
    """Run one of our programs to the end of the block, and past it if somebody else has stopped it."""
    running = Program(arguments[-1], module, list(arguments), lambda _: None)
    await running.start()
    try:
        if listens:
            await running.wait_listening(PATIENCE_S)
        yield running
    finally:
        await running.stop(0)


async def wait_until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - other processes have no events
            await asyncio.sleep(0.02)


async def workers_of(url: str) -> dict[str, str]:
    """Return the state of every worker, by what it calls itself."""
    answer = await asyncio.to_thread(lambda: json.load(urlopen(f"{url}/fleet", timeout=PATIENCE_S)))
    return {worker["workerId"]: worker["state"] for worker in answer["workers"]}


async def wait_up(url: str, *names: str) -> None:
    states: dict[str, str] = {}
    async with asyncio.timeout(PATIENCE_S):
        while {states.get(name) for name in names} != {"up"}:
            await asyncio.sleep(0.05)
            states = await workers_of(url)


class Load:
    """Clients, each of which runs one session after another."""

    def __init__(self, url: str) -> None:
        self.ended = 0
        self.stopping = False
        self._url = url

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for first in range(CLIENTS):
                group.create_task(self._one_after_another(first))

    async def wait_ended(self, more: int) -> None:
        """Wait until so many sessions more have ended than have now."""
        until = self.ended + more
        await wait_until(lambda: self.ended >= until)

    async def _one_after_another(self, n: int) -> None:
        async with AsyncClient(self._url, busy_wait_s=PATIENCE_S, reconnect_s=PATIENCE_S) as client:
            while not self.stopping:
                result = await client.run(CODE.format(n=n))
                assert (result.error, result.value, result.stdout) == (None, n, "begun\ndone\n")
                self.ended += 1
                n += CLIENTS


async def test_every_worker_and_the_broker_are_replaced_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    listed = tmp_path / "workers"
    port = next(free_ports())
    url = f"http://127.0.0.1:{port}"
    broker_options = ["--accept-workers", "--workers-file", str(listed), "--store", f"sqlite:{tmp_path}/sessions"]
    broker_options += ["--grace-s", "0.1", "--tls-cert", "", "--host", "127.0.0.1"]
    dialling = ("--no-listen", "--dial", f"ws://127.0.0.1:{port}/workers", *WORKER, "--worker-id")

    def enlist(worker: Program) -> None:
        new = listed.with_suffix(".new")
        new.write_text(worker.url + "\n")
        new.replace(listed)

    async with contextlib.AsyncExitStack() as stack:
        start = stack.enter_async_context
        old_listed = await start(program("enclave_worker.cli", "--port", "0", *WORKER, "--worker-id", "listed-1"))
        enlist(old_listed)
        old_broker = await start(program("enclave_broker.cli", *broker_options, "--port", str(port)))
        old_dialled = await start(program("enclave_worker.cli", *dialling, "dialled-1", listens=False))
        await wait_up(url, "listed-1", "dialled-1")
        load = Load(url)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(load.run())
            await load.wait_ended(CLIENTS)

            # A worker is replaced by a new one elsewhere: it leaves the list, and is stopped.
            enlist(await start(program("enclave_worker.cli", "--port", "0", *WORKER, "--worker-id", "listed-2")))
            await wait_up(url, "listed-2")
            old_listed.terminate()
            assert await old_listed.wait_exit() == "exit code 0"
            await load.wait_ended(CLIENTS)

            # An operator drains the other one.
            drain = Request(f"{url}/workers/dialled-1/drain", method="POST")
            await asyncio.to_thread(lambda: urlopen(drain, timeout=PATIENCE_S).close())
            assert await old_dialled.wait_exit() == "exit code 0"
            await start(program("enclave_worker.cli", *dialling, "dialled-2", listens=False))
            await wait_up(url, "dialled-2")
            await load.wait_ended(CLIENTS)

            # The broker is stopped with sessions on the workers, and its successor goes on with them.
            old_broker.terminate()
            assert await old_broker.wait_exit() == "exit code 0"
            await start(program("enclave_broker.cli", *broker_options, "--port", str(port)))
            await wait_up(url, "listed-2", "dialled-2")
            await load.wait_ended(2 * CLIENTS)
            load.stopping = True
            await running
        assert await ask_ready(url) == READY
        assert set(await workers_of(url)) == {"listed-2", "dialled-2"}
