from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enclave_client.lines import LineSplitter


@given(st.lists(st.binary(max_size=20).map(lambda chunk: chunk.replace(b"\x00", b"\n")), max_size=20))
def test_lines_do_not_depend_on_where_the_chunks_were_cut(chunks: list[bytes]) -> None:
    splitter = LineSplitter()

    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    lines.append(splitter.flush())

    assert b"".join(chunks).split(b"\n") == lines


def test_only_a_newline_ends_a_line() -> None:
    text = "a\u2028b\u0085c\x0cd\re\n".encode()

    assert [text[:-1]] == LineSplitter().feed(text)


def test_pending_bytes_is_the_size_of_the_unfinished_line() -> None:
    splitter = LineSplitter()
    splitter.feed(b"one\ntwo")
    splitter.feed(b"three")

    assert len(b"twothree") == splitter.pending_bytes
    assert splitter.flush() == b"twothree"
    assert splitter.pending_bytes == 0
