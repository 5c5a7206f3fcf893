"""What every store promises. A test class for a kind of store inherits these and provides the fixture `store`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from enclave_broker.directory import Directory
from enclave_broker.event_log import BATCH_BYTES, Trimmed
from enclave_broker.sessions import BrokerSession
from enclave_broker.store.sqlite import SqliteStore
from enclave_protocol import Code, Execute, Limits, peek

if TYPE_CHECKING:
    from enclave_broker.event_log import EventLog
    from enclave_broker.store import Loaded, Store

NOW, WALL = 1000.0, 1_700_000_000.0


def opened(path: str, *, later_s: float = 5.0, **options: int) -> tuple[SqliteStore, Loaded]:
    """Open a file, on a clock that began anew since the sessions in it were made; return what it has, too."""
    store = SqliteStore(path, **options)
    return store, store.open(log_bytes=1 << 20, now=NOW + 100_000, wall=WALL + later_s)


def event(session_id: str, seq: int, kind: str = "stdout", **payload: Any) -> bytes:
    """Return an event as a worker sends it, spaces and all."""
    payload = payload or {"chunk": f"line {seq}\n"}
    return json.dumps(
        {"protocolVersion": 2, "sessionId": session_id, "seq": seq, "type": kind, "payload": payload}
    ).encode()


def final(session_id: str, seq: int) -> bytes:
    return event(session_id, seq, "final", ok=True, result=1)


def made(
    store: Store, session_id: str = "s_1", *, log_bytes: int = 1 << 20, wall: float = WALL, **more: Any
) -> BrokerSession:
    """Return a new session, which no directory has yet."""
    request = Execute(session_id=session_id, code="return 1", env={"NAME": "value"})
    return BrokerSession(
        session_id, request, Limits(max_tool_calls=3), now=NOW, wall=wall, log=store.new_log(log_bytes), **more
    )


def placed(store: Store, session: BrokerSession, worker: str = "ws://worker") -> None:
    """Place a session, as a dispatcher does."""
    session.worker, session.worker_name = worker, "one"
    session.execute(NOW + 1)
    store.update(session)


def take_in(session: BrokerSession, line: bytes, now: float = NOW + 2) -> None:
    """Have a session take in its worker's next event."""
    session.accept(peek(line), line, now)


def run(session: BrokerSession, directory: Directory, *, lines: int = 3, now: float = NOW + 2) -> list[bytes]:
    """Run a session to its end; returns what its worker sent."""
    sent = [event(session.session_id, session.log.next_seq + i) for i in range(lines)]
    sent.append(final(session.session_id, session.log.next_seq + lines))
    for line in sent:
        take_in(session, line, now)
    directory.finish(session)
    return sent


async def read(log: EventLog, from_seq: int = 1) -> list[bytes]:
    """Read an ended log."""
    more = asyncio.Event()
    with contextlib.closing(log.subscribe(from_seq, more.set)) as cursor:
        found = []
        async with asyncio.timeout(60):
            while not cursor.finished:
                more.clear()
                found += cursor.take()
                if not cursor.finished and not cursor.behind:
                    await more.wait()
        return found


def directory_of(store: Store, *, number: int = 100, size_bytes: int = 1 << 30, age_s: float = 100.0) -> Directory:
    return Directory(store, max_finished=number, max_bytes=size_bytes, max_age_s=age_s)


