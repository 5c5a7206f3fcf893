"""Sealed events, against the vectors that the JavaScript library has printed."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol import RemoteProtocolError
from enclave_protocol.ciphers import KeyPair, derive_key
from enclave_protocol.encryption import (
    TO_CLIENT,
    TO_SERVER,
    EncryptionError,
    Sealer,
    accept_hello,
)
from tests.real_client import check_line

VECTORS = json.loads((Path(__file__).parent / "crypto_vectors.json").read_text())
SESSION: str = VECTORS["sessionId"]
KEY_ID: str = VECTORS["serverHello"]["keyId"]
HELLO: dict[str, Any] = VECTORS["clientHello"]


def private_key(jwk: dict[str, str]) -> KeyPair:
    number = base64.urlsafe_b64decode(jwk["d"] + "=" * (-len(jwk["d"]) % 4))
    return KeyPair(int.from_bytes(number, "big"))


def secret() -> bytes:
    theirs = base64.b64decode(VECTORS["serverHello"]["serverEphemeralPubKeyB64"])
    return private_key(VECTORS["clientPrivJwk"]).shared_secret(theirs)


def test_both_sides_come_to_the_secret_of_the_vectors() -> None:
    server = private_key(VECTORS["serverPrivJwk"])
    point = base64.b64decode(HELLO["clientEphemeralPubKeyB64"])
    assert secret().hex() == server.shared_secret(point).hex() == VECTORS["sharedSecretHex"]
    assert base64.b64encode(server.public_point).decode() == VECTORS["serverHello"]["serverEphemeralPubKeyB64"]


def test_the_keys_are_those_of_the_vectors() -> None:
    assert derive_key(secret(), SESSION.encode(), TO_SERVER).hex() == VECTORS["clientToServerKeyHex"]
    assert derive_key(secret(), SESSION.encode(), TO_CLIENT).hex() == VECTORS["serverToClientKeyHex"]
    assert derive_key(secret(), bytes(32), b"x").hex() == VECTORS["deriveKeyNullSaltHex"]


def test_a_sealed_event_is_byte_for_byte_the_vectors() -> None:
    sealer = Sealer(SESSION, KEY_ID, bytes.fromhex(VECTORS["serverToClientKeyHex"]))
    text = VECTORS["plaintextUtf8"].encode()
    line = sealer.seal_with(bytes.fromhex(VECTORS["nonceHex"]), 2, text)
    assert json.loads(line) == VECTORS["envelope"]
    assert sealer.open(json.dumps(VECTORS["envelope"]).encode()) == text
    check_line(line)


def test_the_vectors_message_to_the_server_opens() -> None:
    sealer = Sealer(SESSION, KEY_ID, bytes.fromhex(VECTORS["clientToServerKeyHex"]))
    envelope = VECTORS["c2sEnvelope"]
    text = sealer.open(json.dumps(envelope | {"seq": 1}).encode())
    assert json.loads(text) == {"code": "return 1 + 1"}
    assert json.loads(sealer.seal_with(bytes.fromhex(VECTORS["nonceHex"]), 0, text)) == envelope


def test_nonces_are_a_prefix_and_a_counter_and_the_key_expires_after_its_last() -> None:
    prefix = bytes.fromhex(VECTORS["counterNonce"]["prefixHex"])
    sealer = Sealer(SESSION, KEY_ID, bytes(32), prefix=prefix, max_messages=2)
    nonces = [base64.b64decode(json.loads(sealer.seal(n, b"x"))["payload"]["nonceB64"]).hex() for n in (1, 2)]
    assert nonces == [f"{prefix.hex()}00000000", f"{prefix.hex()}00000001"]
    assert sealer.left == 0
    with pytest.raises(EncryptionError) as expired:
        sealer.seal(3, b"x")
    assert expired.value.code == "ENCRYPTION_KEY_EXPIRED"


@given(st.binary(max_size=1000), st.integers(1, 2**53))
def test_what_was_sealed_opens_to_the_same(text: bytes, seq: int) -> None:
    sealer = Sealer(SESSION, KEY_ID, bytes(32))
    line = sealer.seal(seq, text)
    assert sealer.open(line) == text
    assert json.loads(line)["seq"] == seq


def test_a_client_and_a_broker_understand_each_other_and_nobody_else() -> None:
    own = private_key(VECTORS["clientPrivJwk"])
    channel, other = accept_hello(HELLO, SESSION), accept_hello(HELLO, SESSION)
    theirs = base64.b64decode(channel.hello.server_ephemeral_pub_key_b64)
    assert json.loads(base64.b64decode(channel.header))["keyId"] == channel.hello.key_id
    common = own.shared_secret(theirs)
    client = Sealer(SESSION, channel.hello.key_id, derive_key(common, SESSION.encode(), TO_CLIENT))
    line = channel.to_client.seal(2, b"hello")
    assert client.open(line) == b"hello"
    with pytest.raises(EncryptionError):
        other.to_client.open(line)
    with pytest.raises(EncryptionError):  # the other direction has another key
        channel.to_server.open(line)
    elsewhere = Sealer("s_other", channel.hello.key_id, derive_key(common, b"s_other", TO_CLIENT))
    with pytest.raises(EncryptionError):
        elsewhere.open(line)


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"clientEphemeralPubKeyB64": "!"}, "ENCRYPTION_INVALID_PUBLIC_KEY", "clientEphemeralPubKeyB64"),
        ({"clientEphemeralPubKeyB64": ""}, "ENCRYPTION_INVALID_PUBLIC_KEY", "clientEphemeralPubKeyB64"),
        (
            {"clientEphemeralPubKeyB64": base64.b64encode(b"\x04" + bytes(64)).decode()},
            "ENCRYPTION_INVALID_PUBLIC_KEY",
            "clientEphemeralPubKeyB64",
        ),
        ({"curve": "P-384"}, "ENCRYPTION_UNSUPPORTED_ALGORITHM", "curve"),
        ({"supportedAlgorithms": ["ROT13"]}, "ENCRYPTION_UNSUPPORTED_ALGORITHM", "supportedAlgorithms"),
        ({"curve": 5}, "ENCRYPTION_HANDSHAKE_FAILED", "curve"),
        ({"protocolVersion": 3}, "ENCRYPTION_HANDSHAKE_FAILED", "protocolVersion"),
    ],
)
def test_a_hello_that_cannot_be_used_is_told_why(change: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(EncryptionError) as refused:
        accept_hello(HELLO | change, SESSION)
    assert (refused.value.code, refused.value.field) == (code, field)
    assert refused.value.allowed


def test_no_hello_is_none() -> None:
    nothing: tuple[object, ...] = (None, [], {}, "hello")
    for hello in nothing:
        with pytest.raises(EncryptionError) as refused:
            accept_hello(hello, SESSION)
        assert refused.value.code == "ENCRYPTION_HANDSHAKE_FAILED"


@pytest.mark.parametrize(
    "change",
    [{"kid": "k_other"}, {"nonceB64": "AAAA"}, {"nonceB64": "!"}, {"ciphertextB64": "AAAA"}, {"ciphertextB64": "ü"}],
)
def test_what_was_changed_underway_does_not_open(change: dict[str, str]) -> None:
    sealer = Sealer(SESSION, KEY_ID, bytes(32))
    event = json.loads(sealer.seal(2, b"text"))
    event["payload"] |= change
    with pytest.raises(EncryptionError) as refused:
        sealer.open(json.dumps(event).encode())
    assert refused.value.code == "ENCRYPTION_DECRYPTION_FAILED"


def test_what_is_not_sealed_does_not_open() -> None:
    sealer = Sealer(SESSION, KEY_ID, bytes(32))
    for line in (b"{}", b'{"type":"stdout","sessionId":"s_1","seq":1,"payload":{"chunk":""}}'):
        with pytest.raises(RemoteProtocolError):
            sealer.open(line)
