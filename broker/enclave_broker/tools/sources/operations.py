"""The operations of an OpenAPI document that become tools, and what each is called. Pure.

An operation becomes a tool `<source>_<operationId>`. What can't be offered safely or at all is left out and told
(`Problem`), and costs nothing else of the document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .document import DocumentError, References
from .naming import operation_name
from .operation_reader import OperationReader
from .schemas import SchemaCopier
from .selection import is_chosen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .operation import Operation
    from .selection import Selection

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "query")
"""Not `trace`: its answer is the request, with the credentials in it."""
MAX_OPERATIONS = 2000
"""Most operations of one document that become tools."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An operation that is not offered."""

    what: str
    reason: str


def find_operations(document: dict[str, Any], chosen: Selection) -> tuple[list[Operation], list[Problem]]:
    """Return the operations that become tools, and what was left out."""
    operations: list[Operation] = []
    problems: list[Problem] = []
    names: set[str] = set()
    references = References(document)
    copier = SchemaCopier(references)
    for method, path, item, raw in _raw_operations(document, references, problems):
        what = f"{method.upper()} {path}"
        operation_id = raw.get("operationId")
        called = [what, operation_id] if isinstance(operation_id, str) else [what]
        if not is_chosen(called, chosen.include, chosen.exclude):
            continue
        if len(operations) == MAX_OPERATIONS:
            problems.append(Problem(what, f"there are more than {MAX_OPERATIONS} operations: choose with `include`"))
            break
        try:
            name = operation_name(chosen.source, operation_id, method, path, names)
            operation = OperationReader(document, references, copier, chosen).read(name, method, path, item, raw)
        except (DocumentError, TypeError, KeyError, AttributeError) as error:
            reason = str(error) if isinstance(error, DocumentError) else f"not OpenAPI: {error!r}"
            problems.append(Problem(what, reason[:500]))
            continue
        names.add(name)
        operations.append(operation)
    return operations, problems


def _raw_operations(
    document: dict[str, Any], references: References, problems: list[Problem]
) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    paths = document.get("paths")
    for path, raw_item in paths.items() if isinstance(paths, dict) else ():
        try:
            item = references.follow(raw_item)
        except DocumentError as error:
            problems.append(Problem(path, str(error)))
            continue
        if not isinstance(item, dict):
            continue
        for method in METHODS:
            if isinstance(item.get(method), dict):
                yield method, path, item, item[method]
