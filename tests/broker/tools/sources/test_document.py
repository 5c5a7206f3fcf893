"""OpenAPI documents: what is read, what is followed, and what is not."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from enclave_broker.tools.sources.document import DocumentError, References, parse_document

MINIMAL = b'{"openapi": "3.1.0", "paths": {}}'


def test_json_and_yaml_are_the_same_document() -> None:
    assert parse_document(MINIMAL) == parse_document(b"openapi: 3.1.0\npaths: {}\n")
    assert parse_document(b"\xef\xbb\xbf" + MINIMAL) == parse_document(MINIMAL)


def test_yamls_numbers_booleans_and_dates_become_what_json_would_say() -> None:
    document = parse_document(b"openapi: 3.0.0\npaths: {200: {on: 2024-01-02}}\n")
    assert document["paths"] == {"200": {"true": "2024-01-02"}}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[]", "not an object"),
        (b"{", "not JSON"),
        (b"a: [", "neither JSON nor YAML"),
        (b'{"swagger": "2.0"}', "convert it to OpenAPI 3"),
        (b'{"openapi": "4.0"}', "versions 3.0 to 3.2"),
        (b'{"openapi": 3}', "versions 3.0 to 3.2"),
        (b"!!python/object/apply:os.system ['true']", "neither JSON nor YAML"),
    ],
)
def test_what_is_no_openapi_document_is_refused_with_the_reason(data: bytes, says: str) -> None:
    with pytest.raises(DocumentError, match=says):
        parse_document(data)


def test_a_short_yaml_that_stands_for_billions_of_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclave_broker.tools.sources.document.MAX_NODES", 50_000)
    lines = ["openapi: 3.0.0", "a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(DocumentError, match="more than 50000 values"):
        parse_document("\n".join(lines).encode())


def test_a_yaml_that_contains_itself_is_refused() -> None:
    with pytest.raises(DocumentError, match="nests more than"):
        parse_document(b"openapi: 3.0.0\npaths: &p {a: *p}\n")


def test_without_pyyaml_a_yaml_document_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert parse_document(MINIMAL)
    with pytest.raises(DocumentError, match=r"pip install 'enclave\[yaml\]'"):
        parse_document(b"openapi: 3.1.0")


DOCUMENT: dict[str, Any] = {
    "a": {"b": {"$ref": "#/c/0"}},
    "c": [{"$ref": "#/d~1e~0f"}],
    "d/e~f": {"end": True},
    "loop": {"$ref": "#/loop"},
}


def test_references_are_followed_to_the_end_of_their_chain() -> None:
    assert References(DOCUMENT).follow({"$ref": "#/a/b"}) == {"end": True}
    assert References(DOCUMENT).follow({"no": "reference"}) == {"no": "reference"}


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("#/nowhere", "leads nowhere"),
        ("#/c/7", "leads nowhere"),
        ("#/c/-1", "leads nowhere"),
        ("#/loop", "leads to itself"),
        ("#anchor", "an anchor"),
        ("other.json#/a", "only references inside the document"),
        ("file:///etc/passwd", "only references inside the document"),
        ("/etc/passwd", "only references inside the document"),
        ("http://169.254.169.254/latest/meta-data", "only references inside the document"),
    ],
)
def test_a_reference_that_leaves_the_document_or_leads_nowhere_is_refused(reference: str, says: str) -> None:
    with pytest.raises(DocumentError, match=says):
        References(DOCUMENT).follow({"$ref": reference})
