"""The client library against a real broker and a real worker, with a network in between that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from enclave_client import AsyncClient, Client, Limits, RequestRefused, ToolError, events
from enclave_client.fleet import FleetSpec, running_fleet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Network:
    """A TCP relay to the broker; `cut` breaks whatever goes through it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: set[asyncio.StreamWriter] = set()
        self.connections = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        async with asyncio.TaskGroup() as group:
            server = await asyncio.start_server(
                lambda reader, writer: group.create_task(self._relay(reader, writer)), "127.0.0.1", 0
            )
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            server.close()
            self.cut()

    def cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        ends = {writer, far_writer}
        self._open |= ends
        async with asyncio.TaskGroup() as group:
            group.create_task(self._copy(reader, far_writer))
            group.create_task(self._copy(far_reader, writer))
        self._open -= ends

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url() -> AsyncIterator[str]:
    """A fleet's address."""
    spec = FleetSpec(workers=1, pool_size=2, broker_options=("--disconnect-grace-s", "30"))
    async with running_fleet(spec, lambda _name, _line: None) as fleet:
        yield fleet.url


@pytest_asyncio.fixture(loop_scope="module")
async def client(url: str) -> AsyncIterator[AsyncClient]:
    async with asyncio.timeout(60), AsyncClient(url) as client:
        yield client


async def test_code_runs_and_says_what_it_did(client: AsyncClient) -> None:
    result = await client.run("import sys\nprint('out')\nprint('err', file=sys.stderr)\nreturn {'sum': 1 + 1}")
    assert (result.value, result.stdout, result.stderr) == ({"sum": 2}, "out\n", "err\n")
    assert result.stats.duration_ms > 0


async def test_what_the_code_does_wrong_is_a_value(client: AsyncClient) -> None:
    error = (await client.run("x = 1\nreturn x / 0")).error
    assert error is not None
    assert (error.code, error.name, error.line, error.retryable) == ("EXECUTION_ERROR", "ZeroDivisionError", 2, False)


@pytest.mark.parametrize(
    ("code", "limits", "outcome"),
    [
        ("while True: pass", Limits(timeout_s=0.2), "DEADLINE_EXCEEDED"),
        ("x = bytearray(10 ** 9)", Limits(memory_mb=64), "MEMORY_LIMIT_EXCEEDED"),
        ("return 'x' * 2000", Limits(max_result_bytes=1000), "RESULT_TOO_LARGE"),
    ],
)
async def test_limits_hold(client: AsyncClient, code: str, limits: Limits, outcome: str) -> None:
    error = (await client.run(code, limits=limits)).error
    assert error is not None
    assert error.code == outcome


async def test_variables_and_files_are_there(client: AsyncClient) -> None:
    code = "import os\nreturn os.environ['CITY'], open('data/in.bin', 'rb').read().hex()"
    result = await client.run(code, env={"CITY": "Rome"}, files={"data/in.bin": b"\xff\0"})
    assert result.value == ["Rome", "ff00"]


async def test_local_functions_are_tools_of_the_code(client: AsyncClient) -> None:
    async def search(query: str, limit: int = 2) -> list[str]:
        return [f"{query} {n}" for n in range(limit)]

    def price(item: str) -> float:
        raise ToolError(f"no {item}", "SOLD_OUT")

    code = """
import asyncio
found = await asyncio.gather(*(call_tool("search", {"query": q}) for q in "ab"))
errors = []
for name, args in (("price", "pears"), ("price", {"thing": 1}), ("missing", {})):
    try:
        await call_tool(name, args)
    except Exception as error:
        errors.append(error.code)
return found, errors
"""
    result = await client.run(code, tools=[search, price])
    assert result.value == [[["a 0", "a 1"], ["b 0", "b 1"]], ["SOLD_OUT", "VALIDATION_ERROR", "UNKNOWN_TOOL"]]
    assert result.stats.tool_call_count == 5


async def test_a_request_that_the_broker_refuses_names_its_field(client: AsyncClient) -> None:
    with pytest.raises(RequestRefused) as refused:
        await client.run("", profile="nobody-has-it")
    assert (refused.value.field, refused.value.allowed) == ("profile", "python")


