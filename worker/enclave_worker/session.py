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
    Final,
    FinalPayload,
    Limits,
    SessionId,
    State,
    Stats,
    ToolResult,
    Trigger,
    transition,
)
from enclave_protocol import events as ev

from .guest_frames import GuestError, GuestFrame, GuestLog, GuestToolCall, guest_frames, read_value
from .instructions import CheckUsage, Conclude, Ended, Instruction, Kill, ToGuest
from .numbered import NumberedEvents
from .output import Capped, Output, Stream
from .tool_calls import ToolCalls
from .usage import Allowance, Exit, Usage
from .verdict import Verdict

MAX_FRAME_OVERHEAD_BYTES = 65536
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
        self._events = NumberedEvents(session_id, first_seq)
        self._emit = self._events.emit
        self.max_frame_bytes = max(limits.max_result_bytes, 1 << 20) + MAX_FRAME_OVERHEAD_BYTES
        self.budget_ms = max(1.0, min(limits.wall_ms, limits.session_ttl_ms - queue_ms))
        """Until the wall deadline. A broker's queue takes from the session's time to live, not from its deadline."""
        self._accepted_s = now_s
        self._queue_ms = queue_ms
        self._start_ms = 0.0
        cap_bytes = limits.max_stdout_bytes
        self._outputs = {"stdout": Output("stdout", cap_bytes), "stderr": Output("stderr", cap_bytes)}
        self._logs = Capped("log", cap_bytes)
        self._calls = ToolCalls(limits, self._events)
        self._verdict: Verdict | None = None

    def __repr__(self) -> str:
        return f"<Session {self.session_id} {self.state} next_seq={self.next_seq} waiting={len(self._calls)}>"

    @property
    def next_seq(self) -> int:
        """The number of its next event."""
        return self._events.next_seq

    @property
    def decided(self) -> bool:
        """Whether the verdict is known, so that only the sandbox's death is missing."""
        return self._verdict is not None

    @property
    def truncated(self) -> bool:
        """Whether some of its output was cut."""
        return self._outputs["stdout"].cut or self._outputs["stderr"].cut or self._logs.cut

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
            return self._decide(Verdict.raised(message, self._calls.codes), Conclude())
        if isinstance(message, GuestToolCall):
            if self._calls.is_waiting(message.id):
                return self.broken(f"tool call {message.id} was made twice")
            return self._waited(self._calls.made(message))
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
            told.append(self._emit(ev.Log, output.mark()))
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
        return self._waited(self._calls.result(result))

    def tool_timeout(self, call_id: str) -> list[Instruction]:
        """No result came in time: the guest gets an error instead."""
        return self._waited(self._calls.timeout(call_id))

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
            self._events.next_seq = seq
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

    def _waited(self, told: list[Instruction]) -> list[Instruction]:
        """Be in the state that fits the calls which wait now."""
        waits = bool(self._calls)
        if waits is not (self.state is State.WAITING_FOR_TOOL):
            self.state = transition(self.state, Trigger.TOOL_CALL if waits else Trigger.TOOL_RESULT)
        return told

    def _log(self, log: GuestLog, size_bytes: int) -> list[Instruction]:
        """Pass on what the code logs, up to a cap like that of each stream, and mark the place where it is cut."""
        was_cut = self._logs.cut
        self._logs.total_bytes += size_bytes
        if was_cut:
            return []
        if self._logs.cut:
            return [self._emit(ev.Log, self._logs.mark())]
        return [self._emit(ev.Log, ev.LogPayload(level=log.level, message=log.message))]

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
        # Calls the guest never waited for end with it: back to running, from where every end is legal.
        return self._waited(self._calls.give_up())

    def _stats(self, usage: Usage, now_s: float) -> Stats:
        out, err = self._outputs["stdout"], self._outputs["stderr"]
        return Stats(
            duration_ms=round((now_s - self._accepted_s) * 1000, 3),
            tool_call_count=self._calls.count,
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
