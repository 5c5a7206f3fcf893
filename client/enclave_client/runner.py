"""What `enclave run` does once its command line is understood.

Theory of operation. One task reads the stream and prints; the first SIGINT or SIGTERM asks the broker to cancel and
the stream then ends by itself with its `final`, so the reader is never torn; a second signal, or a broker that does
not end the stream within `CANCEL_GRACE_S`, cancels the reader. Every way out has an exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Any

from enclave_protocol import EnclaveError, new_session_id

from .async_client import AsyncClient
from .commands.run import USAGE
from .errors import BrokerUnavailable, RequestRefused, SessionLost
from .fleet import FleetError, FleetSpec, running_fleet
from .printer import EventPrinter, OutputError, RawPrinter, discard_output

if TYPE_CHECKING:
    from .printer import Printer
    from .session import AsyncSession

CANCEL_GRACE_S = 10.0
PRIVATE_RECONNECT_S = 0.5
"""A private broker that is gone does not come back."""


def run_code(
    request: dict[str, Any],
    *,
    broker: str | None,
    raw_events: bool,
    reconnect_s: float,
    tools: tuple[str, ...] = (),
    tools_files: tuple[str, ...] = (),
    profiles: tuple[str, ...] = (),
) -> int:
    """Run a request and print what comes; returns the exit code.

    Args:
        request: `code`, and the options of `AsyncClient.stream`.
        broker: its address; None starts a fleet of one worker for this run alone.
        raw_events: print the event lines byte for byte instead of what they mean.
        reconnect_s: how long a lost connection to that broker is tried to be replaced.
        tools: modules with tools for the private fleet's broker.
        tools_files: files that say where more tools come from.
        profiles: what the private fleet's worker offers; its default if empty.
    """
    out, err = sys.stdout.buffer, sys.stderr.buffer
    printer: Printer = RawPrinter(out, err) if raw_events else EventPrinter(out, err)
    fleet = (
        None if broker else FleetSpec(workers=1, pool_size=1, tools=tools, tools_files=tools_files, profiles=profiles)
    )
    try:
        return asyncio.run(_run(request, broker or "", reconnect_s, fleet, printer))
    except BrokenPipeError:
        discard_output()
        return 1
    except OutputError as error:
        discard_output()
        reason, code = f"{error}; whether the code ran to its end is unknown", 1
    except asyncio.CancelledError:
        reason, code = "stopped before the session's end was known", 1
    except (EnclaveError, FleetError) as error:
        reason, code = describe_failure(error)
    sys.stderr.write(f"enclave: {reason}\n")
    return code


def describe_failure(error: EnclaveError | FleetError) -> tuple[str, int]:
    """Return what to tell the user, and the exit code: 2 if nothing was tried, 1 if something failed."""
    match error:
        case FleetError(detail=detail):
            return (f"what it wrote:\n{detail}\nenclave: {error}" if detail else str(error)), USAGE
        case RequestRefused():
            return f"{error.code}: {error}", 1
        case BrokerUnavailable() if not isinstance(error, SessionLost):
            return f"no broker at {error}; start one with `enclave up`, or leave out --broker", USAGE
        case _:
            return f"{error}; whether the code ran to its end is unknown", 1


def _warn(name: str, line: str) -> None:
    """Pass on what the private broker says of sources of tools, such as that one does not answer."""
    if name == "broker" and " WARNING enclave.broker.tools" in line:
        sys.stderr.write(f"{name}: {line}\n")


async def _run(
    request: dict[str, Any], broker: str, reconnect_s: float, fleet: FleetSpec | None, printer: Printer
) -> int:
    running = asyncio.current_task()
    if running is None:
        raise AssertionError("a coroutine that runs outside of a task")
    interrupt = _Interrupt(running)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(interrupt.close)
        if fleet is not None:
            broker = (await stack.enter_async_context(running_fleet(fleet, _warn))).url
        patience_s = reconnect_s if fleet is None else PRIVATE_RECONNECT_S
        client = await stack.enter_async_context(AsyncClient(broker, reconnect_s=patience_s))
        return await _stream(client, request, printer, interrupt)


async def _stream(client: AsyncClient, request: dict[str, Any], printer: Printer, interrupt: _Interrupt) -> int:
    session_id = new_session_id()
    try:
        session = interrupt.session = client.stream(**request, session_id=session_id)
        async with session:
            async for line in session.lines():
                printer.line(line)
    except RequestRefused as error:  # by the library before it asks, or by the broker
        printer.refused(session_id, error.code, str(error))
        raise
    return printer.finish()


class _Interrupt:
    """Turns the first SIGINT or SIGTERM into a cancelled session, and the next one into a cancelled `running`."""

    def __init__(self, running: asyncio.Task[Any]) -> None:
        self.session: AsyncSession | None = None
        """What the first signal cancels; before there is a session it cancels `running` at once."""
        self._running = running
        self._signalled = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled.set)
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop watching."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        await self._signalled.wait()
        self._signalled.clear()
        if self.session is not None:
            self.session.cancel("interrupted")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_GRACE_S):
                    await self._signalled.wait()
        self._running.cancel()
