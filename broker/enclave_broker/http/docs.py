"""`/docs`: the OpenAPI document, and a plain page of it that needs no network and no script."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import msgspec
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin

from enclave_broker.api import AnswerCall, CancelSession, CreateSession
from enclave_protocol.encryption import ClientHello
from enclave_protocol.filters import FilterConfig

from .access_routes import CreateToken
from .batch import CreateBatch

if TYPE_CHECKING:
    from litestar import Request

BODIES = {
    ("/sessions:batch", "post"): CreateBatch,
    ("/sessions", "post"): CreateSession,
    ("/sessions/{session_id}/cancel", "post"): CancelSession,
    ("/sessions/{session_id}/tool-result", "post"): AnswerCall,
    ("/tokens", "post"): CreateToken,
}
"""Requests that are decoded from their bytes in one pass, which Litestar therefore can't see."""

INNER = {("CreateSession", "filter"): FilterConfig, ("EncryptionRequest", "clientHello"): ClientHello}
"""Fields of them that are decoded by themselves, because what is wrong there has a code of its own."""

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "td{padding:2px 1em 2px 0;vertical-align:top}code{background:#eee;padding:1px 4px}"
    "h2{margin-top:2em;font-size:1.1em}"
)


class JsonPage(JsonRenderPlugin):
    """`/docs/openapi.json`."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the document."""
        return super().render(request, with_bodies(openapi_schema))


class RoutesPage(OpenAPIRenderPlugin):
    """`/docs`."""

    def __init__(self) -> None:
        super().__init__(path="/")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the page."""
        document = with_bodies(openapi_schema)
        parts = [
            f"<!doctype html><meta charset=utf-8><title>Enclave broker</title><style>{STYLE}</style>",
            f"<h1>Enclave broker {html.escape(document['info']['version'])}</h1>",
            "<p>The same as <a href=/docs/openapi.json>OpenAPI</a>. <code>/ws</code> speaks the worker's messages.</p>",
        ]
        for path, methods in sorted(document["paths"].items()):
            for method, operation in methods.items():
                parts.append(_operation(path, method, operation, document))
        return "".join(parts).encode()


def with_bodies(openapi_schema: dict[str, Any]) -> dict[str, Any]:
    """Return the document with the request bodies in it."""
    types = list(BODIES.values())
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    paths = {path: dict(methods) for path, methods in openapi_schema["paths"].items()}
    for (path, method), schema in zip(BODIES, schemas, strict=True):
        content = {"application/json": {"schema": schema}}
        paths[path][method] = paths[path][method] | {"requestBody": {"content": content}}
    for (name, field), kind in INNER.items():
        (schema,), inner = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
        components |= inner
        components[name]["properties"][field] = schema
    known = openapi_schema.get("components", {})
    merged = known | {"schemas": known.get("schemas", {}) | components}
    return openapi_schema | {"paths": paths, "components": merged}


def _operation(path: str, method: str, operation: dict[str, Any], document: dict[str, Any]) -> str:
    text = operation.get("description") or operation.get("summary", "")
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code><td>{html.escape(what)}"
        for name, what in _fields(operation, document)
    )
    answers = ", ".join(
        f"{status} {html.escape(answer.get('description', ''))}" for status, answer in operation["responses"].items()
    )
    return (
        f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(text)}</p>"
        f"<table>{rows}</table><p>Answers: {answers}</p>"
    )


def _fields(operation: dict[str, Any], document: dict[str, Any]) -> list[tuple[str, str]]:
    found = [(item["name"], item.get("description", item["in"])) for item in operation.get("parameters", ())]
    body = operation.get("requestBody")
    if body is not None:
        name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for field, schema in document["components"]["schemas"][name]["properties"].items():
            kind = schema.get("type") or schema.get("$ref", "").rpartition("/")[2] or "any of several types"
            found.append((field, str(kind)))
    return found
