"""The worker as a library: its life, its blocking calls, its tools and its handlers, all on real sandboxes."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import connect

from enclave_protocol import Limits, LocalProtocolError, RemoteProtocolError
from enclave_worker.api import RuntimeConfig, RuntimeState, RuntimeWorker, create_runtime_worker
from tests.support import PATIENCE_S
from tests.worker.leaks import nothing_leaks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CONFIG = RuntimeConfig(listen=False, pool_size=2)
PROGRAM = """
from enclave_worker.api import RuntimeConfig, create_runtime_worker
worker = create_runtime_worker(RuntimeConfig(pool_size=1))
worker.start_sync()
print(worker.execute_sync(None, 'return 6 * 7').result)
"""
ENDLESS = "print('up', flush=True)\nwhile True: pass"


@pytest.fixture(scope="module")
def sync_worker() -> Iterator[RuntimeWorker]:
    with create_runtime_worker(CONFIG) as worker:
        yield worker


@pytest.fixture
async def worker() -> AsyncIterator[RuntimeWorker]:
    async with create_runtime_worker(CONFIG) as worker:
        yield worker


class TestLife:
    async def test_it_says_what_it_is_doing_from_start_to_stop_and_starts_again(self) -> None:
        worker = create_runtime_worker(CONFIG)
        assert worker.get_state() is RuntimeState.STOPPED
        for _ in range(2):
            starting = asyncio.create_task(worker.start())
            await asyncio.sleep(0)
            assert worker.get_state() is RuntimeState.STARTING
            await starting
            assert worker.get_state() is RuntimeState.RUNNING
            assert (await worker.execute(None, "return 7")).result == 7
            stopping = asyncio.create_task(worker.stop())
            await asyncio.sleep(0)
            assert worker.get_state() is RuntimeState.STOPPING
            await stopping
            assert worker.get_state() is RuntimeState.STOPPED

    async def test_starting_it_twice_is_refused_and_changes_nothing(self, worker: RuntimeWorker) -> None:
        with pytest.raises(LocalProtocolError, match="starting while running"):
            await worker.start()
        with pytest.raises(LocalProtocolError, match="worker is running"):
            worker.start_sync()
        assert (await worker.execute(None, "return 1")).ok

    async def test_without_listen_it_has_no_port(self, worker: RuntimeWorker) -> None:
        assert worker.port == 0

    async def test_it_counts_what_it_did(self, worker: RuntimeWorker) -> None:
        await worker.execute(None, "return 1")
        await worker.execute(None, "1 / 0")
        running = asyncio.create_task(worker.execute("s_stays", ENDLESS))
        await asyncio.sleep(0)
        assert worker.get_stats().active_sessions == 1
        running.cancel()
        await asyncio.wait([running])
        stats = worker.get_stats()
        assert stats.active_sessions == 0
        assert stats.total_executions == 3
        assert (stats.successful_executions, stats.failed_executions, stats.cancelled_executions) == (1, 1, 1)
        assert stats.average_execution_ms > 0
        assert stats.memory_bytes > 1_000_000
        assert stats.uptime_s > 0

    async def test_before_the_first_start_there_are_no_stats_and_no_sessions(self) -> None:
        worker = create_runtime_worker(CONFIG)
        with pytest.raises(LocalProtocolError, match="never started"):
            worker.get_stats()
        with pytest.raises(LocalProtocolError, match="worker is stopped"):
            await worker.execute(None, "return 1")

    async def test_a_stop_that_is_cancelled_or_called_twice_still_stops(self, worker: RuntimeWorker) -> None:
        running = asyncio.create_task(
            worker.execute(None, "await call_tool('never')", tools={"never": asyncio.Event().wait})
        )
        await asyncio.sleep(0)
        impatient = asyncio.create_task(worker.stop(grace_s=0.2))
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.gather(worker.stop(), worker.stop())
        assert worker.get_state() is RuntimeState.STOPPED
        assert not (await running).ok

    async def test_stopping_ends_live_sessions_with_a_final(self, worker: RuntimeWorker) -> None:
        running = asyncio.create_task(worker.execute(None, ENDLESS))
        await asyncio.sleep(0)
        await worker.stop()
        result = await running
        assert result.error is not None
        assert result.error.code == "WORKER_LOST"

    async def test_stopping_waits_for_a_websocket_client_that_still_reads(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("enclave_worker.connection._FLUSH_S", PATIENCE_S)
        worker = create_runtime_worker(RuntimeConfig(port=0, pool_size=2))
        await worker.start()
        loud = "import os\nwhile True: os.write(1, b'x' * 50_000)"
        async with connect(worker.url, max_size=None) as client:
            limits = {"maxStdoutBytes": 1_000_000_000}
            await client.send(json.dumps({"type": "execute", "sessionId": "s_1", "code": loud, "limits": limits}))
            for _ in range(20):  # meanwhile the buffers on the way fill up
                await worker.execute(None, "return 1")
            stopping = asyncio.create_task(worker.stop())
            last = [json.loads(line) async for line in client][-1]
            await stopping
        assert last["type"] == "final"

    def test_an_async_life_with_a_port_and_broken_off_work_leaks_nothing(self) -> None:
        async def live() -> None:
            async with create_runtime_worker(RuntimeConfig(port=0)) as worker:
                running = asyncio.create_task(worker.execute(None, ENDLESS))
                await asyncio.gather(*(worker.execute(None, "return 1") for _ in range(8)))
                async with connect(worker.url) as socket_:
                    assert "hello" in str(await socket_.recv())
            await running

        asyncio.run(live())  # whatever is made once per program, such as caches
        with nothing_leaks():
            asyncio.run(live())


class TestExecuteSync:
    def test_a_program_whose_stderr_is_no_file_can_have_a_worker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        with RuntimeWorker(RuntimeConfig(pool_size=1)) as worker:
            assert worker.execute_sync(None, "return 1").result == 1

    def test_a_result_comes_with_its_output_stats_and_events(self, sync_worker: RuntimeWorker) -> None:
        code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\nreturn {'a': [1, None]}"
        result = sync_worker.execute_sync("s_whole", code)
        assert result.session_id == "s_whole"
        assert result.ok
        assert result.result == {"a": [1, None]}
        assert result.error is None
        assert (result.stdout, result.stderr) == ("out\n", "err\n")
        assert result.stats.stdout_bytes == 4
        assert [event.seq for event in result.events] == list(range(1, len(result.events) + 1))

    @pytest.mark.parametrize(
        ("code", "expected", "message"),
        [
            ("raise ValueError('why')", "EXECUTION_ERROR", "ValueError: why"),
            ("return (", "SYNTAX_ERROR", ""),
            ("return object()", "RESULT_NOT_SERIALIZABLE", ""),
            ("import os; os._exit(3)", "GUEST_CRASHED", "status 3"),
        ],
    )
    def test_what_the_code_does_wrong_is_a_value(
        self, sync_worker: RuntimeWorker, code: str, expected: str, message: str
    ) -> None:
        result = sync_worker.execute_sync(None, code)
        assert not result.ok
        assert result.error is not None
        assert result.error.code == expected
        assert message in result.error.message

    @pytest.mark.parametrize("limits", [{"timeout": 50}, {"deadlineMs": 50}, Limits(deadline_ms=50)])
    def test_limits_hold_in_every_spelling(self, sync_worker: RuntimeWorker, limits: Any) -> None:
        result = sync_worker.execute_sync(None, ENDLESS, limits)
        assert result.error is not None
        assert result.error.code == "DEADLINE_EXCEEDED"

    def test_limits_given_whole_win_over_the_configuration_even_at_their_defaults(self) -> None:
        config = RuntimeConfig(listen=False, pool_size=1, default_limits=Limits(max_tool_calls=1))
        code = "return [await call_tool('one', None) for _ in range(2)]"
        with create_runtime_worker(config) as worker:
            narrow = worker.execute_sync(None, code, tools={"one": lambda: 1})
            wide = worker.execute_sync(None, code, Limits(), tools={"one": lambda: 1})
        assert narrow.error is not None
        assert narrow.error.code == "MAX_TOOL_CALLS_EXCEEDED"
        assert wide.result == [1, 1]

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            (("no prefix", "return 1"), "sessionId"),
            ((None, "return 1", {"maxEverything": 1}), "limits.maxEverything"),
            ((None, "#" * 2_000_000), "code"),
            ((None, 5), "code"),
            ((7, "return 1"), "sessionId"),
            ((None, "return 1", 30), "limits"),
        ],
    )
    def test_a_bad_request_names_its_field(self, sync_worker: RuntimeWorker, arguments: Any, field: str) -> None:
        with pytest.raises(RemoteProtocolError) as raised:
            sync_worker.execute_sync(*arguments)
        assert raised.value.field == field

    def test_threads_share_a_worker_and_excess_is_refused_not_queued(self) -> None:
        gate = threading.Barrier(3)  # two tools and this test
        taken = threading.Semaphore(0)
        config = RuntimeConfig(listen=False, pool_size=2, max_sessions=2)
        code = "return await call_tool('meet', None)"
        with create_runtime_worker(config) as worker, ThreadPoolExecutor(2) as threads:
            worker.on_execute(lambda _: taken.release())
            held = [threads.submit(worker.execute_sync, None, code, None, {"meet": gate.wait}) for _ in range(2)]
            for _ in held:
                taken.acquire()
            refused = worker.execute_sync(None, "return 1")
            gate.wait()
            assert all(future.result().ok for future in held)
        assert refused.error is not None
        assert refused.error.code == "NO_CAPACITY"
        assert refused.error.retryable is True

    async def test_in_the_workers_own_loop_it_is_refused_instead_of_waiting_for_ever(
        self, worker: RuntimeWorker
    ) -> None:
        with pytest.raises(RuntimeError, match="own event loop"):
            worker.execute_sync(None, "return 1")

    def test_a_handler_can_not_block_the_loop_it_runs_in(self, sync_worker: RuntimeWorker) -> None:
        raised: list[BaseException] = []

        def call_back(_: str) -> None:
            for blocking in (lambda: sync_worker.execute_sync(None, "return 1"), sync_worker.stop_sync):
                try:
                    blocking()
                except RuntimeError as error:
                    raised.append(error)

        unsubscribe = sync_worker.on_execute(call_back)
        assert sync_worker.execute_sync(None, "return 1").ok
        unsubscribe()
        assert len(raised) == 2
        assert sync_worker.execute_sync(None, "return 2").result == 2

    async def test_another_thread_may_use_a_worker_that_an_event_loop_started(self, worker: RuntimeWorker) -> None:
        result = await asyncio.to_thread(worker.execute_sync, None, "return 5")
        assert result.result == 5

    def test_it_outlives_the_thread_that_started_it(self) -> None:
        """The kernel ends a zygote with the thread that started it; that must not be the caller's."""
        worker = create_runtime_worker(CONFIG)
        starter = threading.Thread(target=worker.start_sync)
        starter.start()
        starter.join()
        assert worker.execute_sync(None, "return 3").result == 3
        worker.stop_sync()
        worker.stop_sync()
        with pytest.raises(LocalProtocolError, match="worker is stopped"):
            worker.execute_sync(None, "return 3")

    def test_stopping_gives_a_blocked_call_its_final(self) -> None:
        worker = create_runtime_worker(CONFIG)
        worker.start_sync()
        accepted = threading.Event()
        worker.on_execute(lambda _: accepted.set())
        with ThreadPoolExecutor(1) as threads:
            blocked = threads.submit(worker.execute_sync, None, ENDLESS)
            accepted.wait()
            worker.stop_sync()
            error = blocked.result().error
        assert error is not None
        assert error.code == "WORKER_LOST"

    def test_an_interrupted_call_ends_its_session(self) -> None:
        main = threading.get_ident()
        cancelled = threading.Event()
        with create_runtime_worker(CONFIG) as worker:
            worker.on_execute(lambda _: signal.pthread_kill(main, signal.SIGINT))
            worker.on_cancel(lambda *_: cancelled.set())
            with pytest.raises(KeyboardInterrupt):
                pytest.fail(f"it ended by itself: {worker.execute_sync(None, ENDLESS)}")
            cancelled.wait()
            assert worker.get_stats().active_sessions == 0

    def test_a_start_that_fails_says_why_and_leaves_nothing(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            worker = create_runtime_worker(RuntimeConfig(port=taken.getsockname()[1]))
            with nothing_leaks(), pytest.raises(OSError, match=r"[Aa]ddress already in use"):
                worker.start_sync(listen=True)
            assert worker.get_state() is RuntimeState.STOPPED

    def test_a_blocking_life_leaks_nothing(self) -> None:
        def live() -> None:
            with create_runtime_worker(CONFIG) as worker:
                for number in range(20):
                    assert worker.execute_sync(None, f"print({number}); return {number}").result == number

        live()
        with nothing_leaks():
            live()

    @pytest.mark.parametrize("goodbye", ["", "import atexit; atexit.register(worker.stop_sync)"])
    def test_a_program_that_does_not_stop_before_its_end_ends_and_so_do_its_sandboxes(self, goodbye: str) -> None:
        # The zygote and its sandboxes inherit stderr: it reaches its end only when all of them are gone.
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM + goodbye],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")


