"""Word of changed tools, from a broker: put into the stream by the worker, which numbers it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support import Client

CHANGE = {"version": "v2", "addedActions": ["pets_get"], "removedActions": []}


def notice(session_id: str, **fields: Any) -> dict[str, Any]:
    return {"type": "catalog_changed", "sessionId": session_id, "payload": CHANGE, **fields}


async def test_a_change_is_an_event_of_the_stream_between_its_neighbours(client: Client) -> None:
    session = await client.start('print("one", flush=True)\nawait call_tool("t")\nprint("two")')
    call = await client.until(session, "tool_call")
    await client.send(notice(session))
    assert await client.until(session, "catalog_changed") == CHANGE
    await client.answer(session, call["callId"], None)
    run = await client.finish(session)
    kinds = [event["type"] for event in run.events]
    assert kinds.index("tool_call") < kinds.index("catalog_changed") < kinds.index("tool_result_applied")


async def test_a_change_for_a_session_that_is_not_live_means_nothing(client: Client) -> None:
    session = await client.start("return 1")
    ended = await client.finish(session)
    await client.send(notice(session))
    await client.send(notice("s_never"))
    await client.ping()
    assert client.events(session) == ended.events
    assert [message["type"] for message in client.other] == ["hello", "pong"]


async def test_a_change_that_makes_no_sense_is_refused_with_the_field(client: Client) -> None:
    refused = await client.rejection(notice("s_1", payload={"version": ""}))
    assert refused["payload"]["field"].startswith("payload")
    assert (await client.rejection(notice("x")))["payload"]["field"] == "sessionId"