async def test_a_session_that_is_left_is_over(client: AsyncClient) -> None:
    async with client.stream("print('spinning')\nwhile True: pass") as session:
        async for event in session:
            if isinstance(event, events.Stdout):
                break
    assert session.result.error is not None
    assert session.result.error.code == "SESSION_CANCELLED"


async def test_over_a_network_that_breaks_nothing_is_lost_repeated_or_run_twice(url: str) -> None:
    answered: list[int] = []
    network = Network(int(url.rpartition(":")[2]))

    async def next_number(number: int) -> int:
        answered.append(number)
        if number % 4 == 1:
            network.cut()
        return number + 1

    code = """
number = 0
while number < 12:
    print(number)
    number = await call_tool("next_number", {"number": number})
return number
"""
    numbers: list[int] = []
    async with asyncio.timeout(60), network.serving() as through, AsyncClient(through) as client:
        result = await client.run(code, tools=[next_number], on_event=lambda event: numbers.append(event.seq))

    assert result.value == 12
    assert result.stdout == "".join(f"{n}\n" for n in range(12))
    assert answered == list(range(12))
    assert numbers == list(range(1, len(numbers) + 1))
    assert network.connections == 4


async def wait() -> None:
    await asyncio.Event().wait()


async def test_another_client_reads_a_session_from_any_event_live_and_afterwards(client: AsyncClient, url: str) -> None:
    async with client.stream("print('x')\nreturn await call_tool('wait', {})", tools=[wait]) as session:
        async with AsyncClient(url) as other, other.attach(session.session_id, from_seq=2) as attached:
            assert (await anext(attached)).seq == 2
            session.cancel()
            assert (await attached.wait()).error == (await session.wait()).error
        async with AsyncClient(url) as other, other.attach(session.session_id) as attached:
            assert (await attached.wait()) == session.result
    with pytest.raises(RequestRefused):
        async with client.attach("s_unknown"):
            pass


async def test_a_map_runs_each_input_in_a_sandbox_of_its_own(client: AsyncClient) -> None:
    code = "open('mine', 'x').write(str(item))\nreturn item * 2 if item != 7 else item / 0"
    results = {item.index: item.result async for item in client.map(code, range(40), concurrency=8)}
    assert [results[n].value for n in range(40) if n != 7] == [n * 2 for n in range(40) if n != 7]
    assert results[7].error is not None
    assert results[7].error.line == 2


@pytest.mark.parametrize(
    ("language", "code"),
    [("javascript", "console.log(JSON.stringify(item)); return item"), ("shell", "printf '%s\\n' \"$item\"")],
)
async def test_a_map_gives_its_item_to_every_language(client: AsyncClient, language: str, code: str) -> None:
    item = {"text": 'it\'s "quoted" $HOME `x` \\ \n', "n": [1, None, True]}
    [done] = [done async for done in client.map(code, [item], language=language)]
    assert done.result.error is None
    assert json.loads(done.result.stdout) == item


async def test_code_in_javascript_has_local_functions_too(client: AsyncClient) -> None:
    code = "try { await callTool('price', {thing: 1}) } catch (e) { return [e.code, await callTool('price', 'pear')] }"
    result = await client.run(code, language="javascript", tools={"price": len})
    assert result.unwrap() == ["VALIDATION_ERROR", 4]


async def test_blocking_calls_do_the_same(url: str) -> None:
    def work() -> list[object]:
        with Client(url) as client:
            assert client.run("return call_tool", tools=[len]).error is not None
            with client.stream("for n in range(3): print(n, flush=True)") as session:
                kinds = {type(event) for event in session}
            assert kinds == {events.SessionInit, events.Stdout, events.Final}
            mapped = sorted(item.result.value for item in client.map("return item + 1", range(5)))
            return [
                session.result.stdout,
                mapped,
                client.run("return await call_tool('len', [[1, 2]])", tools=[len]).value,
            ]

    assert await asyncio.to_thread(work) == ["0\n1\n2\n", [1, 2, 3, 4, 5], 1]
