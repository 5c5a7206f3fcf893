"""Sessions whose events are sealed, as a client that holds the key reads them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from enclave_broker.event_log import EventLog
from enclave_broker.sessions import BrokerSession
from enclave_broker.steps import Broken
from enclave_protocol import Code, Execute, Limits, encode
from enclave_protocol.ciphers import KeyPair, derive_key
from enclave_protocol.codec import peek
from enclave_protocol.encryption import (
    TO_CLIENT,
    TO_SERVER,
    Sealer,
    accept_hello,
)
from enclave_protocol.events import ChunkPayload, Stdout
from tests.broker.conftest import fleet, start
from tests.fakes import FakeSession, FakeWorker
from tests.real_client import check_stream


class Client:
    """A client's end of the encryption."""

    def __init__(self) -> None:
        self._own = KeyPair()
        self.hello = {
            "protocolVersion": 2,
            "clientEphemeralPubKeyB64": base64.b64encode(self._own.public_point).decode(),
            "curve": "P-256",
            "supportedAlgorithms": ["AES-GCM-256"],
        }

    def sealer(self, server_hello: dict[str, Any], session_id: str, direction: bytes = TO_CLIENT) -> Sealer:
        theirs = base64.b64decode(server_hello["serverEphemeralPubKeyB64"])
        key = derive_key(self._own.shared_secret(theirs), session_id.encode(), direction)
        return Sealer(session_id, server_hello["keyId"], key)

    def body(self, mode: str = "required", **more: Any) -> dict[str, Any]:
        return {"code": "secret", "sessionId": "s_1", "encryption": {"mode": mode, "clientHello": self.hello}, **more}


@pytest.mark.parametrize("mode", ["required", "optional"])
async def test_every_event_but_the_first_is_sealed_and_opens_to_the_whole_stream(mode: str) -> None:
    client = Client()
    async with fleet(FakeWorker()) as running:
        response = await running.http.post("/sessions", json=client.body(mode))
        lines = response.content.splitlines()
        init, *sealed = [json.loads(line) for line in lines]
        encryption = init["payload"]["encryption"]
        assert encryption["enabled"]
        assert encryption["keyId"] == encryption["serverHello"]["keyId"]
        in_header = base64.b64decode(response.headers["x-enclave-server-hello"])
        assert json.loads(in_header) == encryption["serverHello"]
        assert [event["type"] for event in sealed] == ["enc", "enc"]
        assert b"secret" not in response.content
        sealer = client.sealer(encryption["serverHello"], "s_1")
        opened = [lines[0], *(sealer.open(line) for line in lines[1:])]
        check_stream(opened)
        assert [json.loads(line)["seq"] for line in opened] == [json.loads(line)["seq"] for line in lines] == [1, 2, 3]
        assert json.loads(opened[-1])["payload"]["result"] == "secret"


async def test_every_reader_and_every_replay_has_the_same_ciphertext() -> None:
    client = Client()
    async with fleet(FakeWorker()) as running:
        first = await running.http.post("/sessions", json=client.body())
        replay = await running.http.get("/sessions/s_1/stream")
        again = await running.http.post("/sessions", json=client.body())
        assert first.content == replay.content == again.content
        assert replay.headers["x-enclave-server-hello"] == first.headers["x-enclave-server-hello"]


async def test_what_the_broker_itself_says_is_sealed_too() -> None:
    client = Client()
    async with fleet(queue_timeout_ms=1) as running:
        response = await running.http.post("/sessions", json=client.body(limits={"heartbeatIntervalMs": 1}))
        init, *sealed = response.content.splitlines()
        sealer = client.sealer(json.loads(init)["payload"]["encryption"]["serverHello"], "s_1")
        final = json.loads(sealer.open(sealed[-1]))
        assert final["payload"]["error"]["code"] == "NO_CAPACITY"


