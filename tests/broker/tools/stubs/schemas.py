"""Tools with every kind of schema, for the tests of all stubs."""

from __future__ import annotations

from typing import Any

from enclave_broker.tools import Tool


class Fake(Tool):
    """A tool that nobody calls."""

    async def invoke(self, args: dict[str, Any], context: Any) -> object:
        raise NotImplementedError


def fake(name: str, schema: dict[str, Any] | None = None, description: str = "", service: str = "pets") -> Tool:
    return Fake(name=name, input_schema=schema, description=description, service=service)


PET = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "What it is called"},
        "kids": {"type": "array", "items": {"$ref": "#/$defs/Pet"}},
        "kind": {"$ref": "#/$defs/Kind"},
    },
    "required": ["name"],
}
DEFINITIONS = {
    "Pet": PET,
    "Kind": {"enum": ["cat", "dog", None]},
    "Json": {"type": ["array", "string"], "items": {"$ref": "#/$defs/Json"}},
}

TOOLS = [
    fake("ping"),
    fake(
        "pets_setPet",
        {
            "type": "object",
            "properties": {
                "id": {"type": "integer"},
                "body": {"$ref": "#/$defs/Pet"},
                "user-agent": {"type": ["string", "null"], "description": "Who asks\nand why"},
                "class": {"const": 5},
                "str": {"type": "boolean"},
                "where": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
                "any": {},
                "map": {"type": "object", "additionalProperties": {"type": "integer"}},
                "mixed": {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"x": {"type": "null"}}}]},
                "tree": {"$ref": "#/$defs/Json"},
            },
            "required": ["id", "body"],
            "$defs": DEFINITIONS,
        },
        "Set a pet.\n\nIt is there afterwards.",
    ),
    fake(
        "pets_getPet",
        {"type": "object", "properties": {"like": {"$ref": "#/$defs/Pet"}}, "$defs": DEFINITIONS},
        'Ends in a quote "',
    ),
    fake("lists", {"type": "object", "properties": {"ids": {"type": "array", "items": {"type": "integer"}}}}),
]

NASTY = "a \"\"\" quote, a \\ backslash, */ an end\nimport os; os.abort()\u2028\x00 ''' // ${x} `y`"
"""Text that means to be code."""

HOSTILE = [
    fake(
        "t",
        {
            "type": "object",
            "properties": {
                NASTY: {"type": "string", "description": NASTY},
                "choice": {"enum": [NASTY, "b"]},
                "__class__": {"type": "string"},
                "None": {"type": "string"},
                "deep": {"$ref": "#/$defs/D~1x"},
            },
            "required": [NASTY],
            "$defs": {"D/x": {"type": "object", "properties": {NASTY: {"const": NASTY}}, "description": NASTY}},
        },
        NASTY,
    ),
    fake('u"\\\n', {"type": "object", "properties": {"ok": {"type": "string"}}}, NASTY + '"'),
]
