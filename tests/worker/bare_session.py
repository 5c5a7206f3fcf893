"""`Session`s without a sandbox, a clock or a loop: told what happens and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from enclave_protocol import Limits, SessionId, ToolError, ToolResult
from enclave_worker.instructions import Emit, Ended, Instruction
from enclave_worker.session import Session
from enclave_worker.usage import Exit, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable

DIED = Exit(status=0, usage=Usage(cpu_ms=1.5, peak_memory_bytes=4096))


def new(**limits: Any) -> Session:
    return Session(SessionId("s_1"), Limits(**limits), now_s=100.0)


def running(**limits: Any) -> Session:
    session = new(**limits)
    session.started("return 1", 100.25)
    return session


def frame(session: Session, **message: Any) -> list[Instruction]:
    return session.frame(json.dumps(message).encode())


def events(told: Iterable[Instruction]) -> list[dict[str, Any]]:
    return [json.loads(item.line) for item in told if isinstance(item, Emit)]


def final(session: Session, exit_: Exit | None = DIED) -> dict[str, Any]:
    told = session.ended(exit_, 101.0)
    last = events(told)[-1]
    assert last["type"] == "final"
    assert told[-1] == Ended(last["payload"].get("error", {}).get("code", "OK"))
    payload: dict[str, Any] = last["payload"]
    return payload


def call(session: Session, number: int = 1, name: str = "t") -> str:
    (event,) = events(frame(session, type="tool_call", id=number, name=name, args={}))
    call_id: str = event["payload"]["callId"]
    return call_id


def answer(call_id: str, value: Any = None) -> ToolResult:
    raw = value if isinstance(value, Raw) else Raw(json.dumps(value).encode())
    return ToolResult(session_id="s_1", call_id=call_id, success=True, value=raw)


def failure(call_id: str, error: ToolError) -> ToolResult:
    return ToolResult(session_id="s_1", call_id=call_id, success=False, error=error)


def kinds(told: Iterable[Instruction]) -> list[str]:
    return [type(item).__name__ for item in told]
