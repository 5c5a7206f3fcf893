"""Runs cases on a worker in this process and reports what came of each.

Theory of operation. `attack` plants the host's canaries, starts the worker in the middle of them, and runs one case
after another: its sessions in order, beside the last of them bystanders if the case asks for that. After each it waits
until nothing of the case lives, asks the host for damage, and runs one more harmless session. What was seen goes to
`judge`. When all are done and the worker has stopped, it looks once more for what the whole run has left behind.

Every wait is bounded: a session by `_SESSION_S`, what it leaves behind by `_SETTLE_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
from typing import TYPE_CHECKING, Any

import msgspec

from enclave_protocol import SandboxError
from enclave_worker.cgroups.layout import PREFIX
from enclave_worker.metrics import open_descriptors
from enclave_worker.sandbox.levels import Layer
from enclave_worker.sandbox.seccomp import ARCHITECTURES

from . import leftovers
from .corpus import OK, OTHERS_SERVED, prelude
from .host import Host
from .judge import Observed, Report, SessionSeen, Verdict, judge, missing_needs

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from enclave_worker.executions import ExecutionResult
    from enclave_worker.runtime import RuntimeWorker

    from .corpus import Case

_SESSION_S = 90.0
"""A session's longest life here, after which there was no `final` in time."""
_SETTLE_S = 10.0
"""Until nothing of a session may live any more."""
_POLL_S = 0.01
_SPARE_DESCRIPTORS = 16
"""The worker's own that come and go while its pools refill."""
_LIMITS: dict[str, Any] = {"deadlineMs": 60_000}
"""An attack that its own deadline is to end says so; this one is not to be met on the busiest machine."""
_LONGEST_DEADLINE_MS = 60_000
_PATIENCE = 8
"""How many times longer an attack may take that has not got anywhere."""
_BIG_BYTES = 1 << 20

_BYSTANDER = """
import os, select, socket, subprocess, threading
a, b = socket.socketpair()
socket.send_fds(a, [b"x"], [0])
_, got, _, _ = socket.recv_fds(b, 1, 1)
r, w = os.pipe()
select.epoll().register(r, select.EPOLLIN)
with open("/tmp/file", "wb") as file:
    file.write(b"x" * (4 << 20))
thread = threading.Thread(target=os.write, args=(w, b"x"))
thread.start()
thread.join()
held = bytearray(32 << 20)
return subprocess.run(["/bin/sh", "-c", "exit 7"]).returncode + len(got) + len(os.listdir("/tmp"))
"""
"""What an ordinary session may want of the kernel while another attacks it."""
_BYSTANDERS_RESULT = 9


async def attack(worker: RuntimeWorker, cases: Iterable[Case]) -> AsyncGenerator[Report, None]:
    """Run cases, yielding a report of each, and a last one of what the whole run has left behind.

    Args:
        worker: one that is not started. It is started without a port, and stopped again.
        cases: what to run, in order.

    Raises:
        SandboxError: the worker does not start here.
    """
    with Host() as host:
        others = frozenset(leftovers.descendants(os.getpid()))
        before = _footprint(others)
        # Not `async with`: that would open a port.
        await worker.start(listen=False)
        try:
            missing = worker.missing_layers
            if Layer.NAMESPACES in missing:
                raise SandboxError("attack", 0, "a sandbox without namespaces lets everything through: nothing to test")
            available = _available(missing)
            arena = _Arena(worker, host)
            await arena.warm_up()
            for case in cases:
                yield await arena.run(case, available)
        finally:
            await worker.stop()
        yield _left_behind(before, _footprint(others))


def _available(missing: frozenset[Layer]) -> frozenset[str]:
    """Return what the worker says it has of what a case may need: a layer that it has not, the cases must find out."""
    return frozenset(
        {platform.machine(), *(layer for layer in (Layer.CONTROL_GROUPS, Layer.OWN_USER) if layer not in missing)}
    )


