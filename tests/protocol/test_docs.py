"""The protocol's reference says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from enclave_protocol import (
    Code,
    Rejection,
    RemoteProtocolError,
    State,
    decode_worker_message,
    parse_limits,
)
from enclave_protocol.limits import KNOWN
from enclave_protocol.messages import Attach, Execute, Hello, Message, Pong

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def page() -> str:
    return (DOCS / "protocol.md").read_text()


def test_everything_of_the_lists_is_on_the_page_with_a_meaning(page: str) -> None:
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    for name in {*KNOWN, *Code}:
        assert len(rows[name].split("|")[3].strip()) > 10
    for state in State:
        assert re.search(rf"--> {state}\b", page)


@pytest.mark.parametrize("message", [Execute, Attach, Hello, Pong])
def test_a_messages_fields_are_the_ones_the_page_lists(page: str, message: type[Message]) -> None:
    row = next(line for line in page.splitlines() if line.startswith(f"| `{message.__struct_config__.tag}` |"))
    listed = [name.rstrip("?") for name in re.findall(r"`([^`]+)`", row.split("|")[2])]
    assert listed == [field.encode_name for field in msgspec.structs.fields(message)]


def test_the_rejection_shown_is_a_real_one(page: str) -> None:
    shown = decode_worker_message(page.partition("```json\n")[2].partition("\n```")[0])
    assert isinstance(shown, Rejection)
    with pytest.raises(RemoteProtocolError) as caught:
        parse_limits({"maxToolCalls": 0})
    assert (shown.payload.message, shown.payload.field) == (str(caught.value), caught.value.field)
    assert shown.payload.allowed == caught.value.allowed
