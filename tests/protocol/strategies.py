"""Hypothesis strategies for every event and message, derived from the types: a new one needs nothing here."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any, get_args

import msgspec
from hypothesis import strategies as st
from msgspec import UNSET, Raw
from msgspec import inspect as types

from enclave_protocol import AnyEvent, Attach, Execute, Ping, ToolError, ToolResult
from enclave_protocol.messages import Cancel, WorkerMessage

if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_protocol import Event
    from enclave_protocol.messages import Message

_ID_CHARACTERS = string.ascii_letters + string.digits + "._~-"

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
session_ids = st.text(_ID_CHARACTERS, min_size=1, max_size=128).map("s_".__add__)
call_ids = st.text(_ID_CHARACTERS, min_size=1, max_size=128).map("c_".__add__)
iso_times = st.datetimes().map(lambda t: t.isoformat() + "Z")
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
raw_json = json_values.map(lambda value: Raw(msgspec.json.encode(value)))

_details = st.lists(
    st.fixed_dictionaries({"type": st.just("retry_info"), "retryDelayMs": st.integers(0, 1000)})
    | st.fixed_dictionaries({"type": st.just("quota_info"), "limit": finite, "used": finite}),
    max_size=2,
)

# Fields whose form the types alone do not say.
_BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "session_id": session_ids,
    "call_id": call_ids,
    "expires_at": iso_times,
    "ts": iso_times,
    "details": _details,
}


def _struct(info: types.StructType) -> st.SearchStrategy[Any]:
    def field(f: types.Field) -> st.SearchStrategy[Any]:
        named = _BY_NAME.get(f.name)
        return _of(f.type) if named is None else named

    required = {f.name: field(f) for f in info.fields if f.required}
    optional = {f.name: field(f) for f in info.fields if not f.required}
    return st.fixed_dictionaries(required, optional=optional).map(lambda values: info.cls(**values))


def _integer(info: types.IntType) -> st.SearchStrategy[int]:
    low = info.ge if info.ge is not None else info.gt + 1 if info.gt is not None else -(2**53)
    return st.integers(low, info.le if info.le is not None else 2**53 - 1)


def _float(info: types.FloatType) -> st.SearchStrategy[float]:
    low = info.ge if info.ge is not None else info.gt
    return st.floats(low, 1e300, exclude_min=info.gt is not None, allow_nan=False, allow_infinity=False)


def _string(info: types.StrType) -> st.SearchStrategy[str]:
    return st.text(
        st.characters(exclude_categories=["Cs"]), min_size=info.min_length or 0, max_size=min(info.max_length or 30, 30)
    )


def _union(info: types.UnionType) -> st.SearchStrategy[Any]:
    return st.one_of([_of(member) for member in info.types])


_BUILDERS: dict[type[types.Type], Callable[[Any], st.SearchStrategy[Any]]] = {
    types.StructType: _struct,
    types.IntType: _integer,
    types.FloatType: _float,
    types.StrType: _string,
    types.UnionType: _union,
    types.BoolType: lambda _: st.booleans(),
    types.AnyType: lambda _: json_values,
    types.RawType: lambda _: raw_json,
    types.LiteralType: lambda info: st.sampled_from(info.values),
    types.ListType: lambda info: st.lists(_of(info.item_type), max_size=3),
    types.DictType: lambda info: st.dictionaries(_of(info.key_type), _of(info.value_type), max_size=3),
}


def _of(info: types.Type) -> st.SearchStrategy[Any]:
    return _BUILDERS[type(info)](info)


def instances(cls: type[Any]) -> st.SearchStrategy[Any]:
    """Valid instances of a struct."""
    return _of(types.type_info(cls))


EVENT_TYPES: tuple[type[Event], ...] = get_args(AnyEvent)
WORKER_MESSAGE_TYPES: tuple[type[Message], ...] = get_args(WorkerMessage)

tool_errors = st.builds(ToolError, message=text, code=st.just(UNSET) | text.filter(bool))
# The two that a type cannot describe: exactly one of value and error, and an empty reason is no reason.
tool_results = st.builds(
    ToolResult, session_id=session_ids, call_id=call_ids, success=st.just(value=True), value=raw_json
) | st.builds(ToolResult, session_id=session_ids, call_id=call_ids, success=st.just(value=False), error=tool_errors)
cancels = st.builds(Cancel, session_id=session_ids, reason=st.just(UNSET) | text.filter(bool))

client_messages = instances(Execute) | instances(Attach) | instances(Ping) | tool_results | cancels
events = st.one_of([instances(cls) for cls in EVENT_TYPES])
worker_messages = st.one_of([instances(cls) for cls in WORKER_MESSAGE_TYPES])
