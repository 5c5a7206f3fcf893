"""One session in a worker: its state, its numbers and its limits.

Theory of operation. A `Session` is told what happened (the guest sent a frame, a timer struck, the sandbox died) and
answers with instructions for the shell to carry out, in order: emit this line, send this to the guest, kill. It does
no I/O and reads no clock; `now_s` is an argument wherever time matters.

A session ends in two moves. First something decides the *verdict*; from then on nothing the guest does can change it.
Then the one `final` is emitted. If the guest decided, by a result or an exception, the two follow each other at once:
the shell drains the pipes, asks the kernel what was used, and kills the sandbox behind the `final`. If anything else
did (a deadline, a cancel, a limit), the sandbox is killed first, and the `final` waits until every process of it is
gone: whoever reads `SESSION_CANCELLED` knows that nothing of the session still runs.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from enclave_protocol import (
    Code,
    Event,
    Final,
    FinalPayload,
    Limits,
    RemoteProtocolError,
    SessionId,
    State,
    Stats,
    ToolError,
    ToolResult,
    Trigger,
    encode,
    new_call_id,
    transition,
)
from enclave_protocol import events as ev
from enclave_protocol.limits import MAX_VALUE_BYTES

from .guest_frames import GuestError, GuestFrame, GuestLog, GuestToolCall, guest_frames, read_value
from .instructions import CheckUsage, Conclude, Emit, Ended, Instruction, Kill, StartToolTimer, StopToolTimer, ToGuest
from .output import Output, Stream
from .usage import Allowance, Exit, Usage
from .verdict import Verdict

MAX_FRAME_OVERHEAD_BYTES = 65536
MAX_WAITING_CALLS = 1000
"""Tool calls of one session that may wait at once, whatever `maxToolCalls` says: each costs a timer."""
_MAX_REASON_CHARS = 500
WATCH_INTERVAL_MS = 100.0
"""How often a sandbox's memory is looked at where the kernel does not limit it."""
LEAST_INTERVAL_MS = 10.0


