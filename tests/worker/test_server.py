"""The worker's port: greeting, bad input, slots, connections that go away or do not read, HTTP, and dying itself."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from enclave_worker.runtime import RuntimeState
from tests.support import (
    NAME_PROCESS,
    PATIENCE_S,
    Client,
    Footprint,
    children_of,
    client_of,
    control_groups_of,
    new_name,
    parent_of,
    processes_named,
    running,
    watched,
    worker_process,
)

if TYPE_CHECKING:
    from enclave_worker.runtime import RuntimeWorker

GROUP_DESCRIPTORS = 6
"""Five files to read and, in v1, one event of each slot's control group."""


async def get(worker: RuntimeWorker, path: str) -> tuple[int, str]:
    """GET from the worker's port."""

    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}{path}", timeout=PATIENCE_S) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


async def metric(worker: RuntimeWorker, sample: str) -> float:
    """Return the value of one line of /metrics, 0 if it is not there."""
    _, text = await get(worker, "/metrics")
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{sample} ")), 0.0)


# Greeting.


async def test_a_worker_greets_with_what_it_is_and_has(client: Client, worker: RuntimeWorker) -> None:
    assert client.hello["type"] == "hello"
    assert client.hello["workerId"] == worker.worker_id
    assert (client.hello["maxSessions"], client.hello["active"], client.hello["draining"]) == (20, 0, False)
    assert (client.hello["languages"], client.hello["level"]) == (["python", "javascript", "shell"], "SECURE")


async def test_a_ping_is_answered_with_its_own_timestamp_and_the_load(client: Client) -> None:
    session = await client.start("await call_tool('wait')")
    await client.until(session, "tool_call")

    pong = await client.ping()

    assert pong == {"type": "pong", "timestamp": 1.5, "active": 1, "maxSessions": 20, "draining": False}


# Bad input.

BAD: dict[str, tuple[Any, str]] = {
    "malformed JSON": ("{", ""),
    "no object": ("[1]", ""),
    "a binary frame": (b'{"type":"ping"}', ""),
    "an unknown type": ({"type": "explode"}, "type"),
    "no type": ({"code": "return 1"}, "type"),
    "code that is a number": ({"type": "execute", "code": 5}, "code"),
    "no code": ({"type": "execute", "sessionId": "s_bad"}, "code"),
    "code above its limit": ({"type": "execute", "sessionId": "s_bad", "code": "#" * 2_000_000}, "code"),
    "a session id of the wrong form": ({"type": "execute", "sessionId": "weird id", "code": ""}, "sessionId"),
    "a session id that is too long": ({"type": "execute", "sessionId": "s_" + "x" * 200, "code": ""}, "sessionId"),
    "an unknown language": ({"type": "execute", "code": "", "language": "cobol"}, "language"),
    "an unknown profile": ({"type": "execute", "code": "", "profile": "huge"}, "profile"),
    "an unknown limit": ({"type": "execute", "code": "", "limits": {"colour": 1}}, "limits.colour"),
    "a negative limit": ({"type": "execute", "code": "", "limits": {"maxToolCalls": -1}}, "limits.maxToolCalls"),
    "an alias of the wrong type": ({"type": "execute", "code": "", "limits": {"timeout": "1s"}}, "limits.timeout"),
    "limits that are a list": ({"type": "execute", "code": "", "limits": []}, "limits"),
    "a result without a call": ({"type": "tool_result", "sessionId": "s_live"}, "callId"),
    "a result for an unknown session": ({"type": "tool_result", "sessionId": "s_no", "callId": "c_1"}, "sessionId"),
    "a result for an unknown call": ({"type": "tool_result", "sessionId": "s_live", "callId": "c_1"}, "callId"),
    "an attach, which is for brokers": ({"type": "attach", "sessionId": "s_live"}, "type"),
    "a cancel without a session": ({"type": "cancel"}, "sessionId"),
    "a cancel of an unknown session": ({"type": "cancel", "sessionId": "s_no"}, "sessionId"),
    "the id of a live session": ({"type": "execute", "sessionId": "s_live", "code": ""}, "sessionId"),
}


@pytest.mark.parametrize(("message", "field"), BAD.values(), ids=BAD)
async def test_bad_input_is_refused_by_name_counted_and_touches_nothing(
    client: Client, worker: RuntimeWorker, message: Any, field: str
) -> None:
    await client.start("await call_tool('wait')\nreturn 'untouched'", session_id="s_live")
    call = await client.until("s_live", "tool_call")

    refused = await client.rejection(message)

    payload = refused["payload"]
    assert payload.get("field", "") == field
    assert payload["allowed"]
    assert (payload["code"], payload["recoverable"]) == ("VALIDATION_ERROR", True)
    label = field.partition(".")[0] or "message"
    assert await metric(worker, f'enclave_messages_refused_total{{field="{label}"}}') == 1
    await client.answer("s_live", call["callId"], None)
    assert (await client.finish("s_live")).final["result"] == "untouched"
    assert worker.get_stats().total_executions == 1


