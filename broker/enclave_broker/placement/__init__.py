"""Which worker runs a session, and who waits. Pure: plain state, no I/O, no clock.

placer        the fleet and the queue: every decision, as one synchronous step each
slots         which session has a slot of which worker
workers       what is known of a worker, and which one a session goes to
health        which workers fail more than others, for a while
fair_queue    who waits, and in which order they are served
estimates     what a wait is expected to be
pace          how long sessions hold slots
instructions  what the placer says is to be done
"""

from .instructions import DEFAULT_PROFILE, Lose, Place, Refuse, RefuseReason, Submitted, Wait
from .placer import Placer
from .slots import Statistics
from .workers import WorkerView

__all__ = [
    "DEFAULT_PROFILE",
    "Lose",
    "Place",
    "Placer",
    "Refuse",
    "RefuseReason",
    "Statistics",
    "Submitted",
    "Wait",
    "WorkerView",
]
