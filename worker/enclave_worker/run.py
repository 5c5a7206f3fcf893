"""One live session: the shell around `session.Session`.

Theory of operation. A `Run` ties four things together: the pure `Session` that decides, the sandbox it drives, its
timers, and the sink its events go to. It is all callbacks: feed the session, carry out what it says, in order. There is
no task per session, so there is nothing to cancel and nothing to leak but what `_finish` lets go of.

A sink that can't keep up pauses its sessions' sandboxes: their pipes fill, their guests block, and nothing is lost.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from enclave_protocol import Code
from enclave_protocol.events import iso_time
from enclave_protocol.logs import about

from .alarms import Alarms
from .holdings import Holding
from .instructions import CheckUsage, Conclude, Emit, Ended, Instruction, Kill, StartToolTimer, StopToolTimer, ToGuest
from .session import WATCH_INTERVAL_MS
from .usage import Exit, Usage

if TYPE_CHECKING:
    from enclave_protocol import CatalogNotice, ToolResult

    from .holdings import Sink
    from .output import Stream
    from .request import Request
    from .sandbox_process import Sandbox
    from .session import Session
    from .sessions import Sessions

log = logging.getLogger("enclave.worker")

_DEATH_GRACE_S = 2.0
"""How long the `final` of a killed sandbox waits for the word of its death. Giving back much memory can take long, and
a zygote may be stopped by somebody; neither may hold up an ending."""
_HANGUP_GRACE_S = 0.2
"""How long after the end of the guest's socket we look whether it is dying. Mostly its death is known by then."""
_MAX_BLIND_LOOKS = 10
"""How often in a row, `WATCH_INTERVAL_MS` apart, what a session uses may be unknown."""


