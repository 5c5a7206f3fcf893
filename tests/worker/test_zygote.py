"""A real zygote, and the pool before it: a step that fails is named, and nothing is started halfway."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import statistics
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from enclave_protocol import SandboxError
from enclave_worker import zygote_process
from enclave_worker.cgroups import GroupLimits
from enclave_worker.pool import Pool
from enclave_worker.sandbox.levels import LEVELS
from enclave_worker.sandbox.plan import make_plan
from enclave_worker.sandbox.spec import bare, interpreter, python_spec
from enclave_worker.sandbox_process import Sandbox
from enclave_worker.slots import Slots
from enclave_worker.zygote.kernel import acts_as_root, can_set_clocks, landlock_abi
from tests.support import PATIENCE_S, Client, client_of, made_since, own_children_of, parent_of, running

if TYPE_CHECKING:
    from pathlib import Path

    from enclave_worker.readiness import Readiness
    from enclave_worker.runtime import RuntimeWorker
    from enclave_worker.sandbox.plan import Plan, Step

FAILING: Step = ["a step that fails", "chdir", "/no/such/directory"]


def real_plan(**host: Any) -> Plan:
    spec = bare(python_spec(LEVELS["SECURE"].resources, counted=False))
    return make_plan(
        spec,
        privilege="root" if acts_as_root() else "user",
        uid=os.geteuid(),
        gid=os.getegid(),
        **({"landlock_abi": landlock_abi(), "own_clocks": can_set_clocks()} | host),
    )


def pool_of(plan: Plan, size: int = 2) -> Pool:
    limits = GroupLimits(memory_bytes=1 << 30, processes=64, cpus=1)
    slots = Slots(4, first_uid=200_000 if plan.privilege == "root" else 0, groups=None, limits=limits)
    return Pool(plan, interpreter(), size=size, max_live=4, slots=slots, zygote_forks=100)


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("where", ["launch", "prepare", "enclose"])
async def test_a_step_that_fails_is_named_with_its_errno_and_the_worker_does_not_start(where: str) -> None:
    plan = real_plan()
    getattr(plan, where).insert(0, FAILING)

    with pytest.raises(SandboxError) as caught:
        await pool_of(plan).start()

    assert caught.value.step == "a step that fails"
    assert "No such file" in str(caught.value)


@pytest.mark.usefixtures("no_leaks")
async def test_a_plan_that_no_socket_takes_keeps_the_worker_from_starting_and_it_says_why() -> None:
    plan = msgspec.structs.replace(real_plan(), env={"LARGE": "x" * (16 << 20)})

    with pytest.raises(SandboxError, match="it can't be asked: Message too long"):
        await pool_of(plan).start()


@pytest.mark.usefixtures("no_leaks")
async def test_a_zygote_that_is_never_prepared_keeps_the_worker_from_starting_and_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(zygote_process, "_PREPARE_S", 0.1)
    monkeypatch.setattr(zygote_process, "_LEAVE_S", 0.1)
    os.mkfifo(tmp_path / "nobody reads it")
    plan = real_plan()
    plan.launch.insert(0, ["a step that never ends", "write", str(tmp_path / "nobody reads it"), "x"])

    with pytest.raises(SandboxError, match=r"not prepared after 0\.1 s"):
        await pool_of(plan).start()


@pytest.mark.usefixtures("no_leaks")
async def test_a_zygote_that_there_are_no_descriptors_to_watch_is_not_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_epoll(_: asyncio.AbstractEventLoop) -> Readiness:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(zygote_process, "Readiness", no_epoll)

    with pytest.raises(OSError, match="Too many open files"):
        await pool_of(real_plan()).start()


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("layer", ["user namespace", "no capabilities", "system call filter", "empty bounding set"])
async def test_a_layer_that_was_left_out_is_found_by_the_self_test(layer: str) -> None:
    plan = real_plan()
    kept = [step for step in plan.enclose if step[0] != layer]
    if layer == "user namespace":
        # Without it there is nothing to map.
        kept = [step for step in kept if step[0] not in {"deny setgroups", "map group", "map user"}]
    plan.enclose[:] = kept

    with pytest.raises(SandboxError):
        await pool_of(plan).start()


@pytest.mark.skipif(not landlock_abi(), reason="this kernel has no Landlock")
@pytest.mark.usefixtures("no_leaks")
async def test_landlock_that_was_left_out_is_found_by_the_self_test() -> None:
    plan = real_plan()
    plan.enclose[:] = [step for step in plan.enclose if step[0] != "Landlock"]

    with pytest.raises(SandboxError, match="not in force: Landlock"):
        await pool_of(plan).start()


@pytest.mark.skipif(not can_set_clocks(), reason="no time namespace to be had here")
@pytest.mark.usefixtures("no_leaks")
async def test_clocks_that_are_the_hosts_are_found_by_the_self_test() -> None:
    plan = real_plan()
    plan.launch[:] = [step for step in plan.launch if step[0] not in {"time namespace", "clocks from zero"}]

    with pytest.raises(SandboxError, match="not in force: time namespace"):
        await pool_of(plan).start()


@pytest.mark.usefixtures("no_leaks")
async def test_a_host_without_landlock_and_time_namespaces_starts_without_them() -> None:
    pool = pool_of(real_plan(landlock_abi=0, own_clocks=False))
    await pool.start()
    await pool.stop()


@pytest.mark.skipif(not landlock_abi(), reason="this kernel has no Landlock")
@pytest.mark.usefixtures("no_leaks")
async def test_a_landlock_rule_that_the_kernel_refuses_keeps_the_worker_from_starting() -> None:
    plan = real_plan()
    step = next(step for step in plan.enclose if step[0] == "Landlock")
    step[step.index("/dev")] = "/no/such/directory"

    with pytest.raises(SandboxError) as caught:
        await pool_of(plan).start()

    assert caught.value.step == "Landlock"


@pytest.mark.parametrize("abi", range(1, min(landlock_abi(), 7) + 1))
@pytest.mark.usefixtures("no_leaks")
async def test_a_sandbox_can_be_made_with_every_older_landlock(abi: int) -> None:
    pool = pool_of(real_plan(landlock_abi=abi))
    await pool.start()
    await pool.stop()


@pytest.mark.usefixtures("no_leaks")
async def test_each_pool_fills_to_its_size_and_no_further() -> None:
    async with running(pool_size=3) as worker:
        assert worker._parts is not None
        pools = worker._parts.pools
        while pools.warm < 9:  # noqa: ASYNC110 - nothing tells when a pool is full
            await asyncio.sleep(0)
        assert (pools.warm, pools.live) == (9, 9), "of Python a full and a bare one, and one of JavaScript"


@pytest.mark.usefixtures("no_leaks")
async def test_a_pool_of_size_0_proves_its_zygote_and_then_makes_each_sandbox_when_it_is_asked_for() -> None:
    async with running(pool_size=0) as worker, client_of(worker.url) as client:
        assert worker._parts is not None
        pools = worker._parts.pools
        async with asyncio.timeout(PATIENCE_S):
            while pools.live:  # noqa: ASYNC110 - nothing tells when a sandbox has gone
                await asyncio.sleep(0)
        assert (pools.ready, pools.warm) == (True, 0)

        runs = [await client.run(code) for code in ("return 1 + 1", "import os\nreturn os.getpid()")]

        assert [run.final["result"] for run in runs] == [2, 1]
        assert pools.warm == 0
        assert b'result="warm"} 0.0' in worker.metrics.render()


class Waiting:
    """Somebody who wants a sandbox, and does nothing with it."""

    def on_sandbox(self, sandbox: Sandbox) -> None:
        """Leave it to the pool's end."""