class Session:
    """See the module's text. Attributes are read by the shell, written only here."""

    def __init__(
        self,
        session_id: SessionId,
        limits: Limits,
        *,
        now_s: float,
        first_seq: int = 1,
        queue_ms: float = 0.0,
        allowance: Allowance = Allowance(),  # noqa: B008 - frozen
    ) -> None:
        self.session_id = session_id
        self.limits = limits
        self.memory_bytes = _lower(limits.memory_limit_bytes, allowance.memory_bytes)
        self.cpu_time_ms = _lower(limits.cpu_time_ms, allowance.cpu_time_ms)
        self._allowance = allowance
        self.state = State.STARTING
        self.next_seq = first_seq
        self.max_frame_bytes = max(limits.max_result_bytes, 1 << 20) + MAX_FRAME_OVERHEAD_BYTES
        self.budget_ms = max(1.0, min(limits.wall_ms, limits.session_ttl_ms - queue_ms))
        """Until the wall deadline. A broker's queue takes from the session's time to live, not from its deadline."""
        self._accepted_s = now_s
        self._queue_ms = queue_ms
        self._start_ms = 0.0
        self._outputs = {"stdout": self._output("stdout"), "stderr": self._output("stderr")}
        self._log_bytes = 0
        self._calls: dict[str, int] = {}  # callId -> the guest's number, while the call waits
        self._numbers: set[int] = set()  # the same numbers, to look up
        self._answered: set[str] = set()
        self._tool_codes: set[str] = set()  # what failed tools told the guest: codes it may end with
        self._tool_call_count = 0
        self._verdict: Verdict | None = None

    def __repr__(self) -> str:
        return f"<Session {self.session_id} {self.state} next_seq={self.next_seq} waiting={len(self._calls)}>"

    @property
    def decided(self) -> bool:
        """Whether the verdict is known, so that only the sandbox's death is missing."""
        return self._verdict is not None

    @property
    def truncated(self) -> bool:
        """Whether some of its output was cut."""
        return self._outputs["stdout"].cut or self._outputs["stderr"].cut or self._logs_are_cut

    # What can happen, in the order it usually does.

    def init(self, cancel_url: str, expires_at: str) -> list[Instruction]:
        """Emit `session_init`, for a client that has no broker to do it."""
        encryption = ev.Encryption(enabled=False)
        payload = ev.SessionInitPayload(cancel_url=cancel_url, expires_at=expires_at, encryption=encryption)
        return [self._emit(ev.SessionInit, payload)]

    def started(self, code: str, now_s: float, given: dict[str, Any] | None = None) -> list[Instruction]:
        """Hand the code to the sandbox that was found, and what else its driver is told (`language`, `env`, …)."""
        self._start_ms = (now_s - self._accepted_s) * 1000
        self.state = transition(self.state, Trigger.START)
        lowered = self.memory_bytes < self._allowance.memory_bytes
        request = {
            "type": "execute",
            "code": code,
            "addressSpaceBytes": self.memory_bytes + self._allowance.spare_address_bytes if lowered else 0,
            "maxResultBytes": self.limits.max_result_bytes,
            "memoryBytes": self.memory_bytes,
            **(given or {}),
        }
        return [ToGuest(request), *self._next_check(0.0)]

    def used(self, usage: Usage, held_bytes: int = 0) -> list[Instruction]:
        """The kernel was asked what the sandbox has used so far, and what memory it holds where only we enforce it."""
        if self.decided:
            return []
        if usage.cpu_ms >= self.cpu_time_ms:
            return self._fail(
                Code.CPU_LIMIT_EXCEEDED, f"used {usage.cpu_ms:.0f} ms of processor time: cpuTimeMs={self.cpu_time_ms}"
            )
        if held_bytes > self.memory_bytes:
            return self.out_of_memory()
        return self._next_check(usage.cpu_ms)

    def out_of_memory(self) -> list[Instruction]:
        """The sandbox has used up its memory."""
        return [] if self.decided else self._decide(Verdict.out_of_memory(self.memory_bytes), Kill())

    def frame(self, body: bytes) -> list[Instruction]:
        """Handle one frame of the guest's. Everything in it is a claim."""
        if self.decided:
            return []
        try:
            message = guest_frames.decode(body)
            return self._message(message, len(body))
        except RecursionError:
            return self._fail(Code.RESULT_NOT_SERIALIZABLE, "a result or a tool's arguments are nested too deeply")
        except (msgspec.MsgspecError, UnicodeError) as error:
            return self.broken(str(error))

    def _message(self, message: GuestFrame, size_bytes: int) -> list[Instruction]:
        if isinstance(message, GuestError):
            return self._decide(Verdict.raised(message, self._tool_codes), Conclude())
        if isinstance(message, GuestToolCall):
            return self._refusal(message) or self._tool_call(message, read_value(message.args))
        if isinstance(message, GuestLog):
            return self._log(message, size_bytes)
        return self._result(UNSET if message.value is UNSET else read_value(message.value))

    def broken(self, reason: str) -> list[Instruction]:
        """The guest's socket carried something that its driver never sends."""
        # A decoder quotes what it does not like, and a guest can send it megabytes of that.
        said = reason if len(reason) <= _MAX_REASON_CHARS else f"{reason[:_MAX_REASON_CHARS]}…"
        return self._fail(Code.GUEST_CRASHED, f"the guest broke the protocol of its own socket: {said}")

    def output(self, stream: Stream, data: bytes) -> list[Instruction]:
        """Pass on what was written, up to the cap; mark the place where it is cut."""
        output = self._outputs[stream]
        was_cut = output.cut
        chunk = output.feed(data)
        told: list[Instruction] = [self._emit(output.event, ev.ChunkPayload(chunk=chunk))] if chunk else []
        if output.cut and not was_cut:
            message = f"{stream} is cut: more than maxStdoutBytes={output.cap_bytes} were written"
            evidence = {"limit": "maxStdoutBytes", "stream": stream, "maxStdoutBytes": output.cap_bytes}
            told.append(self._emit(ev.Log, ev.LogPayload(level="warn", message=message, data=evidence)))
        return told

    def is_cut(self, stream: Stream) -> bool:
        """Whether further bytes of this stream only count."""
        return self._outputs[stream].cut

    def count_dropped(self, stream: Stream, size_bytes: int) -> None:
        """Count bytes beyond the cap that the shell threw away unread."""
        self._outputs[stream].total_bytes += size_bytes

    def tool_result(self, result: ToolResult) -> list[Instruction]:
        """Give a waiting call its result.

        Raises:
            RemoteProtocolError: the call is unknown, has its result already, or no longer waits.
        """
        if result.call_id in self._answered:
            raise self._refuse("this call has its result already", "one result per call")
        if result.call_id not in self._calls or self.decided:
            raise self._refuse("no such call waits", "the callId of a tool_call without a result")
        value = b"null" if result.value is UNSET else bytes(result.value)
        if len(value) > self.limits.max_tool_result_bytes:
            reason = f"the tool's result is {len(value)} bytes, more than {self.limits.max_tool_result_bytes}"
            error = ToolError(message=f"{reason} (maxToolResultBytes)", code=Code.RESULT_TOO_LARGE)
            return self._answer_error(result.call_id, error)
        if result.error is not UNSET:
            return self._answer_error(result.call_id, result.error)
        try:
            value = read_value(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise self._refuse(f"not JSON: {error}", "any JSON value", field="value") from error
        return self._answer(result.call_id, {"ok": True, "value": msgspec.Raw(value)})

    def tool_timeout(self, call_id: str) -> list[Instruction]:
        """No result came in time: the guest gets an error instead."""
        if call_id not in self._calls or self.decided:
            return []
        message = f"the tool gave no result within {self.limits.tool_wait_ms} ms"
        return self._answer_error(call_id, ToolError(message=message, code=Code.TOOL_TIMEOUT))

    def heartbeat(self, ts: str) -> list[Instruction]:
        """Say that the session is alive."""
        return [self._emit(ev.Heartbeat, ev.HeartbeatPayload(ts=ts))]

    def catalog_changed(self, change: ev.CatalogChangedPayload) -> list[Instruction]:
        """Say that the tools changed, which only the broker knows."""
        return [self._emit(ev.CatalogChanged, change)]

    def deadline(self, now_s: float) -> list[Instruction]:
        """The wall deadline struck."""
        if self.decided:
            return []
        elapsed_ms = (now_s - self._accepted_s) * 1000
        event = self._emit(
            ev.DeadlineExceeded, ev.DeadlineExceededPayload(elapsed_ms=elapsed_ms, budget_ms=self.budget_ms)
        )
        by_deadline = self.budget_ms == self.limits.deadline_ms
        limit = f"deadlineMs={self.limits.deadline_ms}" if by_deadline else f"sessionTtlMs={self.limits.session_ttl_ms}"
        return [event, *self._fail(Code.DEADLINE_EXCEEDED, f"still running after {limit} ms")]

    def cancel(self, reason: str) -> list[Instruction]:
        """Somebody wants the session to end."""
        if self.decided:
            return []
        return self._decide(Verdict.cancelled(reason), Kill())

    def fail(self, code: Code, message: str) -> list[Instruction]:
        """End the session for a reason that lies outside the guest."""
        return [] if self.decided else self._fail(code, message)

    def ended(self, exit_: Exit | None, now_s: float) -> list[Instruction]:
        """The sandbox is gone, or about to be (None: there never was one). Emit what is left and the `final`."""
        seq = self.next_seq
        try:
            return self._ended(exit_, now_s)
        except MemoryError:
            # For a large result, say. A session ends all the same, and there is room for a few words.
            self.next_seq = seq
            self._verdict = Verdict.failed(
                Code.INTERNAL_ERROR, "the worker had no memory left for the session's last events"
            )
            return self._ended(exit_, now_s)

    def _ended(self, exit_: Exit | None, now_s: float) -> list[Instruction]:
        usage = Usage() if exit_ is None else exit_.usage
        reached = self._verdict
        told: list[Instruction] = []
        if reached is None:
            reached = Verdict.died(exit_, self.memory_bytes)
            told = self._settle(reached)
        verdict = reached.revised(usage, self.memory_bytes)
        rests = [(output.event, output.flush()) for output in self._outputs.values()]
        told += [self._emit(event, ev.ChunkPayload(chunk=rest)) for event, rest in rests if rest]
        if usage.refused_processes:
            told.append(self._emit(ev.Log, self._refused_processes(usage)))
        ok = verdict.trigger is Trigger.COMPLETE
        payload = FinalPayload(ok=ok, result=verdict.result, error=verdict.error, stats=self._stats(usage, now_s))
        told.append(self._emit(Final, payload))
        self.state = transition(self.state, verdict.trigger)
        told.append(Ended(verdict.code))
        return told

    # How it is done.

    def _refused_processes(self, usage: Usage) -> ev.LogPayload:
        most = self._allowance.processes
        message = f"{usage.refused_processes} forks or threads were refused: a sandbox may have {most} at a time"
        return ev.LogPayload(level="warn", message=message, data={"limit": "processes", "processes": most})

    def _next_check(self, cpu_ms: float) -> list[Instruction]:
        """Look again when the processor time can be used up at the earliest; never, if the deadline comes before."""
        by_cpu_ms = (self.cpu_time_ms - cpu_ms) / self._allowance.cpus
        if self._allowance.watched:
            return [CheckUsage(min(WATCH_INTERVAL_MS, max(by_cpu_ms, LEAST_INTERVAL_MS)))]
        return [CheckUsage(max(by_cpu_ms, LEAST_INTERVAL_MS))] if by_cpu_ms < self.budget_ms else []

    def _output(self, stream: Stream) -> Output:
        return Output(stream, self.limits.max_stdout_bytes)

    def _emit(self, kind: Any, payload: ev.Payload) -> Emit:
        event: Event = kind(session_id=self.session_id, seq=self.next_seq, payload=payload)
        line = encode(event)
        self.next_seq += 1  # not before: one that there is no memory for leaves no gap
        return Emit(line)

    def _refuse(self, reason: str, allowed: str, *, field: str = "callId") -> RemoteProtocolError:
        return RemoteProtocolError(reason, field=field, allowed=allowed, session_id=self.session_id)

    def _refusal(self, call: GuestToolCall) -> list[Instruction]:
        """Count a call, and return what is to be done instead of it; nothing if it may be made."""
        if call.id in self._numbers:
            return self.broken(f"tool call {call.id} was made twice")
        self._tool_call_count += 1
        if self._tool_call_count > self.limits.max_tool_calls:
            message = f"more than maxToolCalls={self.limits.max_tool_calls} tool calls in one session"
            return self._refuse_call(call, Code.MAX_TOOL_CALLS_EXCEEDED, message)
        if len(self._calls) >= MAX_WAITING_CALLS:
            message = f"more than {MAX_WAITING_CALLS} tool calls wait at once: await some before you make more"
            return self._refuse_call(call, Code.MAX_TOOL_CALLS_EXCEEDED, message)
        return []

    def _tool_call(self, call: GuestToolCall, args: bytes) -> list[Instruction]:
        if len(args) > MAX_VALUE_BYTES:
            # As encoded by us: a guest can write a number in three bytes that takes us thirty.
            message = f"the arguments of {call.name!r} are {len(args)} bytes as JSON, more than {MAX_VALUE_BYTES}"
            return self._refuse_call(call, Code.VALIDATION_ERROR, message)
        if not self._calls:
            self.state = transition(self.state, Trigger.TOOL_CALL)
        call_id = new_call_id()
        self._calls[call_id] = call.id
        self._numbers.add(call.id)
        payload = ev.ToolCallPayload(call_id=call_id, tool_name=call.name, args=msgspec.Raw(args))
        event = self._emit(ev.ToolCall, payload)
        return [event, StartToolTimer(call_id, self.limits.tool_wait_ms)]

    def _refuse_call(self, call: GuestToolCall, code: Code, message: str) -> list[Instruction]:
        self._tool_codes.add(code)
        return [ToGuest({"type": "tool_result", "id": call.id, "ok": False, "message": message, "code": code})]

    def _answer_error(self, call_id: str, error: ToolError) -> list[Instruction]:
        code = Code.EXECUTION_ERROR if error.code is UNSET else error.code
        self._tool_codes.add(code)
        told = self._answer(call_id, {"ok": False, "message": error.message, "code": code})
        if self.limits.cancel_on_first_error:
            others = ToolError(message=f"given up because another call failed: {error.message}", code=code)
            for other in list(self._calls):
                told += self._answer(other, {"ok": False, "message": others.message, "code": code})
        return told

    def _answer(self, call_id: str, outcome: dict[str, Any]) -> list[Instruction]:
        number = self._calls.pop(call_id)
        self._numbers.discard(number)
        self._answered.add(call_id)
        if not self._calls:
            self.state = transition(self.state, Trigger.TOOL_RESULT)
        applied = self._emit(ev.ToolResultApplied, ev.ToolResultAppliedPayload(call_id=call_id))
        return [StopToolTimer(call_id), ToGuest({"type": "tool_result", "id": number, **outcome}), applied]

    def _log(self, log: GuestLog, size_bytes: int) -> list[Instruction]:
        """Pass on what the code logs, up to a cap like that of each stream, and mark the place where it is cut."""
        was_cut, cap_bytes = self._logs_are_cut, self.limits.max_stdout_bytes
        self._log_bytes += size_bytes
        if was_cut:
            return []
        if not self._logs_are_cut:
            return [self._emit(ev.Log, ev.LogPayload(level=log.level, message=log.message))]
        message = f"log messages are cut: more than maxStdoutBytes={cap_bytes} were sent"
        evidence = {"limit": "maxStdoutBytes", "stream": "log", "maxStdoutBytes": cap_bytes}
        return [self._emit(ev.Log, ev.LogPayload(level="warn", message=message, data=evidence))]

    @property
    def _logs_are_cut(self) -> bool:
        return self._log_bytes > self.limits.max_stdout_bytes

    def _result(self, value: bytes | UnsetType) -> list[Instruction]:
        if value is not UNSET and len(value) > self.limits.max_result_bytes:
            message = (
                f"the result is {len(value)} bytes as JSON, more than maxResultBytes={self.limits.max_result_bytes}"
            )
            return self._fail(Code.RESULT_TOO_LARGE, message)
        return self._decide(Verdict.returned(value), Conclude())

    def _fail(self, code: Code, message: str) -> list[Instruction]:
        return self._decide(Verdict.failed(code, message), Kill())

    def _decide(self, verdict: Verdict, how: Kill | Conclude) -> list[Instruction]:
        return [*self._settle(verdict), how]

    def _settle(self, verdict: Verdict) -> list[Instruction]:
        """Fix how the session ends. Nothing waits for a tool any more."""
        assert self._verdict is None, "a verdict is final"
        self._verdict = verdict
        stop: list[Instruction] = [StopToolTimer(call_id) for call_id in self._calls]
        if self._calls:
            # Calls the guest never waited for end with it: back to running, from where every end is legal.
            self._calls.clear()
            self._numbers.clear()
            self.state = transition(self.state, Trigger.TOOL_RESULT)
        return stop

    def _stats(self, usage: Usage, now_s: float) -> Stats:
        out, err = self._outputs["stdout"], self._outputs["stderr"]
        return Stats(
            duration_ms=round((now_s - self._accepted_s) * 1000, 3),
            tool_call_count=self._tool_call_count,
            stdout_bytes=out.total_bytes,
            stderr_bytes=err.total_bytes,
            cpu_ms=round(usage.cpu_ms, 3),
            peak_memory_bytes=usage.peak_memory_bytes,
            refused_processes=usage.refused_processes,
            oom_kills=usage.oom_kills,
            queue_ms=round(self._queue_ms, 3),
            start_ms=round(self._start_ms, 3),
            truncated=self.truncated,
        )


def _lower(asked: int | UnsetType, allowed: int) -> int:
    return allowed if asked is UNSET else min(asked, allowed)
