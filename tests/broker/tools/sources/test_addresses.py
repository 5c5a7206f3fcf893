"""Where requests go."""

from __future__ import annotations

from typing import Any

import pytest

from enclave_broker.tools.sources.addresses import base_url, origin
from enclave_broker.tools.sources.document import DocumentError
from enclave_broker.tools.sources.selection import Selection

SPEC = "https://api.example/docs/openapi.json"


def address(*servers: dict[str, Any], own: tuple[dict[str, Any], ...] = (), **options: Any) -> str:
    """Where requests go of an operation of a document with these servers."""
    document, operation = {"servers": list(servers)}, {"servers": list(own)}
    return base_url(document, {}, operation, Selection(source="pets", **options))


@pytest.mark.parametrize(
    ("servers", "options", "expected"),
    [
        ([{"url": "/v1"}], {"base_url": "http://other/x/", "document_url": SPEC}, "http://other/x"),
        ([{"url": "https://any.where/v2/"}], {}, "https://any.where/v2"),
        ([{"url": "/v2"}], {"document_url": SPEC}, "https://api.example/v2"),
        ([{"url": "v2"}], {"document_url": SPEC}, "https://api.example/docs/v2"),
        ([{"url": "https://API.example:443/v2"}], {"document_url": SPEC}, "https://API.example:443/v2"),
        ([], {"document_url": SPEC}, "https://api.example"),
        (
            [{"url": "https://{where}.example", "variables": {"where": {"default": "eu"}}}],
            {},
            "https://eu.example",
        ),
    ],
)
def test_requests_go_to_the_option_else_to_the_server_else_to_the_documents_origin(
    servers: list[dict[str, Any]], options: Any, expected: str
) -> None:
    assert address(*servers, **options) == expected


def test_an_operations_own_server_wins_over_the_documents() -> None:
    assert address({"url": "https://any.where"}, own=({"url": "https://own.example"},)) == "https://own.example"


@pytest.mark.parametrize("url", ["https://evil.example", "http://api.example/v1", "https://api.example:8443", "//evil"])
def test_a_document_from_the_network_cannot_send_requests_and_credentials_elsewhere(url: str) -> None:
    with pytest.raises(DocumentError, match="set base_url to allow that"):
        address({"url": url}, document_url=SPEC)


@pytest.mark.parametrize("url", ["/v1", "file:///etc", "ftp://x", "https://", ""])
def test_a_server_that_is_no_address_is_told(url: str) -> None:
    with pytest.raises(DocumentError, match="no address"):
        address({"url": url})


def test_an_origin_is_scheme_host_and_port_however_they_are_spelled() -> None:
    assert origin("HTTPS://A.example/x") == origin("https://a.EXAMPLE:443/y")
    assert origin("http://a.example") != origin("https://a.example")