class Run:
    """One session with its sandbox, timers and sink. The owner of its sandbox."""

    def __init__(self, sessions: Sessions, session: Session, request: Request, sink: Sink) -> None:
        self.session = session
        self.sink = sink
        self._sessions = sessions
        self._offer = request.offer
        self._language = request.language
        self._trace = request.trace
        self._code = request.code
        self._given = request.given
        self._loop = sessions.loop
        self._started_s = time.monotonic()
        self._sandbox: Sandbox | None = None
        self._waited = False
        """Whether there was no warm sandbox."""
        self._blind_looks = 0  # in a row, at what it uses
        self._alarms = Alarms(sessions.loop)
        if isinstance(sink, Holding):
            sink.on_room = self.resume

    def __repr__(self) -> str:
        return f"<Run {self.session!r} sandbox={self._sandbox!r}>"

    @property
    def about(self) -> dict[str, Any]:
        """What a log record about the session is about."""
        return about(session_id=self.session.session_id, trace_id="" if self._trace is None else self._trace.trace_id)

    def start(self, *, announce: bool) -> None:
        """Take a sandbox, and start the clocks."""
        limits = self.session.limits
        if announce:
            cancel_url = f"/sessions/{self.session.session_id}/cancel"
            expires_at = iso_time(time.time() + limits.session_ttl_ms / 1000)
            self._perform(self.session.init(cancel_url, expires_at))
        if self._sessions.config.debug:
            log.info("session started", extra=self.about)
        self._sessions.listeners.execute.notify(self.session.session_id)
        if limits.heartbeat_interval_ms:
            self._arm_heartbeat()
        self._alarms.set("deadline", self.session.budget_ms / 1000, self._on_deadline)
        self._sessions.pools.take(self, self._offer.profile.name, self._language, self._code)
        self._waited = self._sandbox is None

    def cancel(self, reason: str) -> None:
        """End the session now."""
        self._perform(self.session.cancel(reason))

    def abandon(self) -> None:
        """End the session now: its connection is gone, and nobody is left to read."""
        self.sink = _NOWHERE
        self.cancel("the connection was closed")

    def fail(self, code: Code, reason: str) -> None:
        """End the session now, for a reason of ours."""
        self._perform(self.session.fail(code, reason))

    def tool_result(self, message: ToolResult) -> None:
        """Pass a tool's result on to the guest."""
        self._perform(self.session.tool_result(message))

    def catalog_changed(self, message: CatalogNotice) -> None:
        """Pass word of the tools on to the reader."""
        self._perform(self.session.catalog_changed(message.payload))

    def resume(self) -> None:
        """The sink can take more."""
        if self._sandbox is not None:
            self._sandbox.resume()

    def on_sandbox(self, sandbox: Sandbox) -> None:
        """The pool found one: it has run nothing, and after us it never will."""
        self._sandbox = sandbox
        sandbox.owner = self
        sandbox.max_frame_bytes = self.session.max_frame_bytes
        now_s = time.monotonic()
        metrics = self._sessions.metrics
        (metrics.cold_start_seconds if self._waited else metrics.warm_start_seconds).observe(now_s - self._started_s)
        try:
            if self.session.memory_bytes < self._offer.allowance.memory_bytes:
                sandbox.limit_memory(self.session.memory_bytes)
        except OSError as error:  # what the last sandbox there held is not all given back
            self.fail(Code.INTERNAL_ERROR, f"memory cannot be limited to {self.session.memory_bytes} bytes: {error}")
            return
        self._perform(self.session.started(self._code, now_s, self._given))
        self._code = ""
        self._given = {}

    def on_frame(self, sandbox: Sandbox, body: bytes) -> None:
        """The guest said something."""
        del sandbox
        self._perform(self.session.frame(body))

    def on_broken(self, sandbox: Sandbox, reason: str) -> None:
        """The guest's socket makes no sense."""
        del sandbox
        if not self.session.decided:
            self._perform(self.session.broken(reason))

    def on_hangup(self, sandbox: Sandbox) -> None:
        """The guest closed its socket: dead in a moment, or else unable to ever return a result."""
        self._alarms.set("hangup", _HANGUP_GRACE_S, self._on_closed, sandbox)

    def on_output(self, sandbox: Sandbox, stream: Stream, data: bytes) -> bool:
        """The guest wrote something."""
        del sandbox
        self._perform(self.session.output(stream, data))
        return not self.session.is_cut(stream)

    def on_dropped(self, sandbox: Sandbox, stream: Stream, size_bytes: int) -> None:
        """The guest wrote something that nobody will see."""
        del sandbox
        self.session.count_dropped(stream, size_bytes)

    def on_oom(self, sandbox: Sandbox) -> None:
        """The sandbox's memory is used up."""
        del sandbox
        self._perform(self.session.out_of_memory())

    def on_exit(self, sandbox: Sandbox, exit_: Exit) -> None:
        """The sandbox is gone."""
        sandbox.home.released(sandbox)
        self._sandbox = None
        self._finish(exit_)

    def _perform(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Emit):
                self._deliver(instruction.line)
            elif isinstance(instruction, ToGuest):
                if self._sandbox is not None:
                    self._sandbox.send(instruction.message)
            elif isinstance(instruction, StartToolTimer):
                call_id, timeout_ms = instruction
                self._alarms.set(call_id, timeout_ms / 1000, self._on_tool_timeout, call_id)
            elif isinstance(instruction, StopToolTimer):
                self._alarms.drop(instruction.call_id)
            elif isinstance(instruction, CheckUsage):
                self._alarms.set("usage", instruction.delay_ms / 1000, self._on_check)
            elif isinstance(instruction, Conclude):
                self._conclude()
            elif isinstance(instruction, Kill):
                self._kill()

    def _deliver(self, line: bytes) -> None:
        self.sink.deliver(line)
        if self.sink.congested and self._sandbox is not None and not self.session.decided:
            self._sandbox.pause()

    def _kill(self) -> None:
        if self._sandbox is not None:
            self._sandbox.kill()
            self._alarms.set("death", _DEATH_GRACE_S, self._conclude)
        else:
            # Nothing to kill: still waiting for a sandbox. Not at once: the caller may have more to perform first.
            self._sessions.pools.forget(self)
            self._loop.call_soon(self._finish, None)

    def _conclude(self) -> None:
        sandbox, self._sandbox = self._sandbox, None
        assert sandbox is not None, "a session that concludes has had a sandbox"
        try:
            used = sandbox.usage()
        except Exception:  # an ending must not depend on a measurement
            log.exception("what sandbox %d used can't be told", sandbox.number, extra=self.about)
            used = Usage()
        try:
            self._finish(Exit(0, used))
        finally:
            sandbox.home.retire(sandbox)  # after the `final` is on its way: nobody waits for a kill

    def _finish(self, exit_: Exit | None) -> None:
        self._alarms.clear()
        now_s = time.monotonic()
        for instruction in self.session.ended(exit_, now_s):
            if isinstance(instruction, Emit):
                self.sink.deliver(instruction.line)
            elif isinstance(instruction, Ended):
                if self._sessions.config.debug:
                    log.info("session ended: %s", instruction.code, extra=self.about)
                cpu_s = 0.0 if exit_ is None else exit_.usage.cpu_ms / 1000
                self._sessions.forget(self, instruction.code, now_s - self._started_s, cpu_s)

    def _on_deadline(self) -> None:
        self._perform(self.session.deadline(time.monotonic()))

    def _on_check(self) -> None:
        sandbox = self._sandbox
        if sandbox is None:
            return
        try:
            held_bytes = sandbox.held_bytes() if self._offer.allowance.watched else 0
            usage = sandbox.usage()
        except OSError as error:  # no descriptor to spare, say
            self._look_again(error)
            return
        self._blind_looks = 0
        self._perform(self.session.used(usage, held_bytes))

    def _look_again(self, error: OSError) -> None:
        """Limits that we enforce must outlast a look that failed, and nobody may go on for long without."""
        self._blind_looks += 1
        if self._blind_looks > _MAX_BLIND_LOOKS:
            self.fail(Code.INTERNAL_ERROR, f"nobody can tell what it uses: {error}")
            return
        if self._blind_looks == 1:
            log.warning("what a session uses can't be told at the moment: %s", error, extra=self.about)
        self._alarms.set("usage", WATCH_INTERVAL_MS / 1000, self._on_check)

    def _on_closed(self, sandbox: Sandbox) -> None:
        # One that is dying is not killed: the kernel shall say what it died of.
        grace_s = _DEATH_GRACE_S if sandbox.is_dying() else 0.0
        self._alarms.set("hangup", grace_s, self.on_broken, sandbox, "it was closed")

    def _on_tool_timeout(self, call_id: str) -> None:
        self._perform(self.session.tool_timeout(call_id))

    def _arm_heartbeat(self) -> None:
        delay_s = self.session.limits.heartbeat_interval_ms / 1000
        self._alarms.set("heartbeat", delay_s, self._on_heartbeat)

    def _on_heartbeat(self) -> None:
        if not self.sink.congested:  # where nothing goes out, signs of life would only pile up
            self._perform(self.session.heartbeat(iso_time(time.time())))
        self._arm_heartbeat()


class _Nowhere:
    """The sink of sessions whose connection is gone."""

    congested = False

    def deliver(self, line: bytes) -> None:
        """Drop it: nobody is left to read."""


_NOWHERE = _Nowhere()
