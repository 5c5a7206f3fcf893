"""Many runs in one request: what it may say, and the lines of its answer.

Each run is a session like any other. Its line comes when it has ended, in no order but that; the last line sums up. A
reader that takes no lines keeps no more runs going than wait to be written; one that leaves cancels what still runs,
at once: a batch can't be taken up again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from litestar.status_codes import HTTP_200_OK
from msgspec import UNSET, Meta, Raw, UnsetType

from enclave_broker.api import REFUSALS, ApiError, CreateSession, SessionConfig, decode_body, invalid, new_session
from enclave_broker.event_log import Interrupted
from enclave_protocol import parse_env, parse_files
from enclave_protocol.items import with_item
from enclave_protocol.messages import Retry  # noqa: TC001 - msgspec reads it

from .streams import stream_headers, wait_disconnected
from .views import NDJSON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from litestar.types import Receive, Scope, Send

    from enclave_broker.dispatcher import Dispatcher
    from enclave_broker.event_log import EventLog
    from enclave_broker.languages import Unsaid
    from enclave_broker.new_session import NewSession
    from enclave_broker.sessions import BrokerSession
    from enclave_protocol import Limits

MAX_RUNS = 1000
MAX_CONCURRENCY = 64
DEFAULT_CONCURRENCY = 8
HEARTBEAT_S = 15.0


class BatchItem(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """One run."""

    code: str
    language: str | UnsetType = UNSET
    profile: str | UnsetType = UNSET
    env: dict[str, Any] | UnsetType = UNSET
    files: dict[str, Any] | UnsetType = UNSET
    limits: dict[str, Any] | UnsetType = UNSET
    config: SessionConfig | UnsetType = UNSET
    retry: Retry | UnsetType = UNSET


class CreateBatch(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """One code for many inputs, or many codes. The other fields are for all of them; an item's own go before."""

    code: str | UnsetType = UNSET
    """With `inputs`: each run finds its own in the variable `item`."""
    inputs: Annotated[list[Any], Meta(max_length=MAX_RUNS)] | UnsetType = UNSET
    items: Annotated[list[BatchItem], Meta(max_length=MAX_RUNS)] | UnsetType = UNSET
    """In place of `code` and `inputs`: `{code, …}` for each run."""
    concurrency: Annotated[int, Meta(ge=1, le=MAX_CONCURRENCY)] = DEFAULT_CONCURRENCY
    """Runs at once."""
    language: str | UnsetType = UNSET
    profile: str | UnsetType = UNSET
    env: dict[str, Any] | UnsetType = UNSET
    files: dict[str, Any] | UnsetType = UNSET
    limits: dict[str, Any] | UnsetType = UNSET
    config: SessionConfig | UnsetType = UNSET
    retry: Retry | UnsetType = UNSET


class ItemLine(msgspec.Struct, rename="camel", tag_field="type", tag="item"):
    """What became of one run."""

    index: int
    ok: bool
    session_id: str | UnsetType = UNSET
    """Absent if no session came to be."""
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    stats: Raw | UnsetType = UNSET


class HeartbeatLine(msgspec.Struct, rename="camel", tag_field="type", tag="heartbeat"):
    """Nothing has ended for a while."""

    done: int
    total: int


class SummaryLine(msgspec.Struct, rename="camel", tag_field="type", tag="summary"):
    """All have ended."""

    total: int
    succeeded: int
    failed: int
    duration_ms: float


class _FinalPayload(msgspec.Struct):
    ok: bool
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    stats: Raw | UnsetType = UNSET


class _FinalLine(msgspec.Struct):
    payload: _FinalPayload


_batch_decoder = msgspec.json.Decoder(CreateBatch)
_final_decoder = msgspec.json.Decoder(_FinalLine)
_encode = msgspec.json.Encoder().encode


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """A checked request."""

    concurrency: int
    total: int
    runs: Iterator[Callable[[], NewSession]]
    """The runs, each made when its turn comes: hundreds of copies of the code need not wait in memory."""


def decode_batch(data: bytes, default_limits: Callable[[str], Limits], unsaid: Unsaid) -> Batch:
    """Read and check a request; raises ApiError naming the field."""
    request: CreateBatch = decode_body(_batch_decoder, data)
    with_inputs = request.code is not UNSET and request.inputs is not UNSET
    if with_inputs is (request.items is not UNSET) or (request.items is not UNSET and request.code is not UNSET):
        raise invalid("says not what to run", field="items", allowed="either code and inputs, or items")
    if request.inputs is not UNSET and request.code is not UNSET:
        first = _session(request, request.code, default_limits, unsaid)
        runs = [_Input(first, value) for value in request.inputs]
        return Batch(request.concurrency, len(runs), iter(runs))
    # Once for all: a thousand items that share a megabyte of files would take as many megabytes of reading.
    with REFUSALS:
        env = {} if request.env is UNSET else parse_env(request.env)
        files = {} if request.files is UNSET else parse_files(request.files)
    chosen = []
    for i, item in enumerate(request.items or []):
        try:
            new = _session(_merged(request, item), item.code, default_limits, unsaid)
        except ApiError as error:
            error.body.move_below(f"items[{i}]")
            raise
        chosen.append(
            _Given(
                msgspec.structs.replace(
                    new,
                    env=env if item.env is UNSET else new.env,
                    files=files if item.files is UNSET else new.files,
                )
            )
        )
    return Batch(request.concurrency, len(chosen), iter(chosen))


