"""What a broker does at its start with the sessions that it had before.

Finished ones can be read as before. One that waited for a slot waits again, in its place and for the rest of its time.
One that was on a worker is treated as if the connection had just broken: the worker has some time to come back with
it. Deadlines go by the clock on the wall, so the time in which no broker ran counts too. And every live session gets
the time to be found by its client again that it gets when a reader leaves.

What can't go on ends here: an encrypted session, whose key died with the broker, and sessions of which the store says
that it may lack what their clients were told.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from enclave_protocol import Code, decode_event, peek
from enclave_protocol.events import ToolCall

from .steps import ToolCalled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .dispatcher import Dispatcher
    from .sessions import BrokerSession
    from .store import Loaded, Unended

log = logging.getLogger("enclave.broker")

LONGEST_OVERDUE_S = 30.0
"""How long after its deadline a session may still be heard of: as long as workers keep, by default, what no broker asks
for (`--lease-s`)."""
UNWRITTEN = (
    "the broker could not write this session down when it was ended (its disk was full, or the like): what happened "
    "after event {seq} is not known"
)
NO_KEY = "the broker was started again, and keeps no keys: nobody could read this session's next events"


class Recovery:
    """Takes in the sessions of an earlier broker.

    Args:
        dispatcher: of this one.
        loaded: what the store had.
    """

    def __init__(self, dispatcher: Dispatcher, loaded: Loaded) -> None:
        self._dispatcher = dispatcher
        self._loaded = loaded
        self._calls: list[tuple[BrokerSession, ToolCalled]] = []

    def sessions(self) -> None:
        """Take them in. To be called before anybody is answered and before any worker is dialled."""
        dispatcher, loaded = self._dispatcher, self._loaded
        dispatcher.directory.restore([*loaded.finished, *(found.session for found in loaded.live)])
        dispatcher.directory.expire(time.monotonic())
        for found in loaded.live:
            dispatcher.take_over(found.session)
        for found in loaded.live:
            self._go_on(found)
        if loaded.live or loaded.finished:
            log.info("the store had %d sessions that ended, %d that did not", len(loaded.finished), len(loaded.live))

    def calls(self) -> None:
        """Have the open tool calls answered. To be called when the broker has its tools."""
        for session, called in self._calls:
            if session.live and not session.calls[called.call.payload.call_id]:
                self._dispatcher.answering.call_again(session, called)

    def _go_on(self, found: Unended) -> None:
        session, fleet = found.session, self._dispatcher.fleet
        if self._loaded.unwritten:
            session.worker = None
            fleet.end(session, Code.INTERNAL_ERROR, UNWRITTEN.format(seq=session.log.next_seq - 1))
        elif found.encrypted:
            session.worker = None
            fleet.end(session, Code.ENCRYPTION_KEY_EXPIRED, NO_KEY)
        elif session.worker is not None:
            self._adopt(found)
        else:
            self._put_back(session)

    def _adopt(self, found: Unended) -> None:
        session, dispatcher = found.session, self._dispatcher
        config, fleet = dispatcher.config, dispatcher.fleet
        for call_id in session.open_calls.keys() & found.answers.keys():
            session.calls[call_id] = True
            session.answers[call_id] = found.answers[call_id]
        self._calls += [(session, called) for called in _open_calls(found)]
        fleet.adopt(session)
        if session.cancelling is not None:
            fleet.end_later(
                session, config.resume_s + config.cancel_grace_s, Code.SESSION_CANCELLED, session.cancelling
            )
        # It may have ended while no broker ran. Its worker has some time to say so, but not anew with every broker that
        # is killed: a session has its end.
        limits, started = session.limits, session.started or session.created
        left_s = started + limits.wall_ms / 1000 - time.monotonic()
        delay_s = 0.0 if left_s < -LONGEST_OVERDUE_S else max(left_s, config.resume_s) + config.final_grace_s
        message = f"the worker did not end the session within its {limits.wall_ms} ms"
        fleet.end_later(session, delay_s, Code.DEADLINE_EXCEEDED, message)

    def _put_back(self, session: BrokerSession) -> None:
        self._dispatcher.placer.put_back(
            session.session_id,
            self._dispatcher.fleet.queue_deadline(session),
            profile=session.need,
            size_bytes=session.request_bytes,
        )


def _open_calls(found: Unended) -> Iterator[ToolCalled]:
    """Yield the calls that nobody has answered."""
    session = found.session
    if all(session.calls.values()):
        return
    for line in [*found.calls, *found.log.kept()]:
        event = decode_event(line) if peek(line).type == "tool_call" else None  # others may be a newer worker's
        if isinstance(event, ToolCall) and not session.calls.get(event.payload.call_id, True):
            yield ToolCalled(event, len(line))
