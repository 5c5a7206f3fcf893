"""What each layer of the sandbox costs: CPU time of making and ending one, with and without it.

    python -m enclave_client.bench.layers

Makes sandboxes that run nothing, on one zygote with every layer and one for each layer without it, in short blocks by
turns; the difference of the medians is the layer's. For measuring only: nothing else ever leaves out a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from enclave_worker.config import RuntimeConfig
from enclave_worker.footing import find_footing
from enclave_worker.provision import plan_for
from enclave_worker.sandbox.spec import bare, interpreter, python_spec
from enclave_worker.slots import Slots
from enclave_worker.zygote import kernel
from enclave_worker.zygote_process import ZygoteProcess

from . import footprint

if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_worker.output import Stream
    from enclave_worker.sandbox.plan import Plan, Step
    from enclave_worker.sandbox_process import Sandbox

_BLOCK = 500
"""Sandboxes in a row: the kernel counts in hundredths of a second."""
_NAMESPACES = "mount, net, ipc, uts and cgroup namespaces"


class _Maker:
    """Makes sandboxes one after another. Home and owner of each."""

    def __init__(self, zygote: ZygoteProcess, slots: Slots) -> None:
        self._zygote = zygote
        self._slots = slots
        self._number = 0
        self._gone: asyncio.Future[None] | None = None
        self.failure = ""

    async def make(self, count: int) -> float:
        """Make and end this many; return the CPU milliseconds of each."""
        before_s = self._cpu_s()
        for _ in range(count):
            self._gone = asyncio.get_running_loop().create_future()
            self._number += 1
            slot = self._slots.take()
            assert slot is not None, "one at a time"
            self._zygote.spawn(self._number, slot, self)
            await self._gone
        return (self._cpu_s() - before_s) * 1000 / count

    def _cpu_s(self) -> float:
        return footprint.cpu_s(footprint.descendants(self._zygote.pid))

    def on_frame(self, sandbox: Sandbox, body: bytes) -> None:
        if b'"failed"' in body:
            self.failure = body.decode()
        sandbox.kill()

    def on_exit(self, sandbox: Sandbox, exit_: Any) -> None:
        del exit_
        self._slots.release(sandbox.slot, lambda: None)
        assert self._gone is not None, "whoever exits was made"
        self._gone.set_result(None)

    def on_output(self, sandbox: Sandbox, stream: Stream, data: bytes) -> bool:
        return False

    def _never(self, sandbox: Sandbox, *_: object) -> None:
        """What a sandbox without code has no occasion for."""

    on_broken = on_hangup = on_dropped = on_oom = retire = released = _never


def _variants(plan: Plan) -> dict[str, Plan]:
    """Return the whole plan and, by the name of a layer, the plan without it."""
    identity = [str(step[0]) for step in plan.enclose]
    identity = identity[identity.index("identity") if "identity" in identity else identity.index("user namespace") :]
    identity = identity[: identity.index("undumpable") + 1]
    without: dict[str, Callable[[Step], Step | None]] = {
        "control groups": lambda step: None if step[1] == "join" else step,
        "network namespace": lambda step: _less(step, kernel.CLONE_NEWNET),
        # Not uts: without it, naming the sandbox would name the host.
        "ipc and cgroup namespaces": lambda step: _less(step, kernel.CLONE_NEWIPC | kernel.CLONE_NEWCGROUP),
        "three tmpfs": lambda step: None if step[1] == "mount" and step[4] == "tmpfs" else step,
        "own user, user namespace, no capabilities": lambda step: None if step[0] in identity else step,
        "resource limits": lambda step: None if step[1] == "rlimit" else step,
        "Landlock": lambda step: None if step[1] == "landlock" else step,
        "system call filter": lambda step: None if step[1] == "seccomp" else step,
    }
    plans = {"": plan}
    for name, change in without.items():
        steps = [changed for step in plan.enclose if (changed := change(step)) is not None]
        plans[name] = msgspec.structs.replace(plan, enclose=steps)
    return plans


def _less(step: Step, flags: int) -> Step:
    if step[0] != _NAMESPACES:
        return step
    assert isinstance(step[2], int), "unshare takes flags"
    return [step[0], step[1], step[2] & ~flags]


async def measure(rounds: int) -> dict[str, list[float]]:
    """Return, by the layer left out (empty: none), the CPU milliseconds of a sandbox in each round."""
    config = RuntimeConfig(level="BEST")
    footing = find_footing(config)
    first_uid = config.first_uid if footing.privilege == "root" else 0
    spec = bare(python_spec(footing.resources, counted=footing.groups is not None))
    slots = Slots(1, first_uid=first_uid, groups=footing.groups, limits=footing.group_limits)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(footing.close)
        makers = {}
        for name, plan in _variants(plan_for(spec, footing)).items():
            zygote = await ZygoteProcess.start(plan, interpreter(), lambda *_: None)
            stack.push_async_callback(zygote.stop)
            zygote.proven = True  # what is left out on purpose is not to be complained of
            makers[name] = _Maker(zygote, slots)
        found: dict[str, list[float]] = {name: [] for name in makers}
        for number in range(rounds + 1):
            for name, maker in makers.items():
                cost_ms = await maker.make(_BLOCK)
                if maker.failure:
                    raise SystemExit(f"without {name or 'nothing'}: {maker.failure}")
                if number:  # the first round warms up
                    found[name].append(cost_ms)
        return found


@click.command()
@click.option("--rounds", default=6, show_default=True, type=click.IntRange(1), help=f"Blocks of {_BLOCK} of each.")
def main(rounds: int) -> None:
    """Print what each layer costs."""
    found = asyncio.run(measure(rounds))
    whole_ms = statistics.median(found.pop(""))
    click.echo(f"a bare sandbox, made and ended: {whole_ms:.2f} ms of CPU time, median of {rounds} x {_BLOCK}")
    for name, costs_ms in found.items():
        click.echo(f"  {name:45} {whole_ms - statistics.median(costs_ms):5.2f} ms")
    sys.exit(0)


if __name__ == "__main__":
    main()
