"""Requests that were changed at random: each is answered, in the one shape, and leaves nothing."""

from __future__ import annotations

import copy
import json
import random
from typing import TYPE_CHECKING, Any

from tests.broker.conftest import fleet
from tests.fakes import FakeWorker

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUESTS = 400
PATTERN = {"type": "regex", "pattern": "(a+)+$", "field": "payload.chunk", "caseInsensitive": True}
FILTER = {
    "mode": "include",
    "rules": [{"types": {"types": ["stdout"]}, "content": {"patterns": [PATTERN], "match": "all"}}],
    "alwaysAllow": ["final"],
    "regexTimeoutMs": 5,
}
HELLO = {"protocolVersion": 2, "clientEphemeralPubKeyB64": "BA==", "curve": "P-256", "supportedAlgorithms": []}
SESSION = {
    "code": "1",
    "limits": {"maxToolCalls": 3, "timeout": 5},
    "config": {"maxExecutionMs": 5},
    "env": {"A": "b"},
    "files": {"a/b": "c", "d": {"base64": "AAAA"}},
    "tools": ["ask", {"name": "tell", "inputSchema": {}, "timeoutMs": 5}],
    "protocolVersion": 2,
}
BODIES: list[tuple[str, Any]] = [
    ("/sessions", {**SESSION, "filter": FILTER}),
    ("/sessions", {**SESSION, "sessionId": "s_1", "encryption": {"mode": "optional", "clientHello": HELLO}}),
    ("/sessions:batch", {"code": "1", "inputs": [1, "a", {}], "concurrency": 2, "limits": {"timeout": 5}}),
    ("/sessions:batch", {"items": [{"code": "1"}, {"code": "2", "env": {"A": "b"}}]}),
    ("/sessions/s_1/tool-result", {"callId": "c_1", "success": True, "value": 1, "payload": {"callId": "c_1"}}),
    ("/sessions/s_1/tool-result", {"type": "enc", "payload": {"kid": "k", "nonceB64": "AAAA", "ciphertextB64": "AA"}}),
    ("/sessions/s_1/cancel", {"reason": "why"}),
]
STRANGE: list[Any] = [
    *(None, True, 0, -1, 1.5, 2**53, 10**30, "", "x", "s_1", "\x00", "é😀", "(", "[", "\\", "a" * 5000, "../x"),
    *([], {}, [[]], {"a": None}, [None], ["final"] * 100),
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Return every place inside a value: what it is in, and by which key."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner)


def changed(body: Any, chance: random.Random) -> bytes:
    """Return a body with something in it replaced, left out, added, or cut."""
    body = copy.deepcopy(body)
    for _ in range(chance.randint(1, 2)):
        where, key = chance.choice(list(places(body)) or [(body, None)])
        how = chance.randrange(4)
        if key is None or how == 0:
            (where.append if isinstance(where, list) else where.setdefault("more", [None]).append)(1)
        elif how == 1:
            del where[key]
        else:
            where[key] = copy.deepcopy(chance.choice(STRANGE))
    text = json.dumps(body).encode()
    return text[: chance.randrange(len(text) + 1)] if chance.random() < 0.1 else text


async def test_every_changed_request_is_answered_in_the_one_shape_and_leaves_nothing() -> None:
    chance = random.Random(20_261_121)
    seen = set()
    async with fleet(FakeWorker()) as running:
        for _ in range(REQUESTS):
            path, body = chance.choice(BODIES)
            data = changed(body, chance)
            headers = {"accept": chance.choice(["*/*", "text/event-stream", "text/event-stream;q=x,,;"])}
            response = await running.http.post(path, content=data, headers=headers)
            seen.add(response.status_code)
            assert response.status_code in {200, 400, 404, 409, 413}, (path, data)
            if response.status_code != 200:
                error = response.json()
                assert {"code", "message"} <= set(error) <= {"code", "message", "details"}
                assert error.get("details", {}).keys() <= {"field", "allowed", "limit", "actual"}
        for text in (json.dumps(FILTER), *(changed(FILTER, chance).decode() for _ in range(50))):
            params = {"filter": text, "fromSeq": str(chance.choice(["1", "x", "0", "-1"]))}
            response = await running.http.get("/sessions/s_1/stream", params=params)
            seen.add(response.status_code)
            assert response.status_code in {200, 400, 404}, text
        assert {200, 400, 404} <= seen
        await running.wait_until(lambda: running.broker.dispatcher.directory.live == 0)
        assert running.broker.dispatcher.placer.statistics().reserved == 0
