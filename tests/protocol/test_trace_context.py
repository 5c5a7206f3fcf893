"""W3C trace context: what counts as one, and what of it is passed on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol.trace_context import MAX_PARENT_CHARS, MAX_READ_CHARS, MAX_STATE_CHARS, TraceContext, parse_trace

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_traceparent_is_read_and_written_the_same() -> None:
    context = parse_trace(PARENT)
    assert context == TraceContext(TRACE, SPAN, 1)
    assert context.traceparent == PARENT
    assert context.headers == {"traceparent": PARENT}


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "junk",
        PARENT.upper(),
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"{PARENT}-more",
        f"{PARENT}\n",
        f"{PARENT},{PARENT}",
        f"00-{TRACE}-{SPAN}-0g",
        None,
        7,
        ["x"],
    ],
)
def test_a_bad_traceparent_is_as_good_as_none(bad: object) -> None:
    assert parse_trace(bad, "a=1") is None


@pytest.mark.parametrize("later", [f"cc-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-01-what-will-be-said"])
def test_a_later_version_is_read_as_far_as_it_is_known_and_passed_on_as_ours(later: str) -> None:
    context = parse_trace(later)
    assert context is not None
    assert context.traceparent == PARENT


def test_a_later_version_with_a_tail_that_is_not_set_off_is_bad() -> None:
    assert parse_trace(f"cc-{TRACE}-{SPAN}-01.what") is None


def test_only_the_known_flags_are_passed_on() -> None:
    context = parse_trace(f"00-{TRACE}-{SPAN}-ff")
    assert context is not None
    assert context.flags == 3


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        (" a=1 ,\t b=2 ,,", "a=1,b=2"),
        (["a=1", "b=2"], "a=1,b=2"),
        ("tenant@vendor=x y!", "tenant@vendor=x y!"),
        ("0num=1", "0num=1"),
        ("a=1,a=2", ""),
        ("A=1", ""),
        ("a", ""),
        ("a=", ""),
        ("a=b=c", ""),
        ("a=é", ""),
        ("a=1\n", ""),
        (f"{'k' * 257}=1", ""),
        (f"a={'v' * 257}", ""),
        (",".join(f"k{i}=1" for i in range(33)), ""),
        (f"a=1{' ' * MAX_READ_CHARS}", ""),
        (["a=1", *[""] * 32], ""),
        (None, ""),
        (5, ""),
        ([5], ""),
    ],
)
def test_a_tracestate_is_passed_on_in_order_or_dropped_whole(given_: object, kept: str) -> None:
    context = parse_trace(PARENT, given_)
    assert context is not None
    assert context.state == kept


def test_a_later_versions_traceparent_is_read_up_to_a_length() -> None:
    later = "01" + PARENT[2:] + "-"
    assert parse_trace(later + "x" * (MAX_PARENT_CHARS - len(later))) is not None
    assert parse_trace(later + "x" * MAX_PARENT_CHARS) is None


def test_members_that_are_long_and_then_the_last_go_where_there_are_too_many_characters() -> None:
    long, short = f"long={'x' * 200}", [f"k{i}={'y' * 60}" for i in range(9)]
    context = parse_trace(PARENT, ",".join([long, *short]))
    assert context is not None
    assert context.state == ",".join(short[:8])
    assert len(context.state) <= MAX_STATE_CHARS


@given(st.text(), st.text())
def test_whatever_comes_what_is_passed_on_is_a_good_header(parent: str, state: str) -> None:
    for context in (parse_trace(parent, state), parse_trace(PARENT, state)):
        if context is not None:
            assert parse_trace(context.traceparent, context.state) == context
            assert all(value.isascii() and value.isprintable() for value in context.headers.values())
