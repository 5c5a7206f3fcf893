"""How one call is run: checked, approved, given its secrets, tried, and its result made fit to leave.

What a tool does wrong is a value here: an error the guest can catch. Nothing a tool raises reaches the broker. How
long a call may take, and what happens when its session ends first, is `calls`' affair: this is cancelled then, and a
tool that ignores its cancellation keeps its place at the gate, and its thread, for as long as it really runs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from enclave_broker.access import DEFAULT_TENANT
from enclave_broker.tracing import carried
from enclave_protocol import Code, tool_calls
from enclave_protocol.limits import MAX_VALUE_BYTES
from enclave_protocol.logs import about

from . import references, retries
from .approval import ApprovalRequest, require_approval
from .audit import canonical, fingerprint
from .gates import Gates
from .threads import Threads
from .tool import ArgumentsRefused, Tool, ToolContext, ToolFailure

if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_protocol import ToolResult
    from enclave_protocol.trace_context import TraceContext

    from .approval import ApprovalHook
    from .references import References
    from .secrets import Secrets

log = logging.getLogger("enclave.broker")

LARGE_BYTES = 1024
"""Arguments above this are checked, and results above this are cleaned, in a thread of our own: on the loop they could
hold up every other session. (A schema's check can take 10 us for each byte.)"""
_OWN_THREADS = 2

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """One call of a tool, and what has become of it so far."""

    tool: Tool
    args: object
    """As the guest sent them."""
    session_id: str
    call_id: str
    tenant: str = DEFAULT_TENANT
    size_bytes: int = 0
    """About how large the arguments are, as JSON text."""
    max_result_bytes: int = MAX_VALUE_BYTES
    """The session's `maxToolResultBytes`."""
    deadline: float = float("inf")
    """When it is given up, on the clock of `time.monotonic`."""
    trace: TraceContext | None = None
    """Where in a trace it belongs."""
    over: bool = False
    """Whether it was answered, or nobody waits for an answer any more."""

    attempts: int = 0
    approved: bool | None = None
    args_bytes: int | None = None
    args_sha256: str | None = None
    result_bytes: int | None = None
    reference: str | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What a log record about it is about."""
        return about(
            session_id=self.session_id,
            tenant=self.tenant,
            trace_id="" if self.trace is None else self.trace.trace_id,
            call_id=self.call_id,
            tool=self.tool.name,
        )


class ToolRunner:
    """Runs calls. Owns the threads for plain functions, and the gates of tools with a cap.

    Args:
        secrets: what tools may be given, and what must not leave.
        stored: where results go that guests get as references.
        approve: who is asked about tools that need approval.
        threads: most plain functions that run at once.
    """

    def __init__(self, secrets: Secrets, stored: References, approve: ApprovalHook | None, *, threads: int) -> None:
        self.secrets = secrets
        self.stored = stored
        self.threads = Threads(threads)
        self._own_threads = Threads(_OWN_THREADS)
        self._approve = approve
        self._gates = Gates()

    async def run(self, call: Call) -> ToolResult:
        """Run one call to its end and return what to tell the guest. Raises only CancelledError."""
        if call.trace is not None:
            carried.set(call.trace)  # for this task, which is the call's own
        try:
            text = await self._answer(call)
        except asyncio.CancelledError:
            # Either this task was cancelled; or the tool let a cancellation of its own escape.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return self.failed(call, Code.EXECUTION_ERROR, "CancelledError")
        except ToolFailure as failure:
            return self.failed(call, failure.code, failure.message)
        except (Exception, SystemExit, GeneratorExit) as error:  # noqa: BLE001 - a tool may raise anything
            if log.isEnabledFor(logging.DEBUG):
                trace = "".join(traceback.format_exception(error))
                clean = self.secrets.scrubber.clean(trace)
                log.debug("tool %s failed:\n%s", call.tool.name, clean, extra=call.about)
            return self.failed(call, tool_calls.code_of(error), tool_calls.describe(error))
        return tool_calls.succeeded(call.session_id, call.call_id, call.tool.name, msgspec.Raw(text))

    def failed(self, call: Call, code: str, message: str) -> ToolResult:
        """Return the failure of a call, without secrets."""
        # Cleaned before it is cut to length: half a secret would not be found.
        clean = self.secrets.scrubber.clean
        return tool_calls.failed(call.session_id, call.call_id, clean(code), clean(message))

    def close(self) -> None:
        """Let the threads go. One that is stuck in a tool is left behind; it keeps no program from ending."""
        self.threads.close()
        self._own_threads.close()

    async def _answer(self, call: Call) -> bytes:
        args = await self._beside(call.size_bytes, lambda: self._checked(call))
        await self._be_approved(call, args)
        context = self._context(call)
        async with self._gates.entered(call.tool):
            value = await self._tried(call, args, context)
        return await self._made_fit(call, value)

    def _checked(self, call: Call) -> dict[str, object]:
        """Return the arguments as the tool takes them. Runs in any thread."""
        try:
            text = canonical(call.args)
            call.args_bytes, call.args_sha256 = len(text), fingerprint(text)
            args = call.args
            if references.MARK in text:
                args = self.stored.resolve(call.session_id, call.tool.name, args)
            return call.tool.accept(args)
        except RecursionError:
            raise ArgumentsRefused(f"{call.tool.name}: the arguments are nested too deeply") from None

    async def _be_approved(self, call: Call, args: dict[str, object]) -> None:
        if not call.tool.policy.needs_approval:
            return
        call.approved = False
        request = ApprovalRequest(
            tool=call.tool.name,
            args=args,
            session_id=call.session_id,
            call_id=call.call_id,
            tenant=call.tenant,
            description=call.tool.description,
        )
        await require_approval(self._approve, request)
        call.approved = True

    def _context(self, call: Call) -> ToolContext:
        secrets = self.secrets.pick(call.tool.name, call.tool.policy.secrets) if call.tool.policy.secrets else {}
        return ToolContext(
            call.session_id,
            call.call_id,
            call.tenant,
            call.deadline,
            secrets,
            self.threads,
            traceparent="" if call.trace is None else call.trace.traceparent,
            tracestate="" if call.trace is None else call.trace.state,
        )

    async def _tried(self, call: Call, args: dict[str, object], context: ToolContext) -> object:
        while True:
            call.attempts += 1
            try:
                return await call.tool.invoke(args, context)
            except Exception as error:
                delay_ms = retries.delay_ms(
                    call.tool.policy,
                    error,
                    attempts=call.attempts,
                    left_ms=(call.deadline - time.monotonic()) * 1000,
                    jitter=random.random(),  # noqa: S311 - spreads load, decides nothing
                )
                if delay_ms is None:
                    raise
            await asyncio.sleep(delay_ms / 1000)

    async def _made_fit(self, call: Call, value: object) -> bytes:
        """Return the JSON text to give to the guest: the result without secrets, or what stands for it."""
        try:
            text = msgspec.json.encode(value)
            if self.secrets.names():
                text = await self._beside(len(text), lambda: self.secrets.scrubber.clean_json(text))
        except (TypeError, ValueError, RecursionError) as error:
            message = f"{call.tool.name} returned something that is not JSON: {error}"
            raise ToolFailure(Code.RESULT_NOT_SERIALIZABLE, message) from error
        call.result_bytes = len(text)
        policy = call.tool.policy
        limits = [] if policy.max_result_bytes is None else [("the tool's own limit", policy.max_result_bytes)]
        if not policy.store_result:
            # Configured limits, unlike requested ones, may be larger than a frame.
            limits.append(("maxToolResultBytes", min(call.max_result_bytes, MAX_VALUE_BYTES)))
        for name, limit in limits:
            if len(text) > limit:
                message = f"{call.tool.name} returned {len(text)} bytes of JSON; {name} is {limit}"
                raise ToolFailure(Code.RESULT_TOO_LARGE, message)
        if not policy.store_result or call.over:  # over: its session's results may be gone already
            return text
        call.reference = self.stored.put(call.session_id, call.tool.name, text)
        return references.token(call.reference)

    async def _beside(self, size_bytes: int, function: Callable[[], T]) -> T:
        """Run something that takes as long as the data is large: beside the loop, if that is long."""
        return function() if size_bytes <= LARGE_BYTES else await self._own_threads.run(function)
