"""Write the generated parts of the documentation anew, from the code: `python docs/generate.py`.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`. A test fails when one is out of
date. The descriptions in the tables are the docstrings that stand below the fields in the source.
"""
# ruff: noqa: INP001 - a script, not a package

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from enclave_protocol import AnyEvent, Code, Limits, State
from enclave_protocol.limits import ALIASES
from enclave_protocol.session import TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PAGE = Path(__file__).with_name("protocol.md")

_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


def render(page: str) -> str:
    """Return the page with every generated part made anew; raises KeyError for a part that nothing here makes."""
    return _PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}\n{part[3]}", page)


def states() -> str:
    """The session's states as a mermaid diagram."""
    arrows = [
        f"    {state} --> {after}: {trigger}" for state, row in TRANSITIONS.items() for trigger, after in row.items()
    ]
    ends = [f"    {state} --> [*]" for state in State if state.terminal]
    return "\n".join(["```mermaid", "stateDiagram-v2", f"    [*] --> {State.STARTING}", *arrows, *ends, "```"])


def events() -> str:
    """Every event with its payload; a `?` marks a field that may be absent."""
    return _table(("type", "payload", "meaning"), (_event_row(cls) for cls in get_args(AnyEvent)))


def _event_row(cls: Any) -> tuple[str, str, str]:
    payload = next(field.type for field in msgspec.structs.fields(cls) if field.name == "payload")
    names = [f"`{f.encode_name}{'' if f.required else '?'}`" for f in msgspec.structs.fields(payload)]
    return f"`{cls.__struct_config__.tag}`", ", ".join(names), inspect.getdoc(cls) or ""


def limits() -> str:
    """Every limit, its default and its meaning."""
    described = _described(Limits)
    rows = [
        (f"`{field.encode_name}`", _default(field), described[field.name]) for field in msgspec.structs.fields(Limits)
    ]
    aliases = [(f"`{alias}`", "", f"Another name of `{name}`.") for alias, name in ALIASES.items()]
    return _table(("limit", "default", "meaning"), [*rows, *aliases])


def _default(field: msgspec.structs.FieldInfo) -> str:
    return "none" if field.default is msgspec.UNSET else f"`{msgspec.json.encode(field.default).decode()}`"


def outcomes() -> str:
    """Every code of `final.error`, and whether a retry can help."""
    described = _described(Code)
    rows = [(f"`{code}`", "yes" if code.retryable else "no", described[code.name]) for code in Code]
    return _table(("code", "retryable", "meaning"), rows)


def _described(cls: type) -> dict[str, str]:
    """Name of each field of a class, and the docstring below it."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef), "the source of a class is a class"  # noqa: S101 - for the type checker
    found: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        target = field.targets[0] if isinstance(field, ast.Assign) else getattr(field, "target", None)
        if isinstance(target, ast.Name) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[target.id] = " ".join(str(text.value.value).split())
    return found


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


PARTS: dict[str, Callable[[], str]] = {"states": states, "events": events, "limits": limits, "outcomes": outcomes}


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