class _Arena:
    """A worker amid canaries."""

    def __init__(self, worker: RuntimeWorker, host: Host) -> None:
        self._worker = worker
        self._host = host
        self._descriptors = 0
        self._numbers = ARCHITECTURES[platform.machine()].numbers

    async def warm_up(self) -> None:
        """Run a harmless session, after which the worker holds what it holds between any two."""
        if unserved := await self._bystander():
            raise SandboxError("run a harmless session", 0, unserved[0])
        await self._settle(self._tag())
        self._descriptors = leftovers.descriptors()

    async def run(self, case: Case, available: frozenset[str]) -> Report:
        """Run one case, unless it does not apply."""
        if missing_needs(case, available):
            return judge(case, Observed(sessions=()), available)
        report = judge(case, await self._observe(case, patience=1), available)
        if report.verdict is Verdict.NOT_ATTEMPTED:
            # On a busy machine a short deadline may strike before the attack has got anywhere.
            report = judge(case, await self._observe(case, patience=_PATIENCE), available)
        return report

    async def _observe(self, case: Case, *, patience: int) -> Observed:
        tag = self._tag()
        sessions: list[SessionSeen] = []
        bystanders, unserved = 0, list[str]()
        for number, code in enumerate(case.sessions, 1):
            running = asyncio.create_task(self._session(case, code, tag, patience))
            if number == len(case.sessions) and OTHERS_SERVED in case.host:
                bystanders, unserved = await self._bystanders(running)
            sessions.append(await running)
        damage = await self._settle(tag)
        damage += self._host.damage()
        unserved += await self._bystander()
        return Observed(sessions=tuple(sessions), damage=tuple(damage), bystanders=bystanders, unserved=tuple(unserved))

    async def _session(self, case: Case, code: str, tag: str, patience: int) -> SessionSeen:
        facts = {**self._host.facts, "tag": tag, "numbers": self._numbers}
        source = f"HOST = __import__('json').loads({json.dumps(facts)!r})\n{prelude()}\n{code}"
        limits = {**_LIMITS, **case.limits}
        limits["deadlineMs"] = min(limits["deadlineMs"] * patience, _LONGEST_DEADLINE_MS)
        result = await self._execute(source, limits)
        if result is None:
            return SessionSeen(outcome="")
        return SessionSeen(
            outcome=OK if result.ok else str(result.error.code) if result.error else "",
            message=result.error.message if result.error else "",
            stdout=result.stdout,
            stderr=result.stderr,
            leaked=self._host.leaked(msgspec.json.encode(result.events)),
        )

    async def _execute(self, source: str, limits: dict[str, Any]) -> ExecutionResult | None:
        """Run a session; None if it has no `final` in time."""
        run = asyncio.create_task(self._worker.execute(None, source, limits, tools={"big": _big, "echo": _echo}))
        done, _ = await asyncio.wait({run}, timeout=_SESSION_S)
        if done:
            return run.result()
        run.cancel()
        await asyncio.wait({run}, timeout=_SETTLE_S)  # not for ever: a worker that gives no final may not end it either
        return None

    async def _bystanders(self, running: asyncio.Task[SessionSeen]) -> tuple[int, list[str]]:
        count, unserved = 0, []
        while not running.done():
            count += 1
            unserved += await self._bystander()
        return count, unserved

    async def _bystander(self) -> list[str]:
        """Run a harmless session; return how it ended if it did not end well."""
        result = await self._execute(_BYSTANDER, _LIMITS)
        if result is None:
            return ["no final in time"]
        if result.error is not None:
            return [f"{result.error.code}: {result.error.message}"]
        return [] if result.result == _BYSTANDERS_RESULT else [f"it returned {result.result!r}"]

    async def _settle(self, tag: str) -> list[str]:
        """Wait until nothing of a session is left; return what stays."""
        left: list[str] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                while left := self._left(tag):  # noqa: ASYNC110 - processes of others raise no event
                    await asyncio.sleep(_POLL_S)
        return left

    def _left(self, tag: str) -> list[str]:
        left = [f"survives: process {pid} ({name})" for pid, name in leftovers.guests(tag).items()]
        kept = leftovers.descriptors() - self._descriptors
        if self._descriptors and kept > _SPARE_DESCRIPTORS:
            left.append(f"the worker holds {kept} more descriptors than before")
        return left

    def _tag(self) -> str:
        return f"a{os.urandom(6).hex()}"


def _big(size: int = _BIG_BYTES) -> str:
    """A tool: a large answer."""
    return "x" * min(int(size), 4 * _BIG_BYTES)


def _echo(**named: object) -> dict[str, object]:
    """A tool: what it was given."""
    return named


class _Footprint(msgspec.Struct, frozen=True):
    descriptors: float
    processes: int
    cgroups: int


def _footprint(others: frozenset[int]) -> _Footprint:
    """Count what is ours, but not what processes make that were there before."""
    group = re.compile(rf"/{PREFIX}{os.getpid()}x*(/|$)")
    named_ours = [path for path in leftovers.cgroups() if group.search(path)]
    made = leftovers.descendants(os.getpid(), apart_from=others)
    return _Footprint(open_descriptors(), len(made), len(named_ours))


def _left_behind(before: _Footprint, after: _Footprint) -> Report:
    more = [
        f"{getattr(after, name) - getattr(before, name):g} {name}"
        for name in before.__struct_fields__
        if getattr(after, name) > getattr(before, name)
    ]
    return Report(
        case="afterwards",
        category="resources",
        layer="the worker itself",
        verdict=Verdict.BREACH if more else Verdict.HELD,
        reason=f"left behind: {', '.join(more)}" if more else "no descriptor, process or cgroup is left",
    )