@pytest.mark.usefixtures("no_leaks")
async def test_what_was_made_for_sessions_that_did_not_wait_for_it_is_not_kept_beyond_the_pools_size() -> None:
    pool = pool_of(real_plan(), size=1)
    await pool.start()
    takers = [Waiting() for _ in range(3)]
    for taker in takers:
        pool.take(taker)
    assert pool.live == 4
    for taker in takers[1:]:
        pool.forget(taker)

    async with asyncio.timeout(PATIENCE_S):
        while pool.live > 2:  # noqa: ASYNC110 - nothing tells when a sandbox has gone
            await asyncio.sleep(0)
    assert pool.warm == 1
    await pool.stop()


@pytest.mark.usefixtures("no_leaks")
async def test_a_sandbox_that_is_killed_before_it_is_made_is_told_of_like_any_other() -> None:
    pool = pool_of(real_plan(), size=0)
    await pool.start()
    async with asyncio.timeout(PATIENCE_S):
        while pool.live:  # noqa: ASYNC110 - nothing tells when a sandbox has gone
            await asyncio.sleep(0)
    current = pool._zygotes._current
    assert current is not None
    (keeper,) = own_children_of(current.pid)
    (zygote,) = own_children_of(keeper)
    os.kill(zygote, signal.SIGSTOP)  # so that it hears of both at once
    pool.take(Waiting())
    (sandbox,) = pool._starting

    sandbox.kill()

    os.kill(zygote, signal.SIGCONT)
    async with asyncio.timeout(PATIENCE_S):
        while sandbox in pool._starting:  # noqa: ASYNC110 - nothing tells when one will never come
            await asyncio.sleep(0)
    assert pool._zygotes._current is current, "it is not the zygote's fault"
    await pool.stop()


