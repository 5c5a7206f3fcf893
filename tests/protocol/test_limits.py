"""Limits have the wire's names and defaults, and a limit that is not applied is refused, never ignored."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol import Limits, RemoteProtocolError, parse_limits
from enclave_protocol.limits import ALIASES, KNOWN
from tests.protocol.strategies import instances, json_values

WIRE_DEFAULTS = {
    "sessionTtlMs": 60_000,
    "maxToolCalls": 50,
    "maxStdoutBytes": 262_144,
    "maxToolResultBytes": 5_242_880,
    "toolTimeoutMs": 30_000,
    "heartbeatIntervalMs": 15_000,
    "deadlineMs": 0,
    "perToolDeadlineMs": 30_000,
    "cancelOnFirstError": False,
}


def refusal(raw: object) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_limits(raw)
    return caught.value


def test_names_and_defaults_are_the_wires() -> None:
    ours = {field.encode_name: field.default for field in msgspec.structs.fields(Limits)}
    assert ours | WIRE_DEFAULTS == ours
    assert set(ours) - set(WIRE_DEFAULTS) == {"maxResultBytes", "memoryLimitBytes", "cpuTimeMs"}


def test_nothing_given_is_every_default() -> None:
    assert parse_limits({}) == Limits()


@pytest.mark.parametrize("name", sorted(KNOWN - {"cancelOnFirstError"}))
def test_every_limit_can_be_given_by_its_name(name: str) -> None:
    assert msgspec.to_builtins(parse_limits({name: 77})) == {name: 77}


@pytest.mark.parametrize(("alias", "name"), [*ALIASES.items(), ("maxToolCalls", "maxToolCalls")])
def test_the_runtime_documentations_names_mean_the_same(alias: str, name: str) -> None:
    assert parse_limits({alias: 77}) == parse_limits({name: 77})


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_one_limit_by_two_names_is_refused(alias: str, name: str) -> None:
    error = refusal({alias: 1, name: 1})
    assert (error.field, error.allowed) == (f"limits.{alias}", name)


def test_what_is_left_out_comes_from_the_given_defaults() -> None:
    defaults = Limits(max_tool_calls=3, deadline_ms=900)
    assert parse_limits({"timeout": 5}, defaults=defaults) == Limits(max_tool_calls=3, deadline_ms=5)


def test_a_default_can_be_set_back_to_the_wires() -> None:
    assert parse_limits({"maxToolCalls": 50}, defaults=Limits(max_tool_calls=3)).max_tool_calls == 50


@pytest.mark.parametrize("name", ["maxConsoleBytes", "deadline_ms", "", "x" * 10_000])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    error = refusal({name: 1})
    assert f"limits.{name}".startswith(error.field)
    assert set(error.allowed.split(", ")) == KNOWN | set(ALIASES)
    assert len(str(error)) < 1000


@pytest.mark.parametrize("value", [0, -1, 1.5, "5", None, True, [], 2**53, 10**30, float("nan"), float("inf")])
def test_a_value_out_of_range_is_refused_by_field(value: Any) -> None:
    error = refusal({"maxToolCalls": value})
    assert (error.field, error.allowed) == ("limits.maxToolCalls", "a whole number above 0")


def test_a_refusal_names_the_field_as_the_sender_wrote_it() -> None:
    assert refusal({"timeout": -1}).field == "limits.timeout"


@pytest.mark.parametrize("name", ["deadlineMs", "heartbeatIntervalMs"])
def test_two_limits_can_be_switched_off_with_0(name: str) -> None:
    assert msgspec.to_builtins(parse_limits({name: 0})).get(name, 0) == 0
    assert refusal({name: -1}).allowed == "a whole number, 0 or more"


def test_a_flag_is_true_or_false() -> None:
    assert parse_limits({"cancelOnFirstError": True}).cancel_on_first_error
    assert refusal({"cancelOnFirstError": 1}).allowed == "true or false"


@pytest.mark.parametrize("raw", [None, [], "5", 5, True])
def test_limits_are_an_object(raw: object) -> None:
    assert refusal(raw).field == "limits"


@pytest.mark.parametrize(("limits", "wall_ms"), [({}, 60_000), ({"timeout": 5}, 5), ({"timeout": 90_000}, 60_000)])
def test_the_smaller_wall_deadline_holds(limits: dict[str, int], wall_ms: int) -> None:
    assert parse_limits(limits).wall_ms == wall_ms


@pytest.mark.parametrize(
    ("name", "tool_wait_ms"), [("toolTimeoutMs", 5), ("perToolDeadlineMs", 5), ("sessionTtlMs", 30_000)]
)
def test_the_smaller_tool_deadline_holds(name: str, tool_wait_ms: int) -> None:
    assert parse_limits({name: 5}).tool_wait_ms == tool_wait_ms


@given(instances(Limits))
def test_limits_survive_the_wire(limits: Limits) -> None:
    assert parse_limits(msgspec.json.decode(msgspec.json.encode(limits))) == limits


@given(json_values | st.dictionaries(st.sampled_from(sorted(KNOWN | set(ALIASES))), json_values))
def test_any_json_gives_limits_or_a_refusal_that_says_where_and_what_is_allowed(raw: Any) -> None:
    try:
        parse_limits(raw)
    except RemoteProtocolError as error:
        refused = error
    else:
        return
    assert refused.field.startswith("limits")
    assert refused.allowed
