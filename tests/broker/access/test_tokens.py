"""Session tokens: what we signed and nothing else, until they end, and never more than their key may do."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_broker.access import LOCAL, Denied, Gate, Scope, Signer, parse_book
from enclave_broker.access.caller import DEFAULT_KEY_SCOPES, SESSION_SCOPES, Caller
from enclave_broker.access.keys import key_lines, new_key

OLD, NEW = "old-" + "0123456789abcdef" * 4, "new-" + "0123456789abcdef" * 4
KEY, ID = new_key()
READER, READER_ID = new_key()
BOOK = parse_book(
    key_lines(KEY, ID, "acme", DEFAULT_KEY_SCOPES)
    + key_lines(READER, READER_ID, "acme", frozenset({Scope.READ, Scope.MINT}))
    + "[tenants.acme.limits]\ndeadlineMs = 5000\nmaxToolCalls = 20\n"
)
NOW = 1_800_000_000.0


class Clock:
    """The time, as the gate is told it."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def gate_at(clock: Clock, *secrets: str) -> Gate:
    return Gate(BOOK, Signer(secrets or (NEW,)), clock=clock)


def asked(credential: str | None, **headers: str) -> dict[str, Any]:
    """The ASGI scope of a request."""
    shown = [(b"authorization", f"Bearer {credential}".encode("latin-1"))] if credential is not None else []
    more = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "headers": [*shown, *more]}


def refused(gate: Gate, scope: dict[str, Any]) -> tuple[int, str]:
    with pytest.raises(Denied) as caught:
        gate.caller(scope)
    return caught.value.status, caught.value.code


def minted(gate: Gate, key: str = KEY, **wanted: Any) -> str:
    token, _ = gate.mint(gate.caller(asked(key)), **({"life_s": 60} | wanted))
    return token


def test_a_token_is_its_tenants_and_may_what_it_says() -> None:
    gate = gate_at(Clock())
    token = minted(gate, scopes=[Scope.READ], session_id="s_1", limits={"deadlineMs": 100, "maxStdoutBytes": 9})
    caller = gate.caller(asked(token))
    assert caller == Caller(
        tenant="acme",
        scopes=frozenset({Scope.READ}),
        key_id=ID,
        session_id="s_1",
        limits={"deadlineMs": 100, "maxToolCalls": 20, "maxStdoutBytes": 9},
        expires_at=NOW + 60,
    )


def test_a_token_is_a_jwt_as_others_read_it() -> None:
    claims = jwt.decode(minted(Gate(BOOK, Signer((NEW,)))), NEW, algorithms=["HS256"], audience="enclave")
    assert (claims["sub"], claims["key"], claims["scope"]) == ("acme", ID, " ".join(sorted(SESSION_SCOPES)))


def test_a_token_can_loosen_no_limit_of_its_tenant() -> None:
    gate = gate_at(Clock())
    assert gate.caller(asked(minted(gate, limits={"deadlineMs": 9999}))).limits["deadlineMs"] == 5000


def test_a_token_ends_when_it_says() -> None:
    clock = Clock()
    gate = gate_at(clock)
    token = minted(gate)
    clock.now += 59.9
    caller = gate.caller(asked(token))
    gate.allow(caller, Scope.READ)
    clock.now += 0.1
    assert refused(gate, asked(token)) == (401, "TOKEN_EXPIRED")
    with pytest.raises(Denied, match="ended"):
        gate.allow(caller, Scope.READ)


def test_a_token_ends_with_its_key_and_keeps_no_scope_that_the_key_has_lost() -> None:
    gate = gate_at(Clock())
    token = minted(gate)
    caller = gate.caller(asked(token))
    gate.reload(parse_book(key_lines(KEY, ID, "acme", frozenset({Scope.READ}))))
    assert gate.caller(asked(token)).scopes == {Scope.READ}
    with pytest.raises(Denied):
        gate.allow(caller, Scope.CREATE)
    gate.reload(parse_book(key_lines(KEY, ID, "another", DEFAULT_KEY_SCOPES)))
    assert refused(gate, asked(token)) == (401, "UNAUTHENTICATED")
    gate.reload(parse_book(""))
    assert refused(gate, asked(token)) == (401, "UNAUTHENTICATED")
    with pytest.raises(Denied):
        gate.allow(caller, Scope.READ)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"origin": "https://app.example"}, None),
        ({"origin": "https://evil.example"}, "FORBIDDEN_ORIGIN"),
        ({"origin": "https://app.example.evil.example"}, "FORBIDDEN_ORIGIN"),
        ({"origin": "http://app.example"}, "FORBIDDEN_ORIGIN"),
        ({"origin": "https://app.example:8443"}, "FORBIDDEN_ORIGIN"),
        ({"origin": "null"}, "FORBIDDEN_ORIGIN"),
        ({"origin": "https://evil.example", "sec_fetch_site": "same-origin"}, "FORBIDDEN_ORIGIN"),
        ({"sec_fetch_site": "cross-site"}, "FORBIDDEN_ORIGIN"),
        ({"sec_fetch_site": "same-origin"}, None),
        ({}, "FORBIDDEN_ORIGIN"),
    ],
)
def test_a_token_for_an_origin_is_for_its_pages_only(headers: dict[str, str], code: str | None) -> None:
    gate = gate_at(Clock())
    scope = asked(minted(gate, origins=["https://app.example"]), **headers)
    if code is None:
        assert gate.caller(scope).tenant == "acme"
    else:
        assert refused(gate, scope) == (403, code)


