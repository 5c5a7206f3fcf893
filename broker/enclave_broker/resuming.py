"""What becomes of the sessions of a worker whose connection broke. Pure: plain data in, one fate for each session out.

Theory of operation. A worker that resumes keeps its sessions for a while when its connection is gone, and says in the
`hello` of the next one which it has. Three things can be learnt about a session then:

- The same instance of the worker is back and lists it: it goes on where our log ends.
- The same instance is back and does not list it. If we have seen an event of it, the worker has given it up. If not,
  its `execute` never arrived, or arrives just now: it may wait in the socket of the broken connection while the `hello`
  on the new one is written. So the worker is asked for it; since it obeys nothing more that comes on a connection
  before the one that was welcomed last, a refusal proves that it never got the session and never will, and the session
  can be placed again, safely.
- Nobody knows: the instance is gone, or did not come back in time. It may have run, wholly or in part. It is lost,
  unless its client said that running it twice does no harm (`retry: "safe"`) and was told nothing of the first try.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enclave_protocol.messages import KeptSession

MAX_RETRIES = 2
"""How often a session that may be retried is placed again after it lost its worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What this broker knows of a session that it has on the worker."""

    next_seq: int
    """Number of the next event that its log takes."""
    first_seq: int
    """Number of the worker's first event."""
    live: bool
    """Whether its log has no `final` yet. One without is told to its client; the worker may still have the sandbox."""
    begun: bool
    """Whether an event of the worker's was seen."""
    cancelling: bool
    """Whether the worker was asked to end it."""
    may_retry: bool
    """Whether its client said that it may run twice."""
    retries: int = 0
    """How often it was placed again after its worker was lost."""


@dataclass(frozen=True, slots=True)
class Attach:
    """The worker has it, or may get it at this moment: ask for its events from `from_seq` on."""

    from_seq: int
    last_seq: int
    """Number of the newest event that the worker has; all up to it were written before the connection came back."""


@dataclass(frozen=True, slots=True)
class Discard:
    """The worker has it, or may get it, and nobody wants it any more: ask for its events, and end it."""

    from_seq: int


@dataclass(frozen=True, slots=True)
class PlaceAgain:
    """Put it back into the queue."""

    counts: bool
    """Whether it may have run, so that it is one of its retries."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """End it: it was cancelled, and is nowhere."""


@dataclass(frozen=True, slots=True)
class Lose:
    """End it with `WORKER_LOST`."""

    reason: str
    """Why it is lost, if not because the worker is gone."""


@dataclass(frozen=True, slots=True)
class Release:
    """It has ended, and the worker no longer has it: its slot is free."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Everything of it is kept here: the worker may forget it."""

    last_seq: int


Fate = Attach | Discard | PlaceAgain | Cancelled | Lose | Release


def fate_on_return(known: Known, kept: KeptSession | None, *, same_instance: bool) -> Fate:
    """Return what to do with a session whose worker said hello again.

    Args:
        known: the session.
        kept: what the worker says it has of it.
        same_instance: whether it is the worker that the session was sent to, and not another one in its place.
    """
    if not same_instance:
        return fate_on_loss(known)
    if kept is None:
        return _fate_unlisted(known)
    if not known.live:
        return Discard(max(kept.first_seq, kept.last_seq))
    if kept.first_seq > known.next_seq:
        return Lose(f"its events from {known.next_seq} on are no longer kept there")
    if kept.last_seq < known.next_seq - 1:
        return Lose(f"it has events up to {kept.last_seq}, and had sent {known.next_seq - 1}")
    return Attach(known.next_seq, kept.last_seq)


def _fate_unlisted(known: Known) -> Fate:
    if known.begun:
        return Lose("it no longer has the session") if known.live else Release()
    return Attach(known.first_seq, known.first_seq - 1) if known.live else Discard(known.first_seq)


def fate_on_loss(known: Known) -> Fate:
    """Return what to do with a session whose worker is gone for good, with whatever it had."""
    if not known.live:
        return Release()
    if known.cancelling:
        return Cancelled()
    if known.may_retry and not known.begun and known.retries < MAX_RETRIES:
        return PlaceAgain(counts=True)
    return Lose("")


def fate_of_leftover(kept: KeptSession, *, known: bool, ended_at: int | None) -> Discard | Acknowledge | None:
    """Return what to do with a session that a worker has, and that this broker does not have there.

    One that this broker does not know at all may be another broker's, so it is left alone: the worker's lease ends it.

    Args:
        kept: what the worker says it has.
        known: whether the session is, or was, this broker's.
        ended_at: number of its `final`, if that came from a worker.
    """
    if ended_at is not None and kept.last_seq == ended_at:
        return Acknowledge(ended_at)  # its end came through, our acknowledgement did not
    return Discard(max(kept.first_seq, kept.last_seq)) if known else None


def fate_on_refusal(known: Known, *, has_it: bool) -> Fate:
    """Return what to do with a session that its worker was asked for and does not go on with.

    Args:
        known: the session.
        has_it: whether the worker has it, but not the events that we want.
    """
    if has_it and known.live:
        return Lose(f"its events from {known.next_seq} on are no longer kept there")
    if not known.live:
        return Release()
    if known.begun:
        return Lose("it no longer has the session")
    return Cancelled() if known.cancelling else PlaceAgain(counts=False)