class BatchStream:
    """The ASGI response that runs a batch and writes what became of it.

    Args:
        batch: what to run.
        dispatcher: runs it.
        submit: makes a session; raises ApiError.
    """

    def __init__(self, batch: Batch, dispatcher: Dispatcher, submit: Callable[[NewSession], BrokerSession]) -> None:
        self._batch = batch
        self._dispatcher = dispatcher
        self._submit = submit
        self._numbered = enumerate(batch.runs)
        self._ended: asyncio.Queue[ItemLine] = asyncio.Queue(maxsize=1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run until all have ended, or until the reader is gone."""
        running = asyncio.ensure_future(self._run(send))
        watching = asyncio.ensure_future(wait_disconnected(receive))
        try:
            await asyncio.wait([running, watching], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (running, watching):
                task.cancel()
            await asyncio.gather(running, watching, return_exceptions=True)
        if not running.cancelled() and (error := running.exception()) is not None:
            raise error

    async def _run(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": HTTP_200_OK, "headers": stream_headers(NDJSON)})
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._batch.concurrency):
                    group.create_task(self._run_some())
                await self._write_all(send)
        except* Interrupted:
            pass  # the broker stops: its body is left without an end
        except* TimeoutError:
            self._dispatcher.metrics.readers_cut.inc()  # it takes nothing: its body is left without an end

    async def _run_some(self) -> None:
        for index, make in self._numbered:
            await self._ended.put(await self._run_one(index, make))

    async def _run_one(self, index: int, make: Callable[[], NewSession]) -> ItemLine:
        try:
            session = await self._submitted(make())
        except ApiError as refused:
            return ItemLine(index, ok=False, error=Raw(_encode(refused.body)))
        ended, log = asyncio.Event(), session.log
        cursor = log.subscribe(1, lambda: ended.set() if log.ended or log.interrupted else None)
        try:
            if not log.ended:
                await ended.wait()
            if log.interrupted:
                raise Interrupted("the broker is stopping")
            return _item_line(index, session.session_id, log)
        finally:
            cursor.close()
            self._dispatcher.cancel(session, "the client of its batch went away")

    async def _submitted(self, new: NewSession) -> BrokerSession:
        """Make a session, and wait where there is no room for it now, but no longer than sessions wait for a slot."""
        give_up = time.monotonic() + self._dispatcher.config.queue_timeout_ms / 1000
        while True:
            try:
                return self._submit(new)
            except ApiError as refused:
                wait_s = float(refused.headers.get("Retry-After", "inf"))
                if time.monotonic() + wait_s > give_up:
                    raise
            await asyncio.sleep(wait_s)

    async def _write_all(self, send: Send) -> None:
        started, succeeded, total = time.monotonic(), 0, self._batch.total
        for done in range(total):
            line = await self._next_line(send, done)
            succeeded += line.ok
            await self._write(send, line)
        duration_ms = round((time.monotonic() - started) * 1000, 3)
        await self._write(send, SummaryLine(total, succeeded, total - succeeded, duration_ms), last=True)

    async def _next_line(self, send: Send, done: int) -> ItemLine:
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    return await self._ended.get()
            except TimeoutError:
                await self._write(send, HeartbeatLine(done, self._batch.total))

    async def _write(self, send: Send, line: msgspec.Struct, *, last: bool = False) -> None:
        async with asyncio.timeout(self._dispatcher.config.write_timeout_s):
            await send({"type": "http.response.body", "body": _encode(line) + b"\n", "more_body": not last})


@dataclasses.dataclass(frozen=True, slots=True)
class _Given:
    new: NewSession

    def __call__(self) -> NewSession:
        return self.new


@dataclasses.dataclass(frozen=True, slots=True)
class _Input:
    like: NewSession
    value: object

    def __call__(self) -> NewSession:
        with REFUSALS:
            code = with_item(self.like.code, self.value, self.like.language or "")
            return msgspec.structs.replace(self.like, code=code)


def _item_line(index: int, session_id: str, log: EventLog) -> ItemLine:
    (line,) = log.lines(log.end_seq - 1, 1)
    final = _final_decoder.decode(line).payload
    return ItemLine(
        index,
        ok=final.ok,
        session_id=session_id,
        result=final.result,
        error=final.error,
        stats=final.stats,
    )


def _session(
    request: CreateBatch | BatchItem, code: str, default_limits: Callable[[str], Limits], unsaid: Unsaid
) -> NewSession:
    shared = {field: getattr(request, field) for field in SHARED}
    return new_session(CreateSession(code=code, **shared), default_limits, unsaid)


def _merged(batch: CreateBatch, item: BatchItem) -> BatchItem:
    changes = {field: getattr(batch, field) for field in SETTINGS if getattr(item, field) is UNSET}
    return msgspec.structs.replace(item, **changes)


SHARED: tuple[Literal["language", "profile", "env", "files", "limits", "config", "retry"], ...] = (
    "language",
    "profile",
    "env",
    "files",
    "limits",
    "config",
    "retry",
)
"""Fields of a batch that are for every run that has none of its own."""
SETTINGS = tuple(field for field in SHARED if field not in {"env", "files"})
"""Those of them that cost little to read for each item."""
