"""End-to-end encryption of a session's events, between a client and a broker. Pure, but for fresh keys.

Theory of operation. The client sends an ephemeral P-256 key in its `ClientHello`, the broker answers with one of its
own, and ECDH gives both a secret that HKDF parts into two keys, one per direction, with the session's id as the salt:
keys of one session are of no use in another. Each event then travels as the ciphertext of its whole line in an `enc`
event of the same `seq`. An event is sealed once, when it is written to the log, so every reader and every replay gets
the same bytes, and no nonce is ever used for two texts. Nonces are 8 random bytes and a counter, so they don't repeat
within a key either; a key that has sealed `MAX_MESSAGES` is done.

Whoever changes the traffic underway can take events out or put them in another order, and the sealed `seq` inside tells
a client that; nothing but TLS tells it whether the broker that answered was the right one, for the hello is not signed.
"""

from __future__ import annotations

import base64
import binascii
import os
import uuid
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .codec import decode_event, encode
from .errors import RemoteProtocolError
from .events import PROTOCOL_VERSION, Encrypted, EncryptedPayload, ServerHello
from .limits import split_path

CURVE: Literal["P-256"] = "P-256"
ALGORITHM: Literal["AES-GCM-256"] = "AES-GCM-256"
KDF: Literal["HKDF-SHA-256"] = "HKDF-SHA-256"
TO_SERVER = b"enclavejs-c2s-enc"
TO_CLIENT = b"enclavejs-s2c-enc"

MAX_MESSAGES = 2**30
"""Messages under one key; the counter in a nonce has 32 bits."""
NONCE_BYTES = 12

SEALED_FORM = '{type: "enc", payload: {kid, nonceB64, ciphertextB64}}'
POINT_FIELD = "clientEphemeralPubKeyB64"
HELLO_FORM = (
    "{protocolVersion: 2, clientEphemeralPubKeyB64: base64 of an uncompressed P-256 point,"
    ' curve: "P-256", supportedAlgorithms: ["AES-GCM-256"]}'
)


class EncryptionError(RemoteProtocolError):
    """A handshake or a sealed message that cannot be used.

    Attributes:
        code: `ENCRYPTION_…`, as EnclaveJS names it.
    """

    def __init__(self, code: str, reason: str, *, field: str = "", allowed: str = "") -> None:
        self.code = code
        super().__init__(reason, field=field, allowed=allowed)


class ClientHello(msgspec.Struct, frozen=True, rename="camel"):
    """What a client offers."""

    client_ephemeral_pub_key_b64: Annotated[str, Meta(max_length=1000)] = msgspec.field(name=POINT_FIELD)
    curve: str
    supported_algorithms: Annotated[list[str], Meta(max_length=32)]
    protocol_version: Literal[1, 2] = PROTOCOL_VERSION


class Sealer:
    """One direction of one session.

    Args:
        session_id: whose events these are.
        key_id: the `kid` of what is sealed.
        key: 32 bytes.
        prefix: the first 8 bytes of every nonce; random ones if not given.
        max_messages: how many messages the key may seal.
    """

    def __init__(
        self, session_id: str, key_id: str, key: bytes, *, prefix: bytes | None = None, max_messages: int = MAX_MESSAGES
    ) -> None:
        self._session_id = session_id
        self._key_id = key_id
        from .ciphers import Cipher  # noqa: PLC0415 - see there

        self._cipher = Cipher(key)
        self._prefix = os.urandom(8) if prefix is None else prefix
        self._count = 0
        self._max_messages = max_messages

    @property
    def left(self) -> int:
        """How many more messages the key may seal."""
        return self._max_messages - self._count

    def seal(self, seq: int, text: bytes) -> bytes:
        """Return the `enc` event of a text, as one line.

        Raises:
            EncryptionError: `ENCRYPTION_KEY_EXPIRED`, the key has sealed all that it may.
        """
        if not self.left:
            raise EncryptionError("ENCRYPTION_KEY_EXPIRED", f"the key has sealed {self._max_messages} messages")
        nonce = self._prefix + self._count.to_bytes(4, "big")
        self._count += 1
        return self.seal_with(nonce, seq, text)

    def seal_with(self, nonce: bytes, seq: int, text: bytes) -> bytes:
        """Seal under a nonce of the caller's, who must never use one twice."""
        payload = EncryptedPayload(
            kid=self._key_id, nonce_b64=_base64(nonce), ciphertext_b64=_base64(self._cipher.seal(nonce, text))
        )
        # The schema of the envelope has `seq` from 0 on; ours are checked where events are numbered.
        return encode(Encrypted(session_id=self._session_id, seq=seq, payload=payload))

    def open(self, line: bytes) -> bytes:
        """Return the text of an `enc` event that was sealed under this key.

        Raises:
            EncryptionError: `ENCRYPTION_DECRYPTION_FAILED`, it was not, or it was changed.
            RemoteProtocolError: it is no `enc` event.
        """
        event = decode_event(line)
        if not isinstance(event, Encrypted):
            raise RemoteProtocolError("not sealed", field="type", allowed="enc")
        return self.open_payload(event.payload)

    def open_payload(self, payload: EncryptedPayload) -> bytes:
        """Return the text of an `enc` event's payload; raises as `open`."""
        if payload.kid != self._key_id:
            raise EncryptionError(
                "ENCRYPTION_DECRYPTION_FAILED", "another key's", field="payload.kid", allowed=self._key_id
            )
        nonce = _from_base64(payload.nonce_b64, "payload.nonceB64")
        sealed = _from_base64(payload.ciphertext_b64, "payload.ciphertextB64")
        if len(nonce) != NONCE_BYTES:
            allowed = f"base64 of {NONCE_BYTES} bytes"
            reason = f"{len(nonce)} bytes"
            raise EncryptionError("ENCRYPTION_DECRYPTION_FAILED", reason, field="payload.nonceB64", allowed=allowed)
        try:
            return self._cipher.open(nonce, sealed)
        except ValueError as error:
            reason = "it was sealed under another key, or changed"
            allowed = f"base64 of {ALGORITHM} ciphertext with its tag at the end"
            where = "payload.ciphertextB64"
            raise EncryptionError("ENCRYPTION_DECRYPTION_FAILED", reason, field=where, allowed=allowed) from error


