"""Runs a fleet and, one at a time, the sessions whose cost is counted: a program that `service` starts and traces for.

    python -m tests.budget.measure DESCRIPTOR [--in-order]

The programs are the real ones, with a counter of function calls in two of them. Each session is followed until all that
it caused is over, the making of the sandbox that replaces its own included. Prints what it found as JSON: by the name
of the figure, the count, by the name of the system call if it counts those; or else what one sandbox did, in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enclave_client.bench import footprint
from enclave_client.bench.http import Connection
from enclave_client.bench.load import SUM, create_body
from enclave_client.fleet import Fleet, FleetError, FleetSpec

from . import counted
from .samples import Sample, name_of, sample, typical
from .table import Measured
from .tracer import minor_faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from enclave_client.program import Program

    from .table import Found

_POOL = 2
_SESSIONS = 9
_FEWER = 5
"""Of kinds of which only the sandbox is counted, and of those whose least counts."""
_IDLE_LOOKS = 6
_WARM_UP = 5
_TOOL_CALLS = 8
_PROGRAMS = ("worker calls", "worker functions", "broker calls", "broker functions")
_KINDS = {
    "bare": create_body(SUM),
    "full": create_body("import json\nreturn 2"),
    "javascript": create_body(SUM, language="javascript"),
}
_TOOLS = "for number in range({}):\n    await call_tool('bench_echo', {{'value': number}})\nreturn 2"
_MODULES = {
    # With the whole word in it, it would run in the full kind.
    "bare": "return len(getattr(__builtins__, '__imp' 'ort__')('sys').modules)",
    "full": "import sys\nreturn len(sys.modules)",
}
_SPEC = FleetSpec(
    workers=1,
    pool_size=_POOL,
    tools=("enclave_client.bench.echo_tool",),
    # So seldom that most sessions have none: a ping would be counted as the session's.
    broker_options=("--ping-interval-s", "10", "--dead-after-s", "300"),
)


class _UnmeasuredError(Exception):
    """Something took so long, or went so wrong, that what was counted means nothing."""


_FAILURES = (FleetError, OSError, _UnmeasuredError)


class _CountedFleet(Fleet):
    """A fleet whose programs count the functions that they call."""

    def __init__(self, spec: FleetSpec, directory: Path, log: list[str]) -> None:
        self._directory = directory
        super().__init__(spec, lambda name, text: log.append(f"{name}: {text}"))

    def _program(
        self, name: str, module: str, arguments: list[str] | None, environment: Mapping[str, str] | None = None
    ) -> Program:
        file = self._directory / name
        file.write_bytes(bytes(counted.SIZE_BYTES))
        environment = dict(environment or os.environ)
        environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), counted.MODULE: module, counted.FILE: str(file)}
        return super()._program(name, counted.__name__, arguments, environment)

    def counts(self) -> dict[str, counted.Counts]:
        """Return what each program has done so far."""
        files = {"broker": self.broker.name, "worker": self.workers[0].name}
        return {role: counted.counts(self._directory / name) for role, name in files.items()}


class _Meter:
    """Runs sessions and takes samples. Its parts outlive it."""

    def __init__(self, fleet: _CountedFleet, connection: Connection, tracer: socket.socket) -> None:
        self._fleet = fleet
        self._connection = connection
        self._tracer = tracer
        self._tick_functions = 0.0
        assert fleet.broker.pid is not None
        assert fleet.workers[0].pid is not None
        self._roles = [(fleet.broker.pid, "broker"), (fleet.workers[0].pid, "worker")]
        launchers = footprint.children(fleet.workers[0].pid)
        keepers = [keeper for launcher in launchers for keeper in footprint.children(launcher)]
        self._zygotes = [zygote for keeper in keepers for zygote in footprint.children(keeper)]
        self._last = self._counters()

    def sandboxes(self) -> dict[int, set[int]]:
        """Return the sandboxes of each zygote."""
        return {zygote: set(footprint.children(zygote)) for zygote in self._zygotes}

    def seize(self) -> bool:
        """Have everything traced but sandboxes, and those that are made from now on too; say whether we may."""
        programs = [*self._roles, *((zygote, "zygote") for zygote in self._zygotes)]
        return not self._ask(seize=programs)["refused"]

    def rest(self) -> Sample:
        """Wait until nothing happens any more; return what has happened since the last time."""
        answer = self._ask(quiet=_POOL * len(self._zygotes))
        now = self._counters()
        since = {what: now[what] - self._last[what] for what in now}
        self._last = now
        for role in ("broker", "worker"):
            since[f"{role} functions"] -= round(since[f"{role} ticks"] * self._tick_functions)
        return sample(answer, since)

    def learn_ticks(self) -> None:
        """Find out what the broker does when there is nothing to do: it is to be no session's."""
        self.rest()
        looks = [self.rest() for _ in range(_IDLE_LOOKS)]
        ticked = [(look["broker functions"][""], look["broker ticks"][""]) for look in looks]
        self._tick_functions = statistics.median([functions / ticks for functions, ticks in ticked if ticks] or [0.0])

    def _counters(self) -> dict[str, int]:
        counters = {"zygote faults": sum(minor_faults(zygote) for zygote in self._zygotes)}
        for role, counts in self._fleet.counts().items():
            counters |= {f"{role} functions": counts.functions, f"{role} ticks": counts.ticks}
        return counters

    async def run(self, body: bytes) -> Any:
        """Run a session; return its result."""
        answer = await self._connection.post("/sessions", body)
        result = re.search(rb'"ok":true,"result":(\d+)', answer)
        if not result:
            raise _UnmeasuredError(f"a session failed: {answer[-500:].decode()}")
        return int(result[1])

    def order(self) -> list[tuple[str, int]]:
        """Return the calls of a sandbox that has ended since the last rest, each with its page faults up to it."""
        ended = self._ask(quiet=_POOL * len(self._zygotes))["ended"]
        sandbox = next(one for one in ended if one["role"] == "sandbox")
        return [(name_of(number), faults) for number, faults in sandbox["order"]]

    async def samples(self, body: bytes, count: int) -> list[Sample]:
        """Run sessions; return what each cost."""
        taken = []
        for _ in range(count):
            await self.run(body)
            taken.append(self.rest())
        return taken

    async def kinds(self) -> dict[str, int]:
        """Return the zygote of each kind: that which has another sandbox after a session of the kind."""
        found = {}
        for kind, body in _KINDS.items():
            before = self.sandboxes()
            await self.run(body)
            self.rest()
            after = self.sandboxes()
            found[kind] = next(zygote for zygote in self._zygotes if before[zygote] != after[zygote])
        return found

    def _ask(self, **question: Any) -> dict[str, Any]:
        self._tracer.send(json.dumps(question).encode())
        answer: dict[str, Any] = json.loads(self._tracer.recv(1 << 20))
        if "restless" in answer:
            raise _UnmeasuredError(f"the fleet does not come to rest: {answer['restless']}")
        return answer


