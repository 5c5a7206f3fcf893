"""Tools of a real server's OpenAPI document: called, and followed as the document changes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from enclave_broker.tools import CatalogChange, ToolContext, ToolFailure, ToolRegistry
from enclave_broker.tools.sources.credentials import NO_CREDENTIALS, Credentials
from enclave_broker.tools.sources.openapi import OpenApiSettings, OpenApiSource
from enclave_broker.tools.sources.policies import Policies
from enclave_broker.tools.sources.templates import Template
from tests.broker.tools.sources.http_server import Answer, Asked, HttpServer, http_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

CONTEXT = ToolContext("s_1", "c_1", secrets={"KEY": "secret-key"})
SPEC = "/openapi.json"


def document(*operation_ids: str) -> dict[str, Any]:
    """Return a document with these operations, `GET /<id>` each."""
    query = {"name": "q", "in": "query", "schema": {"type": "string"}}
    paths = {f"/{name}": {"get": {"operationId": name, "parameters": [query]}} for name in operation_ids}
    return {"openapi": "3.1.0", "paths": paths}


class Watch:
    """A source that runs, its server, and every change so far."""

    def __init__(self, source: OpenApiSource, server: HttpServer, registry: ToolRegistry) -> None:
        self.source = source
        self.server = server
        self.registry = registry
        self.changes: asyncio.Queue[CatalogChange] = asyncio.Queue()
        registry.subscribe(self.changes.put_nowait)

    async def next_change(self) -> CatalogChange:
        async with asyncio.timeout(60):
            return await self.changes.get()

    async def call(self, name: str, args: dict[str, Any]) -> Any:
        tool = self.registry.get(name)
        assert tool is not None
        return await tool.invoke(tool.accept(args), CONTEXT)


@contextlib.asynccontextmanager
async def watching(spec: Callable[[Asked], Answer], **settings: Any) -> AsyncIterator[Watch]:
    """Run a source whose document a server gives as told."""
    async with http_server() as server:
        server.routes[SPEC] = spec
        given: dict[str, Any] = {
            "name": "pets",
            "document": server.url + SPEC,
            "credentials": NO_CREDENTIALS,
            "policies": Policies(),
        }
        given |= {"poll_interval_s": 0.01, "retry_first_s": 0.001, "retry_most_s": 0.01} | settings
        source = OpenApiSource(OpenApiSettings(**given))
        watch = Watch(source, server, ToolRegistry())
        running = asyncio.create_task(source.run(watch.registry))
        try:
            yield watch
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            await source.close()


async def test_the_operations_of_a_document_can_be_called() -> None:
    async with watching(lambda _: Answer(document("find"))) as watch:
        assert (await watch.next_change()).added == ("pets_find",)
        watch.server.routes["/find"] = lambda asked: Answer({"asked": asked.query})
        assert await watch.call("pets_find", {"q": "Rex & co"}) == {"asked": "q=Rex%20%26%20co"}
        with pytest.raises(ToolFailure) as failed:
            await watch.call("pets_find", {"q": 5})
        assert failed.value.code == "VALIDATION_ERROR"
        watch.server.routes["/find"] = lambda _: Answer({"no": "luck"}, 503, {"retry-after": "7"})
        with pytest.raises(ToolFailure) as failed:
            await watch.call("pets_find", {})
        assert (failed.value.code, failed.value.retryable, failed.value.retry_after_ms) == ("HTTP_503", True, 7000)


async def test_the_secret_is_in_the_request_and_nowhere_else() -> None:
    own = Credentials(headers={"X-Key": Template("${KEY}")}, query={}, cookies={})
    async with watching(lambda _: Answer(document("find")), credentials=own) as watch:
        await watch.next_change()
        tool = watch.registry.get("pets_find")
        assert tool is not None
        assert tool.policy.secrets == ("KEY",)
        assert "KEY" not in json.dumps([tool.name, tool.description, tool.input_schema])
        watch.server.routes["/find"] = lambda asked: Answer({"key": asked.header("x-key")})
        assert await watch.call("pets_find", {}) == {"key": "secret-key"}
        assert watch.server.asked[0].header("x-key") is None, "the document is fetched without it"


async def test_a_changed_document_changes_the_tools_and_the_version() -> None:
    now = document("a", "b")
    async with watching(lambda _: Answer(now)) as watch:
        first = await watch.next_change()
        now = document("b", "c")
        second = await watch.next_change()
    assert (first.added, second.added, second.removed) == (("pets_a", "pets_b"), ("pets_c",), ("pets_a",))
    assert first.version != second.version


async def test_a_server_that_says_that_nothing_changed_is_believed() -> None:
    def spec(asked: Asked) -> Answer:
        if asked.header("if-none-match") == '"v1"' and asked.header("if-modified-since") == "then":
            return Answer(b"", 304)
        return Answer(document("a"), headers={"etag": '"v1"', "last-modified": "then"})

    async with watching(spec) as watch:
        await watch.next_change()
        asked = await watch.server.wait_asked(4, SPEC)
        assert watch.changes.empty()
        assert watch.source.health.well
    assert [each.header("if-none-match") for each in asked[:3]] == [None, '"v1"', '"v1"']


async def test_the_same_text_again_changes_nothing_though_the_server_does_not_say_so() -> None:
    async with watching(lambda _: Answer(document("a"))) as watch:
        await watch.next_change()
        before = watch.registry.get("pets_a")
        await watch.server.wait_asked(4, SPEC)
        assert watch.registry.get("pets_a") is before


async def test_after_three_failed_looks_a_source_is_unwell_keeps_its_tools_and_recovers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "enclave")
    answer = Answer(document("a"))
    async with watching(lambda _: answer) as watch:
        await watch.next_change()
        answer = Answer({}, 500)
        async with asyncio.timeout(60):
            while watch.source.health.well:  # noqa: ASYNC110 - a look has no event of its own
                await asyncio.sleep(0.002)
        failed = [each for each in watch.server.asked if each.path == SPEC]
        assert len(failed) > 3 * 3, "each look makes three attempts"
        assert watch.registry.names() == ["pets_a"]
        assert "answered 500" in watch.source.health.error
        answer = Answer(document("a", "b"))
        assert (await watch.next_change()).added == ("pets_b",)
        assert watch.source.health.well
    assert "unwell, 3 failures in a row" in caplog.text
    assert "recovered" in caplog.text


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(b"{", content_type="application/json"), "not JSON"),
        (Answer({"swagger": "2.0"}), "convert it"),
        (Answer("x" * (17 * 1024 * 1024)), "larger than"),
        (Answer(status=302, headers={"location": "http://169.254.169.254/"}), "redirects"),
        (Answer({"openapi": "3.0.0", "paths": {"/a": {"get": {"parameters": [{"$ref": "x"}]}}}}), "can be offered"),
    ],
)
async def test_a_document_that_cannot_be_used_is_told_and_leaves_the_tools_alone(answer: Answer, says: str) -> None:
    now = Answer(document("a"))
    async with watching(lambda _: now) as watch:
        await watch.next_change()
        now = answer
        async with asyncio.timeout(60):
            while not watch.source.health.failures:  # noqa: ASYNC110 - a look has no event of its own
                await asyncio.sleep(0.002)
        assert says in watch.source.health.error
        assert watch.registry.names() == ["pets_a"]


async def test_a_tool_name_that_another_source_has_is_told_and_changes_nothing() -> None:
    async with watching(lambda _: Answer(document("a", "b"))) as watch:
        watch.registry.register("pets_b", lambda: 1)
        await watch.source.looked.wait()
        assert "is taken by another tool" in watch.source.health.error
        assert watch.registry.names() == ["pets_b"]


async def test_a_document_in_a_file_is_read_and_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "pets.yaml"
    path.write_text("openapi: 3.1.0\nservers: [{url: 'https://x.example'}]\npaths: {/a: {get: {operationId: a}}}\n")
    async with watching(lambda _: Answer(), document=str(path)) as watch:
        assert (await watch.next_change()).added == ("pets_a",)
        assert watch.source.spec_url == "", "a path of the operator's is nobody else's business"
        path.write_text(path.read_text().replace("operationId: a", "operationId: b"))
        assert (await watch.next_change()).added == ("pets_b",)
        path.unlink()
        async with asyncio.timeout(60):
            while not watch.source.health.failures:  # noqa: ASYNC110 - a look has no event of its own
                await asyncio.sleep(0.002)
        assert watch.registry.names() == ["pets_b"]


async def test_a_key_in_the_documents_address_is_not_told() -> None:
    async with http_server() as server:
        server.routes[SPEC] = lambda _: Answer(document("a"))
        address = f"{server.url}{SPEC}?key=k"
        source = OpenApiSource(
            OpenApiSettings(name="x", document=address, credentials=NO_CREDENTIALS, policies=Policies())
        )
        assert await source.changed()
        await source.close()
    assert server.asked[0].query == "key=k"
    assert source.spec_url == server.url + SPEC


async def test_a_source_that_is_not_polled_is_read_once() -> None:
    async with watching(lambda _: Answer(document("a")), poll_interval_s=0) as watch:
        await watch.next_change()
        await watch.source.looked.wait()
        await asyncio.sleep(0)
        assert len(watch.server.asked) == 1


async def test_an_operation_whose_schema_is_none_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    spec = document("good", "bad")
    spec["paths"]["/bad"]["get"]["parameters"][0] = {"name": "q", "in": "query", "schema": {"type": "no such type"}}
    async with watching(lambda _: Answer(spec)) as watch:
        assert (await watch.next_change()).added == ("pets_good",)
    assert "left out GET /bad" in caplog.text


async def test_only_what_changes_nothing_is_retried_unless_the_operator_says_otherwise() -> None:
    spec = {"openapi": "3.0.0", "paths": {"/a": {"get": {}, "post": {}, "delete": {}}}}
    for retryable, expected in ((None, {"get"}), (True, {"get", "post", "delete"}), (False, set())):
        async with watching(lambda _: Answer(spec), policies=Policies(retryable=retryable)) as watch:
            await watch.next_change()
            assert {tool.name[5:-2] for tool in watch.registry.tools() if tool.policy.retryable} == expected


async def test_approval_can_be_asked_for_some_tools_only() -> None:
    async with watching(lambda _: Answer(document("a", "b")), policies=Policies(needs_approval=["*_b"])) as watch:
        await watch.next_change()
        assert [tool.name for tool in watch.registry.tools() if tool.policy.needs_approval] == ["pets_b"]
