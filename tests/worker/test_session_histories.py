"""Whatever happens to a `Session`, in whatever order: its stream is whole, and ends once."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import UNSET, Raw

from enclave_protocol import Code, Limits, RemoteProtocolError, SessionId, State, ToolError
from enclave_protocol.events import CatalogChangedPayload
from enclave_worker.instructions import Conclude, Emit, Ended, Instruction, Kill, StartToolTimer, StopToolTimer, ToGuest
from enclave_worker.session import Session
from enclave_worker.usage import Exit, Usage
from tests.real_client import check_line, check_stream
from tests.worker.bare_session import answer, failure, frame

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_limits = st.builds(
    Limits,
    max_tool_calls=st.integers(1, 4),
    max_stdout_bytes=st.integers(1, 40),
    max_result_bytes=st.integers(1, 40),
    max_tool_result_bytes=st.integers(1, 40),
    cancel_on_first_error=st.booleans(),
    deadline_ms=st.sampled_from([0, 5]),
)
_exits = st.builds(
    Exit,
    status=st.sampled_from([0, 1 << 8, 9, 11, 70 << 8]),
    usage=st.builds(
        Usage,
        cpu_ms=st.floats(0, 1e6),
        peak_memory_bytes=st.integers(0, 2**40),
        oom_kills=st.integers(0, 2),
        refused_processes=st.integers(0, 2),
    ),
    lost=st.sampled_from(["", "its zygote ended"]),
)


class AnyHistory(RuleBasedStateMachine):
    """Plays the shell, and a sandbox that may do anything."""

    @initialize(limits=_limits, first_seq=st.integers(1, 1000))
    def accept(self, limits: Limits, first_seq: int) -> None:
        self.first_seq = first_seq
        self.session = Session(SessionId("s_1"), limits, now_s=0.0, first_seq=first_seq)
        self.now_s = 0.0
        self.lines: list[bytes] = []
        self.timers: set[str] = set()
        self.calls: list[str] = []
        self.begun = self.killed = self.ended = False
        if first_seq == 1:
            self.perform(self.session.init("/sessions/s_1/cancel", "2026-01-01T00:00:00Z"))

    def perform(self, told: list[Instruction]) -> None:
        for item in told:
            assert not self.ended, "nothing follows the end"
            if isinstance(item, Emit):
                check_line(item.line)
                self.lines.append(item.line)
            elif isinstance(item, StartToolTimer):
                assert item.call_id not in self.timers
                self.timers.add(item.call_id)
                self.calls.append(item.call_id)
            elif isinstance(item, StopToolTimer):
                self.timers.remove(item.call_id)
            elif isinstance(item, ToGuest):
                assert self.begun
                json.loads(msgspec.json.encode(item.message))
            elif isinstance(item, Kill | Conclude):
                assert not self.killed, "one verdict, one end"
                self.killed = True
            elif isinstance(item, Ended):
                self.ended = True

    def alive(self) -> bool:
        return not self.ended

    def guest_runs(self) -> bool:
        return self.begun and not self.ended

    @precondition(lambda self: not self.begun and not self.ended and not self.killed)
    @rule()
    def a_sandbox_is_found(self) -> None:
        self.begun = True
        self.perform(self.session.started("code", self.now_s))

    @precondition(guest_runs)
    @rule(number=st.integers(0, 3), name=st.text(max_size=3), args=_values)
    def the_guest_calls(self, number: int, name: str, args: Any) -> None:
        self.perform(frame(self.session, type="tool_call", id=number, name=name, args=args))

    @precondition(guest_runs)
    @rule(value=_values)
    def the_guest_returns(self, value: Any) -> None:
        self.perform(frame(self.session, type="result", value=value))

    @precondition(guest_runs)
    @rule(
        code=st.sampled_from([*Code, "NOPE", "", "a b"]),
        name=st.none() | st.text(max_size=3),
        line=st.none() | st.integers(0, 9),
    )
    def the_guest_raises(self, code: str, name: str | None, line: int | None) -> None:
        self.perform(frame(self.session, type="error", code=code, message="m", name=name, line=line, stack=None))

    @precondition(guest_runs)
    @rule(body=st.binary(max_size=20))
    def the_guest_sends_anything(self, body: bytes) -> None:
        self.perform(self.session.frame(body))

    @precondition(guest_runs)
    @rule(
        stream=st.sampled_from(["stdout", "stderr"]),
        data=st.binary(min_size=1, max_size=12) | st.text(min_size=1, max_size=6).map(str.encode),
    )
    def the_guest_writes(self, stream: Any, data: bytes) -> None:
        if self.session.is_cut(stream):
            self.session.count_dropped(stream, len(data))
        else:
            self.perform(self.session.output(stream, data))

    @precondition(alive)
    @rule(which=st.integers(0, 5), value=_values, outcome=st.sampled_from(["value", "error", "coded", "no JSON"]))
    def a_result_comes(self, which: int, value: Any, outcome: str) -> None:
        call_id = self.calls[which] if which < len(self.calls) else "c_unknown"
        result = answer(call_id, value)
        if outcome == "no JSON":
            result = answer(call_id, value=Raw(b"["))
        elif outcome != "value":
            error = ToolError(message="no", code="NOPE" if outcome == "coded" else UNSET)
            result = failure(call_id, error)
        waited = call_id in self.timers
        try:
            self.perform(self.session.tool_result(result))
        except RemoteProtocolError:
            assert not waited or outcome == "no JSON"
        else:
            assert waited

    @precondition(alive)
    @rule(which=st.integers(0, 5))
    def a_tool_times_out(self, which: int) -> None:
        if which < len(self.calls) and self.calls[which] in self.timers:
            self.perform(self.session.tool_timeout(self.calls[which]))

    @precondition(alive)
    @rule()
    def a_heartbeat_is_due(self) -> None:
        self.perform(self.session.heartbeat("2026-01-01T00:00:00.000Z"))

    @precondition(alive)
    @rule()
    def the_tools_change(self) -> None:
        change = CatalogChangedPayload(version="v", added_actions=["a"], removed_actions=[])
        self.perform(self.session.catalog_changed(change))

    @precondition(alive)
    @rule()
    def the_deadline_strikes(self) -> None:
        self.now_s += 60.0
        self.perform(self.session.deadline(self.now_s))

    @precondition(alive)
    @rule()
    def somebody_cancels(self) -> None:
        self.perform(self.session.cancel("enough"))

    @precondition(alive)
    @rule()
    def the_worker_gives_up(self) -> None:
        self.perform(self.session.fail(Code.INTERNAL_ERROR, "we broke"))

    @precondition(guest_runs)
    @rule(cpu_ms=st.floats(0, 1e5), held_bytes=st.integers(0, 2**40))
    def its_usage_is_looked_at(self, cpu_ms: float, held_bytes: int) -> None:
        self.perform(self.session.used(Usage(cpu_ms=cpu_ms), held_bytes))

    @precondition(alive)
    @rule()
    def its_memory_is_used_up(self) -> None:
        self.perform(self.session.out_of_memory())

    @precondition(lambda self: not self.ended and (self.begun or self.killed))
    @rule(exit_=_exits)
    def the_sandbox_dies(self, exit_: Exit) -> None:
        self.perform(self.session.ended(exit_ if self.begun else None, self.now_s + 1))

    @precondition(lambda self: self.ended)
    @rule()
    def whatever_comes_late_changes_nothing(self) -> None:
        session = self.session
        late = [session.cancel("x"), session.deadline(self.now_s), session.fail(Code.INTERNAL_ERROR, "x")]
        late += [frame(session, type="result", value=1), *(session.tool_timeout(call_id) for call_id in self.calls)]
        assert not any(late)
        for call_id in self.calls:
            with pytest.raises(RemoteProtocolError):
                session.tool_result(answer(call_id))

    @invariant()
    def the_stream_is_whole_so_far(self) -> None:
        if not hasattr(self, "lines"):
            return
        numbers = [json.loads(line)["seq"] for line in self.lines]
        assert numbers == list(range(self.first_seq, self.first_seq + len(numbers)))
        assert self.session.next_seq == self.first_seq + len(numbers)
        assert self.session.state.terminal == self.ended
        assert (self.session.state is State.WAITING_FOR_TOOL) == bool(self.timers)
        if self.ended:
            check_stream(self.lines, first_seq=self.first_seq)
            assert not self.timers, "a timer was left running"


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
