"""Requests to a real server: what is followed, what is read, what is kept, and what a failure says."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import socket
from typing import TYPE_CHECKING, Any

import pytest

from enclave_broker.tools import ToolFailure
from enclave_broker.tools.sources.http_caller import HttpCaller
from enclave_broker.tools.sources.requests import HttpRequest, Part
from tests.broker.tools.sources.http_server import Answer, HttpServer, http_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def caller_and_server() -> AsyncIterator[tuple[HttpCaller, HttpServer]]:
    async with http_server() as server, HttpCaller() as caller:
        yield caller, server


def get(url: str, **fields: Any) -> HttpRequest:
    return HttpRequest(**({"method": "GET", "url": url} | fields))


async def failure(caller: HttpCaller, request: HttpRequest, **options: Any) -> ToolFailure:
    with pytest.raises(ToolFailure) as failed:
        await caller.call(request, **({"max_bytes": 1000} | options))
    return failed.value


async def test_a_request_arrives_as_it_was_made() -> None:
    async with caller_and_server() as (caller, server):
        server.routes["/a%2Fb"] = lambda _: Answer({"ok": True})
        request = get(
            f"{server.url}/a%2Fb?fixed=1",
            method="POST",
            query=(("q", "a b&c=ä"),),
            headers=(("X-One", "1"),),
            cookies=(("a", "1"), ("b", "2")),
            content=b"body",
        )
        answer = await caller.call(request, max_bytes=1000)
    (asked,) = server.asked
    assert (answer.status, answer.body) == (200, b'{"ok":true}')
    assert (asked.method, asked.path, asked.body) == ("POST", "/a%2Fb", b"body")
    assert asked.query == "fixed=1&q=a%20b%26c%3D%C3%A4"
    assert (asked.header("x-one"), asked.header("cookie")) == ("1", "a=1; b=2")


async def test_a_multipart_body_arrives_in_its_parts() -> None:
    async with caller_and_server() as (caller, server):
        parts = (Part(name="n", data=b"v"), Part(name="f", data=b"\x00", filename="x.bin", content_type="a/b"))
        await caller.call(get(f"{server.url}/x", method="POST", parts=parts), max_bytes=1000)
    (asked,) = server.asked
    assert (asked.header("content-type") or "").startswith("multipart/form-data; boundary=")
    assert b'name="n"\r\n\r\nv\r\n' in asked.body
    assert b'name="f"; filename="x.bin"\r\nContent-Type: a/b\r\n\r\n\x00\r\n' in asked.body


async def test_a_redirect_within_the_origin_is_followed_for_what_reads_with_its_headers() -> None:
    async with caller_and_server() as (caller, server):
        server.routes["/old"] = lambda _: Answer(status=302, headers={"location": "/new?x=1"})
        server.routes["/new"] = lambda _: Answer("here")
        answer = await caller.call(get(f"{server.url}/old", headers=(("X-Key", "k"),)), max_bytes=1000)
    assert answer.body == b'"here"'
    assert [(asked.path, asked.header("x-key")) for asked in server.asked] == [("/old", "k"), ("/new", "k")]


async def test_a_redirect_to_another_origin_is_refused_and_its_server_hears_nothing() -> None:
    async with caller_and_server() as (caller, server), http_server() as other:
        server.routes["/"] = lambda _: Answer(status=307, headers={"location": f"{other.url}/steal"})
        failed = await failure(caller, get(f"{server.url}/", headers=(("Authorization", "Bearer x"),)))
        server.routes["/here"] = lambda _: Answer(status=307, headers={"location": "/"})
        twice = await failure(caller, get(f"{server.url}/here"))
    assert (failed.code, twice.code) == ("REDIRECT_REFUSED", "REDIRECT_REFUSED")
    assert other.asked == []


async def test_a_request_that_writes_is_not_sent_again_elsewhere() -> None:
    async with caller_and_server() as (caller, server):
        server.routes["/"] = lambda _: Answer(status=308, headers={"location": "/new"})
        failed = await failure(caller, get(f"{server.url}/", method="POST"))
    assert failed.code == "REDIRECT_REFUSED"
    assert len(server.asked) == 1


async def test_redirects_in_a_circle_end() -> None:
    async with caller_and_server() as (caller, server):
        server.routes["/"] = lambda _: Answer(status=302, headers={"location": "/"})
        assert (await failure(caller, get(f"{server.url}/"))).code == "REDIRECT_REFUSED"


async def test_an_answer_is_read_up_to_its_limit_packed_or_not() -> None:
    async with caller_and_server() as (caller, server):
        server.routes["/fits"] = lambda _: Answer(b"x" * 1000)
        server.routes["/large"] = lambda _: Answer(b"x" * 1001)
        server.routes["/packed"] = lambda _: Answer(gzip.compress(b"x" * 900), headers={"content-encoding": "gzip"})
        server.routes["/bomb"] = lambda _: Answer(gzip.compress(b"x" * 10**8), headers={"content-encoding": "gzip"})
        server.routes["/odd"] = lambda _: Answer(b"x", headers={"content-encoding": "br"})
        server.routes["/broken"] = lambda _: Answer(b"xxxx", headers={"content-encoding": "gzip"})
        assert len((await caller.call(get(f"{server.url}/fits"), max_bytes=1000)).body) == 1000
        assert (await caller.call(get(f"{server.url}/packed"), max_bytes=1000)).body == b"x" * 900
        for path, code in {
            "large": "RESULT_TOO_LARGE",
            "bomb": "RESULT_TOO_LARGE",
            "odd": "UPSTREAM_ERROR",
            "broken": "UPSTREAM_ERROR",
        }.items():
            assert (await failure(caller, get(f"{server.url}/{path}"))).code == code


async def test_a_failure_is_a_failure_however_large_its_page_is() -> None:
    async with caller_and_server() as (caller, server):
        server.routes["/"] = lambda _: Answer(b"x" * 200_000, status=502)
        answer = await caller.call(get(f"{server.url}/"), max_bytes=1000)
    assert answer.status == 502
    assert 0 < len(answer.body) < 200_000


async def test_one_calls_cookies_are_not_the_next_ones() -> None:
    async with caller_and_server() as (caller, server):
        server.routes["/"] = lambda _: Answer("x", headers={"set-cookie": "session=first-tenant; Path=/"})
        await caller.call(get(f"{server.url}/"), max_bytes=1000)
        await caller.call(get(f"{server.url}/"), max_bytes=1000)
    assert [asked.header("cookie") for asked in server.asked] == [None, None]


async def test_a_server_that_is_not_there_is_told_without_what_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        port = taken.getsockname()[1]
        async with HttpCaller() as caller:
            failed = await failure(caller, get(f"http://127.0.0.1:{port}/", query=(("key", "secret-key"),)))
    assert (failed.code, failed.retryable) == ("UPSTREAM_UNREACHABLE", True)
    assert "secret-key" not in failed.message + caplog.text


async def test_a_secret_in_an_address_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "enclave")
    caplog.set_level(logging.INFO)
    async with caller_and_server() as (caller, server):
        await caller.call(get(f"{server.url}/", query=(("key", "secret-key"),)), max_bytes=1000)
    assert "secret-key" in server.asked[0].query
    assert "secret-key" not in caplog.text


async def test_a_server_that_breaks_off_is_told_and_only_what_may_run_twice_is_retryable() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, HttpCaller() as caller:
        for idempotent in (True, False):
            failed = await failure(caller, get(url), idempotent=idempotent)
            assert (failed.code, failed.retryable) == ("UPSTREAM_UNREACHABLE", idempotent)
