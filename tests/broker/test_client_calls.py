"""Calls that the session's client answers: whose a call is, and how long the client may take."""

from __future__ import annotations

from typing import Any

import pytest

from enclave_broker.access import LOCAL
from enclave_broker.client_calls import Answerer, answerer, unknown
from enclave_broker.new_session import NewSession
from enclave_protocol import NO_TOOLS, RemoteProtocolError, decode_event, parse_declared_tools
from tests.broker.conftest import Fleet, fleet
from tests.fakes import FakeSession, FakeWorker

DECLARED = parse_declared_tools(["mine"])


@pytest.mark.parametrize(
    ("name", "broker", "client_tools", "expected"),
    [
        ("mine", [], DECLARED, Answerer.CLIENT),
        ("mine", ["mine"], DECLARED, Answerer.CLIENT),  # registered after the session began
        ("theirs", ["theirs"], DECLARED, Answerer.BROKER),
        ("other", [], DECLARED, Answerer.NOBODY),
        ("other", [], NO_TOOLS, Answerer.NOBODY),
        ("theirs", ["theirs"], NO_TOOLS, Answerer.BROKER),
        ("other", [], None, Answerer.CLIENT),
        ("theirs", ["theirs"], None, Answerer.BROKER),
    ],
)
def test_a_call_is_answered_by_whoever_has_the_tool(
    name: str, broker: list[str], client_tools: Any, expected: Answerer
) -> None:
    assert answerer(name, broker_has=name in broker, client_tools=client_tools) is expected


def test_a_guest_that_calls_an_unknown_tool_is_told_of_both_kinds() -> None:
    assert unknown("x", ["a", "b"], DECLARED) == "no tool 'x' (tools: a, b; of the client: mine)"
    assert unknown("x", [], NO_TOOLS) == "no tool 'x' (tools: none)"


async def calls(session: FakeSession) -> None:
    await session.final(await session.call(session.execute["code"]))


def finished(running: Fleet, session_id: str) -> Any:
    """Return what the guest was told, once the session has ended."""
    session = running.broker.dispatcher.directory.get(session_id)
    assert session is not None
    final = decode_event(session.log.lines(session.log.next_seq - 1, 1)[0])
    return getattr(final.payload, "result")  # noqa: B009 - of a union


def greet(name: str) -> str:
    return f"hello {name}"


async def test_an_unknown_tool_of_a_session_that_declared_some_is_answered_at_once() -> None:
    async with fleet(FakeWorker(calls)) as running:
        session = running.broker.dispatcher.submit(
            NewSession(code="other", session_id="s_1", client_tools=DECLARED), LOCAL
        )
        await running.wait_until(lambda: not session.live)
        assert finished(running, "s_1")["error"] == {
            "code": "UNKNOWN_TOOL",
            "message": "no tool 'other' (tools: none; of the client: mine)",
        }


async def test_a_declared_tool_that_nobody_answers_fails_after_its_own_timeout() -> None:
    async with fleet(FakeWorker(calls)) as running:
        declared = parse_declared_tools([{"name": "mine", "timeoutMs": 20}])
        session = running.broker.dispatcher.submit(
            NewSession(code="mine", session_id="s_1", client_tools=declared), LOCAL
        )
        await running.wait_until(lambda: not session.live)
        assert finished(running, "s_1")["error"] == {"code": "TOOL_TIMEOUT", "message": "mine took over 20 ms"}


async def test_a_name_of_the_brokers_can_not_be_declared() -> None:
    async with fleet(FakeWorker(calls)) as running:
        running.broker.tools.register("greet", greet)
        declared = parse_declared_tools(["mine", "greet"])
        with pytest.raises(RemoteProtocolError) as caught:
            running.broker.dispatcher.submit(NewSession(code="1", session_id="s_1", client_tools=declared), LOCAL)
        assert (caught.value.field, caught.value.session_id) == ("tools[1].name", "s_1")
        assert running.broker.dispatcher.directory.get("s_1") is None
