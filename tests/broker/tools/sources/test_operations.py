"""Which operations of a document become tools, and what each takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from enclave_broker.tools.sources.operations import Problem, find_operations
from enclave_broker.tools.sources.selection import Selection

if TYPE_CHECKING:
    from enclave_broker.tools.sources.operation import Operation

BASE = "https://api.example/v1"


def found(paths: dict[str, Any], **options: Any) -> tuple[list[Operation], list[Problem]]:
    """Read a document of these paths."""
    components = options.pop("components", {})
    servers = options.pop("servers", [{"url": BASE + "/"}])
    document = {"openapi": "3.0.0", "paths": paths, "components": components, "servers": servers}
    return find_operations(document, Selection(source="pets", **options))


def only(raw: dict[str, Any], *, path: str = "/pets", method: str = "get", **options: Any) -> Operation:
    """Read a document of one operation."""
    operations, problems = found({path: {method: raw}}, **options)
    assert not problems
    (operation,) = operations
    return operation


def names(paths: dict[str, Any], **options: Any) -> list[str]:
    operations, problems = found(paths, **options)
    assert not problems
    return [operation.name for operation in operations]


def test_a_tool_is_named_after_its_source_and_operation_id() -> None:
    assert names({"/pets": {"get": {"operationId": "listPets"}}}) == ["pets_listPets"]


def test_without_an_operation_id_it_is_named_after_method_and_path() -> None:
    assert names({"/pets/{id}": {"get": {"parameters": [ID]}}}) == ["pets_get_pets_id"]


def test_names_are_made_of_letters_that_every_language_can_say() -> None:
    assert names({"/a": {"get": {"operationId": "list all/pets (ä)"}}}) == ["pets_list_all_pets"]


def test_the_same_operation_id_twice_gives_two_names_that_stay_the_same_whatever_else_comes() -> None:
    one, two, other = ({"get": {"operationId": name}} for name in ("a", "a", "b"))
    assert names({"/1": one, "/2": two}) == ["pets_a", "pets_get_2"]
    assert names({"/0": other, "/1": one, "/2": two}) == ["pets_b", "pets_a", "pets_get_2"]


PATHS = {
    "/pets": {"get": {"operationId": "listPets"}, "delete": {"operationId": "deletePets"}},
    "/admin": {"get": {"operationId": "secrets"}},
}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), {"listPets", "deletePets", "secrets"}),
        (("*Pets",), (), {"listPets", "deletePets"}),
        (("GET *",), (), {"listPets", "secrets"}),
        (("GET /pets",), (), {"listPets"}),
        ((), ("DELETE *", "secrets"), {"listPets"}),
        (("*",), ("*",), set()),
    ],
)
def test_operations_are_chosen_by_id_or_by_method_and_path(include: Any, exclude: Any, expected: set[str]) -> None:
    assert set(names(PATHS, include=include, exclude=exclude)) == {f"pets_{name}" for name in expected}


ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}


def test_arguments_are_the_parameters_by_name_and_the_body() -> None:
    raw = {
        "parameters": [
            ID,
            {"name": "tags", "in": "query", "schema": {"type": "array"}, "description": "Which"},
            {"name": "X-Trace", "in": "header", "required": True},
            {"name": "lang", "in": "cookie"},
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
    }
    operation = only(raw, path="/pets/{id}", method="post")
    assert operation.input_schema == {
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "tags": {"type": "array", "description": "Which"},
            "X-Trace": {},
            "lang": {},
            "body": {"type": "object"},
        },
        "required": ["id", "X-Trace", "body"],
        "additionalProperties": False,
    }
    assert [parameter.where for parameter in operation.parameters] == ["path", "query", "header", "cookie"]


def test_an_operations_parameter_replaces_its_paths_of_the_same_name() -> None:
    item = {
        "parameters": [ID, {"name": "q", "in": "query", "schema": {"type": "string"}}],
        "get": {"operationId": "x", "parameters": [{"name": "q", "in": "query", "schema": {"type": "integer"}}]},
    }
    (operation,), _ = found({"/pets/{id}": item})
    assert operation.input_schema["properties"] == {"id": {"type": "integer"}, "q": {"type": "integer"}}


def test_parameters_of_one_name_in_two_places_are_two_arguments() -> None:
    raw = {
        "parameters": [ID, {"name": "id", "in": "query"}, {"name": "body", "in": "query"}],
        "requestBody": {"content": {"text/plain": {}}},
    }
    operation = only(raw, path="/pets/{id}", method="post")
    assert list(operation.input_schema["properties"]) == ["id", "id_query", "body", "body_body"]


def test_parameters_bodies_and_schemas_may_be_references() -> None:
    components = {
        "parameters": {"Id": ID},
        "requestBodies": {"B": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}}}},
        "schemas": {"Pet": {"type": "object"}},
    }
    raw = {
        "parameters": [{"$ref": "#/components/parameters/Id"}],
        "requestBody": {"$ref": "#/components/requestBodies/B"},
    }
    operation = only(raw, path="/pets/{id}", method="put", components=components)
    assert operation.input_schema["properties"]["body"] == {"$ref": "#/$defs/Pet"}
    assert operation.input_schema["$defs"] == {"Pet": {"type": "object"}}


@pytest.mark.parametrize(
    "name", ["Authorization", "host", "Content-Length", "Transfer-Encoding", "Cookie", "Content-Type", "X-Key"]
)
def test_a_header_that_frames_the_request_or_carries_credentials_is_no_argument(name: str) -> None:
    raw = {"parameters": [{"name": name, "in": "header", "required": True}]}
    reserved = Selection(source="x").reserved_headers | {"x-key"}
    assert only(raw, reserved_headers=reserved).input_schema["properties"] == {}


def test_a_query_parameter_that_carries_credentials_is_no_argument() -> None:
    raw = {"parameters": [{"name": "key", "in": "query", "required": True}, {"name": "q", "in": "query"}]}
    assert list(only(raw, reserved_query=frozenset({"key"})).input_schema["properties"]) == ["q"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"text/plain": {}, "application/vnd.x+json": {}}, "json"),
        ({"multipart/form-data": {}, "application/x-www-form-urlencoded": {}}, "form"),
        ({"multipart/form-data": {}}, "multipart"),
        ({"application/xml": {}}, "text"),
        ({"application/octet-stream": {}}, "binary"),
    ],
)
def test_of_several_forms_of_a_body_the_plainest_is_used(content: Any, kind: str) -> None:
    body = only({"requestBody": {"content": content}}, method="post").body
    assert body is not None
    assert body.kind == kind


@pytest.mark.parametrize(
    ("media_type", "sent_as"),
    [("*/*", "application/json"), ("text/*", "text/plain"), ("image/*", "application/octet-stream"), ("a/b", "a/b")],
)
def test_a_type_that_the_document_leaves_open_is_sent_as_one_that_exists(media_type: str, sent_as: str) -> None:
    body = only({"requestBody": {"content": {media_type: {}}}}, method="post").body
    assert body is not None
    assert body.media_type == sent_as


def test_an_operation_that_gives_the_request_back_with_its_credentials_is_no_tool() -> None:
    assert found({"/a": {"trace": {"operationId": "echo"}}}) == ([], [])


def test_what_cannot_be_offered_is_left_out_and_told_and_costs_nothing_else() -> None:
    operations, problems = found(
        {
            "/good": {"get": {"operationId": "good"}},
            "/file": {"get": {"parameters": [{"$ref": "file:///etc/passwd"}]}},
            "/{id}": {"get": {}},
            "/weird": {"get": {"parameters": [{"name": "x", "in": "moon"}]}},
            "/matrix/{m}": {"get": {"parameters": [{"name": "m", "in": "path", "style": "matrix"}]}},
            "/broken": {"get": {"parameters": [5]}},
            "/list": {"get": {"parameters": {"a": 1}}},
            "/gone": {"$ref": "#/nowhere"},
            "relative": {"get": {}},
            "/none": None,
        }
    )
    assert [operation.name for operation in operations] == ["pets_good"]
    assert {problem.what for problem in problems} == {
        "/gone",
        *(f"GET {path}" for path in ("/file", "/{id}", "/weird", "/matrix/{m}", "/broken", "/list", "relative")),
    }
    assert all(problem.reason for problem in problems)


@pytest.mark.parametrize("paths", [None, [], "x", {"/a": 5}, {"/a": {"get": "x"}}])
def test_a_document_without_operations_has_none(paths: Any) -> None:
    assert found(paths) == ([], [])


def test_an_operations_description_is_its_summary_and_its_text() -> None:
    assert only({"summary": "A", "description": "B"}).description == "A\n\nB"
    assert only({"summary": "List pets", "description": "List pets, all of them."}).description == (
        "List pets, all of them."
    )


def test_more_operations_than_anybody_can_choose_from_are_cut_and_told() -> None:
    operations, problems = found({f"/{i}": {"get": {}} for i in range(2001)})
    assert len(operations) == 2000
    assert "more than 2000" in problems[0].reason