async def test_a_refusal_says_whose_message_it_was(client: Client) -> None:
    refused = await client.rejection({"type": "execute", "sessionId": "s_mine", "code": 5})

    assert refused["sessionId"] == "s_mine"


async def test_an_id_is_free_again_when_its_session_has_ended(client: Client) -> None:
    for value in (1, 2):
        session = await client.start(f"return {value}", session_id="s_again")
        assert (await client.finish(session)).final["result"] == value
        client.forget(session)


# Slots.


@pytest.mark.usefixtures("no_leaks")
async def test_a_session_above_max_sessions_gets_one_final_and_a_freed_slot_is_given_again() -> None:
    async with running(max_sessions=2, pool_size=1) as worker, client_of(worker.url) as client:
        live = [await client.start("await call_tool('wait')") for _ in range(2)]
        for session in live:
            await client.until(session, "tool_call")

        await client.send({"type": "execute", "sessionId": "s_extra", "code": "return 1", "firstSeq": 4})
        refused = await client.finish("s_extra", first_seq=4)
        await client.send({"type": "cancel", "sessionId": live[0]})
        await client.finish(live[0])

        assert (refused.code, refused.final["error"]["retryable"]) == ("NO_CAPACITY", True)
        assert len(refused.events) == 1
        assert (await client.run("return 1")).final["result"] == 1
        assert await metric(worker, "enclave_executions_refused_total") == 1


async def test_a_burst_beyond_the_pool_is_slower_not_an_error(client: Client) -> None:
    sessions = [await client.start("return 1") for _ in range(20)]

    assert [(await client.finish(session)).final["result"] for session in sessions] == [1] * 20


# Connections.


async def test_a_connection_that_closes_ends_its_sessions_and_no_others(client: Client, worker: RuntimeWorker) -> None:
    name = new_name()
    cancelled = asyncio.Event()
    worker.on_cancel(lambda *_: cancelled.set())
    mine = await client.start("return await call_tool('wait')")
    call = await client.until(mine, "tool_call")
    async with client_of(worker.url) as other:
        theirs = await other.start(NAME_PROCESS.format(name=name) + "print('up', flush=True)\nwhile True: pass")
        await other.until_written(theirs, "up")
        with watched(processes_named(name)) as wait_gone:
            await other.socket.close()
            await asyncio.to_thread(wait_gone)
    await cancelled.wait()  # the process is gone a moment before the worker hears of it

    await client.answer(mine, call["callId"], "alive")
    assert (await client.finish(mine)).final["result"] == "alive"
    assert worker.get_stats().cancelled_executions == 1


@pytest.mark.usefixtures("no_leaks")
async def test_a_reader_that_stops_pauses_its_own_guest_and_nobody_else() -> None:
    flood = "import os\nfor n in range(400): os.write(1, b'x' * 65536)\nreturn 'all written'"
    async with (
        running(send_buffer_bytes=256 * 1024) as worker,
        client_of(worker.url) as slow,
        client_of(worker.url) as quick,
    ):
        session = await slow.start(flood, maxStdoutBytes=100 << 20)
        sink: Any = None
        while sink is None or not sink.congested:
            # The slow client reads nothing; the quick one sees the worker go on.
            assert (await quick.run("return 1")).final["result"] == 1
            (sink,) = {run.sink for run in worker.sessions._runs.values()}
        assert sink._outbox_bytes < 4 << 20, "what waits for one reader is bounded"
        run = await slow.finish(session)

    assert run.final["result"] == "all written"
    assert run.final["stats"]["stdoutBytes"] == len(run.text("stdout")) == 400 * 65536


@pytest.mark.usefixtures("no_leaks")
async def test_an_answer_flood_without_reading_is_bounded() -> None:
    async with (
        running(send_buffer_bytes=64 * 1024) as worker,
        client_of(worker.url) as client,
        client_of(worker.url) as other,
    ):
        for number in range(20_000):
            await client.send({"type": "ping", "timestamp": number})
            if number % 5000 == 0:
                assert (await other.run("return 1")).final["ok"]
        for number in range(20_000):
            assert (await client.recv())["timestamp"] == number


# HTTP.


