"""`Client`: what blocking adds to `AsyncClient`: threads, signals, forks."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from enclave_client import BrokerUnavailable, Client, RequestRefused, SessionFailed, SessionTimeout, events
from tests.client.fake_socket import FakeSocketBroker, Told, says_hello, waits_for_cancel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def client() -> Iterator[Client]:
    """A client that no broker is needed for."""
    with Client("http://127.0.0.1:1") as client:
        yield client


async def blocking(script: Any, use: Callable[[Client, FakeSocketBroker], Any]) -> Any:
    """Use a client in a thread, while a fake broker is served by this one's loop."""
    async with FakeSocketBroker(script) as broker:

        def work() -> Any:
            with Client(broker.url) as client:
                return use(client, broker)

        async with asyncio.timeout(60):
            return await asyncio.to_thread(work)


async def test_a_run_blocks_until_there_is_a_result() -> None:
    result = await blocking(says_hello, lambda client, _: client.run("x"))
    assert (result.ok, result.value, result.stdout) == (True, "x", "hello\n")


async def test_handlers_are_called_in_the_thread_that_called_run() -> None:
    threads: list[threading.Thread] = []
    heard: list[Any] = []

    def use(client: Client, _: FakeSocketBroker) -> bool:
        client.run("x", on_stdout=lambda _: threads.append(threading.current_thread()), on_event=heard.append)
        return threads == [threading.current_thread()]

    assert await blocking(says_hello, use)
    assert [type(event) for event in heard] == [events.SessionInit, events.Stdout, events.Final]


async def test_a_stream_is_an_iterator_that_ends_with_a_result() -> None:
    def use(client: Client, broker: FakeSocketBroker) -> None:
        with client.stream("x") as session:
            assert [type(event) for event in session] == [events.SessionInit, events.Stdout, events.Final]
            assert session.wait() is session.result
        with client.stream("y") as session:
            assert list(session.lines()) == [line.encode() for line in broker.sessions[session.session_id].log]
        with client.attach(session.session_id) as session:
            assert session.wait().value == "y"

    await blocking(says_hello, use)


async def test_failing_code_is_raised_only_where_it_is_asked_for() -> None:
    async def script(told: Told) -> None:
        await told.fail("EXECUTION_ERROR", "no")

    def use(client: Client, _: FakeSocketBroker) -> None:
        assert not client.run("").ok
        with pytest.raises(SessionFailed):
            client.run("", check=True)

    await blocking(script, use)


async def test_another_thread_may_cancel() -> None:
    def use(client: Client, _: FakeSocketBroker) -> Any:
        with client.stream("") as session:
            for event in session:
                if isinstance(event, events.Stdout):
                    thread = threading.Thread(target=session.cancel, args=("seen enough",))
                    thread.start()
                    thread.join()
        return session.result.error

    assert (await blocking(waits_for_cancel, use)).code == "SESSION_CANCELLED"


async def test_many_threads_may_use_one_client_at_once() -> None:
    def use(client: Client, broker: FakeSocketBroker) -> list[str]:
        with ThreadPoolExecutor(8) as pool:
            values = [result.value for result in pool.map(client.run, map(str, range(40)))]
        assert len(broker.handshakes) == 1
        return values

    assert await blocking(says_hello, use) == [str(n) for n in range(40)]


async def test_tools_run_beside_the_caller_and_may_use_the_client() -> None:
    trace = contextvars.ContextVar("trace", default="none")

    async def script(told: Told) -> None:
        if told.execute["code"] == "inner":
            await told.final("inner")
            return
        plain = await told.call("plain", None)
        awaited = await told.call("awaited", None, call_id="c_2")
        await told.final([plain["value"], awaited.get("value"), awaited.get("error")])

    def use(client: Client, _: FakeSocketBroker) -> Any:
        def plain() -> list[Any]:
            return [client.run("inner").value, trace.get()]

        async def awaited() -> Any:
            return client.run("inner").value

        trace.set("mine")
        return client.run("", tools=[plain, awaited]).value

    plain, awaited, error = await blocking(script, use)
    assert plain == ["inner", "mine"]
    assert awaited is None
    assert "would wait for itself" in error["message"]


async def test_a_map_takes_its_inputs_in_the_callers_thread_when_there_is_room() -> None:
    taken: list[int] = []

    def inputs() -> Iterator[int]:
        for n in range(5):
            taken.append(threading.get_ident())
            yield n

    def use(client: Client, _: FakeSocketBroker) -> None:
        items = client.map("return item", inputs(), concurrency=2)
        next(items)
        assert len(taken) == 2
        assert sorted(item.index for item in items) != []
        assert set(taken) == {threading.get_ident()}

    await blocking(says_hello, use)
    assert len(taken) == 5


async def test_leaving_a_map_ends_the_sessions_that_still_run() -> None:
    async def script(told: Told) -> None:
        await (told.final() if told.execute["code"].startswith("item = 0;") else waits_for_cancel(told))

    def use(client: Client, broker: FakeSocketBroker) -> None:
        for _ in client.map("return 1", range(3)):
            break
        assert sum(told.cancelled.is_set() for told in broker.sessions.values()) == 2

    await blocking(script, use)


async def test_waiting_ends_after_wait_s() -> None:
    def use(client: Client, _: FakeSocketBroker) -> None:
        with pytest.raises(SessionTimeout):
            client.run("", wait_s=0.05)

    await blocking(waits_for_cancel, use)


async def test_closing_ends_who_waits_in_another_thread() -> None:
    started = threading.Event()

    async def script(told: Told) -> None:
        started.set()
        await waits_for_cancel(told)

    def use(client: Client, _: FakeSocketBroker) -> Any:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.run, "")
            assert started.wait(60)
            client.close()
            return waiting.result().error

    assert (await blocking(script, use)).code == "SESSION_CANCELLED"


async def test_a_stream_of_a_closed_client_says_so() -> None:
    def use(client: Client, _: FakeSocketBroker) -> None:
        with client.stream("") as session:
            client.close()
            with pytest.raises(RuntimeError, match="this client was closed"):
                session.wait()

    await blocking(waits_for_cancel, use)


def test_what_is_wrong_is_told_as_by_the_async_client(client: Client) -> None:
    with pytest.raises(BrokerUnavailable):
        client.run("")
    with pytest.raises(RequestRefused, match="maxTools"):
        client.run("", limits={"maxTools": 1})
    with pytest.raises(RequestRefused, match="concurrency"):
        client.map("", [], concurrency=0)
    with pytest.raises(RequestRefused, match="async"):
        client.run("", on_stdout=asyncio.sleep)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="address"):
        Client("nowhere")


def test_a_closed_client_says_so_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    client = Client("http://127.0.0.1:1")
    with pytest.raises(BrokerUnavailable):
        client.run("")
    client.close()
    client.close()
    assert set(threading.enumerate()) <= before  # others' may end meanwhile
    with pytest.raises(RuntimeError, match="closed"):
        client.run("")


def test_a_client_that_nobody_has_any_more_lets_its_thread_go() -> None:
    client = Client("http://127.0.0.1:1")
    with pytest.raises(BrokerUnavailable):
        client.run("")
    thread = client._thread._thread
    assert thread is not None
    gone = weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None
    thread.join(60)
    assert not thread.is_alive()


async def test_a_forked_process_has_a_connection_of_its_own_and_leaves_the_parents_alone() -> None:
    def use(client: Client, broker: FakeSocketBroker) -> None:
        client.run("x")
        with client.stream("waits", session_id="s_parents") as session:
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    with pytest.raises(RuntimeError, match="belongs to the process"):
                        next(session)
                    session.__exit__(None, None, None)
                    gc.collect()
                    code = 0 if client.run("y").value == "y" else 2
                    client.close()
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert not broker.sessions["s_parents"].cancelled.is_set()
            assert client.run("z").value == "z"
        assert len(broker.handshakes) == 2

    async def script(told: Told) -> None:
        await (waits_for_cancel if told.execute["code"] == "waits" else says_hello)(told)

    await blocking(script, use)


@pytest.mark.parametrize("step", ["LoopThread._started", "_Call.__init__", "_Call.start"])
def test_ctrl_c_before_a_call_has_begun_leaves_nothing_of_it(
    client: Client, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"enclave_client.loop_thread.{step}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.run("")
    gc.collect()  # a coroutine that nobody awaits would say so now, and fail the test
    with pytest.raises(BrokerUnavailable):
        client.run("")


INTERRUPTED = """
import sys
from enclave_client import Client

client = Client(sys.argv[1])
try:
    client.run("", on_stdout=lambda chunk: print(chunk, end="", flush=True))
except KeyboardInterrupt:
    print("interrupted")
"""


async def test_ctrl_c_ends_the_session_that_is_waited_for() -> None:
    async with FakeSocketBroker(waits_for_cancel) as broker:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", INTERRUPTED, broker.url, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"running\n"
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
        await broker.wait_received("cancel")

    assert (out, err, process.returncode) == (b"interrupted\n", b"", 0)
