"""The store in a file keeps every store's promises, and what it has said is stored is there for the next broker."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from enclave_broker.store import StoreError
from enclave_broker.store.database import SCHEMA
from enclave_protocol import Code, Execute, State
from enclave_protocol.declared_tools import DeclaredTool
from enclave_protocol.encryption import accept_hello
from tests.broker.http.test_encrypted import Client
from tests.conformance.stores import (
    NOW,
    SCHEDULED,
    STEPS,
    WALL,
    StoreConformance,
    directory_of,
    event,
    follow,
    made,
    opened,
    placed,
    read,
    run,
    take_in,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from enclave_broker.store.batch import Batch
    from enclave_broker.store.sqlite import SqliteStore


def path_in(directory: Path) -> str:
    return str(directory / "broker.sqlite")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store, _ = opened(path_in(tmp_path))
    yield store
    await store.close()


def modes_in(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}


def contents_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def leave_open(directory: Path, contents: dict[str, bytes]) -> None:
    """Leave files as a broker that was killed does, for everybody to read."""
    for name, content in contents.items():
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o644)


class TestSqliteStore(StoreConformance):
    pass


@SCHEDULED
@given(steps=STEPS)
async def test_whatever_happens_in_whatever_order_every_stream_is_what_was_sent(
    steps: list[tuple[str, int, int]],
) -> None:
    with TemporaryDirectory() as name:
        store, _ = opened(path_in(Path(name)))
        try:
            await follow(store, steps)
        finally:
            await store.close()


async def test_nothing_is_read_and_nothing_is_done_before_it_is_stored(store: SqliteStore) -> None:
    session, done = made(store), []
    directory_of(store).add(session)
    assert (session.log.next_seq, session.log.end_seq) == (2, 1)
    assert session.log.lines(1, 1000) == []
    store.then(lambda: done.append(session.log.end_seq))
    assert not done
    await store.settle()
    assert (session.log.end_seq, done) == (2, [2])
    session.end(Code.NO_CAPACITY, "no slot", NOW + 3)
    assert (session.log.closed, session.log.ended) == (True, False)
    await store.settle()
    assert session.log.ended


async def test_what_piles_up_during_a_commit_is_one_commit(store: SqliteStore) -> None:
    directory = directory_of(store)
    commits: list[int] = []
    write = store._database.write

    def counted(batch: Batch) -> None:
        commits.append(len(batch.records))
        write(batch)

    store._database.write = counted  # type: ignore[method-assign]
    for i in range(3):
        directory.add(made(store, f"s_{i}"))
    await asyncio.sleep(0)  # the first commit begins
    for i in range(3, 50):
        directory.add(made(store, f"s_{i}"))
    await store.settle()
    assert commits == [3, 47]


async def test_a_finished_session_leaves_memory_and_is_read_from_the_file(store: SqliteStore) -> None:
    directory, session = directory_of(store), made(store)
    directory.add(session)
    run(session, directory)
    await store.settle()
    assert session.log.kept() == []
    assert len(await read(session.log)) == 5


async def test_a_reader_of_a_session_that_is_forgotten_meanwhile_is_cut_off(store: SqliteStore) -> None:
    directory, session = directory_of(store), made(store)
    directory.add(session)
    run(session, directory)
    await store.settle()
    more = asyncio.Event()
    cursor = session.log.subscribe(1, more.set)
    directory.remove("s_1")
    await store.settle()
    assert cursor.take() == []
    await more.wait()
    with pytest.raises(Exception, match="no longer kept"):
        cursor.take()
    cursor.close()


async def test_the_next_broker_finds_everything(tmp_path: Path) -> None:
    store, _ = opened(path_in(tmp_path))
    directory = directory_of(store)
    tool = DeclaredTool(name="ask", timeout_ms=5)
    done = made(store, "s_done", tenant="acme", fingerprint=b"\x00\xff")
    queued = made(store, "s_queued", tenant="other", wall=WALL + 1)
    runs = made(store, "s_runs", client_tools={"ask": tool})
    for session in (done, queued, runs):
        directory.add(session)
    placed(store, done)
    placed(store, runs)
    sent = run(done, directory)
    call = event("s_runs", 2, "tool_call", callId="c_1", toolName="ask", args={})
    take_in(runs, call)
    answer = b'{"type":"tool_result","callId":"c_1","value":1}'
    store.answer(runs, "c_1", answer)
    await store.close()

    store, loaded = opened(path_in(tmp_path))
    assert not loaded.unwritten
    (found,) = loaded.finished
    assert (found.session_id, found.tenant, found.fingerprint) == ("s_done", "acme", b"\x00\xff")
    assert (found.state, found.outcome, found.live, found.worker_name) == (State.COMPLETED, "ok", False, "one")
    assert found.ended == NOW + 100_000 - 3, "it ended two seconds after it was made, and that is five seconds ago"
    assert found.duration_ms(0) == 2000
    assert found.started is not None
    assert (await read(found.log))[1:] == sent

    first, second = loaded.live
    assert (first.session.session_id, first.session.tenant, first.session.state) == (
        "s_queued",
        "other",
        State.STARTING,
    )
    assert first.session.worker is None
    assert first.session.created == NOW + 100_000 - 4
    assert first.session.request is not None
    assert (first.session.request.code, first.session.request.env) == ("return 1", {"NAME": "value"})
    assert first.session.limits == queued.limits
    assert first.log.lines(1, 1 << 20) == queued.log.kept()

    assert (second.session.session_id, second.session.state) == ("s_runs", State.WAITING_FOR_TOOL)
    assert (second.session.worker, second.session.worker_name) == ("ws://worker", "one")
    assert second.session.request is None, "its worker has begun"
    assert second.session.calls == {"c_1": False}
    assert second.session.client_tools == {"ask": tool}
    assert (second.answers, second.calls) == ({"c_1": answer}, [])
    assert second.log.lines(1, 1 << 20)[1:] == [call]
    await store.close()


async def test_a_session_goes_on_where_the_last_broker_left_it(tmp_path: Path) -> None:
    store, _ = opened(path_in(tmp_path))
    session = made(store)
    directory_of(store).add(session)
    placed(store, session)
    first = event("s_1", 2)
    take_in(session, first)
    await store.close()

    store, loaded = opened(path_in(tmp_path))
    (found,) = loaded.live
    directory = directory_of(store)
    directory.restore([found.session])
    sent = [first, *run(found.session, directory)]
    await store.settle()
    assert (await read(found.session.log))[1:] == sent
    await store.close()

    store, loaded = opened(path_in(tmp_path))
    (again,) = loaded.finished
    assert (await read(again.log))[1:] == sent
    await store.close()


async def test_what_was_removed_stays_away(tmp_path: Path) -> None:
    store, _ = opened(path_in(tmp_path))
    directory = directory_of(store, number=1)
    for i in range(3):
        session = made(store, f"s_{i}")
        directory.add(session)
        run(session, directory)
    live = made(store, "s_live")
    directory.add(live)
    await store.settle()
    directory.remove("s_live")
    take_in(live, event("s_live", 2))
    await store.close()
    with sqlite3.connect(path_in(tmp_path)) as connection:
        assert connection.execute("SELECT count(DISTINCT key) FROM lines").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM requests").fetchone() == (0,)
    connection.close()
    store, loaded = opened(path_in(tmp_path))
    assert [session.session_id for session in loaded.finished] == ["s_2"]
    assert not loaded.live
    await store.close()


async def test_answers_that_were_applied_go_with_the_next_one_and_the_last_with_the_session(tmp_path: Path) -> None:
    store, _ = opened(path_in(tmp_path))
    directory, session = directory_of(store), made(store)
    directory.add(session)
    placed(store, session)
    for call_id in ("c_1", "c_2"):
        take_in(session, event("s_1", session.log.next_seq, "tool_call", callId=call_id, toolName="ask", args={}))
        session.answers[call_id] = b"answer"
        store.answer(session, call_id, b"answer")
        take_in(session, event("s_1", session.log.next_seq, "tool_result_applied", callId=call_id))
        await store.settle()
    with sqlite3.connect(path_in(tmp_path)) as connection:
        assert connection.execute("SELECT call_id FROM answers").fetchall() == [("c_2",)]
        run(session, directory)
        await store.settle()
        assert connection.execute("SELECT call_id FROM answers").fetchall() == []
        assert connection.execute("SELECT * FROM requests").fetchall() == []
    connection.close()
    await store.close()


async def test_of_a_request_whose_session_ended_nothing_is_left_when_the_broker_stopped(tmp_path: Path) -> None:
    store, _ = opened(path_in(tmp_path))
    directory, session = directory_of(store), made(store)
    secret = {"NAME": "secret" * 4000}  # more than a page of the file
    session.request = Execute(session_id="s_1", code="return 1", env=secret)
    directory.add(session)
    placed(store, session)
    await store.settle()
    run(session, directory)
    await store.close()
    assert [name for name, content in contents_of(tmp_path).items() if b"secret" in content] == []


async def test_nothing_of_an_encrypted_session_is_stored_in_clear(store: SqliteStore, tmp_path: Path) -> None:
    session = made(store, channel=accept_hello(Client().hello, "s_1"))
    directory_of(store).add(session)
    placed(store, session)
    take_in(session, event("s_1", 2, "tool_call", callId="c_1", toolName="ask", args={"x": "return 1"}))
    store.answer(session, "c_1", b"return 1")
    await store.settle()
    assert [name for name, content in contents_of(tmp_path).items() if b"return 1" in content] == []


async def test_a_broker_keeps_its_name_and_two_have_different_ones(tmp_path: Path) -> None:
    names = []
    for name in ("one", "one", "two"):
        store, _ = opened(str(tmp_path / f"{name}.sqlite"))
        names.append(store.broker_id)
        await store.close()
    assert names[0] == names[1] != names[2]


@pytest.mark.usefixtures("store")
async def test_a_file_that_a_broker_uses_is_refused_by_whatever_name(tmp_path: Path) -> None:
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "broker.sqlite")
    for name in ("broker.sqlite", "link.sqlite"):
        with pytest.raises(StoreError, match=r"in use by another broker \(process \d+\): each needs"):
            opened(str(tmp_path / name))


async def test_nobody_else_may_read_the_file(store: SqliteStore, tmp_path: Path) -> None:
    directory_of(store).add(made(store))
    await store.settle()
    assert modes_in(tmp_path) == {f"broker.sqlite{suffix}": 0o600 for suffix in ("", "-wal", "-shm", ".lock")}


async def test_nobody_else_may_read_a_file_that_was_there(tmp_path: Path) -> None:
    store, _ = opened(path_in(tmp_path))
    directory_of(store).add(made(store))
    await store.settle()
    found = contents_of(tmp_path)
    await store.close()
    leave_open(tmp_path, found)
    store, loaded = opened(path_in(tmp_path))
    assert len(loaded.live) == 1
    assert modes_in(tmp_path) == {"broker.sqlite.lock": 0o644} | {
        f"broker.sqlite{suffix}": 0o600 for suffix in ("", "-wal", "-shm")
    }
    await store.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"this is a text and not a database, whatever its name is, and it is long enough to tell",
            "damaged, or no SQLite",
        ),
        (b"SQLite format 3\x00" + b"\xff" * 5000, "damaged, or no SQLite|can't be used"),
    ],
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "broker.sqlite").write_bytes(content)
    with pytest.raises(StoreError, match=reason):
        opened(path_in(tmp_path))
    assert (tmp_path / "broker.sqlite").read_bytes() == content


def test_the_database_of_something_else_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(path_in(tmp_path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StoreError, match="is the database of something else: give the broker a file of its own"):
        opened(path_in(tmp_path))


async def test_a_file_of_a_newer_broker_is_refused(tmp_path: Path) -> None:
    store, _ = opened(path_in(tmp_path))
    await store.close()
    with sqlite3.connect(path_in(tmp_path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    with pytest.raises(StoreError, match=rf"newer Enclave \(its schema is {SCHEMA + 1}, this one knows {SCHEMA}\)"):
        opened(path_in(tmp_path))


def test_a_place_where_no_file_can_be_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere/broker\.sqlite\.lock can't be opened: No such file or directory"):
        opened(path_in(tmp_path / "nowhere"))
    (tmp_path / "broker.sqlite").mkdir()
    with pytest.raises(StoreError, match=r"can't be used: .*Is a directory"):
        opened(path_in(tmp_path))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("DELETE FROM lines WHERE first_seq = 2", "event 2 of a session is missing"),
        ("UPDATE lines SET lines = x'00' WHERE first_seq = 2", "events of a session can't be read"),
        ("UPDATE sessions SET record = '{'", "damaged: session s_1"),
        ("DELETE FROM requests", "has not ended, and has no request"),
    ],
)
async def test_a_damaged_file_is_refused_with_what_is_wrong(tmp_path: Path, damage: str, reason: str) -> None:
    store, _ = opened(path_in(tmp_path))
    session = made(store)
    directory_of(store).add(session)
    placed(store, session)
    await store.settle()
    for _ in range(3):
        take_in(session, event("s_1", session.log.next_seq))
        await store.settle()
    await store.close()
    with sqlite3.connect(path_in(tmp_path)) as connection:
        connection.execute(damage)
    connection.close()
    with pytest.raises(StoreError, match=reason):
        opened(path_in(tmp_path))
