"""The worker's side of the guest's socket, against guests that say anything, in pieces, or not at all.

Whatever a guest does: no callback of ours raises, what is kept for it is bounded, its session has exactly one `final`,
no descriptor is left, and the session beside it is served.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from typing import TYPE_CHECKING, NoReturn

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclave_protocol import Cancel, RemoteProtocolError, ToolResult
from enclave_worker import sandbox_process
from enclave_worker.cgroups import ControlGroup, GroupLimits
from enclave_worker.sandbox_process import _MAX_UNREAD_BYTES
from enclave_worker.zygote import frames
from tests.real_client import check_stream
from tests.worker.guest_socket import Guest, GuestHost, call, frame, result, same_descriptors, turns

LIMITS = {"maxResultBytes": 1000, "maxToolCalls": 5, "maxStdoutBytes": 2000}
MOST_INBOX_BYTES = (1 << 20) + 65536 + 65536
"""The largest frame of a session with small limits, and one read."""

# What a guest may send.

text = st.text(max_size=20) | st.sampled_from(["final", "result", "😀", "\x00", "x" * 300])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
messages = st.fixed_dictionaries(
    {"type": st.sampled_from(["tool_call", "result", "error", "ready", "final", "execute", "tool_result"])},
    optional={
        "id": st.integers(-1, 4) | json_values,
        "name": st.just("t") | json_values,
        "args": json_values,
        "value": json_values,
        "code": st.sampled_from(["EXECUTION_ERROR", "WORKER_LOST", "SYNTAX_ERROR"]) | json_values,
        "message": json_values,
        "line": json_values,
        "stack": json_values,
    },
)
calls = st.builds(call, st.integers(1, 6), args=json_values)
nested = st.builds(
    lambda kind, depth: frame(kind + b"[" * depth + b"]" * depth + b"}"),
    st.sampled_from([b'{"type":"result","value":', b'{"type":"tool_call","id":1,"name":"x","args":']),
    st.sampled_from([3, 500, 990, 100_000]),
)
numbers = st.builds(
    lambda digits, rest: frame(b'{"type":"result","value":' + b"9" * digits + rest + b"}"),
    st.sampled_from([1, 30, 400, 4299, 4301]),
    st.sampled_from([b"", b".5", b"e5", b"e999", b"E-999", b"e", b"-"]),
)
lying = st.builds(
    lambda size, body: frames.HEADER.pack(size) + body,
    st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 1 << 20, (1 << 20) + 65537, 2**31, 2**32 - 1]),
    st.binary(max_size=100),
)
frames_ = st.one_of(
    calls,
    messages.map(frame),
    st.binary(max_size=60).map(frame),
    nested,
    numbers,
    lying,
    st.binary(max_size=60),
    st.sampled_from([result(1), result("x" * 2000), result("x" * 900)]),
)

# What a guest may do, and what others may do meanwhile.

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from enclave_worker.output import Stream
    from enclave_worker.sandbox_process import Sandbox
    from enclave_worker.usage import Exit, Usage

    Action = Callable[[Guest], Awaitable[None]]


def _writes(data: bytes, by: int) -> Action:
    async def act(guest: Guest) -> None:
        await guest.write(data, by=by)

    return act


def _passes(data: bytes, count: int) -> Action:
    async def act(guest: Guest) -> None:
        await guest.write(data, [0] * count, by=1000)

    return act


def _prints(stream: Stream, data: bytes) -> Action:
    async def act(guest: Guest) -> None:
        await guest.print(stream, data)

    return act


def _shuts(how: int) -> Action:
    async def act(guest: Guest) -> None:
        try:
            guest.socket.shutdown(how)
        except OSError:
            return  # closed already
        await turns()

    return act


async def _reads(guest: Guest) -> None:
    try:
        guest.socket.recv(1 << 16)
    except OSError:
        return
    await turns()


async def _sends_urgently(guest: Guest) -> None:
    try:
        guest.socket.send(b"!", socket.MSG_OOB)
    except OSError:
        return
    await turns()


async def _closes(guest: Guest) -> None:
    guest.close()
    await turns()


async def _is_answered(guest: Guest) -> None:
    for event in guest.sink.events:
        if event["type"] == "tool_call":
            answer = ToolResult(
                session_id=guest.session_id,
                call_id=event["payload"]["callId"],
                success=True,
                value=msgspec.Raw(b'"' + b"x" * 60_000 + b'"'),
            )
            try:
                guest.sessions.tool_result(answer)
            except RemoteProtocolError:
                continue  # it has been, or the session is over
    await turns()


async def _is_cancelled(guest: Guest) -> None:
    try:
        guest.sessions.cancel(Cancel(session_id=guest.session_id))
    except RemoteProtocolError:
        return
    await turns()


async def _has_a_slow_client(guest: Guest) -> None:
    guest.sandbox.pause()
    await turns()


async def _has_a_fast_client(guest: Guest) -> None:
    guest.sandbox.resume()
    await turns()


async def _dies(guest: Guest) -> None:
    guest.exit()


streams = st.builds(b"".join, st.lists(frames_, min_size=1, max_size=6))
actions = st.one_of(
    st.builds(_writes, streams, st.sampled_from([1 << 20, 1000, 7])),
    st.builds(_writes, calls, st.sampled_from([1 << 20, 1])),
    st.builds(_passes, streams, st.integers(1, 20)),
    st.builds(_prints, st.sampled_from(["stdout", "stderr"]), st.binary(max_size=3000)),
    st.builds(_shuts, st.sampled_from([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])),
    st.sampled_from(
        [
            _reads,
            _sends_urgently,
            _closes,
            _is_answered,
            _is_answered,
            _is_cancelled,
            _has_a_slow_client,
            _has_a_fast_client,
            _dies,
        ]
    ),
)


async def _live(steps: list[Action]) -> None:
    async with GuestHost() as host:
        beside = Guest(host)
        guest = Guest(host, **LIMITS)
        for step in steps:
            await step(guest)
            assert len(guest.sandbox._inbox) <= MOST_INBOX_BYTES
            assert len(guest.sandbox._outbox) <= _MAX_UNREAD_BYTES
            assert host.raised == []
        await beside.write(call(1))
        await _is_answered(beside)
        await beside.write(result("served"))
        assert beside.sink.final is not None
        assert beside.sink.final["result"] == "served"
        guest.exit()
        beside.exit()
        for lines in (guest.sink.lines, beside.sink.lines):
            check_stream(lines)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(actions, min_size=1, max_size=8))
def test_whatever_a_guest_does_with_its_descriptors_harms_only_its_own_session(steps: list[Action]) -> None:
    with same_descriptors():
        asyncio.run(_live(steps))


CONVERSATION = call(1, args={"a": [1, "é"]}) + call(2) + result({"done": True})


@pytest.mark.parametrize("cut", range(1, len(CONVERSATION)))
async def test_a_stream_cut_in_two_anywhere_means_the_same(cut: int) -> None:
    async with GuestHost() as host:
        guest = Guest(host)
        await guest.write(CONVERSATION[:cut])
        await guest.write(CONVERSATION[cut:])
        guest.exit()

        kinds = [event["type"] for event in guest.sink.events]
        assert kinds == ["session_init", "tool_call", "tool_call", "final"]
        check_stream(guest.sink.lines)


async def test_a_stream_that_comes_byte_by_byte_means_the_same() -> None:
    async with GuestHost() as host:
        guest = Guest(host)
        await guest.write(CONVERSATION, by=1)
        guest.exit()

        assert [event["type"] for event in guest.sink.events].count("tool_call") == 2
        assert guest.sink.final is not None
        assert guest.sink.final["result"] == {"done": True}


@pytest.mark.parametrize("cut", range(len(CONVERSATION)))
async def test_a_stream_that_ends_anywhere_ends_the_session_once(cut: int) -> None:
    async with GuestHost() as host:
        guest = Guest(host)
        await guest.write(CONVERSATION[:cut])
        guest.close()
        await turns()
        guest.exit()

        check_stream(guest.sink.lines)
        assert guest.sink.final is not None
        assert guest.sink.final["error"]["code"] == "GUEST_CRASHED"


async def test_a_frame_that_promises_four_gigabytes_costs_none() -> None:
    async with GuestHost() as host:
        guest = Guest(host, maxResultBytes=15 << 20)
        await guest.write(frames.HEADER.pack(2**32 - 1) + b"x" * 200_000, by=1000)

        assert len(guest.sandbox._inbox) < 70_000
        guest.exit()
        assert guest.sink.final is not None
        assert "a frame of 4294967295 bytes" in guest.sink.final["error"]["message"]


async def test_a_guest_cannot_make_its_final_large_by_what_is_wrong_with_its_frame() -> None:
    async with GuestHost() as host:
        guest = Guest(host)
        await guest.write(frame({"type": "x" * 1_000_000}))
        guest.exit()

        assert len(guest.sink.lines[-1]) < 2000
        assert guest.sink.final is not None
        assert "Invalid value 'xxx" in guest.sink.final["error"]["message"]


async def test_a_guest_that_never_reads_its_answers_is_ended_when_too_many_wait() -> None:
    async with GuestHost() as host:
        guest = Guest(host, maxToolCalls=1000)
        for number in range(1, 30):
            await guest.write(call(number, args="x" * 10))
            try:
                _answer(guest, b'"' + b"x" * 1_000_000 + b'"')
            except RemoteProtocolError:
                break
            assert len(guest.sandbox._outbox) <= _MAX_UNREAD_BYTES
        assert guest.sandbox._outbox == b""
        guest.exit()

        check_stream(guest.sink.lines)
        assert guest.sink.final is not None
        assert "does not read" in guest.sink.final["error"]["message"]


async def test_a_guest_that_leaves_while_an_answer_is_on_its_way_ends_only_itself() -> None:
    async with GuestHost() as host:
        guest = Guest(host)
        await guest.write(call(1))
        _answer(guest, b'"' + b"x" * 3_000_000 + b'"')
        assert guest.sandbox._outbox
        guest.close()
        await turns()

        assert guest.sandbox._outbox == b""
        guest.exit()
        check_stream(guest.sink.lines)


async def test_a_guest_that_reads_slowly_gets_the_whole_answer() -> None:
    async with GuestHost() as host:
        guest = Guest(host)
        await guest.write(call(1))
        _answer(guest, b'"' + b"x" * 3_000_000 + b'"')
        received = bytearray()
        while len(received) < 3_000_000:
            received += guest.socket.recv(65536)
            await turns(1)
        # The `execute` came first.
        start = frames.HEADER.size + frames.HEADER.unpack_from(received)[0]
        while len(received) < start + frames.HEADER.size + frames.HEADER.unpack_from(received, start)[0]:
            received += guest.socket.recv(65536)
            await turns(1)

        del received[:start]
        message = frames.unpack(received)
        assert message is not None
        assert (message["id"], len(message["value"]), len(received)) == (1, 3_000_000, 0)
        guest.exit()


async def test_what_is_printed_line_by_line_comes_together_and_before_what_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox_process, "_REST_S", 3600)
    async with GuestHost() as host:
        guest = Guest(host)
        await guest.print("stdout", b"at once\n")
        await guest.print("stdout", b"one\n")
        await guest.print("stderr", b"another pipe\n")
        await guest.print("stdout", b"two\n")
        await guest.write(result(1))
        guest.exit()

        said = [(event["type"], event["payload"].get("chunk")) for event in guest.sink.events]
        assert said[-4:] == [
            ("stdout", "at once\n"),
            ("stderr", "another pipe\n"),
            ("stdout", "one\ntwo\n"),
            ("final", None),
        ]


async def test_a_pipe_is_read_again_after_its_rest() -> None:
    async with GuestHost() as host, asyncio.timeout(60):
        guest = Guest(host)
        for number in range(3):
            await guest.print("stdout", b"%d" % number)
            while not any(event["payload"].get("chunk") == str(number) for event in guest.sink.events):
                await turns(1)
        guest.exit()


@pytest.mark.parametrize("before", ["a rest of its pipe", "its client reads on"])
async def test_a_guest_that_the_kernel_has_no_room_to_watch_again_is_ended_and_not_forgotten(
    monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    full = asyncio.Event()

    def watch(*_: object) -> NoReturn:
        full.set()
        raise OSError(errno.ENOSPC, "no room for another")

    async with GuestHost() as host, asyncio.timeout(60):
        guest = Guest(host)
        monkeypatch.setattr(host.readiness, "watch", watch)
        if before == "a rest of its pipe":
            await guest.print("stdout", b"a line")
            await full.wait()
        else:
            guest.sandbox.pause()
            guest.sandbox.resume()
        await turns()
        guest.exit()

        final = guest.sink.final
        assert final is not None
        assert (final["error"]["code"], "no room for another" in final["error"]["message"]) == ("INTERNAL_ERROR", True)


async def test_descriptors_that_a_guest_passes_are_never_ours() -> None:
    async with GuestHost() as host:
        guest = Guest(host)
        reader, writer = os.pipe()
        with same_descriptors():
            assert await guest.write(call(1), [writer] * 250)
            assert await guest.write(call(2), [writer] * 250, by=1)
        os.close(writer)

        # Nobody holds the pipe open any more, in a socket or elsewhere: this would block if somebody did.
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""
        os.close(reader)
        guest.exit()
        assert [event["type"] for event in guest.sink.events].count("tool_call") == 2


async def test_a_guest_that_hangs_up_is_heard_once_however_often_its_client_stops_and_goes_on() -> None:
    async with GuestHost() as host:
        guest = Guest(host)
        owner = Listening(guest.sandbox)
        guest.socket.shutdown(socket.SHUT_WR)
        for _ in range(5):
            await turns()
            guest.sandbox.pause()
            guest.sandbox.resume()
        guest.exit()

        assert owner.hangups == 1


async def test_a_byte_sent_out_of_band_does_not_keep_the_loop_awake() -> None:
    async with GuestHost() as host:
        guest = Guest(host)
        for _ in range(3):
            guest.socket.send(b"!", socket.MSG_OOB)
            await turns()
        with select.epoll() as waiting:
            waiting.register(guest.sandbox._control, select.EPOLLIN)
            assert waiting.poll(0) == []
        guest.exit()
        check_stream(guest.sink.lines)


async def test_a_flood_of_frames_leaves_the_loop_to_others_between_two_reads() -> None:
    async with GuestHost() as host:
        beside, guest = Guest(host), Guest(host, maxToolCalls=2**53 - 1)
        flood = b"".join(call(number) for number in range(1, 20_000))
        guest.socket.send(flood)
        await beside.write(result("served"))

        assert guest.sandbox._read_control(), "the flood was not read in one go"
        await beside.write(result("served"))

        assert beside.sink.final is not None
        guest.exit()
        beside.exit()
        check_stream(guest.sink.lines)


class GoneGroup(ControlGroup):
    """A control group that somebody has removed."""

    def usage(self) -> Usage:
        raise OSError(errno.ENODEV, "no such device")


async def test_a_session_ends_though_nobody_can_tell_what_it_used() -> None:
    async with GuestHost() as host:
        guest = Guest(host)
        guest.sandbox.slot.group = GoneGroup({}, GroupLimits(memory_bytes=1, processes=1, cpus=1))
        guest.exit()

        check_stream(guest.sink.lines)


@pytest.mark.parametrize("what", ["frame", "output"])
async def test_a_session_that_there_is_no_memory_for_ends_and_the_one_beside_it_is_served(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fail(*_: object) -> NoReturn:
        raise MemoryError

    async with GuestHost() as host:
        guest, beside = Guest(host), Guest(host)
        await guest.print("stdout", b"before")
        (run,) = (run for run in host.sessions._runs.values() if run.session.session_id == guest.session_id)
        monkeypatch.setattr(run.session, what, fail)
        await guest.print("stdout", b"printed")
        await guest.write(result("returned"))
        await guest.write(result("and more"))
        await beside.write(result("served"))
        guest.exit()
        beside.exit()

        assert beside.sink.final is not None
        assert beside.sink.final["result"] == "served"
        check_stream(guest.sink.lines)
        final = guest.sink.final
        assert final is not None
        assert (final["error"]["code"], "MemoryError" in final["error"]["message"]) == ("INTERNAL_ERROR", True)


class Listening:
    """A session in the middle of which somebody counts."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._owner = sandbox.owner
        self.hangups = 0
        sandbox.owner = self

    def on_hangup(self, sandbox: Sandbox) -> None:
        self.hangups += 1
        self._owner.on_hangup(sandbox)

    def on_exit(self, sandbox: Sandbox, exit_: Exit) -> None:
        self._owner.on_exit(sandbox, exit_)

    def on_oom(self, sandbox: Sandbox) -> None:
        raise AssertionError("nothing counts its memory")

    def on_frame(self, sandbox: Sandbox, body: bytes) -> None:
        raise AssertionError("this guest says nothing")

    def on_broken(self, sandbox: Sandbox, reason: str) -> None:
        raise AssertionError(reason)

    def on_output(self, sandbox: Sandbox, stream: Stream, data: bytes) -> bool:
        raise AssertionError("this guest prints nothing")

    def on_dropped(self, sandbox: Sandbox, stream: Stream, size_bytes: int) -> None:
        raise AssertionError("this guest prints nothing")


def _answer(guest: Guest, value: bytes) -> None:
    """Give the newest call its result."""
    last = [event for event in guest.sink.events if event["type"] == "tool_call"][-1]
    call_id = last["payload"]["callId"]
    guest.sessions.tool_result(
        ToolResult(session_id=guest.session_id, call_id=call_id, success=True, value=msgspec.Raw(value))
    )
