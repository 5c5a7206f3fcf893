"""Secrets by name: where they are put in, and what a guest can't put in their place."""

from __future__ import annotations

import base64

import pytest

from enclave_broker.tools.sources.credentials import Credentials
from enclave_broker.tools.sources.requests import HttpRequest
from enclave_broker.tools.sources.templates import MissingSecret, Template

SECRETS = {"KEY": "k€y/1", "OTHER": "o"}


def credentials(**fields: object) -> Credentials:
    return Credentials(**({"headers": {}, "query": {}, "cookies": {}} | fields))  # type: ignore[arg-type]


def test_a_template_has_its_secrets_filled_in() -> None:
    template = Template("Bearer ${KEY}, ${OTHER}: $$5")
    assert template.secrets == {"KEY", "OTHER"}
    assert template.fill(SECRETS) == "Bearer k€y/1, o: $5"
    assert Template("${A}").fill({"A": "${KEY}", **SECRETS}) == "${KEY}"


@pytest.mark.parametrize("text", ["$KEY", "${KEY", "5 $", "${no name}", "${KEY:-x}"])
def test_a_dollar_sign_that_would_be_sent_as_it_is_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the name of a secret"):
        Template(text)


def test_a_secret_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingSecret, match="no secret 'KEY'"):
        Template("${KEY}").fill({})


def test_credentials_replace_what_the_guest_said_in_their_place() -> None:
    request = HttpRequest(
        method="GET",
        url="http://x",
        headers=(("x-KEY", "guest"), ("Other", "1")),
        query=(("key", "guest"), ("q", "1")),
        cookies=(("sid", "guest"),),
    )
    own = credentials(
        headers={"X-Key": Template("${KEY}")}, query={"key": Template("${KEY}")}, cookies={"sid": Template("${KEY}")}
    )
    assert own.secrets == ("KEY",)
    assert own.header_names == {"x-key"}
    applied = own.apply(request, SECRETS)
    assert applied.headers == (("Other", "1"), ("X-Key", "k€y/1"))
    assert applied.query == (("q", "1"), ("key", "k€y/1"))
    assert applied.cookies == (("sid", "k%E2%82%ACy%2F1"),)


def test_basic_credentials_are_a_user_and_a_password() -> None:
    own = credentials(basic=(Template("me"), Template("${KEY}")))
    applied = own.apply(HttpRequest(method="GET", url="http://x", headers=(("authorization", "guest"),)), SECRETS)
    assert applied.headers == (("Authorization", f"Basic {base64.b64encode('me:k€y/1'.encode()).decode()}"),)
    assert own.header_names == {"authorization"}