async def _sessions(meter: _Meter) -> Found:
    """Count what sessions cost."""
    found: Found = {}
    meter.learn_ticks()
    for kind, body in _KINDS.items():
        samples = await meter.samples(body, _SESSIONS if kind == "bare" else _FEWER)
        found[f"{kind}_sandbox_calls"] = typical(samples, "sandbox life")
        found[f"{kind}_sandbox_faults"] = typical(samples, "sandbox faults")
        if kind == "bare":
            for what in ("zygote calls", "zygote faults", *_PROGRAMS):
                found[what.replace(" ", "_")] = typical(samples, what)
    one, more = [await meter.samples(create_body(_TOOLS.format(n)), _FEWER) for n in (1, 1 + _TOOL_CALLS)]
    for what in _PROGRAMS:
        # The least: the longer they take, the more often the broker acknowledges events.
        found[f"tool_{what.replace(' ', '_')}"] = typical(more, what, min) - typical(one, what, min)
    return found


async def _standing(meter: _Meter, fleet: _CountedFleet) -> Found:
    """Count what programs and warm sandboxes hold."""
    found: Found = {f"{role}_modules": {"": counts.modules} for role, counts in fleet.counts().items()}
    for kind, code in _MODULES.items():
        found[f"{kind}_modules"] = {"": await meter.run(create_body(code))}
    meter.rest()
    tables = 0
    for kind, zygote in (await meter.kinds()).items():
        warm = meter.sandboxes()[zygote]
        found[f"{kind}_zygote_kib"] = {"": _kib(f"/proc/{zygote}/status", "RssAnon:")}
        tables += _median(_kib(f"/proc/{pid}/status", "VmPTE:") for pid in warm)
        if os.geteuid() == 0:
            found[f"{kind}_own_kib"] = {
                "": _median(_kib(f"/proc/{pid}/smaps_rollup", "Private_Dirty:") for pid in warm)
            }
    return found | {"tables_kib": {"": tables}}


def _median(values: Iterable[int]) -> int:
    return round(statistics.median(values))


def _kib(path: str, field: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise AssertionError(f"{path} has no {field}")


async def _measure(tracer: socket.socket, directory: Path, log: list[str], *, in_order: bool) -> dict[str, Any]:
    fleet = _CountedFleet(_SPEC, directory, log)
    try:
        await fleet.start()
        async with Connection(fleet.url) as connection:
            meter = _Meter(fleet, connection, tracer)
            if not meter.seize():
                return {}  # who refused knows why
            # Until none is left of the sandboxes that there were: an ordinary user can't have those traced.
            for body in [*_KINDS.values(), create_body(_TOOLS.format(1))] * _WARM_UP:
                await meter.run(body)
            if in_order:
                meter.rest()
                await meter.run(_KINDS["bare"])
                return {"order": meter.order()}
            return vars(Measured(fleet.workers[0].level, await _sessions(meter) | await _standing(meter, fleet)))
    finally:
        await fleet.stop()


def main() -> None:
    """Be the program."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(fileno=int(sys.argv[1])) as tracer:
        log: list[str] = []
        try:
            found = asyncio.run(_measure(tracer, Path(directory), log, in_order=sys.argv[2:] == ["--in-order"]))
            sys.stdout.write(json.dumps(found))
        except _FAILURES as error:
            sys.stdout.write(json.dumps({"failure": "\n".join([*log, f"{type(error).__name__}: {error}"])}))


if __name__ == "__main__":
    main()