def test_a_secret_is_replaced_without_ending_tokens() -> None:
    clock = Clock()
    before, during, after = gate_at(clock, OLD), gate_at(clock, NEW, OLD), gate_at(clock, NEW)
    old, new = minted(before), minted(during)
    assert during.caller(asked(old)) == during.caller(asked(new))
    assert refused(after, asked(old)) == (401, "UNAUTHENTICATED")
    assert after.caller(asked(new)).tenant == "acme"


def test_without_a_secret_tokens_end_with_the_broker() -> None:
    clock = Clock()
    token = minted(Gate(BOOK, Signer(), clock=clock))
    assert refused(Gate(BOOK, Signer(), clock=clock), asked(token)) == (401, "UNAUTHENTICATED")


def _forged(claims: dict[str, Any] | bytes, *, secret: str = NEW, **header: Any) -> str:
    kid = jwt.get_unverified_header(minted(gate_at(Clock()), scopes=[Scope.READ]))["kid"]
    body = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    headers = {"typ": "JWT", "kid": kid} | header
    algorithm = headers.pop("alg", "HS256")
    return jwt.PyJWS().encode(body, secret, algorithm=algorithm, headers=headers)


GOOD = {
    "iss": "enclave",
    "aud": "enclave",
    "sub": "acme",
    "key": ID,
    "jti": "x",
    "iat": int(NOW),
    "exp": int(NOW) + 60,
    "scope": "sessions:read",
}


def test_what_the_forger_of_the_next_test_forges_would_be_good_but_for_one_thing() -> None:
    assert gate_at(Clock()).caller(asked(_forged(GOOD))).scopes == {Scope.READ}


@pytest.mark.parametrize(
    "token",
    [
        _forged(GOOD, secret="x" * 48),
        _forged(GOOD, kid="000000000000"),
        _forged(GOOD, kid=""),
        _forged(GOOD, typ="JWS"),
        _forged(GOOD, alg="HS384"),
        _forged(GOOD, alg="HS512"),
        _forged(GOOD, alg="none", secret=""),
        _forged(GOOD, jku="https://evil.example"),
        _forged(GOOD, jwk={"kty": "oct", "k": "AA"}),
        _forged(GOOD | {"iss": "another"}),
        _forged(GOOD | {"aud": ["enclave"]}),
        _forged(GOOD | {"sub": "another"}),
        _forged(GOOD | {"key": READER_ID, "sub": "another"}),
        _forged(GOOD | {"key": ""}),
        _forged(GOOD | {"admin": True}),
        _forged(GOOD | {"exp": str(NOW + 60)}),
        _forged(GOOD | {"exp": float("inf")}),
        _forged(GOOD | {"exp": int(NOW) + 100 * 86400}),
        _forged(GOOD | {"iat": int(NOW) + 3600, "exp": int(NOW) + 3660}),
        _forged({name: value for name, value in GOOD.items() if name != "exp"}),
        _forged({name: value for name, value in GOOD.items() if name != "scope"}),
        _forged(GOOD | {"origins": "https://app.example"}),
        _forged(GOOD | {"sid": 5}),
        _forged(GOOD | {"limits": {"deadlineMs": "1"}}),
        _forged(b"[]"),
        _forged(b"\xff"),
        _forged(b"[" * 2000),
        _forged(GOOD).rpartition(".")[0] + ".",
        _forged(GOOD).rpartition(".")[0],
        _forged(GOOD) + "A" * 5000,
        _forged(GOOD).replace(".", "..", 1),
    ],
)
def test_anything_but_a_token_of_ours_is_refused(token: str) -> None:
    assert refused(gate_at(Clock()), asked(token)) == (401, "UNAUTHENTICATED")