class StoreConformance:
    """`store` is an open store; the fixture closes it afterwards."""

    async def test_what_is_appended_is_read_from_any_number_on_byte_for_byte(self, store: Store) -> None:
        directory, session = directory_of(store), made(store)
        directory.add(session)
        placed(store, session)
        sent = run(session, directory)
        before = await read(session.log)
        await store.settle()
        after = await read(session.log)
        assert before == after
        assert after[1:] == sent
        for from_seq in range(1, session.log.end_seq + 1):
            assert await read(session.log, from_seq) == after[from_seq - 1 :]

    async def test_a_reader_is_woken_for_every_line_and_follows_to_the_end(self, store: Store) -> None:
        directory, session = directory_of(store), made(store)
        directory.add(session)
        placed(store, session)
        reading = asyncio.create_task(read(session.log))
        await store.settle()
        sent = []
        for i in range(20):
            sent.append(event("s_1", session.log.next_seq))
            take_in(session, sent[-1])
            if i % 3 == 0:
                await asyncio.sleep(0)
            if i % 7 == 0:
                await store.settle()
        sent += run(session, directory, lines=0)
        assert (await reading)[1:] == sent

    async def test_lines_of_any_size_are_read_whole_and_in_order(self, store: Store) -> None:
        directory, session = directory_of(store), made(store, log_bytes=1 << 26)
        directory.add(session)
        placed(store, session)
        chunks = ["", "é😀\u2028", "x" * BATCH_BYTES, "y" * (3 * BATCH_BYTES), *("z" * 1000 for _ in range(600))]
        sent = []
        for chunk in chunks:
            sent.append(event("s_1", session.log.next_seq, chunk=chunk))
            take_in(session, sent[-1])
        sent += run(session, directory)
        await store.settle()
        assert (await read(session.log))[1:] == sent
        assert await read(session.log, 4) == sent[2:]

    async def test_asking_for_what_was_trimmed_says_from_where_there_is_more(self, store: Store) -> None:
        directory, session = directory_of(store), made(store, log_bytes=2000)
        directory.add(session)
        placed(store, session)
        run(session, directory, lines=60)
        first_seq = session.log.first_seq
        assert first_seq > 1
        before = await read(session.log, first_seq)
        await store.settle()
        assert session.log.first_seq == first_seq
        with pytest.raises(Trimmed) as caught:
            session.log.subscribe(first_seq - 1, lambda: None)
        assert caught.value.first_seq == first_seq
        refused = session.log.refuses(first_seq - 1)
        assert refused == (f"events before {first_seq} are no longer kept", f"{first_seq} or more")
        assert await read(session.log, first_seq) == before
        assert sum(map(len, before)) == session.log.size_bytes <= 2000

    async def test_a_reader_that_asks_for_more_than_there_is_is_told(self, store: Store) -> None:
        directory, session = directory_of(store), made(store)
        directory.add(session)
        placed(store, session)
        await store.settle()
        assert session.log.refuses(2) is None
        assert session.log.refuses(3) == ("the newest event is 1", "at most 2")
        run(session, directory)
        await store.settle()
        assert session.log.refuses(5) is None
        assert session.log.refuses(6) == ("the session has ended: its final is event 5", "at most 5")

    async def test_finished_sessions_are_kept_up_to_a_number_the_newest_ones(self, store: Store) -> None:
        directory = directory_of(store, number=2)
        for i in range(4):
            session = made(store, f"s_{i}")
            directory.add(session)
            run(session, directory)
            await store.settle()
        assert [session.session_id for session in directory.sessions()] == ["s_2", "s_3"]
        assert directory.get("s_1") is None
        directory.validate()

    async def test_finished_sessions_are_kept_up_to_some_bytes(self, store: Store) -> None:
        one = made(store, "s_0")
        directory = directory_of(store)
        directory.add(one)
        run(one, directory)
        directory = directory_of(store, size_bytes=one.log.size_bytes * 5 // 2)
        for i in range(1, 5):
            session = made(store, f"s_{i}")
            directory.add(session)
            run(session, directory)
        await store.settle()
        assert [session.session_id for session in directory.sessions()] == ["s_3", "s_4"]
        directory.validate()

    async def test_finished_sessions_are_kept_for_some_time(self, store: Store) -> None:
        directory = directory_of(store, age_s=10.0)
        for i in range(3):
            session = made(store, f"s_{i}")
            directory.add(session)
            run(session, directory, now=NOW + i)
        await store.settle()
        directory.expire(NOW + 11)
        assert [session.session_id for session in directory.sessions()] == ["s_2"]
        directory.validate()

    async def test_a_live_session_is_kept_whatever_the_limits_are(self, store: Store) -> None:
        directory = directory_of(store, number=0, size_bytes=0, age_s=0.0)
        session = made(store)
        directory.add(session)
        directory.expire(NOW + 1000)
        assert directory.get("s_1") is session
        run(session, directory)
        assert directory.get("s_1") is None

    @pytest.mark.parametrize("stored", [False, True])
    async def test_a_removed_session_is_gone_and_its_readers_still_get_the_end(
        self, store: Store, *, stored: bool
    ) -> None:
        directory, session = directory_of(store), made(store)
        directory.add(session)
        placed(store, session)
        if stored:
            await store.settle()
        reading = asyncio.create_task(read(session.log))
        await asyncio.sleep(0)
        assert directory.remove("s_1") is session
        assert directory.get("s_1") is None
        sent = run(session, directory)
        assert (await reading)[1:] == sent
        assert directory.get("s_1") is None

    async def test_a_new_session_replaces_a_finished_one_of_the_same_id(self, store: Store) -> None:
        directory, first, second = directory_of(store), made(store), made(store)
        directory.add(first)
        run(first, directory)
        await store.settle()
        directory.add(second)
        sent = run(second, directory, lines=7)
        await store.settle()
        assert directory.sessions() == [second]
        assert (await read(second.log))[1:] == sent
        directory.validate()

    async def test_a_broker_s_own_end_is_kept_like_a_worker_s(self, store: Store) -> None:
        directory, session = directory_of(store), made(store)
        directory.add(session)
        session.end(Code.NO_CAPACITY, "no slot", NOW + 3)
        directory.finish(session)
        await store.settle()
        assert (session.outcome, session.live) == ("NO_CAPACITY", False)
        assert b'"NO_CAPACITY"' in (await read(session.log))[-1]

    async def test_what_waits_for_the_store_is_done_in_order_and_after_what_was_handed_over(self, store: Store) -> None:
        directory, session, done = directory_of(store), made(store), []
        directory.add(session)

        def note(name: str) -> None:
            done.append((name, session.log.end_seq))

        def further() -> None:
            note("first")
            store.then(lambda: note("third"))

        store.then(further)
        store.then(lambda: note("second"))
        await store.settle()
        assert [name for name, _ in done if name != "third"] == ["first", "second"]
        assert done[0] == ("first", 2)
        await store.settle()
        store.then(lambda: note("at once"))
        assert done[-1] == ("at once", 2)

    async def test_closing_twice_and_using_it_after_it_was_closed_harms_nobody(self, store: Store) -> None:
        directory, session = directory_of(store), made(store)
        directory.add(session)
        placed(store, session)
        await store.close()
        sent = run(session, directory)
        assert (await read(session.log))[1:] == sent
        await store.close()


SCHEDULED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "line", "line", "line", "end", "remove", "settle", "turn"]),
        st.integers(0, 4),
        st.integers(0, 300),
    ),
    max_size=40,
)