async def test_an_answer_may_be_sealed() -> None:
    async def calls(session: FakeSession) -> None:
        await session.final((await session.call("ask"))["value"])

    client = Client()
    async with fleet(FakeWorker(calls)) as running:
        task = await start(running, "s_1", tools=["ask"], encryption=client.body()["encryption"])
        session = running.broker.dispatcher.directory.get("s_1")
        assert session is not None
        await running.wait_until(lambda: bool(session.calls))
        init = session.log.lines(1, 1)[0]
        hello = json.loads(init)["payload"]["encryption"]["serverHello"]
        answer = b'{"callId": "c_1", "result": "confidential"}'
        wrong = client.sealer(hello, "s_1").seal(1, answer)
        refused = await running.http.post("/sessions/s_1/tool-result", content=wrong)
        assert (refused.status_code, refused.json()["code"]) == (400, "ENCRYPTION_DECRYPTION_FAILED")
        sealed = client.sealer(hello, "s_1", TO_SERVER).seal(1, answer)
        assert (await running.http.post("/sessions/s_1/tool-result", content=sealed)).json()["success"]
        final = client.sealer(hello, "s_1").open((await task).splitlines()[-1].encode())
        assert json.loads(final)["payload"]["result"] == "confidential"


@pytest.mark.parametrize("hello", [None, {}, {"curve": "P-384"}, {"clientEphemeralPubKeyB64": "AAAA"}])
async def test_required_is_refused_and_optional_runs_in_the_open_if_the_hello_cannot_be_used(hello: Any) -> None:
    async with fleet(FakeWorker()) as running:
        given = None if hello is None else Client().hello | hello if hello else {}
        encryption = {} if given is None else {"clientHello": given}
        required = await running.http.post(
            "/sessions", json={"code": "1", "encryption": {"mode": "required"} | encryption}
        )
        error = required.json()
        assert required.status_code == 400
        assert error["code"].startswith("ENCRYPTION_")
        assert error["details"]["field"].startswith("encryption.clientHello")
        assert error["details"]["allowed"]
        assert running.workers[0].received == []
        optional = await running.http.post(
            "/sessions", json={"code": "1", "encryption": {"mode": "optional"} | encryption}
        )
        init = json.loads(optional.text.splitlines()[0])
        assert init["payload"]["encryption"] == {"enabled": False}
        assert "x-enclave-server-hello" not in optional.headers


async def test_an_encrypted_session_is_not_filtered_for_a_filter_would_tell_what_is_in_it() -> None:
    config = {"mode": "include", "rules": []}
    async with fleet(FakeWorker()) as running:
        made = await running.http.post("/sessions", json=Client().body(filter=config))
        await running.http.post("/sessions", json=Client().body())
        read = await running.http.get("/sessions/s_1/stream", params={"filter": json.dumps(config)})
        for response in (made, read):
            assert (response.status_code, response.json()["code"]) == (400, "INVALID_FILTER")


def test_a_session_whose_key_has_expired_ends_with_the_last_message_under_it() -> None:
    channel = accept_hello(Client().hello, "s_1")
    channel.to_client = Sealer("s_1", "k_1", bytes(32), max_messages=2)
    session = BrokerSession("s_1", Execute(code="1"), Limits(), now=0, wall=0, log=EventLog(10_000), channel=channel)

    def said(seq: int) -> bytes:
        return encode(Stdout(session_id="s_1", seq=seq, payload=ChunkPayload(chunk="x" * 5)))

    assert session.accept(peek(said(2)), said(2), 1) is None
    step = session.accept(peek(said(3)), said(3), 2)
    assert isinstance(step, Broken)
    session.end(step.code, step.reason, 3)
    final = json.loads(channel.to_client.open(session.log.lines(3, 1)[0]))
    assert final["payload"]["error"]["code"] == Code.ENCRYPTION_KEY_EXPIRED
    assert final["payload"]["stats"]["stdoutBytes"] == 5  # counted from events that are sealed by now
