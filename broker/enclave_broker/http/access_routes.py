"""`POST /tokens` and `GET /tenant`: what a key's owner gives to browsers, and what they have used."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.enums import MediaType
from litestar.openapi import ResponseSpec
from litestar.status_codes import HTTP_200_OK, HTTP_201_CREATED
from msgspec import UNSET, Meta, UnsetType

from enclave_broker.access import CAPPABLE, Scope, Usage
from enclave_broker.access.tokens import DEFAULT_LIFE_S, MAX_LIFE_S, MAX_ORIGINS, ORIGIN
from enclave_broker.api import ErrorBody, decode_body, invalid
from enclave_protocol import RemoteProtocolError, parse_session_id

from .access import caller_of, needs

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from enclave_broker.dispatcher import Dispatcher

DENIED = {
    401: ResponseSpec(ErrorBody, description="No key or token of this broker.", generate_examples=False),
    403: ResponseSpec(ErrorBody, description="The key or token is not for this.", generate_examples=False),
}
WRONG = {400: ResponseSpec(ErrorBody, description="A field is wrong; the body names it.", generate_examples=False)}


class CreateToken(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """What a token is for. Everything may be left out."""

    scopes: Annotated[list[Scope], Meta(min_length=1)] | UnsetType = UNSET
    """Of `sessions:create`, `sessions:read` and `sessions:control`; all that the key has if left out."""
    session_id: str | UnsetType = UNSET
    """The one session that the token is about; it need not exist yet."""
    origins: Annotated[list[str], Meta(min_length=1, max_length=MAX_ORIGINS)] | UnsetType = UNSET
    """Sites whose pages may use it, such as `https://app.example`; any if left out."""
    ttl_ms: Annotated[int, Meta(ge=1000, le=MAX_LIFE_S * 1000)] = DEFAULT_LIFE_S * 1000
    """How long it is good: 15 minutes if left out, at most a day."""
    limits: dict[str, Annotated[int, Meta(gt=0, le=2**53 - 1)]] | UnsetType = UNSET
    """The most that limits of sessions made with it may be."""


class TokenCreated(msgspec.Struct, rename="camel", omit_defaults=True):
    """A token."""

    token: str
    expires_at: int
    """Milliseconds since the epoch."""
    tenant: str
    scopes: list[str]
    session_id: str | UnsetType = UNSET


class Tenant(msgspec.Struct, rename="camel", omit_defaults=True):
    """Who the caller is, and what of the quotas is used."""

    tenant: str
    scopes: list[str]
    quotas: list[Usage]
    limits: dict[str, int]
    """The most that limits of the caller's sessions may be."""
    session_id: str | UnsetType = UNSET
    """The one session that the caller's token is about."""
    expires_at: int | UnsetType = UNSET
    """When the caller's token ends, in milliseconds since the epoch."""


def access_routes(dispatcher: Dispatcher) -> list[HTTPRouteHandler]:
    """Return the routes about the caller."""
    gate = dispatcher.gate

    @post("/tokens", status_code=HTTP_201_CREATED, opt=needs(Scope.MINT), responses=WRONG | DENIED)
    async def create_token(request: Request[Any, Any, Any]) -> Response[TokenCreated]:
        """Make a short-lived token for a browser.

        It may do less than the key that makes it, and ends with it.
        """
        wanted = decode_token_request(await request.body())
        token, claims = gate.mint(
            caller_of(request),
            life_s=wanted.ttl_ms // 1000,
            scopes=wanted.scopes or None,
            origins=wanted.origins or None,
            session_id=wanted.session_id or None,
            limits=wanted.limits or None,
        )
        made = TokenCreated(
            token=token,
            expires_at=claims.exp * 1000,
            tenant=claims.sub,
            scopes=claims.scope.split(),
            session_id=claims.sid,
        )
        return Response(
            made, status_code=HTTP_201_CREATED, headers={"Cache-Control": "no-store"}, media_type=MediaType.JSON
        )

    @get("/tenant", status_code=HTTP_200_OK, sync_to_thread=False, opt=needs(Scope.READ), responses=DENIED)
    def get_tenant(request: Request[Any, Any, Any]) -> Tenant:
        """Say who the caller is, and what of the quotas is used."""
        caller = caller_of(request)
        return Tenant(
            tenant=caller.tenant,
            scopes=sorted(caller.scopes),
            quotas=gate.ledger.account(caller.tenant).usage(time.monotonic()),
            limits=dict(caller.limits),
            session_id=caller.session_id or UNSET,
            expires_at=UNSET if caller.expires_at is None else round(caller.expires_at * 1000),
        )

    return [create_token, get_tenant]


_decoder = msgspec.json.Decoder(CreateToken)


def decode_token_request(body: bytes) -> CreateToken:
    """Read the body of `POST /tokens`, which may be empty; raises ApiError naming the field."""
    if not body.strip():
        return CreateToken()
    wanted: CreateToken = decode_body(_decoder, body)
    if wanted.session_id is not UNSET:
        _check_session_id(wanted.session_id)
    for number, origin in enumerate(wanted.origins or ()):
        if ORIGIN.fullmatch(origin) is None:
            allowed = "as browsers send it: https://app.example, in small letters, with a port but without a path"
            raise invalid("not an origin", field=f"origins[{number}]", allowed=allowed)
    for name in wanted.limits or ():
        if name not in CAPPABLE:
            raise invalid("not a limit that can be capped", field="limits", allowed=", ".join(sorted(CAPPABLE)))
    return wanted


def _check_session_id(session_id: str) -> None:
    try:
        parse_session_id(session_id)
    except RemoteProtocolError as error:
        raise invalid(error.reason, field="sessionId", allowed=error.allowed) from error
