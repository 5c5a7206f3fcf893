"""What a reader asked to see, without a socket."""

from __future__ import annotations

import pytest

from enclave_broker.api import ApiError
from enclave_broker.http.views import View, next_after, parse_seq, wants_sse

STDOUT = b'{"type":"stdout","protocolVersion":2,"sessionId":"s_1","seq":2,"payload":{"chunk":"a\\n"}}'
FINAL = b'{"type":"final","protocolVersion":2,"sessionId":"s_1","seq":4,"payload":{"ok":true}}'


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, False),
        ("*/*", False),
        ("application/x-ndjson", False),
        ("text/*", False),
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("text/html, text/event-stream;q=0.5", True),
        ("text/event-stream, application/x-ndjson", True),
        ("text/event-stream;q=0.5, application/x-ndjson", False),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=x", False),
    ],
)
def test_server_sent_events_are_for_who_names_them(accept: str | None, expected: bool) -> None:  # noqa: FBT001
    assert wants_sse(accept) is expected


def test_a_frame_has_the_number_the_type_and_the_line_itself() -> None:
    assert View(sse=True).render([(2, STDOUT)], 2) == b"id: 2\nevent: stdout\ndata: " + STDOUT + b"\n\n"


def test_a_frame_without_data_moves_the_place_on_where_a_filter_took_events_out() -> None:
    view = View(sse=True)
    assert view.render([], 3) == b"id: 3\n\n"
    assert view.render([(2, STDOUT)], 3).endswith(b"\n\nid: 3\n\n")


def test_a_type_that_would_break_the_frame_is_left_out() -> None:
    line = FINAL.replace(b'"final"', b'"fi\\nretry: 0"')
    assert View(sse=True).render([(4, line)], 4) == b"id: 4\nevent: message\ndata: " + line + b"\n\n"


def test_ndjson_is_the_lines_themselves() -> None:
    assert View().render([(2, STDOUT), (4, FINAL)], 5) == STDOUT + b"\n" + FINAL + b"\n"
    assert View().render([], 5) == b""


def test_after_the_last_event_comes_the_next() -> None:
    assert [next_after("0"), next_after("7")] == [1, 8]
    assert [parse_seq("0", "from"), parse_seq("7", "from")] == [1, 7]
    for text in ("", "x", "-1", "1.5", "٣", "9" * 17):
        with pytest.raises(ApiError) as refused:
            next_after(text)
        assert refused.value.body.field == "Last-Event-ID"
