"""The tool calls of one session: which wait, how many there were, and what the guest is told of each. Pure.

A call has two names: its `callId` outside, and a number of the guest's own, by which the guest gets its answer. It
waits from `made` until its result, its timeout, or the session's verdict (`give_up`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from enclave_protocol import Code, RemoteProtocolError, ToolError, new_call_id
from enclave_protocol import events as ev
from enclave_protocol.limits import MAX_VALUE_BYTES

from .guest_frames import read_value
from .instructions import Instruction, StartToolTimer, StopToolTimer, ToGuest

if TYPE_CHECKING:
    from enclave_protocol import Limits, ToolResult

    from .guest_frames import GuestToolCall
    from .numbered import NumberedEvents

MAX_WAITING_CALLS = 1000
"""Tool calls of one session that may wait at once, whatever `maxToolCalls` says: each costs a timer."""


class ToolCalls:
    """See the module's text. Its length is the number of calls that wait."""

    def __init__(self, limits: Limits, events: NumberedEvents) -> None:
        self.count = 0
        """Calls that the guest made, refused ones among them."""
        self.codes: set[str] = set()
        """What failed tools told the guest: codes it may end with."""
        self._limits = limits
        self._events = events
        self._waiting: dict[str, int] = {}  # callId -> the guest's number
        self._numbers: set[int] = set()  # the same numbers, to look up
        self._answered: set[str] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def is_waiting(self, number: int) -> bool:
        """Return whether a call with this number of the guest's waits."""
        return number in self._numbers

    def made(self, call: GuestToolCall) -> list[Instruction]:
        """The guest makes a call, by a number that no waiting one has.

        Raises:
            MsgspecError, UnicodeError, RecursionError: the arguments are no JSON of ours. Those of a call that is
                refused are not looked at.
        """
        self.count += 1
        if self.count > self._limits.max_tool_calls:
            message = f"more than maxToolCalls={self._limits.max_tool_calls} tool calls in one session"
            return self._refuse(call, Code.MAX_TOOL_CALLS_EXCEEDED, message)
        if len(self._waiting) >= MAX_WAITING_CALLS:
            message = f"more than {MAX_WAITING_CALLS} tool calls wait at once: await some before you make more"
            return self._refuse(call, Code.MAX_TOOL_CALLS_EXCEEDED, message)
        args = read_value(call.args)
        if len(args) > MAX_VALUE_BYTES:
            # As encoded by us: a guest can write a number in three bytes that takes us thirty.
            message = f"the arguments of {call.name!r} are {len(args)} bytes as JSON, more than {MAX_VALUE_BYTES}"
            return self._refuse(call, Code.VALIDATION_ERROR, message)
        call_id = new_call_id()
        self._waiting[call_id] = call.id
        self._numbers.add(call.id)
        payload = ev.ToolCallPayload(call_id=call_id, tool_name=call.name, args=msgspec.Raw(args))
        event = self._events.emit(ev.ToolCall, payload)
        return [event, StartToolTimer(call_id, self._limits.tool_wait_ms)]

    def result(self, result: ToolResult) -> list[Instruction]:
        """Give a waiting call its result.

        Raises:
            RemoteProtocolError: the call is unknown, has its result already, or no longer waits.
        """
        if result.call_id in self._answered:
            raise self._bad("this call has its result already", "one result per call")
        if result.call_id not in self._waiting:
            raise self._bad("no such call waits", "the callId of a tool_call without a result")
        value = b"null" if result.value is UNSET else bytes(result.value)
        if len(value) > self._limits.max_tool_result_bytes:
            reason = f"the tool's result is {len(value)} bytes, more than {self._limits.max_tool_result_bytes}"
            error = ToolError(message=f"{reason} (maxToolResultBytes)", code=Code.RESULT_TOO_LARGE)
            return self._answer_error(result.call_id, error)
        if result.error is not UNSET:
            return self._answer_error(result.call_id, result.error)
        try:
            value = read_value(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise self._bad(f"not JSON: {error}", "any JSON value", field="value") from error
        return self._answer(result.call_id, {"ok": True, "value": msgspec.Raw(value)})

    def timeout(self, call_id: str) -> list[Instruction]:
        """No result came in time: the guest gets an error instead."""
        if call_id not in self._waiting:
            return []
        message = f"the tool gave no result within {self._limits.tool_wait_ms} ms"
        return self._answer_error(call_id, ToolError(message=message, code=Code.TOOL_TIMEOUT))

    def give_up(self) -> list[Instruction]:
        """Wait for no call any more, and answer none: the guest never waited for them, or is to end."""
        stop: list[Instruction] = [StopToolTimer(call_id) for call_id in self._waiting]
        self._waiting.clear()
        self._numbers.clear()
        return stop

    def _refuse(self, call: GuestToolCall, code: Code, message: str) -> list[Instruction]:
        self.codes.add(code)
        return [ToGuest({"type": "tool_result", "id": call.id, "ok": False, "message": message, "code": code})]

    def _answer_error(self, call_id: str, error: ToolError) -> list[Instruction]:
        code = Code.EXECUTION_ERROR if error.code is UNSET else error.code
        self.codes.add(code)
        told = self._answer(call_id, {"ok": False, "message": error.message, "code": code})
        if self._limits.cancel_on_first_error:
            message = f"given up because another call failed: {error.message}"
            for other in list(self._waiting):
                told += self._answer(other, {"ok": False, "message": message, "code": code})
        return told

    def _answer(self, call_id: str, outcome: dict[str, Any]) -> list[Instruction]:
        number = self._waiting.pop(call_id)
        self._numbers.discard(number)
        self._answered.add(call_id)
        applied = self._events.emit(ev.ToolResultApplied, ev.ToolResultAppliedPayload(call_id=call_id))
        return [StopToolTimer(call_id), ToGuest({"type": "tool_result", "id": number, **outcome}), applied]

    def _bad(self, reason: str, allowed: str, *, field: str = "callId") -> RemoteProtocolError:
        return RemoteProtocolError(reason, field=field, allowed=allowed, session_id=self._events.session_id)