async def follow(store: Store, steps: list[tuple[str, int, int]]) -> None:
    """Do these steps, and check that every stream that is left is what was sent."""
    directory = directory_of(store, number=3)
    sent: dict[str, list[bytes]] = {}
    for what, number, size in steps:
        session = directory.get(f"s_{number}")
        if what == "settle":
            await store.settle()
        elif what == "turn":
            await asyncio.sleep(0)
        elif what == "add" and (session is None or not session.live):
            session = made(store, f"s_{number}", log_bytes=1000 if size % 2 else 1 << 20)
            directory.add(session)
            placed(store, session)
            sent[session.session_id] = session.log.kept()
        elif session is not None:
            _step(directory, session, what, size, sent[session.session_id])
        directory.validate()
    await _check(store, directory, sent)
    for session in directory.sessions():
        directory.remove(session.session_id)


def _step(directory: Directory, session: BrokerSession, what: str, size: int, sent: list[bytes]) -> None:
    if what == "remove":
        directory.remove(session.session_id)
    elif what == "line" and session.live:
        sent.append(event(session.session_id, session.log.next_seq, chunk="x" * size))
        take_in(session, sent[-1])
    elif what == "end" and session.live:
        sent += run(session, directory, lines=0)


async def _check(store: Store, directory: Directory, sent: dict[str, list[bytes]]) -> None:
    for session in directory.sessions():
        log, kept = session.log, sent[session.session_id][session.log.first_seq - 1 :]
        if session.live:
            await store.settle()
            assert log.lines(log.first_seq, 1 << 30) == kept
        else:
            assert await read(log, log.first_seq) == kept