async def test_live_sandboxes_never_share_a_number_or_a_user(client: Client, worker: RuntimeWorker) -> None:
    for _ in range(6):
        await client.until(await client.start("await call_tool('wait')"), "tool_call")
    sandboxes = [run._sandbox for run in worker.sessions._runs.values()]

    assert len({sandbox.number for sandbox in sandboxes if sandbox}) == 6
    assert len({sandbox.slot.number for sandbox in sandboxes if sandbox}) == 6


COPIED_KIB = """
import gc
gc.collect()
with open("/proc/self/smaps_rollup") as file:
    copied = next(int(line.split()[1]) for line in file if line.startswith("Private_Dirty:"))
await call_tool("wait", {"copied": copied})
"""


@pytest.mark.usefixtures("no_leaks")
async def test_a_sandbox_copies_no_more_of_its_zygote_the_more_there_are_beside_it() -> None:
    async with running(max_sessions=64, pool_size=1) as worker, client_of(worker.url) as client:
        copied_kib = []
        for _ in range(64):
            call = await client.until(await client.start(COPIED_KIB), "tool_call")
            copied_kib.append(call["args"]["copied"])

    # Whatever a zygote kept for each slot would be copied. A page more or less of one is chance: many are looked at.
    early, late = (statistics.median(some) for some in (copied_kib[8:24], copied_kib[-16:]))
    assert late - early < 100


@pytest.mark.usefixtures("no_leaks")
async def test_a_zygote_that_somebody_stopped_holds_up_neither_a_final_nor_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It says nothing, however long it is waited for.
    monkeypatch.setattr("enclave_worker.run._DEATH_GRACE_S", 0.01)
    monkeypatch.setattr(zygote_process, "_LEAVE_S", 0.01)
    others = frozenset(own_children_of(os.getpid()))  # whoever stopped those, too, would be waited for by all
    async with running() as worker:
        launchers = frozenset(own_children_of(os.getpid())) - others
        async with client_of(worker.url) as client:
            session_id = await client.start("print('up', flush=True)\nwhile True: pass")
            await client.until_written(session_id, "up")
            for zygote in set(made_since(others)) - launchers:
                with contextlib.suppress(ProcessLookupError):  # one that proved a zygote, and goes
                    os.kill(zygote, signal.SIGSTOP)
            await client.send({"type": "cancel", "sessionId": session_id})
            run = await client.finish(session_id)
    assert run.code == "SESSION_CANCELLED"