class Unprintable(Exception):  # noqa: N818 - what it is, not what went wrong
    def __str__(self) -> str:
        raise ValueError("no text")


class TestTools:
    def call(self, worker: RuntimeWorker, args: str, **tools: Any) -> Any:
        result = worker.execute_sync(None, f"return await call_tool('tool', {args})", tools=tools)
        return result.result if result.ok else result.error

    def test_plain_and_async_functions_answer(self, sync_worker: RuntimeWorker) -> None:
        async def later(a: int, b: int = 10) -> int:
            await asyncio.sleep(0)
            return a + b

        assert self.call(sync_worker, "{'a': 1}", tool=later) == 11
        assert self.call(sync_worker, "{'a': 1, 'b': 2}", tool=lambda a, b: a * b) == 2

    @pytest.mark.parametrize(("args", "expected"), [("[1, 2]", [1, 2]), ("'text'", "text"), ("0", 0)])
    def test_an_argument_that_is_no_object_is_the_one_positional(
        self, sync_worker: RuntimeWorker, args: str, expected: Any
    ) -> None:
        assert self.call(sync_worker, args, tool=lambda value: value) == expected

    def test_builtins_and_objects_may_be_tools(self, sync_worker: RuntimeWorker) -> None:
        class Double:
            async def __call__(self, n: int) -> int:
                return 2 * n

        assert self.call(sync_worker, "[3, 1, 2]", tool=max) == 3
        assert self.call(sync_worker, "{'n': 4}", tool=Double()) == 8
        assert self.call(sync_worker, "{'n': 4}", tool=max).code == "EXECUTION_ERROR"

    def test_no_argument_suits_a_function_without_parameters(self, sync_worker: RuntimeWorker) -> None:
        assert self.call(sync_worker, "None", tool=lambda: "bare") == "bare"

    def test_an_unknown_tool_is_an_error_that_the_code_can_catch(self, sync_worker: RuntimeWorker) -> None:
        code = (
            "try:\n    await call_tool('guess', {})\nexcept Exception as error:\n    return [error.code, str(error)]\n"
        )
        told = sync_worker.execute_sync(None, code, tools={"search": len}).result
        assert told == ["UNKNOWN_TOOL", "no tool 'guess' (tools: search)"]

    def test_what_a_tool_raises_reaches_the_code(self, sync_worker: RuntimeWorker) -> None:
        class Quota(Exception):  # noqa: N818 - a tool may call it anything
            code = "QUOTA"

        def fail() -> None:
            raise Quota("no more today")

        error = self.call(sync_worker, "None", tool=fail)
        assert error.code == "QUOTA"
        assert "Quota: no more today" in error.message

    @pytest.mark.parametrize(
        "raised",
        [StopIteration("x"), SystemExit(3), ValueError("x"), asyncio.CancelledError(), TimeoutError(), Unprintable()],
    )
    def test_no_exception_of_a_tool_harms_the_worker(self, sync_worker: RuntimeWorker, raised: BaseException) -> None:
        def fail() -> None:
            raise raised

        async def fail_later() -> None:
            raise raised

        for tool in (fail, fail_later):
            assert self.call(sync_worker, "None", tool=tool).code == "EXECUTION_ERROR"
        assert self.call(sync_worker, "None", tool=lambda: "well") == "well"

    def test_arguments_that_do_not_fit_say_so(self, sync_worker: RuntimeWorker) -> None:
        assert self.call(sync_worker, "{'x': 1}", tool=lambda y: y).code == "VALIDATION_ERROR"

    def test_a_value_that_is_not_json_says_so(self, sync_worker: RuntimeWorker) -> None:
        assert self.call(sync_worker, "None", tool=object).code == "RESULT_NOT_SERIALIZABLE"

    def test_a_tool_that_never_returns_holds_up_neither_the_code_nor_the_worker(self) -> None:
        release = threading.Event()
        with create_runtime_worker(CONFIG) as worker:
            code = "return await call_tool('stuck', None)"
            result = worker.execute_sync(None, code, {"toolTimeoutMs": 30}, {"stuck": release.wait})
        release.set()
        assert result.error is not None
        assert result.error.code == "TOOL_TIMEOUT"

    def test_a_call_the_code_never_waited_for_ends_with_it(self, sync_worker: RuntimeWorker) -> None:
        async def for_ever() -> None:
            await asyncio.get_running_loop().create_future()

        code = "import asyncio\nasyncio.ensure_future(call_tool('tool', None))\nawait asyncio.sleep(0)\nreturn 'left'"
        result = sync_worker.execute_sync(None, code, tools={"tool": for_ever})
        assert result.result == "left"

    def test_a_tool_may_run_code_itself(self, sync_worker: RuntimeWorker) -> None:
        def nested(code: str) -> Any:
            return sync_worker.execute_sync(None, code).result

        assert self.call(sync_worker, "{'code': 'return 1 + 1'}", tool=nested) == 2