async def test_health_readiness_metrics_and_the_unknown_path(worker: RuntimeWorker) -> None:
    assert await get(worker, "/healthz") == (200, "ok\n")
    status, text = await get(worker, "/readyz")
    assert (status, text.startswith("ready")) == (200, True)
    status, text = await get(worker, "/metrics")
    assert (status, "enclave_worker_slots 20.0" in text) == (200, True)
    assert (await get(worker, "/nothing"))[0] == 404


async def test_metrics_count_outcomes(client: Client, worker: RuntimeWorker) -> None:
    await client.run("return 1")
    await client.run("1 / 0")
    await client.run("while True: pass", deadlineMs=50)

    for outcome in ("ok", "EXECUTION_ERROR", "DEADLINE_EXCEEDED"):
        assert await metric(worker, f'enclave_executions_total{{outcome="{outcome}"}}') == 1
    assert await metric(worker, "enclave_executions_active") == 0


# Life and death.


@pytest.mark.usefixtures("no_leaks")
async def test_stop_ends_live_sessions_and_leaves_nothing() -> None:
    name = new_name()
    async with running() as worker, client_of(worker.url) as client:
        session = await client.start(NAME_PROCESS.format(name=name) + "print('up', flush=True)\nwhile True: pass")
        await client.until_written(session, "up")
        await worker.stop()
        run = await client.finish(session)

    assert run.code == "WORKER_LOST"
    assert processes_named(name) == []
    assert worker.get_state() is RuntimeState.STOPPED


@pytest.mark.usefixtures("no_leaks")
async def test_a_drain_lets_live_sessions_finish_and_takes_no_more() -> None:
    async with running() as worker, client_of(worker.url) as client:
        session = await client.start("return await call_tool('wait')")
        call = await client.until(session, "tool_call")
        stopping = asyncio.create_task(worker.stop(grace_s=PATIENCE_S))
        while not (await client.ping())["draining"]:
            pass
        await client.send({"type": "execute", "sessionId": "s_late", "code": "return 1", "firstSeq": 2})
        refused = await client.finish("s_late", first_seq=2)
        assert (await get(worker, "/readyz"))[0] == 503
        await client.answer(session, call["callId"], "finished")
        run = await client.finish(session)
        await stopping

    assert refused.code == "NO_CAPACITY"
    assert run.final["result"] == "finished"


async def test_a_dead_zygote_is_replaced_and_its_sessions_go_on(client: Client, worker: RuntimeWorker) -> None:
    name = new_name()
    code = NAME_PROCESS.format(name=name)
    answered = await client.start(code + "return await call_tool('wait')")
    calls = [await client.until(answered, "tool_call")]
    crashing = await client.start("await call_tool('wait')\nimport os\nos._exit(3)")
    calls.append(await client.until(crashing, "tool_call"))
    spinning = await client.start(code + "print('up', flush=True)\nwhile True: pass")
    await client.until_written(spinning, "up")
    zygotes = {parent_of(guest) for guest in processes_named(name)}
    with watched(zygotes) as wait_gone:
        for zygote in zygotes:
            os.kill(zygote, signal.SIGKILL)
        await asyncio.to_thread(wait_gone)

    await client.answer(answered, calls[0]["callId"], "still there")
    await client.answer(crashing, calls[1]["callId"], None)
    assert (await client.finish(answered)).final["result"] == "still there"
    assert (await client.finish(crashing)).code == "GUEST_CRASHED"
    with watched(processes_named(name)) as wait_gone:
        await client.send({"type": "cancel", "sessionId": spinning})
        assert (await client.finish(spinning)).code == "SESSION_CANCELLED"
        await asyncio.to_thread(wait_gone)
    for code in ("return 1", "import os\nreturn 1"):
        assert (await client.run(code)).final["result"] == 1
    assert worker.sessions.active == 0


@pytest.mark.parametrize("victim", ["keeper", "launcher"])
async def test_what_ends_with_a_process_of_ours_is_not_said_to_have_crashed(
    client: Client, worker: RuntimeWorker, victim: str
) -> None:
    session = await client.start("await call_tool('wait')")
    await client.until(session, "tool_call")
    (run,) = worker.sessions._runs.values()
    assert run._sandbox is not None
    keeper = parent_of(parent_of(run._sandbox.pid))
    os.kill(keeper if victim == "keeper" else parent_of(keeper), signal.SIGKILL)

    assert (await client.finish(session)).final["error"]["code"] == "INTERNAL_ERROR"
    # Nor is whoever is given a sandbox that waited, of whose end nobody has heard yet.
    while (after := await client.run("return 1")).code != "OK":
        assert after.final["error"] == {
            "code": "INTERNAL_ERROR",
            "message": "the sandbox was lost: the process above its zygote ended",
            "retryable": True,
        }