@pytest.mark.usefixtures("no_leaks")
async def test_what_a_guest_died_of_is_told_even_if_word_of_it_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = asyncio.Event()
    is_dying = Sandbox.is_dying

    def look(sandbox: Sandbox) -> bool:
        looked.set()
        return is_dying(sandbox)

    monkeypatch.setattr(Sandbox, "is_dying", look)
    monkeypatch.setattr("enclave_worker.run._DEATH_GRACE_S", PATIENCE_S)
    async with running(pool_size=1) as worker, client_of(worker.url) as client, asyncio.timeout(PATIENCE_S):
        session_id = await client.start("import ctypes\nawait call_tool('wait')\nctypes.string_at(0)")
        call = await client.until(session_id, "tool_call")
        (run,) = worker.sessions._runs.values()
        assert run._sandbox is not None
        zygote = parent_of(run._sandbox.pid)
        os.kill(zygote, signal.SIGSTOP)
        await client.answer(session_id, call["callId"], None)
        await looked.wait()
        os.kill(zygote, signal.SIGCONT)
        ended = await client.finish(session_id)

    assert (ended.code, "SIGSEGV" in ended.final["error"]["message"]) == ("GUEST_CRASHED", True), ended.final


@pytest.mark.usefixtures("no_leaks")
async def test_a_zygote_that_dies_without_a_sandbox_is_let_go_of() -> None:
    others = set(own_children_of(os.getpid()))
    async with running(pool_size=0) as worker, client_of(worker.url) as client:
        launchers = set(own_children_of(os.getpid())) - others
        for keeper in (each for launcher in launchers for each in own_children_of(launcher)):
            for zygote in own_children_of(keeper):
                os.kill(zygote, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            while launchers & set(own_children_of(os.getpid())):  # noqa: ASYNC110 - being waited for sets no event
                await asyncio.sleep(0.01)
        assert (await client.run("return 1")).final["result"] == 1


@pytest.mark.usefixtures("no_leaks")
async def test_a_zygote_that_is_leaving_when_the_pool_stops_is_gone_when_it_has() -> None:
    pool = pool_of(real_plan(), size=1)
    await pool.start()
    zygotes, (sandbox,) = pool._zygotes, pool._warm
    zygotes._succeed(await zygotes._start())
    sandbox.kill()
    async with asyncio.timeout(PATIENCE_S):
        while zygotes._past:  # noqa: ASYNC110 - being let go of sets no event
            await asyncio.sleep(0)

    await pool.stop()

    with pytest.raises(ProcessLookupError):
        os.kill(sandbox.process.pid, 0)


@pytest.mark.usefixtures("no_leaks")
async def test_a_zygote_without_descriptors_makes_no_sandbox_and_ends_none() -> None:
    async with running(pool_size=1) as worker, client_of(worker.url) as client:
        session_id = await client.start("return await call_tool('wait')")
        call = await client.until(session_id, "tool_call")
        (run,) = worker.sessions._runs.values()
        assert run._sandbox is not None
        zygote = parent_of(run._sandbox.pid)
        limit = resource.prlimit(zygote, resource.RLIMIT_NOFILE)
        resource.prlimit(zygote, resource.RLIMIT_NOFILE, (9, limit[1]))

        late = [await client.run("return await call_tool('wait')", deadlineMs=200, toolTimeoutMs=1) for _ in range(3)]
        resource.prlimit(zygote, resource.RLIMIT_NOFILE, limit)
        await client.answer(session_id, call["callId"], "lived")

        assert late[-1].code == "DEADLINE_EXCEEDED"
        assert (await client.finish(session_id)).final["result"] == "lived"
        assert (await client.run("import os\nreturn 1")).final["result"] == 1


@pytest.mark.usefixtures("no_leaks")
async def test_a_worker_without_descriptors_recovers_and_keeps_none_of_those_it_got_halfway() -> None:
    async with running(pool_size=1) as worker, client_of(worker.url) as client:
        session_id = await client.start("return await call_tool('wait')")
        call = await client.until(session_id, "tool_call")
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            # Room for two of the four that a sandbox comes with.
            resource.setrlimit(resource.RLIMIT_NOFILE, (_lowest_free_descriptor() + 2, limit[1]))
            late = [await client.run("return await call_tool('wait')", deadlineMs=200) for _ in range(3)]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        await client.answer(session_id, call["callId"], "lived")

        assert "DEADLINE_EXCEEDED" in {run.code for run in late}
        assert (await client.finish(session_id)).final["result"] == "lived"
        assert (await client.run("import os\nreturn 1")).final["result"] == 1


def _lowest_free_descriptor() -> int:
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor
