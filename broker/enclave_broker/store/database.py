"""The SQLite file. Plain calls that block; whoever calls them chooses the thread.

A transaction is one batch, in a few statements of many rows: each statement lets go of Python's lock and waits to get
it back, which beside a busy event loop takes longer than storing the rows. For the same reason the lines that a session
got since the last commit are one row.

Files: the database, SQLite's own two beside it (`-wal`, `-shm`), and ours, `.lock`: locked as long as a broker uses the
database, and written in place so that this needs no room on a disk that is full.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from .base import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .batch import Batch

APPLICATION_ID = 0x454E434C
"""Marks a SQLite file as a broker's: `ENCL`."""
SCHEMA = 1
"""Version of the tables. A file of a later one is refused; one of an earlier one is changed to this."""
BUSY_S = 1.0
"""Longest wait for whoever else writes to the file, such as somebody with the `sqlite3` command."""
ROW_BYTES = 256 * 1024
"""Lines in one row, at most (but always one)."""
MAX_ROWS = 64
"""Rows in one statement."""
WAL_BYTES = 16 * 1024 * 1024
"""What is left of SQLite's `-wal` file after it grew."""

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (key INTEGER PRIMARY KEY, session_id TEXT NOT NULL, record BLOB NOT NULL);
CREATE TABLE requests (key INTEGER PRIMARY KEY, request BLOB NOT NULL);
CREATE TABLE places (key INTEGER PRIMARY KEY, place BLOB NOT NULL);
CREATE TABLE endings (key INTEGER PRIMARY KEY, ending BLOB NOT NULL);
CREATE TABLE answers (key INTEGER, call_id TEXT, message BLOB NOT NULL, PRIMARY KEY (key, call_id)) WITHOUT ROWID;
CREATE TABLE lines (key INTEGER, first_seq INTEGER, last_seq INTEGER NOT NULL, lines BLOB NOT NULL,
  PRIMARY KEY (key, first_seq)) WITHOUT ROWID;
"""
PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    # Requests can hold secrets, and are deleted when their session has ended: also from the pages that become free.
    "PRAGMA secure_delete = ON",
    f"PRAGMA journal_size_limit = {WAL_BYTES}",
)
UNWRITTEN = b"unwritten"
_MARK_AT = 64
_LOCK_FILE_BYTES = 128

_lines_decoder = msgspec.msgpack.Decoder(list[bytes])


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A session, as it is stored."""

    key: int
    session_id: str
    record: bytes
    request: bytes | None
    place: bytes | None
    ending: bytes | None


class Database:
    """One open file.

    Args:
        path: where it is; made if there is none, in a directory that exists.

    Raises:
        StoreError: it can't be used, or another broker does.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).resolve()  # a lock on one name must hold for all
        with contextlib.ExitStack() as stack:
            self._lock = _Lock(self.path)
            stack.callback(self._lock.close)
            with self._explained():
                self._writer = self._open()
                stack.callback(self._writer.close)
                self.broker_id = self._broker_id()
            self._reader: sqlite3.Connection | None = None
            self.unwritten = self._lock.marked
            """Whether the broker before this one could not write, at last, what it went on with."""
            stack.pop_all()

    def write(self, batch: Batch) -> None:
        """Store a batch, all of it or (raising sqlite3.Error) nothing."""
        connection = self._writer
        try:
            connection.execute("BEGIN IMMEDIATE")
            _write(connection, batch)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # SQLite has ended it already if there was no room
                connection.execute("ROLLBACK")
            raise

    def rows(self) -> Iterator[Row]:
        """Yield every session, in the order they were added. Raises StoreError."""
        query = (
            "SELECT key, session_id, record, request, place, ending FROM sessions LEFT JOIN requests USING (key)"
            " LEFT JOIN places USING (key) LEFT JOIN endings USING (key) ORDER BY key"
        )
        with self._explained():
            for key, session_id, record, request, place, ending in self._writer.execute(query):
                yield Row(key=key, session_id=session_id, record=record, request=request, place=place, ending=ending)

    def answers(self, key: int) -> dict[str, bytes]:
        """Return what there is of a session's calls beside its lines, by the calls' ids. Raises StoreError."""
        with self._explained():
            return dict(self._writer.execute("SELECT call_id, message FROM answers WHERE key = ?", (key,)).fetchall())

    def all_lines(self, key: int) -> tuple[int, list[bytes]]:
        """Return all lines of a session, and the number of the first. Raises StoreError."""
        with self._explained():
            query = "SELECT first_seq, last_seq, lines FROM lines WHERE key = ? ORDER BY first_seq"
            rows = self._writer.execute(query, (key,)).fetchall()
        found: list[bytes] = []
        first = due = rows[0][0] if rows else 1
        for first_seq, last_seq, data in rows:
            lines = self._decoded(data)
            if first_seq != due or last_seq != due + len(lines) - 1:
                raise StoreError(f"{self.path} is damaged: event {due} of a session is missing")
            found += lines
            due = last_seq + 1
        return first, found

    def some_lines(self, key: int, from_seq: int, max_bytes: int) -> list[bytes]:
        """Return lines of a finished session, up to `max_bytes` but at least one if there is any.

        Uses a connection of its own, so that it can be called while another thread writes. Raises StoreError.
        """
        with self._explained():
            if self._reader is None:
                address = f"{self.path.as_uri()}?mode=ro"
                self._reader = sqlite3.connect(
                    address, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_S
                )
            query = (
                "SELECT first_seq, lines FROM lines WHERE key = ?1 AND first_seq >= coalesce("
                "(SELECT max(first_seq) FROM lines WHERE key = ?1 AND first_seq <= ?2), 0) ORDER BY first_seq"
            )
            found: list[bytes] = []
            total = 0
            with contextlib.closing(self._reader.execute(query, (key, from_seq))) as rows:
                for first_seq, data in rows:
                    for line in self._decoded(data)[max(0, from_seq - first_seq) :]:
                        total += len(line)
                        if found and total > max_bytes:
                            return found
                        found.append(line)
            return found

    def last_key(self) -> int:
        """Return the largest key there is; 0 if none. Raises StoreError."""
        with self._explained():
            return int(self._writer.execute("SELECT coalesce(max(key), 0) FROM sessions").fetchone()[0])

    def mark_unwritten(self, *, unwritten: bool) -> None:
        """Have the next broker told that this one could not write (or that it has, after all)."""
        self._lock.mark(marked=unwritten)

    def close(self) -> None:
        """Let go of everything. Safe to call again."""
        for connection in (self._reader, self._writer):
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):  # nothing is open that could be lost
                    connection.close()
        self._lock.close()

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # before SQLite does, for everybody to read
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=BUSY_S)
        try:
            version = self._version(connection)
            self._close_to_others()
            for pragma in PRAGMAS:
                connection.execute(pragma)
            if version == 0:
                _create(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _close_to_others(self) -> None:
        # What was there may have any mode, and SQLite gives its own two files that of the database.
        for suffix in ("", "-wal", "-shm"):
            file = self.path.with_name(f"{self.path.name}{suffix}")
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mode & 0o077:
                    file.chmod(0o600)

    def _version(self, connection: sqlite3.Connection) -> int:
        """Return the schema's version, 0 if there is none yet; raises StoreError for a file that is not ours."""
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        application = int(connection.execute("PRAGMA application_id").fetchone()[0])
        tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        if application != APPLICATION_ID and (application or tables or version):
            raise StoreError(f"{self.path} is the database of something else: give the broker a file of its own")
        if version > SCHEMA:
            raise StoreError(
                f"{self.path} was written by a newer Enclave (its schema is {version}, this one knows {SCHEMA}): "
                "start that one, or give this one another file"
            )
        return version

    def _broker_id(self) -> str:
        (broker_id,) = self._writer.execute("SELECT value FROM meta WHERE name = 'broker_id'").fetchone()
        return str(broker_id)

    def _decoded(self, data: bytes) -> list[bytes]:
        try:
            return _lines_decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise StoreError(f"{self.path} is damaged: the events of a session can't be read") from error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise StoreError(f"{self.path} can't be used: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.path} is damaged, or no SQLite file ({error}): move it away, or restore it, with its -wal file"
            ) from error

    def __enter__(self) -> Self:
        """Return it, open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


class _Lock:
    """The file beside the database that says who uses it. The kernel unlocks it when its owner dies."""

    def __init__(self, path: Path) -> None:
        name = path.with_name(f"{path.name}.lock")
        try:
            self._fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{name} can't be opened: {error.strerror}") from error
        try:
            self._take(path)
        except BaseException:
            os.close(self._fd)
            raise
        self._closed = False

    def _take(self, path: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._fd, _MARK_AT, 0).decode(errors="replace").strip()
            raise StoreError(f"{path} is in use by another broker ({owner}): each needs a file of its own") from None
        self.marked = os.pread(self._fd, len(UNWRITTEN), _MARK_AT) == UNWRITTEN
        try:
            os.pwrite(self._fd, f"process {os.getpid()}".encode().ljust(_MARK_AT), 0)
            if os.fstat(self._fd).st_size < _LOCK_FILE_BYTES:
                os.pwrite(self._fd, b" " * (_LOCK_FILE_BYTES - _MARK_AT), _MARK_AT)
        except OSError as error:
            raise StoreError(f"{path}.lock can't be written: {error.strerror}") from error

    def mark(self, *, marked: bool) -> None:
        os.pwrite(self._fd, (UNWRITTEN if marked else b"").ljust(_LOCK_FILE_BYTES - _MARK_AT), _MARK_AT)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._fd)


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in TABLES.strip().split(";\n"):
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES ('broker_id', ?)", (f"b_{uuid.uuid4()}",))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA}")
    connection.execute("COMMIT")


def _write(connection: sqlite3.Connection, batch: Batch) -> None:
    if batch.forget_live:
        live = connection.execute("SELECT key FROM sessions WHERE key NOT IN (SELECT key FROM endings)").fetchall()
        _remove(connection, [key for (key,) in live])
    _insert(connection, "sessions", 3, [(key, *record) for key, record in batch.records.items()])
    _insert(connection, "requests", 2, list(batch.requests.items()))
    _insert(connection, "places", 2, list(batch.places.items()))
    _insert(connection, "lines", 4, list(_line_rows(batch)))
    _insert(connection, "answers", 3, [(key, call_id, message) for (key, call_id), message in batch.answers.items()])
    for key, call_id in batch.applied:
        connection.execute("DELETE FROM answers WHERE key = ? AND call_id = ?", (key, call_id))
    for key, first_seq in batch.trimmed.items():
        connection.execute("DELETE FROM lines WHERE key = ? AND last_seq < ?", (key, first_seq))
    if batch.endings:
        _insert(connection, "endings", 2, list(batch.endings.items()))
        _delete(connection, ("requests", "places", "answers"), batch.endings)
    if batch.removed:
        _remove(connection, batch.removed)


def _line_rows(batch: Batch) -> Iterator[tuple[int, int, int, bytes]]:
    for key, (first_seq, lines) in batch.lines.items():
        start = total = 0
        for i, line in enumerate(lines):
            if i > start and total + len(line) > ROW_BYTES:
                yield _line_row(key, first_seq + start, lines[start:i])
                start, total = i, 0
            total += len(line)
        yield _line_row(key, first_seq + start, lines[start:])


def _line_row(key: int, first_seq: int, lines: list[bytes]) -> tuple[int, int, int, bytes]:
    return key, first_seq, first_seq + len(lines) - 1, msgspec.msgpack.encode(lines)


def _insert(connection: sqlite3.Connection, table: str, columns: int, rows: Sequence[tuple[Any, ...]]) -> None:
    # In powers of two, so that there are few statements to prepare.
    done = 0
    while done < len(rows):
        count = min(MAX_ROWS, 1 << ((len(rows) - done).bit_length() - 1))
        row = f"({', '.join('?' * columns)})"
        values = [value for row in rows[done : done + count] for value in row]
        connection.execute(f"INSERT OR REPLACE INTO {table} VALUES {', '.join([row] * count)}", values)  # noqa: S608
        done += count


def _remove(connection: sqlite3.Connection, keys: Iterable[int]) -> None:
    _delete(connection, ("sessions", "requests", "places", "endings", "answers", "lines"), keys)


def _delete(connection: sqlite3.Connection, tables: Iterable[str], keys: Iterable[int]) -> None:
    listed = msgspec.json.encode(list(keys)).decode()
    for table in tables:
        connection.execute(f"DELETE FROM {table} WHERE key IN (SELECT value FROM json_each(?))", (listed,))  # noqa: S608