class TestHandlers:
    async def test_each_kind_of_ending_tells_its_own_handlers(self, worker: RuntimeWorker) -> None:
        told: list[tuple[str, ...]] = []
        worker.on_execute(lambda session_id: told.append(("execute", session_id)))
        worker.on_complete(lambda session_id: told.append(("complete", session_id)))
        worker.on_error(lambda session_id, code: told.append(("error", session_id, code)))
        worker.on_cancel(lambda session_id, code: told.append(("cancel", session_id, code)))
        await worker.execute("s_1", "return 1")
        await worker.execute("s_2", "1 / 0")
        running = asyncio.create_task(worker.execute("s_3", ENDLESS))
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        assert told == [
            ("execute", "s_1"),
            ("complete", "s_1"),
            ("execute", "s_2"),
            ("error", "s_2", "EXECUTION_ERROR"),
            ("execute", "s_3"),
            ("cancel", "s_3", "SESSION_CANCELLED"),
        ]

    async def test_a_handler_that_raises_is_logged_and_breaks_nothing(
        self, worker: RuntimeWorker, caplog: pytest.LogCaptureFixture
    ) -> None:
        told: list[str] = []

        @worker.on_complete
        def _(session_id: str) -> None:
            raise KeyError(session_id)

        worker.on_complete(told.append)
        with caplog.at_level(logging.ERROR, "enclave.worker"):
            assert (await worker.execute("s_1", "return 1")).ok
        assert told == ["s_1"]
        assert "a handler failed" in caplog.text

    async def test_unsubscribing_ends_one_subscription_and_may_be_repeated(self, worker: RuntimeWorker) -> None:
        told: list[str] = []
        first = worker.on_complete(told.append)
        worker.on_complete(told.append)
        first()
        first()
        await worker.execute("s_1", "return 1")
        assert told == ["s_1"]

    def test_an_async_handler_is_refused_at_once(self) -> None:
        async def handler(_: str) -> None: ...

        with pytest.raises(TypeError, match="async"):
            create_runtime_worker(CONFIG).on_execute(handler)

    async def test_connections_come_and_go_and_only_a_broken_one_is_an_error(self) -> None:
        told: list[tuple[str, str]] = []
        over: asyncio.Queue[str] = asyncio.Queue()
        async with create_runtime_worker(RuntimeConfig(port=0, pool_size=1)) as worker:
            worker.on_connect(lambda peer: told.append(("connect", peer)))
            worker.on_connection_error(lambda peer, error: told.append((type(error).__name__, peer)))
            worker.on_disconnect(over.put_nowait)
            async with connect(worker.url) as polite:
                await polite.recv()
                name = "{}:{}".format(*polite.local_address)
            assert await over.get() == name
            assert told == [("connect", name)]
            told.clear()
            async with connect(worker.url) as rude:
                await rude.recv()
                name = "{}:{}".format(*rude.local_address)
                rude.transport.abort()
                assert await over.get() == name
            assert told == [("connect", name), ("ConnectionResetError", name)]
