"""The store in memory keeps every store's promises, and costs nothing."""

from __future__ import annotations

import pytest
from hypothesis import given

from enclave_broker.store import MemoryStore
from tests.conformance.stores import SCHEDULED, STEPS, StoreConformance, follow, made


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


class TestMemoryStore(StoreConformance):
    pass


@SCHEDULED
@given(steps=STEPS)
async def test_whatever_happens_in_whatever_order_every_stream_is_what_was_sent(
    steps: list[tuple[str, int, int]],
) -> None:
    await follow(MemoryStore(), steps)


def test_a_line_can_be_read_at_once() -> None:
    session = made(MemoryStore())
    assert session.log.end_seq == session.log.next_seq == 2


def test_every_broker_without_a_file_is_another_one() -> None:
    assert MemoryStore().broker_id != MemoryStore().broker_id