class _Sealed(msgspec.Struct):
    type: str = ""
    payload: EncryptedPayload | UnsetType = UNSET


def sealed_payload(message: bytes) -> EncryptedPayload | None:
    """Return what a client's message has sealed in it; None if it is not an `enc` message.

    Raises:
        RemoteProtocolError: it is one, and malformed.
    """
    try:
        if _kind_decoder.decode(message).type != "enc":
            return None
        payload = _sealed_decoder.decode(message).payload
    except msgspec.ValidationError as error:
        reason, field = split_path(str(error))
        raise RemoteProtocolError(reason, field=field, allowed=SEALED_FORM) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None  # whoever decodes it next says what is wrong
    if payload is UNSET:
        raise RemoteProtocolError("missing", field="payload", allowed=SEALED_FORM)
    return payload


class Channel:
    """A session's encryption, as the broker has it: what it told the client, and both directions."""

    def __init__(self, hello: ServerHello, *, to_client: Sealer, to_server: Sealer) -> None:
        self.hello = hello
        self.to_client = to_client
        self.to_server = to_server

    @property
    def header(self) -> str:
        """The `ServerHello` as a header's value: base64 of its JSON."""
        return _base64(msgspec.json.encode(self.hello))


def accept_hello(raw: object, session_id: str) -> Channel:
    """Answer a client's hello.

    Args:
        raw: the `clientHello` of a request, decoded.
        session_id: the session that it is for.

    Raises:
        EncryptionError: says which part of it cannot be used, and why.
    """
    from .ciphers import POINT_BYTES, KeyPair, derive_key  # noqa: PLC0415 - see there

    hello = _client_hello(raw)
    point = _from_base64(hello.client_ephemeral_pub_key_b64, POINT_FIELD, "ENCRYPTION_INVALID_PUBLIC_KEY")
    own = KeyPair()
    try:
        secret = own.shared_secret(point)
    except ValueError as error:
        reason, allowed = "not a point of the curve", f"base64 of {POINT_BYTES} bytes, an uncompressed point of {CURVE}"
        raise EncryptionError("ENCRYPTION_INVALID_PUBLIC_KEY", reason, field=POINT_FIELD, allowed=allowed) from error
    key_id = f"k_{uuid.uuid4()}"
    answer = ServerHello(
        server_ephemeral_pub_key_b64=_base64(own.public_point),
        curve=CURVE,
        selected_algorithm=ALGORITHM,
        kdf=KDF,
        key_id=key_id,
    )
    return Channel(
        answer,
        to_client=Sealer(session_id, key_id, derive_key(secret, session_id.encode(), TO_CLIENT)),
        to_server=Sealer(session_id, key_id, derive_key(secret, session_id.encode(), TO_SERVER)),
    )


def _client_hello(raw: object) -> ClientHello:
    try:
        hello = msgspec.convert(raw, ClientHello)
    except msgspec.ValidationError as error:
        reason, field = split_path(str(error))
        raise EncryptionError("ENCRYPTION_HANDSHAKE_FAILED", reason, field=field, allowed=HELLO_FORM) from error
    if hello.curve != CURVE:
        reason = f"no such curve here: {hello.curve[:40]!r}"
        raise EncryptionError("ENCRYPTION_UNSUPPORTED_ALGORITHM", reason, field="curve", allowed=CURVE)
    if ALGORITHM not in hello.supported_algorithms:
        reason = "none of these is known here"
        raise EncryptionError(
            "ENCRYPTION_UNSUPPORTED_ALGORITHM", reason, field="supportedAlgorithms", allowed=f"{ALGORITHM} among them"
        )
    return hello


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_base64(text: str, field: str, code: str = "ENCRYPTION_DECRYPTION_FAILED") -> bytes:
    try:
        return binascii.a2b_base64(text.encode(), strict_mode=True)
    except ValueError as error:
        raise EncryptionError(code, f"not base64: {error}", field=field, allowed="base64, padded") from error


class _Kind(msgspec.Struct):
    type: object = ""


_kind_decoder = msgspec.json.Decoder(_Kind)
_sealed_decoder = msgspec.json.Decoder(_Sealed)