async def test_the_sessions_of_a_dead_zygote_end_with_the_worker() -> None:
    name = new_name()
    with worker_process() as (process, url):
        async with client_of(url) as client:
            session = await client.start(NAME_PROCESS.format(name=name) + "print('up', flush=True)\nwhile True: pass")
            await client.until_written(session, "up")
            guests = processes_named(name)
            zygote = parent_of(guests[0])
            with watched([zygote]) as wait_gone:
                os.kill(zygote, signal.SIGKILL)
                await asyncio.to_thread(wait_gone)
            with watched(guests) as wait_gone:
                process.kill()
                await asyncio.to_thread(wait_gone)

    assert processes_named(name) == []


@pytest.mark.usefixtures("no_leaks")
async def test_a_zygote_is_replaced_after_its_number_of_forks_and_let_go_with_its_last_sandbox() -> None:
    where = "open('/proc/self/maps').read().splitlines()[0]"
    layouts: set[str] = set()
    others = len(own_children())
    async with running(pool_size=1, zygote_forks=100) as worker, client_of(worker.url) as client:
        waiting = await client.start(f"print({where})\nreturn await call_tool('wait')")
        call = await client.until(waiting, "tool_call")
        while len(layouts) < 3:
            layouts.add((await client.run(f"return {where}")).final["result"])
        await client.answer(waiting, call["callId"], "served by the first")
        run = await client.finish(waiting)
        # The last sandboxes of past zygotes may be warm still, and go when they have been used.
        while len(own_children()) > others + 3:
            for code in ("return 1", "import os\nreturn 1"):
                assert (await client.run(code)).final["ok"]

    assert run.final["result"] == "served by the first"


def own_children() -> list[str]:
    """Return our direct children: a launcher for each zygote, and what other tests have started."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.mark.parametrize("as_user", [False, True], ids=["as started", "as an ordinary user"])
async def test_a_worker_killed_outright_leaves_no_process_behind(as_user: bool) -> None:  # noqa: FBT001 - a parameter of the test
    before = Footprint.now().mounts
    name = new_name()
    groups: list[Path] = []
    with worker_process(as_user=as_user) as (process, url):
        async with client_of(url) as client:
            session = await client.start(NAME_PROCESS.format(name=name) + "print('up', flush=True)\nwhile True: pass")
            await client.until_written(session, "up")
            family = children_of(process.pid)
            assert len(family) >= 4, "launcher, zygote, the session and what is warm of the pool"
            groups = control_groups_of(process.pid)
            with watched(family) as wait_gone:
                process.kill()
                await asyncio.to_thread(wait_gone)

    assert processes_named(name) == []
    assert [path for path in groups if list(path.rglob("slot-*"))] == [], "its launchers removed its control groups"
    assert Footprint.now().mounts == before


@pytest.mark.usefixtures("no_leaks")
async def test_ten_starts_and_stops_leave_nothing() -> None:
    for _ in range(10):
        async with running(pool_size=2) as worker, client_of(worker.url) as client:
            assert (await client.run("return 1")).final["ok"]


async def test_hundreds_of_sessions_leave_nothing_in_a_running_worker(client: Client, worker: RuntimeWorker) -> None:
    async def round_of(count: int) -> None:
        for session in [await client.start("print(1)\nreturn 1") for _ in range(count)]:
            await client.finish(session)

    async def settled() -> Footprint:
        # Warm sandboxes have descriptors and processes: count when the pool is full, and nothing is on its way.
        while (worker.get_stats().warm_sandboxes, worker.sessions.pools.live) != (12, 12):  # noqa: ASYNC110 - see below
            await asyncio.sleep(0)  # nothing tells when a pool is full again
        now = Footprint.now()
        # A slot that was ever used keeps its control group and the files by which that is read.
        slots = len({path.name for base in control_groups_of(os.getpid()) for path in base.rglob("slot-*")})
        return now._replace(descriptors=now.descriptors - GROUP_DESCRIPTORS * slots)

    await round_of(20)
    before = await settled()
    for _ in range(15):
        await round_of(20)

    assert await settled() == before


async def test_a_web_page_gets_no_socket() -> None:
    """Browsers let every page ask loopback for one."""
    async with running(max_sessions=1) as worker:
        with pytest.raises(InvalidStatus) as refused:
            await connect(worker.url, proxy=None, origin=Origin("https://evil.example"))
        assert refused.value.response.status_code == 403
