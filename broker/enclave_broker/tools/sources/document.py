"""An OpenAPI document as text becomes data, and its references are followed. Pure.

Only references inside the document (`#/...`) are followed. One that names a file or another address is refused: the
document may come from somebody else, and would otherwise make the broker read its own disk or its own network.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import msgspec

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
"""Largest document that is read."""
MAX_NODES = 2_000_000
"""Most values in a document: a YAML of a few hundred bytes can stand for billions."""
MAX_HOPS = 32
"""Longest chain of references to references."""
MAX_DEPTH = 200
"""Deepest nesting of a document."""


class DocumentError(ValueError):
    """A document, or a part of it, that can't be used; the message says which part and why."""


def parse_document(data: bytes) -> dict[str, Any]:
    """Read an OpenAPI 3 document, JSON or YAML.

    Raises:
        DocumentError: it is neither, is too large, or is no OpenAPI 3 document.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DocumentError(f"the document is {len(data)} bytes; the limit is {MAX_DOCUMENT_BYTES}")
    document = _parse_text(data)
    if not isinstance(document, dict):
        raise DocumentError("the document is not an object")
    if "swagger" in document:
        raise DocumentError(f"this is Swagger {document['swagger']}: convert it to OpenAPI 3 first")
    version = document.get("openapi")
    if not (isinstance(version, str) and version.startswith("3.")):
        raise DocumentError(f"`openapi` is {version!r}; versions 3.0 to 3.2 are understood")
    return document


def _parse_text(data: bytes) -> Any:
    text = data.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"{"):
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise DocumentError(f"the document is not JSON: {error}") from error
    return _parse_yaml(data)


def _parse_yaml(data: bytes) -> Any:
    try:
        import yaml  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise DocumentError("the document is YAML, which needs PyYAML: pip install 'enclave[yaml]'") from error
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = yaml.load(data, Loader=loader)  # noqa: S506 - both are safe loaders
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DocumentError(f"the document is neither JSON nor YAML: {error}") from error
    return _Plain().copy(document)


class _Plain:
    """Copies what YAML made into what JSON can say: text keys, and no aliases, each of which counts in full."""

    def __init__(self) -> None:
        self._nodes = 0

    def copy(self, value: Any, depth: int = 0) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise DocumentError(f"the document holds more than {MAX_NODES} values, or nests more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            return {_key(key): self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.copy(item, depth + 1) for item in value]
        # Dates are text in JSON; an unquoted one in an example is no reason to refuse a document.
        return value if value is None or isinstance(value, str | int | float) else str(value)


def _key(key: Any) -> str:
    # `200:` and `on:` are a number and a boolean to YAML, and names to OpenAPI.
    return {True: "true", False: "false", None: "null"}[key] if key is None or isinstance(key, bool) else str(key)


class References:
    """Follows the references of one document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def follow(self, value: Any) -> Any:
        """Return what `value` stands for: itself, or the end of its chain of references.

        Raises:
            DocumentError: a reference leaves the document, leads nowhere or to itself.
        """
        for _ in range(MAX_HOPS):
            if not (isinstance(value, dict) and isinstance(value.get("$ref"), str)):
                return value
            value = self.look_up(value["$ref"])
        raise DocumentError("a reference leads to itself")

    def look_up(self, reference: str) -> Any:
        """Return the value at `#/a/b`; raises DocumentError."""
        if not reference.startswith("#"):
            raise DocumentError(f"reference {reference[:200]!r}: only references inside the document are followed")
        value: Any = self._document
        for part in pointer_parts(reference):
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                raise DocumentError(f"reference {reference[:200]!r} leads nowhere")
        return value


def pointer_parts(reference: str) -> list[str]:
    """Return the names in `#/a/b`."""
    pointer = unquote(reference[1:])
    if not pointer:
        return []
    if not pointer.startswith("/"):
        raise DocumentError(f"reference {reference[:200]!r}: an anchor, not a path from the document's root")
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/")]
