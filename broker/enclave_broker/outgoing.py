"""What goes out to workers for their sessions: by the store, to the right placement, and again after an attach.

Theory of operation. Nothing that was sent is known to have arrived before an event says so. What matters is therefore
kept in the session until then, and `attach` says it again: answers of calls until `tool_result_applied`, a cancel until
the `final`, news of tools until `catalog_changed`. A worker refuses what it had heard, but for news: whether those had
arrived shows in the events that the worker wrote before the connection came back, so they wait for these.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from msgspec import UNSET

from enclave_protocol import Attach, Cancel, CatalogNotice, encode

if TYPE_CHECKING:
    from enclave_protocol.events import CatalogChangedPayload

    from . import resuming
    from .links import Link
    from .sessions import BrokerSession
    from .store import Store

MAX_REASON_CHARS = 1000
"""Of a cancel."""


class Outgoing:
    """The broker's voice on all links.

    Args:
        store: lets out nothing that is not stored.
        links: by the names that sessions have for their workers; the fleet's own.
    """

    def __init__(self, store: Store, links: dict[str, Link]) -> None:
        self._store = store
        self._links = links

    def send(self, session: BrokerSession, message: bytes) -> None:
        """Pass a message on to a session's worker, if that still waits for one."""
        if session.live:
            self._post(session, message)

    def answer(self, session: BrokerSession, call_id: str, message: bytes) -> None:
        """Pass the result of a tool call on, and again after each attach until the guest has it."""
        if session.live and session.worker is not None and call_id in session.open_calls:
            session.answers[call_id] = message
            self._store.answer(session, call_id, message)
            self.send(session, message)

    def cancel(self, session: BrokerSession, reason: str) -> None:
        """Have a session's worker end it, also one that has its `final` already."""
        self._post(session, encode(Cancel(session_id=session.session_id, reason=reason[:MAX_REASON_CHARS] or UNSET)))

    def tell(self, session: BrokerSession, news: CatalogChangedPayload) -> None:
        """Have the stream of a live session say which tools came and went."""
        if session.live and session.tell(news):
            self.send(session, encode(CatalogNotice(session_id=session.session_id, payload=news)))

    def tell_rest(self, session: BrokerSession) -> None:
        """Tell what could not be told before."""
        news, session.untold = session.untold, None
        if news is not None:
            self.tell(session, news)

    def attach(self, session: BrokerSession, link: Link, fate: resuming.Attach) -> None:
        """Have a session go on, and say again what the worker may not have heard."""
        session.attach(fate.last_seq)
        link.acks.kept(session, 0)  # what was acknowledged on the last connection may not have arrived
        message = encode(Attach(session_id=session.session_id, from_seq=fate.from_seq))
        self._store.then(functools.partial(link.send, message))
        for answer in session.answers.values():
            self._store.then(functools.partial(link.send_again, answer))
        if session.cancelling is not None:
            self.cancel(session, session.cancelling)
        if session.may_tell:
            self.tell_rest(session)

    def discard(self, session_id: str, link: Link, fate: resuming.Discard) -> None:
        """Have a worker end a session that nobody wants any more."""
        link.send(encode(Attach(session_id=session_id, from_seq=fate.from_seq)))
        link.send(encode(Cancel(session_id=session_id, reason="it ended while the connection was lost")))

    def _post(self, session: BrokerSession, message: bytes) -> None:
        if session.worker is not None:
            self._store.then(functools.partial(self._send, session.placement, session, message))

    def _send(self, placement: int, session: BrokerSession, message: bytes) -> None:
        # Else it left that worker while the message waited for the store. It may be there again, placed once more.
        if session.worker is not None and session.placement == placement:
            link = self._links.get(session.worker)
            if link is not None:
                link.send(message)
