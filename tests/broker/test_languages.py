"""Which language a session is in, and which workers may run it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from msgspec import UNSET
from websockets.asyncio.client import connect

from enclave_broker import languages
from enclave_broker.api import ApiError, decode_create
from enclave_broker.config import BrokerConfig
from enclave_protocol import Hello, Limits, RemoteProtocolError
from enclave_protocol.languages import LANGUAGES
from tests.broker.conftest import fleet
from tests.fakes import FakeWorker

if TYPE_CHECKING:
    from enclave_protocol.languages import Language


def hello(profiles: dict[str, list[str]], *, told: bool = True) -> Hello:
    every: list[str] = [language for language in LANGUAGES if any(language in own for own in profiles.values())]
    return Hello(
        worker_id="w",
        version="1",
        level="SECURE",
        languages=every,
        profiles=list(profiles),
        profile_languages=profiles if told else UNSET,
        max_sessions=1,
        active=0,
    )


def asked(body: str, header: str | None = None, default: Language = "python") -> str | None:
    own = {"mine": "shell"}
    unsaid = languages.Unsaid(header, own.get, default)  # type: ignore[arg-type]
    return decode_create(body.encode(), lambda _: Limits(), unsaid)[0].language


@pytest.mark.parametrize(
    ("body", "header", "default", "language"),
    [
        ('{"code": "1"}', None, "python", "python"),
        ('{"code": "1"}', None, "javascript", "javascript"),
        ('{"code": "1"}', "shell", "javascript", "shell"),
        ('{"code": "1"}', " JavaScript ", "python", "javascript"),
        ('{"code": "1", "language": "python"}', "shell", "javascript", "python"),
        ('{"code": "1", "profile": "mine"}', None, "javascript", "shell"),
        ('{"code": "1", "profile": "nobody told us of"}', None, "javascript", None),
        ('{"code": "1", "profile": "mine"}', "python", "javascript", "python"),
        ('{"code": "1", "profile": "mine", "language": "python"}', None, "javascript", "python"),
    ],
)
def test_the_body_comes_before_the_header_the_profile_and_the_brokers_default(
    body: str, header: str | None, default: Language, language: str | None
) -> None:
    assert asked(body, header, default) == language


@pytest.mark.parametrize(
    ("body", "header", "field"),
    [('{"code": "1", "language": "cobol"}', None, "language"), ('{"code": "1"}', "cobol", "X-Enclave-Language")],
)
def test_an_unknown_language_is_refused_where_it_was_named(body: str, header: str | None, field: str) -> None:
    with pytest.raises(ApiError) as caught:
        asked(body, header)

    assert (caught.value.status, caught.value.body.field) == (400, field)
    assert caught.value.body.details
    assert caught.value.body.details.allowed == "python, javascript, shell"


def test_a_broker_does_not_take_an_unknown_default() -> None:
    with pytest.raises(ValueError, match=r"default_language: 'cobol' is not one of python, javascript, shell"):
        BrokerConfig(default_language="cobol")  # type: ignore[arg-type]


def test_a_worker_offers_each_profile_with_its_own_languages_and_without_saying_one() -> None:
    worker = hello({"python": ["python", "shell"], "js": ["javascript"]})

    assert set(languages.offers(worker)) == {"python", "python python", "python shell", "js", "js javascript"}
    assert languages.need("js", "javascript") in languages.offers(worker)
    assert languages.need("js", "python") not in languages.offers(worker)


def test_a_worker_that_does_not_tell_them_apart_offers_all_its_languages_with_each() -> None:
    assert languages.languages_of(hello({"a": ["python"], "b": ["shell"]}, told=False), "a") == ["python", "shell"]


@pytest.mark.parametrize(
    ("profile", "language", "refusal"),
    [
        ("python", "javascript", None),
        ("python", None, None),
        ("data", "python", None),
        ("data", "javascript", ("language", "python")),
        ("nope", None, ("profile", "data, python")),
        ("nope", "python", ("profile", "data, python")),
    ],
)
def test_what_no_worker_offers_is_refused_with_what_is(
    profile: str, language: str | None, refusal: tuple[str, str] | None
) -> None:
    hellos = [hello({"python": ["python"], "data": ["python"]}), hello({"python": ["python", "javascript"]})]

    if refusal is None:
        languages.refuse_unless_offered(profile, language, hellos)
        return
    with pytest.raises(RemoteProtocolError) as caught:
        languages.refuse_unless_offered(profile, language, hellos)
    assert (caught.value.field, caught.value.allowed) == refusal


# On a fleet.


def offering(*offered: str) -> FakeWorker:
    worker = FakeWorker(name="-".join(offered))
    worker.hello = {"languages": list(offered), "profileLanguages": {"python": list(offered)}}
    return worker


async def languages_received(worker: FakeWorker, count: int) -> list[str | None]:
    return [message.get("language") for message in await worker.wait_received("execute", count)]


async def test_a_session_runs_on_a_worker_that_offers_its_language_however_it_was_asked_for() -> None:
    plain, javascript = offering("python"), offering("python", "javascript")
    async with fleet(plain, javascript) as running:
        for _ in range(2):
            await running.http.post("/sessions", json={"code": "1", "language": "javascript"})
            await running.http.post("/sessions", json={"code": "1"}, headers={"X-Enclave-Language": "javascript"})
        async with connect(running.broker.url.replace("http", "ws") + "/ws", proxy=None) as socket:
            assert json.loads(await socket.recv())["languages"] == ["python", "javascript"]
            await socket.send(json.dumps({"type": "execute", "code": "1", "language": "javascript"}))
            assert await languages_received(javascript, 5) == ["javascript"] * 5

        assert not [message for message in plain.received if message["type"] == "execute"]


async def test_the_brokers_default_is_for_those_who_name_neither_a_language_nor_a_profile() -> None:
    async with fleet(offering("python", "javascript"), default_language="javascript") as running:
        await running.http.post("/sessions", json={"code": "1"})
        await running.http.post("/sessions", json={"code": "1", "profile": "python"})
        async for _ in running.broker.execute("1"):
            pass
        async with connect(running.broker.url.replace("http", "ws") + "/ws", proxy=None) as socket:
            await socket.send(json.dumps({"type": "execute", "code": "1"}))
            received = await languages_received(running.workers[0], 4)

        assert received == ["javascript", "python", "javascript", "javascript"]


async def test_a_language_that_no_worker_offers_is_refused_and_told_what_is_offered() -> None:
    async with fleet(offering("python")) as running:
        response = await running.http.post("/sessions", json={"code": "1", "language": "javascript"})

        assert (response.status_code, response.json()["details"]["field"]) == (400, "language")
        assert response.json()["details"]["allowed"] == "python"
        with pytest.raises(RemoteProtocolError, match="no such language"):
            await anext(running.broker.execute("1", language="cobol"))
