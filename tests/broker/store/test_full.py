"""A file that takes no more: nobody notices, everybody could know, and the next broker is not lied to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import resource
import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest

from enclave_broker.store.database import UNWRITTEN
from enclave_protocol import Code
from tests.conformance.stores import NOW, directory_of, event, made, opened, placed, read, run, take_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from enclave_broker.sessions import BrokerSession
    from enclave_broker.store.batch import Batch
    from enclave_broker.store.sqlite import SqliteStore


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process grows past what fills a disk; what is there can be written over."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def until_writable(store: SqliteStore) -> None:
    async with asyncio.timeout(60):
        while store.failure:  # noqa: ASYNC110 - the file is tried again by the clock
            await asyncio.sleep(0.01)
    await store.settle()


def path_in(directory: Path) -> str:
    return str(directory / "broker.sqlite")


async def opened_with_one_placed(directory: Path) -> tuple[SqliteStore, BrokerSession]:
    """A new file in which all of one live session, `s_1`, is stored."""
    store, _ = opened(path_in(directory))
    session = made(store)
    directory_of(store).add(session)
    placed(store, session)
    await store.settle()
    return store, session


def is_marked(directory: Path) -> bool:
    return UNWRITTEN in (directory / "broker.sqlite.lock").read_bytes()


class Gate:
    """Lets each attempt to write happen when it is told to, and end as it is told to."""

    def __init__(self, store: SqliteStore) -> None:
        self._write = store._database.write
        self._begun, self._passes = threading.Semaphore(0), queue.SimpleQueue[bool]()
        store._database.write = self._attempt  # type: ignore[method-assign]

    def _attempt(self, batch: Batch) -> None:
        self._begun.release()
        if not self._passes.get(timeout=60):
            raise sqlite3.OperationalError("database is locked")
        self._write(batch)

    async def begun(self) -> None:
        """Wait for the next attempt."""
        assert await asyncio.to_thread(self._begun.acquire, timeout=60)

    def end(self, *, well: bool) -> None:
        self._passes.put(well)


async def test_on_a_full_disk_sessions_go_on_and_when_there_is_room_again_nothing_is_missing(tmp_path: Path) -> None:
    store, _ = opened(path_in(tmp_path))
    directory, before = directory_of(store), made(store, "s_before")
    directory.add(before)
    placed(store, before)
    take_in(before, event("s_before", 2))
    await store.settle()
    with full_disk():
        during = made(store, "s_during")
        directory.add(during)
        placed(store, during)
        await store.settle()
        assert store.failure
        sent = [event("s_before", 2), *run(before, directory)]
        assert (await read(before.log))[1:] == sent, "the client gets everything at once"
        done: list[int] = []
        store.then(lambda: done.append(1))
        assert done == [1]
    await until_writable(store)
    also = run(during, directory)
    await store.close()

    store, loaded = opened(path_in(tmp_path))
    assert not loaded.unwritten
    assert not loaded.live
    found = {session.session_id: (await read(session.log))[1:] for session in loaded.finished}
    assert found == {"s_before": sent, "s_during": also}
    await store.close()


async def test_a_broker_that_dies_while_the_disk_is_full_leaves_word_of_it(tmp_path: Path) -> None:
    store, session = await opened_with_one_placed(tmp_path)
    with full_disk():
        take_in(session, event("s_1", 2))
        await store.settle()
        assert session.log.end_seq == 3
        await store.close()  # what could not be written is lost with it

    store, loaded = opened(path_in(tmp_path))
    assert loaded.unwritten
    assert [found.log.next_seq for found in loaded.live] == [2]
    loaded.live[0].session.end(Code.INTERNAL_ERROR, "not written", NOW + 100_000)
    store.finish(loaded.live[0].session)
    also = made(store, "s_2")
    directory_of(store).add(also)
    await store.settle()
    store._database.close()  # it dies, and all is well

    store, loaded = opened(path_in(tmp_path))
    assert not loaded.unwritten
    assert [found.session.session_id for found in loaded.live] == ["s_2"]
    await store.close()


async def test_what_clients_were_told_while_the_file_failed_is_marked_until_all_of_it_is_stored(tmp_path: Path) -> None:
    store, session = await opened_with_one_placed(tmp_path)
    gate = Gate(store)
    take_in(session, event("s_1", 2))
    await gate.begun()
    gate.end(well=False)
    await gate.begun()
    take_in(session, event("s_1", 3))
    assert session.log.end_seq == 4
    gate.end(well=True)
    await gate.begun()
    assert not store.failure
    assert is_marked(tmp_path), "event 3 is not stored"
    gate.end(well=True)
    await store.settle()
    assert not is_marked(tmp_path)
    await store.close()


async def test_a_lock_that_somebody_holds_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("enclave_broker.store.database.BUSY_S", 0.01)
    store, _ = opened(path_in(tmp_path))
    directory, session = directory_of(store), made(store)
    directory.add(session)
    await store.settle()
    other = sqlite3.connect(path_in(tmp_path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    run(session, directory)
    await store.settle()
    assert "can't be written: database is locked; sessions go on in memory until it can" in caplog.text
    assert len(await read(session.log)) == 5
    other.execute("ROLLBACK")
    other.close()
    await until_writable(store)
    assert "can be written again" in caplog.text
    assert session.log.kept() == [], "it is read from the file now"
    assert len(await read(session.log)) == 5
    await store.close()


@pytest.mark.parametrize("attempt_ends_well", [False, True])
async def test_a_broker_that_stops_during_another_attempt_leaves_no_hole(
    tmp_path: Path, *, attempt_ends_well: bool
) -> None:
    store, session = await opened_with_one_placed(tmp_path)
    gate = Gate(store)
    sent = [event("s_1", seq) for seq in (2, 3, 4)]
    take_in(session, sent[0])
    await gate.begun()
    gate.end(well=False)
    await gate.begun()
    assert store.failure
    take_in(session, sent[1])
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    take_in(session, sent[2])
    gate.end(well=attempt_ends_well)
    gate.end(well=True)
    await closing

    store, loaded = opened(path_in(tmp_path))
    assert not loaded.unwritten
    assert [found.log.lines(2, 1 << 20) for found in loaded.live] == [sent]
    await store.close()


async def test_a_disk_that_takes_no_mark_either_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, _ = opened(path_in(tmp_path))
    directory, session = directory_of(store), made(store)
    directory.add(session)
    placed(store, session)
    await store.settle()

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    gate = Gate(store)
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", refuse)
        take_in(session, event("s_1", 2))
        waiting = asyncio.create_task(store.settle())
        await gate.begun()
        gate.end(well=False)
        async with asyncio.timeout(60):
            await waiting
        assert (bool(store.failure), session.log.end_seq) == (True, 3)
        assert "broker.sqlite.lock can't be written: [Errno 30] Read-only file system" in caplog.text
        await gate.begun()
        gate.end(well=True)
        await until_writable(store)
    sent = [event("s_1", 2), *run(session, directory)]
    gate.end(well=True)
    await store.close()

    store, loaded = opened(path_in(tmp_path))
    assert [(await read(found.log))[1:] for found in loaded.finished] == [sent]
    await store.close()


async def test_what_waits_for_a_full_disk_is_bounded_and_what_is_given_up_is_given_up_whole(tmp_path: Path) -> None:
    store, _ = opened(path_in(tmp_path), unwritten_bytes=10_000)
    directory = directory_of(store)
    done, live = made(store, "s_done"), made(store, "s_live")
    for session in (done, live):
        directory.add(session)
        placed(store, session)
    run(done, directory)
    await store.settle()
    with full_disk():
        sent = []
        for seq in range(2, 200):
            sent.append(event("s_live", seq, chunk="x" * 200))
            take_in(live, sent[-1])
            if seq % 20 == 0:
                await store.settle()
                await asyncio.sleep(0)
        assert live.log.lines(2, 1 << 20) == sent
        assert store._batch.size_bytes <= 10_000 + 20 * 400
        later = made(store, "s_later")
        directory.add(later)
    await until_writable(store)
    assert live.log.lines(2, 1 << 20) == sent
    sent += run(live, directory)
    assert (await read(live.log))[1:] == sent
    await store.close()

    store, loaded = opened(path_in(tmp_path))
    assert [session.session_id for session in loaded.finished] == ["s_done"]
    assert [found.session.session_id for found in loaded.live] == ["s_later"]
    await store.close()


@pytest.mark.parametrize("last_straw", ["a line", "a line that trims", "a place", "an answer", "an end"])
async def test_what_is_given_up_leaves_nothing_behind_that_another_session_could_inherit(
    tmp_path: Path, last_straw: str
) -> None:
    store, _ = opened(path_in(tmp_path), unwritten_bytes=1)
    directory, live = directory_of(store), made(store, "s_live")
    directory.add(live)
    placed(store, live)
    take_in(live, event("s_live", 2, "tool_call", callId="c_1", toolName="ask", args={}))
    await store.settle()
    with full_disk():
        take_in(live, event("s_live", 3, chunk="x" * 5000))
        await store.settle()
        assert store.failure
        if last_straw == "a line":
            take_in(live, event("s_live", 4))
        elif last_straw == "a line that trims":
            live.log.max_bytes = 100
            take_in(live, event("s_live", 4))
        elif last_straw == "a place":
            store.update(live)
        elif last_straw == "an answer":
            store.answer(live, "c_1", b"{}")
        else:
            run(live, directory)
    await until_writable(store)
    await store.close()

    store, loaded = opened(path_in(tmp_path))
    assert (loaded.live, loaded.finished) == ([], [])
    heir = made(store, "s_heir")
    directory_of(store).add(heir)
    told = heir.log.kept()
    await store.close()
    store, loaded = opened(path_in(tmp_path))
    (found,) = loaded.live
    assert (found.session.session_id, found.session.worker) == ("s_heir", None)
    assert (found.log.kept(), found.answers) == (told, {})
    await store.close()