def test_no_bit_of_a_token_can_change() -> None:
    gate = gate_at(Clock())
    token = minted(gate)
    head, _, signature = token.rpartition(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
    for position in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[position // 8] ^= 1 << position % 8
        forged = f"{head}.{base64.urlsafe_b64encode(changed).rstrip(b'=').decode()}"
        assert refused(gate, asked(forged)) == (401, "UNAUTHENTICATED")
    for position in range(len(head)):
        forged = head[:position] + ("A" if head[position] != "A" else "B") + head[position + 1 :] + "." + signature
        assert refused(gate, asked(forged))[0] == 401


@given(st.text(max_size=400) | st.binary(max_size=300).map(lambda data: data.decode("latin-1")))
def test_any_authorization_header_is_a_refusal(text: str) -> None:
    header = text.encode("latin-1", "replace")
    scope = {"type": "http", "headers": [(b"authorization", header)]}
    assert refused(gate_at(Clock()), scope) == (401, "UNAUTHENTICATED")
    websocket = {"type": "websocket", "headers": [], "subprotocols": ["enclave.v2", f"enclave.bearer.{text}"]}
    assert refused(gate_at(Clock()), websocket) == (401, "UNAUTHENTICATED")


@given(st.lists(st.sampled_from([KEY, "x", "eyJ", ".", "Bearer", " ", "ek_", "\xff"]), max_size=8))
def test_what_is_nearly_a_key_is_a_refusal(parts: list[str]) -> None:
    text = "".join(parts)
    if text.strip() != KEY:
        assert refused(gate_at(Clock()), asked(text)) == (401, "UNAUTHENTICATED")


def test_one_credential_is_shown_not_two() -> None:
    gate = gate_at(Clock())
    twice = {"type": "http", "headers": [(b"authorization", f"Bearer {KEY}".encode())] * 2}
    assert refused(gate, twice) == (401, "UNAUTHENTICATED")
    both = asked(KEY) | {"subprotocols": [f"enclave.bearer.{KEY}"]}
    assert refused(gate, both) == (401, "UNAUTHENTICATED")


def test_a_websocket_may_show_its_token_as_a_subprotocol() -> None:
    gate = gate_at(Clock())
    token = minted(gate)
    scope = {"type": "websocket", "headers": [], "subprotocols": ["enclave.v2", f"enclave.bearer.{token}"]}
    assert gate.caller(scope).scopes == SESSION_SCOPES


@pytest.mark.parametrize(
    ("method", "path", "query", "known"),
    [
        ("GET", "/sessions/s_1/stream", "access_token={token}", True),
        ("GET", "/sessions/s_1/stream", "fromSeq=3&access_token={token}", True),
        ("GET", "/sessions/s_1/stream", "access_token={key}", False),
        ("GET", "/sessions/s_1/stream", "access_token={token}&access_token={token}", False),
        ("GET", "/sessions/s_1/stream", "access_token={token}" + "&a=1" * 40, False),
        ("GET", "/sessions/s_1/stream", "access_token=", False),
        ("GET", "/sessions/s_1/stream", "access_token=%ff%00", False),
        ("GET", "/sessions/s_1", "access_token={token}", False),
        ("GET", "/sessions/s_1/stream/x", "access_token={token}", False),
        ("POST", "/sessions/s_1/stream", "access_token={token}", False),
        ("POST", "/sessions", "access_token={token}", False),
    ],
)
def test_a_url_may_hold_a_token_where_it_is_a_streams_and_never_a_key(
    method: str, path: str, query: str, *, known: bool
) -> None:
    gate = gate_at(Clock())
    text = query.format(token=minted(gate), key=KEY)
    scope = {"type": "http", "method": method, "path": path, "query_string": text.encode(), "headers": []}
    if known:
        assert gate.caller(scope).scopes == SESSION_SCOPES
        both = scope | {"headers": [(b"authorization", f"Bearer {KEY}".encode())]}
        assert refused(gate, both) == (401, "UNAUTHENTICATED")
    else:
        assert refused(gate, scope) == (401, "UNAUTHENTICATED")


def test_a_key_gives_only_what_it_has_and_a_token_gives_nothing() -> None:
    gate = gate_at(Clock())
    assert gate.caller(asked(minted(gate, READER))).scopes == {Scope.READ}
    for scopes in ([Scope.CREATE], [Scope.READ, Scope.CONTROL], [Scope.MINT], []):
        with pytest.raises(Denied, match="scopes that the key can't give"):
            minted(gate, READER, scopes=scopes)
    with pytest.raises(Denied, match="a token makes no tokens"):
        gate.mint(gate.caller(asked(minted(gate))), life_s=60)


def test_without_keys_everybody_is_the_default_tenant_whatever_they_show() -> None:
    gate = Gate(None, Signer())
    for scope in (asked(None), asked("x"), asked(KEY)):
        assert gate.caller(scope) is LOCAL
    gate.allow(LOCAL, Scope.CREATE)


def test_nothing_that_is_printed_shows_a_secret() -> None:
    signer = Signer((NEW,))
    assert NEW not in repr(signer)
    assert NEW not in repr(Gate(BOOK, signer))
