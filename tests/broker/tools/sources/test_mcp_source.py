"""Tools of real MCP servers: old and new, over pipes and over HTTP, well and dying."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from enclave_broker.tools import CatalogChange, Secrets, ToolContext, ToolFailure, ToolRegistry
from enclave_broker.tools.sources.mcp_source import McpSettings, McpSource
from enclave_broker.tools.sources.policies import Policies
from enclave_broker.tools.sources.templates import Template
from tests.broker.tools.sources.http_server import Answer, Asked, http_server, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = Path(__file__).parent
SECRETS = Secrets({"TOKEN": "secret-token"})


class Watch:
    """A source that runs, and every change so far."""

    def __init__(self, source: McpSource, registry: ToolRegistry) -> None:
        self.source = source
        self.registry = registry
        self._changes: asyncio.Queue[CatalogChange] = asyncio.Queue()
        registry.subscribe(self._changes.put_nowait)

    async def next_change(self) -> CatalogChange:
        async with asyncio.timeout(60):
            return await self._changes.get()

    async def ready(self) -> None:
        """Wait until calls can be made."""
        async with asyncio.timeout(60):
            while not self.source.connected:  # noqa: ASYNC110 - a connection has no event of its own
                await asyncio.sleep(0.002)

    async def call(self, name: str, *, timeout_s: float = 60, **args: Any) -> Any:
        tool = self.registry.get(f"m_{name}")
        assert tool is not None
        deadline = time.monotonic() + timeout_s
        return await tool.invoke(tool.accept(args), ToolContext("s_1", "c_1", deadline=deadline))

    async def failure(self, name: str, **args: Any) -> ToolFailure:
        with pytest.raises(ToolFailure) as failed:
            await self.call(name, **args)
        return failed.value


@contextlib.asynccontextmanager
async def watching(*, env: dict[str, str] | None = None, **settings: Any) -> AsyncIterator[Watch]:
    """Run a source of one server, `m`."""
    templates = {name: Template(text) for name, text in (env or {}).items()}
    given: dict[str, Any] = {
        "name": "m",
        "policies": Policies(),
        "env": templates,
        "headers": {},
        "retry_first_s": 0.01,
    }
    source = McpSource(McpSettings(**(given | settings)), SECRETS)
    watch = Watch(source, ToolRegistry())
    running = asyncio.create_task(source.run(watch.registry))
    try:
        yield watch
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def legacy(*args: str) -> dict[str, Any]:
    return {"command": sys.executable, "args": ["-I", "-S", str(HERE / "mcp_legacy.py"), *args]}


def modern() -> dict[str, Any]:
    return {"command": sys.executable, "args": [str(HERE / "mcp_modern.py")]}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def wait_dead(*pids: int) -> None:
    async with asyncio.timeout(60):
        while any(map(is_alive, pids)):  # noqa: ASYNC110 - other processes' ends have no event here
            await asyncio.sleep(0.005)


async def test_a_modern_servers_tools_can_be_called_and_change_when_it_says_so() -> None:
    async with watching(**modern(), env={"TOKEN": "Bearer ${TOKEN}"}) as watch:
        assert "m_add" in (await watch.next_change()).added
        tool = watch.registry.get("m_add")
        assert tool is not None
        assert (tool.description, tool.service) == ("Add two numbers.", "m")
        assert tool.input_schema["required"] == ["a"]
        await watch.ready()
        assert await watch.call("add", a=1, b=2) == {"result": 3}
        assert await watch.call("say", text="hello") == "hello"
        failed = await watch.failure("fail")
        assert failed.code == "MCP_TOOL_ERROR"
        assert (await watch.failure("add", a="no number")).code == "VALIDATION_ERROR"
        environment = await watch.call("environment")
        assert environment["TOKEN"] == "Bearer secret-token"
        assert "PATH" in environment
        assert set(environment) < {"TOKEN", "PATH", "HOME", "LOGNAME", "SHELL", "TERM", "USER", "LC_CTYPE"}
        await watch.call("learn")
        assert (await watch.next_change()).added == ("m_learned",)
        assert await watch.call("learned") == {"result": "learned"}


async def test_a_server_over_http_is_served_goes_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclave_broker.tools.sources.mcp_transports.MAX_MESSAGE_BYTES", 1024 * 1024)
    from tests.broker.tools.sources import mcp_modern  # noqa: PLC0415 - an application can be started only once

    tokens: list[bytes] = []

    def asking(app: Any) -> Any:
        async def ask(scope: Any, receive: Any, send: Any) -> None:
            tokens.extend(value for name, value in scope.get("headers", ()) if name == b"authorization")
            await app(scope, receive, send)

        return ask

    app, again = (asking(mcp_modern.server.streamable_http_app()) for _ in range(2))
    headers = {"Authorization": Template("Bearer ${TOKEN}")}
    async with contextlib.AsyncExitStack() as server, contextlib.AsyncExitStack() as stack:
        url = await server.enter_async_context(serving(app))
        watch = await stack.enter_async_context(watching(url=f"{url}/mcp", headers=headers, poll_interval_s=0.05))
        await watch.next_change()
        await watch.ready()
        assert await watch.call("add", a=1) == {"result": 2}
        assert set(tokens) == {b"Bearer secret-token"}
        failed = await watch.failure("talk", megabytes=2)
        assert failed.code == "MCP_ERROR", "a result without bounds fails one call"
        assert await watch.call("add", a=2) == {"result": 3}, "and leaves the connection alone"
        await server.aclose()
        async with asyncio.timeout(60):
            while not watch.source.health.failures:  # noqa: ASYNC110 - an attempt has no event of its own
                await asyncio.sleep(0.005)
        failed = await watch.failure("add", a=3)
        assert (failed.code, failed.retryable) == ("TOOL_UNAVAILABLE", True)
        await server.enter_async_context(serving(again, port=int(url.rpartition(":")[2])))
        await watch.ready()
        assert await watch.call("add", a=3) == {"result": 4}


@pytest.mark.parametrize("packed", [False, True])
async def test_an_answer_that_is_packed_unasked_is_not_unpacked(packed: Any) -> None:
    def answer(asked: Asked) -> Answer:
        assert asked.header("accept-encoding") == "identity"
        message = json.loads(asked.body or b"{}")
        if "id" not in message:
            return Answer(b"", 202 if asked.method == "POST" else 405)
        info = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}}
        info["serverInfo"] = {"name": "x", "version": "1"}
        results = {"initialize": info, "tools/list": {"tools": []}}
        said: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if message["method"] in results:
            said["result"] = results[message["method"]]
        else:
            said["error"] = {"code": -32601, "message": "no such method"}
        data = json.dumps(said).encode()
        return Answer(gzip.compress(data), headers={"content-encoding": "gzip"}) if packed else Answer(data)

    async with http_server() as server:
        server.routes["/mcp"] = answer
        async with watching(url=f"{server.url}/mcp") as watch:
            async with asyncio.timeout(60):
                await watch.source.looked.wait()
            assert watch.source.connected is not packed


async def test_an_older_server_is_spoken_to_and_followed_too() -> None:
    async with watching(**legacy()) as watch:
        assert (await watch.next_change()).added == ("m_echo",), "one whose schema is none is left out"
        await watch.ready()
        assert json.loads(await watch.call("echo", a=1)) == {"a": 1}
        assert await watch.call("echo", nothing=1) is None
        pieces = await watch.call("echo", image=1)
        assert [piece["type"] for piece in pieces] == ["text", "image"]
        assert json.loads(await watch.call("echo", noise=1)) == {"noise": 1}, "a line that is no JSON is skipped"
        await watch.call("echo", learn="more")
        assert (await watch.next_change()).added == ("m_more",)


async def test_only_the_tools_that_are_wanted_are_taken() -> None:
    async with watching(**legacy(), include=["*e*"], exclude=["more"]) as watch:
        assert (await watch.next_change()).added == ("m_echo",)
        await watch.ready()
        await watch.call("echo", learn="more")
        await watch.call("echo", learn="less")
        assert (await watch.next_change()).added == ("m_less",)


async def test_a_call_that_is_given_up_leaves_the_connection_to_the_others() -> None:
    async with watching(**legacy()) as watch:
        await watch.ready()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await watch.call("echo", silence=1)
        assert (await watch.failure("echo", silence=1, timeout_s=0.05)).code == "MCP_ERROR"
        assert json.loads(await watch.call("echo", a=1)) == {"a": 1}


async def test_a_server_that_dies_fails_its_calls_at_once_and_is_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with watching(**legacy(), env={"TOKEN": "${TOKEN}"}) as watch:
        await watch.ready()
        waiting = asyncio.create_task(watch.failure("echo", silence=1))
        await asyncio.sleep(0)
        assert (await watch.failure("echo", die=1)).code == "TOOL_UNAVAILABLE"
        failed = await waiting
        assert (failed.code, failed.retryable) == ("TOOL_UNAVAILABLE", True)
        assert watch.registry.names() == ["m_echo"], "its tools stay in the catalogue"
        await watch.ready()
        assert json.loads(await watch.call("echo", a=1)) == {"a": 1}
        assert watch.source.health.well
    assert "the last words, with [secret:TOKEN]" in caplog.text
    assert "secret-token" not in caplog.text


async def test_a_server_that_hangs_is_as_good_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp.client.stdio.PROCESS_TERMINATION_TIMEOUT", 0.05)
    async with watching(**legacy(), poll_interval_s=0.05) as watch:
        await watch.ready()
        settings = watch.source._settings
        watch.source._settings = replace(settings, connect_timeout_s=0.2)
        assert (await watch.failure("echo", hang=1)).code == "TOOL_UNAVAILABLE"
        watch.source._settings = settings  # the one that is started again is given its time
        await watch.ready()
        assert json.loads(await watch.call("echo", a=1)) == {"a": 1}


async def test_a_line_without_end_ends_the_server_and_not_the_broker(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclave_broker.tools.sources.mcp_transports.MAX_MESSAGE_BYTES", 1024 * 1024)
    async with watching(**legacy()) as watch:
        await watch.ready()
        assert (await watch.failure("echo", flood=1)).code == "TOOL_UNAVAILABLE"
        await watch.ready()
    assert "a line of more than" in caplog.text


async def test_nothing_of_a_server_is_left_when_its_source_stops() -> None:
    async with watching(**legacy()) as watch:
        await watch.ready()
        pids = json.loads(await watch.call("echo", child=1))
        assert all(map(is_alive, pids.values()))
    await wait_dead(*pids.values())


async def test_nothing_of_a_server_is_left_when_the_broker_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "broker.py"
    program.write_text(
        f"import asyncio, sys\n"
        f"sys.path.insert(0, {str(Path.cwd())!r})\n"
        f"from tests.broker.tools.sources.test_mcp_source import legacy, watching\n"
        f"async def main():\n"
        f"    async with watching(**legacy()) as watch:\n"
        f"        await watch.ready()\n"
        f"        print(await watch.call('echo', child=1), flush=True)\n"
        f"        await asyncio.Event().wait()\n"
        f"asyncio.run(main())\n"
    )
    broker = await asyncio.create_subprocess_exec(sys.executable, program, stdout=asyncio.subprocess.PIPE)
    assert broker.stdout is not None
    try:
        async with asyncio.timeout(60):
            pids = json.loads(await broker.stdout.readline())
        assert all(map(is_alive, pids.values()))
    finally:
        broker.kill()
        await broker.wait()
        broker._transport.close()  # type: ignore[attr-defined]
    await wait_dead(*pids.values())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"command": "/no/such/program"}, "can't start /no/such/program"),
        ({"command": sys.executable, "args": ["-c", "print('hello')"]}, ""),
        ({**legacy("--deaf"), "connect_timeout_s": 0.2}, "no answer within 0.2 s"),
        ({**legacy(), "env": {"X": "${GONE}"}}, "needs the secret 'GONE'"),
        ({"url": "http://127.0.0.1:9/mcp"}, "ConnectError"),
    ],
)
async def test_a_server_that_does_not_come_up_is_told_and_tried_again(
    settings: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp.client.stdio.PROCESS_TERMINATION_TIMEOUT", 0.05)  # for one that ignores its end
    async with watching(**settings) as watch:
        async with asyncio.timeout(60):
            while watch.source.health.failures < 1:  # noqa: ASYNC110 - an attempt has no event of its own
                await asyncio.sleep(0.005)
        assert says in watch.source.health.error
        assert watch.source.looked.is_set()
